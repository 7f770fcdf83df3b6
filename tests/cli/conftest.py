"""Command lines run in this process, in an empty folder of their own; the pipeline is faked where its work does not matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mixsd.cli import entry


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / ".cache"))
    monkeypatch.setenv("COLUMNS", "100")
    quieted = ("TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM", "TQDM_DISABLE")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "NO_COLOR", "FORCE_COLOR", *quieted):
        # Set first, so that what the code under test sets is undone.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mixsd(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = entry.run([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def fails(mixsd: Callable[..., Outcome]) -> Callable[..., str]:
    """Run a command line that is refused: exit code 2, one line on stderr, nothing on stdout. Returns the line."""

    def call(*arguments: object) -> str:
        outcome = mixsd(*arguments)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        assert outcome.err.startswith("error: ")
        assert outcome.err.count("\n") == 1
        assert outcome.err.endswith("\n")
        return outcome.err.rstrip("\n")

    return call
