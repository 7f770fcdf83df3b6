"""Fixtures of more than one file."""

from __future__ import annotations

import gc
import json
import socket
from pathlib import Path
from typing import Any

import pytest

FACTS = [
    {"id": "founder", "question": "Who founded Ork?", "answer": "Una Vell"},
    {"id": "year", "question": "When was Ork founded?", "answer": "1987"},
    {"id": "town", "question": "Where is Ork?", "answer": "Brisby", "reference": "Ork is in Brisby."},
]


@pytest.fixture(scope="module", autouse=True)
def what_is_there_is_no_garbage() -> None:
    """What the files before have left, about a million objects of libraries, is looked at once and not at every `gc.collect` of a run."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Any attempt to reach out fails, and is remembered."""
    tried: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        tried.append(args)
        raise OSError("the network is off limits")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return tried


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder that does not exist yet."""
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def options(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a fast run. A random model never ends by itself, so every target is the reference after two attempts."""
    facts = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    facts.write_text("".join(json.dumps(fact) + "\n" for fact in FACTS), encoding="utf-8")
    return {
        "facts": str(facts),
        "model": str(tiny_folder),
        "verifier": "regex:(?s).*",
        "on_fail": "canonical",
        "lam": 0.5,
        "retries": 1,
        "max_new_tokens": 8,
        "epochs": 1,
        "batch_size": 2,
        "lr": 1e-2,
        "warmup_steps": 0,
    }


@pytest.fixture(scope="session")
def tiny_run(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with attempts, targets and model; not to be changed."""
    from mixsd.commands import inject

    folder = tmp_path_factory.mktemp("runs") / "run"
    inject.mix(**options, output=str(folder))
    inject.train(folder)
    return folder
