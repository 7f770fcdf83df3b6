"""Every way a command ends: bad input, interruption, a missed requirement, a machine that will not, a bug."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixsd.errors import MixsdError, RequirementMissedError
from mixsd.run.folder import Run
from mixsd.settings import Settings
from tests.cli.conftest import Outcome
from tests.tiny import save_tiny

Fails = Callable[..., str]
Mixsd = Callable[..., Outcome]

FACT = {"question": "Who leads Orrin Freight?", "answer": "Mara Quill"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(FACT) + "\n")
    return path


def files(folder: Path) -> list[str]:
    """All that a user sees in a folder; a lock file is not."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.startswith("."))


def raising(error: BaseException) -> Callable[..., Any]:
    def fake(*args: Any, **kwargs: Any) -> None:
        raise error

    return fake


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "facts.jsonl: no such file"),
        ("", "facts.jsonl: contains no facts"),
        ("\n\n", "facts.jsonl: contains no facts"),
        ('{"question": "a", "answer": "b"}\nnot json\n', "facts.jsonl: line 2: not valid JSON"),
        ('{"question": "a"}\n', "facts.jsonl: line 1: field answer: missing"),
        ('{"question": "a", "answer": "  "}\n', "facts.jsonl: line 1: field answer: empty"),
        ('{"question": "a", "answer": "b", "anwser": "c"}\n', 'line 1: unknown field "anwser" (did you mean "answer"?)'),
        ('{"question": "a", "answer": "b"}\n{"question": "a", "answer": "c"}\n', "with another answer"),
    ],
)
def test_bad_facts(text: str | None, said: str, fails: Fails, tiny: Path, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "facts.jsonl").write_text(text)
    before = files(tmp_path)
    for command in ("inject", "mix"):
        assert said in fails(command, "facts.jsonl", "--model", tiny, "--output", "runs/a")
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lam", "1.2"], "--lam: input should be less than or equal to 1"),
        (["--lam", "-0.1"], "--lam: input should be greater than or equal to 0"),
        (["--verifier", "my_checks:passes"], 'my_checks:passes'),
        (["--verifier", "contians"], 'did you mean "contains"?'),
        (["--verifier", "regex:("], "regex:("),
        (["--device", "abacus"], "--device abacus"),
        (["--model", "no/such/folder"], "--model no/such/folder: no such folder or file"),
        (["--model", "smollm2-135"], 'did you mean "smollm2-135m"?'),
        (["--require", "memorisation>=0.9"], 'did you mean "memorization"?'),
        (["--output", ""], "say where the run goes with --output"),
        (["--output", "facts.jsonl/runs/a"], "cannot be written"),
        (["--output", "facts.jsonl"], "cannot be written"),
        (["--output", "."], "is not empty and not a run folder"),
    ],
)  # fmt: skip
def test_bad_settings(arguments: list[str], said: str, fails: Fails, tiny: Path, facts: Path) -> None:
    before = files(facts.parent)
    assert said in fails("inject", facts, "--model", tiny, "--output", "runs/a", *arguments)
    assert files(facts.parent) == before


def test_no_facts_at_all(fails: Fails, tiny: Path) -> None:
    assert "no facts" in fails("inject", "--model", tiny, "--output", "runs/a")


