"""A trial: a judgement in one kind of sandbox, after which nothing of it may be left."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mixsd.sandbox import Judged, Limits
from mixsd.sandbox.isolation import problem
from mixsd.sandbox.judging import judge_in

# `mixsd.sandbox.isolation` names the function.
isolation = sys.modules["mixsd.sandbox.isolation"]

PROMPT = 'def f(x):\n    """Answer."""\n'
RIGHT = 'def check(candidate):\n    assert candidate(1) == "right"\n'
QUICK = Limits(wall_seconds=1.5, cpu_seconds=1, memory_mb=512, processes=16)
CALM = Limits(wall_seconds=20.0, cpu_seconds=5, memory_mb=512, file_mb=16, processes=16)

Trial = Callable[..., Judged]


def marked(marker: str) -> list[int]:
    """The processes that carry the marker in their command line, and zombies of this process."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:2]
            ours = marker.encode() in (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if (ours and int(entry.name) != os.getpid()) or (state == b"Z" and int(parent) == os.getpid()):
            found.append(int(entry.name))
    return found


def gone(marker: str, patience: float = 5.0) -> bool:
    deadline = time.monotonic() + patience
    while marked(marker) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not marked(marker)


def skip_unless_possible(kind: str) -> None:
    if kind == "bubblewrap" and (why := problem()) is not None:
        pytest.skip(f"not possible here: {why}")


@pytest.fixture(params=["bubblewrap", "none"])
def kind(request: pytest.FixtureRequest) -> str:
    skip_unless_possible(request.param)
    return str(request.param)


@pytest.fixture
def strong() -> str:
    skip_unless_possible("bubblewrap")
    return "bubblewrap"


@pytest.fixture
def marker(monkeypatch: pytest.MonkeyPatch) -> str:
    marker = f"mixsd-marker-{uuid.uuid4().hex}"
    monkeypatch.setattr(isolation, "_BOOT", f"{isolation._BOOT}# {marker}\n")
    return marker


@pytest.fixture
def trial(marker: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Trial]:
    """Judge in a kind; afterwards no process, no temporary folder and no open descriptor is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    descriptors = len(os.listdir("/proc/self/fd"))

    def run(kind: str, code: str, *, test: str = RIGHT, prompt: str = PROMPT, limits: Limits = CALM) -> Judged:
        judged = judge_in(kind, code, prompt=prompt, test=test, entry_point="f", limits=limits)
        assert gone(marker)
        assert list(folder.iterdir()) == []
        return judged

    yield run
    assert len(os.listdir("/proc/self/fd")) == descriptors
