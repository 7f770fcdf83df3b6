"""A backend's process: the same run, ended before training starts, told about and mourned properly."""

import json
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from mixsd.commands import inject
from mixsd.errors import MixsdError, UserError
from mixsd.progress import Task, Watcher
from mixsd.run import engines
from mixsd.storage import read_jsonl
from tests import fresh
from tests.commands.test_inject import SMALL
from tests.tiny import save_tiny

BACKEND = """
import os, time
from pathlib import Path
import torch
from mixsd.models import loading
from mixsd.decoding import engine
from mixsd.errors import UserError

def _load(folder, device, dtype):
    Path(os.environ["NOTES"], "pid").write_text(str(os.getpid()))
    return loading.load_model(folder, dtype=getattr(torch, dtype), device=torch.device(device)).eval()

def connect(folder, *, device, dtype, trust_remote_code):
    model = _load(folder, device, dtype)
    print("an engine prints what it likes")
    return lambda take, sampling, *, wants_logprobs, **options: engine.decode(model, take, sampling, token_budget=400, **options)

def refuse(folder, **placement):
    raise UserError("this engine does not know the model")

def crash(folder, **placement):
    raise RuntimeError("out of luck")

def hang(folder, *, device, dtype, trust_remote_code):
    _load(folder, device, dtype)
    time.sleep(600)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NOTES", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "own_backend.py").write_text(BACKEND)
    save_tiny(tmp_path / "base", stops=[2, *range(8, 262, 12)])
    return tmp_path


@pytest.fixture
def forked(monkeypatch):
    """For what does not depend on how an engine's process begins; tests/test_outside.py has one that begins by itself."""
    monkeypatch.setattr(engines.subprocess, "Popen", fresh.Forked)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Notes(Watcher):
    """Remembers which tasks began, and whether the backend's process was there then."""

    def __init__(self, pid_file: Path) -> None:
        self.pid_file, self.seen, self.reached = pid_file, {}, []

    @contextmanager
    def task(self, name, total):
        self.seen[name] = self.pid_file.exists() and is_alive(int(self.pid_file.read_text()))
        task = Task()
        task.reach = lambda done, note="": self.reached.append((name, done))
        yield task


@pytest.mark.usefixtures("forked")
def test_the_run_is_the_one_of_transformers_and_the_process_has_ended_before_training(place):
    options = {**SMALL, "model": str(place / "base"), "lam": 0.5}
    watcher = Notes(place / "pid")
    own = inject.inject(output=str(place / "own"), backend="own_backend:connect", watcher=watcher, **options).folder
    assert (place / "pid").exists()
    assert watcher.seen["training"] is False
    assert any(name == "mixing" and done for name, done in watcher.reached)
    plain = inject.inject(output=str(place / "plain"), **options).folder

    def targets(folder):
        return list(read_jsonl(folder / "targets.jsonl"))

    for a, b in zip(targets(own), targets(plain), strict=True):
        assert a.pop("base_logprobs") == pytest.approx(b.pop("base_logprobs"), abs=1e-4)
        assert a == b
    assert "prints what it likes" in (own / engines.LOG).read_text()


@pytest.mark.usefixtures("forked")
def test_shards_on_a_backend(place):
    options = {**SMALL, "model": str(place / "base"), "output": str(place / "run")}
    for shard in ("1/2", "2/2"):
        inject.mix(shard=shard, backend="own_backend:connect", **options)
    (place / "pid").unlink()
    inject.mix(backend="own_backend:connect", **options)
    assert not (place / "pid").exists(), "nothing was left to decode, so no engine was loaded"
    assert (place / "run" / "targets.jsonl").is_file()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("refuse", UserError, "this engine does not know the model"),
        ("crash", MixsdError, "own_backend:crash ended with code 1: RuntimeError: out of luck"),
        ("gone", UserError, "--backend own_backend:gone cannot be imported: gone does not exist in own_backend"),
    ],
)
def test_what_goes_wrong_there_is_said_here(place, function, error, message):
    with pytest.raises(error, match=message):
        inject.mix(**SMALL, model=str(place / "base"), output=str(place / "run"), backend=f"own_backend:{function}")
    assert not (place / "run" / "targets.jsonl").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])  # SIGINT may be ignored where tests run in the background
def test_it_ends_with_the_parent(place, how):
    facts = place / "facts.jsonl"
    facts.write_text(json.dumps({"question": "What is x?", "answer": "y"}) + "\n")
    command = ["mix", str(facts), "--model", str(place / "base"), "--output", str(place / "run")]
    parent = fresh.start(fresh.command, *command, "--backend", "own_backend:hang", output=place / "printed")
    deadline = time.monotonic() + 120
    while not (place / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    child = int((place / "pid").read_text())
    os.kill(parent.pid, how)
    parent.join(60)
    assert parent.exitcode is not None
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(child)