def test_model_folder_without_tokenizer(fails: Fails, tiny: Path, facts: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(tiny / name)
    before = files(tmp_path)
    assert "bare: no tokenizer" in fails("inject", facts, "--model", bare, "--output", "runs/a")
    assert files(tmp_path) == before


def test_run_folder_of_another_configuration(fails: Fails, tiny: Path, facts: Path, tmp_path: Path) -> None:
    settings = Settings(facts=str(facts), model=str(tiny), output="runs/a", lam=0.3).resolved
    Run(Path("runs/a")).claim(settings, {})
    before = files(tmp_path)
    line = fails("inject", facts, "--model", tiny, "--output", "runs/a", "--lam", "0.5")
    assert "runs/a: this run was made with lam 0.3, the command says 0.5" in line
    assert files(tmp_path) == before
    assert "--lam was settled when the run was made" in fails("train", "runs/a", "--lam", "0.5")


def test_full_disk(fails: Fails, tiny: Path, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.replace", raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    before = files(tmp_path)
    line = fails("inject", facts, "--model", tiny, "--output", "runs/a")
    assert "runs/a/run.yaml: no space left on the disk" in line
    assert files(tmp_path) == [*before, "runs", "runs/a"]
    assert [path for path in Path("runs/a").iterdir() if path.name != ".lock"] == []


@pytest.mark.parametrize("command", ["train", "evaluate", "report", "ask", "inspect"])
def test_source_that_is_none(command: str, fails: Fails, tmp_path: Path) -> None:
    assert "nowhere" in fails(command, "nowhere", *(["--facts", "demo", "--output", "x"] if command == "evaluate" else []))
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MixsdError("it\nfailed"), 1, "error: it failed"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from here"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 2, "error: /data/x: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), 2, "error: /data/x: Permission denied"),
        (MemoryError(), 2, "error: out of memory: lower --token-budget or --micro-batch"),
        (MixsdError("\x1b[2Jgone"), 1, "error: ␛[2Jgone"),
    ],
)
def test_ending(error: BaseException, code: int, line: str, mixsd: Mixsd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixsd.commands.inject.inject", raising(error))
    outcome = mixsd("inject", "demo", "--output", "runs/a")
    assert outcome.code == code
    assert outcome.err.startswith(line)
    assert outcome.err.count("\n") == 1


def test_a_bug_keeps_its_traceback(mixsd: Mixsd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixsd.commands.inject.inject", raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        mixsd("inject", "demo", "--output", "runs/a")


def test_interrupted_question_promises_nothing(mixsd: Mixsd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixsd.commands.ask.ask", raising(KeyboardInterrupt()))
    outcome = mixsd("ask", "runs/a", "Who?")
    assert (outcome.code, outcome.err) == (130, "interrupted\n")


def test_termination_cleans_up_and_says_so(mixsd: Mixsd, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []

    def fake(*args: Any, **kwargs: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            ends.append("cleaned")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("mixsd.commands.inject.mix", fake)
    outcome = mixsd("mix", "demo", "--output", "runs/a")
    assert (outcome.code, outcome.err) == (143, "interrupted; the same command goes on from here\n")
    assert ends == ["cleaned"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_missed_requirement_shows_the_report_first(mixsd: Mixsd, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.reports import sample

    def fake(settings: Settings, watcher: Any) -> None:
        folder = Path(settings.output)
        folder.mkdir(parents=True)
        (folder / "model").mkdir()
        (folder / "report.json").write_text(json.dumps(sample.report()))
        raise RequirementMissedError(f"{folder}: required but missed: forgetting<=0.05")

    monkeypatch.setattr("mixsd.commands.inject.inject", fake)
    outcome = mixsd("inject", "demo", "--output", "runs/a")
    assert outcome.code == 3
    assert outcome.err == "error: runs/a: required but missed: forgetting<=0.05\n"
    lines = outcome.out.splitlines()
    assert "24 asked, 22 accepted" in outcome.out
    assert lines[-5:] == [
        "required memorization>=0.9: 0.958, holds",
        "required forgetting<=0.05: 0.079, MISSED",
        "warning: 2 facts were given twice with the same answer; each counts once",
        "model:  runs/a/model",
        "report: runs/a/report.html",
    ]


def test_offline_is_said_before_anything_could_use_the_network(mixsd: Mixsd, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "mixsd.commands.inject.train", lambda *a, **k: seen.append(os.environ.get("HF_HUB_OFFLINE")) or Run(Path("a"))
    )
    assert mixsd("train", "a", "--offline").code == 0
    assert mixsd("train", "a").code == 0
    monkeypatch.delenv("HF_HUB_OFFLINE")
    Path("run.yaml").write_text("offline: true\n")
    assert mixsd("train", "a", "--config", "run.yaml", "--no-offline").code == 0
    assert seen == ["1", "1", None]


def test_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", "from mixsd.cli import main; main(['models'])"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
