"""What the machine gives is found by trying, and where it gives nothing, nothing is run unasked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mixsd.errors import UserError
from mixsd.sandbox import Isolation, Judged, check, judge
from mixsd.sandbox.isolation import DEFAULT, StartError, problem, shown
from mixsd.sandbox.judging import judge_in
from tests.sandbox.conftest import PROMPT, RIGHT, isolation


def _none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "problem", lambda: "bubblewrap is not installed")


def test_bubblewrap_is_taken_where_it_works(strong: str) -> None:
    found = isolation.isolation()
    assert found == Isolation(strong, True, True, found.note)
    assert strong in found.note
    assert "processes" in found.note
    assert check(False) == check(True) == found


def test_refused_without_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    _none(monkeypatch)
    ran: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **_: ran.append(args))
    with pytest.raises(UserError) as caught:
        judge("def f(x): return 1", prompt=PROMPT, test=RIGHT, entry_point="f")
    message = str(caught.value)
    assert "\n" not in message
    assert "apt install bubblewrap" in message
    assert "--allow-weak-sandbox" in message
    assert ran == []


def test_the_weak_one_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    _none(monkeypatch)
    found = check(True)
    assert (found.kind, found.network, found.files) == ("none", False, False)
    assert "No isolation" in found.note
    judged = judge("def f(x): return 'right'", prompt=PROMPT, test=RIGHT, entry_point="f", allow_weak=True)
    assert judged.passed


def test_bubblewrap_that_is_absent_or_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert problem.__wrapped__() == "bubblewrap is not installed"
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'setting up uid map: Permission denied' >&2\nexit 1\n")
    for folder in (broken, *tmp_path.parents[:2], tmp_path):
        folder.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: str(broken))
    why = problem.__wrapped__()
    assert why == "bubblewrap does not work: setting up uid map: Permission denied"
    monkeypatch.setattr(isolation, "problem", lambda: why)
    with pytest.raises(UserError, match=r"Permission denied.*install bubblewrap .*--allow-weak-sandbox"):
        check(False)
    judged = judge_in("bubblewrap", "def f(x): return 1", prompt=PROMPT, test=RIGHT, entry_point="f")
    assert judged == Judged(False, "the sandbox did not start: setting up uid map: Permission denied", True)


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    for system in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", system)
        assert problem.__wrapped__() == f"no sandbox for {system}"
        _none(monkeypatch)
        with pytest.raises(UserError):
            check(False)
    with pytest.raises(UserError, match="Linux and macOS only"):
        check(True)


def test_our_failures_are_ours(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = "def f(x): return 'right'"
    judged = judge_in(kind, right, prompt=PROMPT, test="def check(candidate", entry_point="f")
    assert (judged.passed, judged.ours) == (False, True)
    assert "tests cannot be loaded" in str(judged.reason)
    with monkeypatch.context() as patched:
        patched.setattr(isolation, "_BOOT", "raise OSError('no interpreter')")
        judged = judge_in(kind, right, prompt=PROMPT, test=RIGHT, entry_point="f")
        assert (judged.passed, judged.ours) == (False, True)
        assert "no interpreter" in str(judged.reason)

    def fail(*args: object, **_: object) -> None:
        raise OSError("too many processes")

    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(StartError), isolation.start(kind, {"role": "program", "fds": {}}, DEFAULT):
        pass
    assert judge_in(kind, right, prompt=PROMPT, test=RIGHT, entry_point="f").ours


def test_import_is_light() -> None:
    code = "import sys, mixsd.sandbox; print([n for n in ('torch', 'numpy', 'transformers', 'pydantic') if n in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert shown.stdout.strip() == "[]"


def test_a_store_of_packages_is_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """On NixOS and Guix the loader and the C library are packages of their own, beside Python's."""
    monkeypatch.setattr(sys, "base_prefix", "/nix/store/1-python")
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    shown.cache_clear()
    try:
        assert "/nix/store" in shown()
        assert "/gnu/store" not in shown()
    finally:
        shown.cache_clear()


def test_the_virtual_environment_is_not_shown() -> None:
    """What is installed there is no business of judged code; and a project in /tmp would put a view inside the writable folder."""
    assert not any(Path(path).is_relative_to(sys.prefix) for path in shown() if sys.prefix != sys.base_prefix)


def test_a_view_inside_the_temporary_folder(strong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tempfile.mkdtemp(dir="/tmp")
    os.chmod(folder, 0o755)
    (Path(folder) / "shown").write_text("here")
    more = (*shown(), folder)
    monkeypatch.setattr(isolation, "shown", lambda: more)
    code = f"""
def f(x):
    try:
        open({folder + "/other"!r}, "w")
    except OSError:
        open("own", "w").write("x")
        return "right" if open({folder + "/shown"!r}).read() == "here" else "wrong"
"""
    try:
        assert judge_in(strong, code, prompt=PROMPT, test=RIGHT, entry_point="f") == Judged(True, None, False)
    finally:
        shutil.rmtree(folder)
