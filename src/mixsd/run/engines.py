"""Engines other than transformers that mixing can decode on, by name; a new one is one new file and one line here.

A backend is a function (folder, *, device, dtype, trust_remote_code) that loads a model folder and returns `decode(take, sampling, *,
wants_logprobs, with_support, dropped)`, as in `mixsd.decoding.engine`; log-probabilities that it leaves out are measured afterwards on
transformers. `device` is a type such as "cuda", `dtype` "float32" or "bfloat16". It runs in a process of its own that has ended
before anything else is loaded.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixsd.errors import MixsdError, UserError, did_you_mean
from mixsd.plugins import is_function_name, load_function
from mixsd.run.session import Session
from mixsd.settings import EXECUTION
from mixsd.storage import disk_errors

LOG = "backend.log"
# What runs there opens the run, which is above this layer: it is started by name.
_PROCESS = "mixsd.commands.engine_process"


def fill_journal(session: Session, on_done: Callable[[int, int], None]) -> None:
    """Decode and verify on the run's backend until the journal of attempts is whole; errors as of `answer`."""
    _run(session, {"kind": "attempts"}, lambda told: on_done(*told))


def answer(session: Session, model: str, folder: Path, suites: list[str], journal: Path, on_done: Callable[[int], None]) -> None:
    """Let a model's folder answer suites on the run's backend, until the journal of replies has all of them.

    Raises:
        UserError: the backend cannot be used here, or for this model.
        MixsdError: it ended before its work was done.
    """
    work = {"kind": "replies", "model": model, "folder": str(folder), "suites": suites, "journal": str(journal)}
    _run(session, work, on_done)


def _run(session: Session, work: dict[str, Any], on_done: Callable[[Any], None]) -> None:
    log = session.run.folder / LOG
    options = session.settings.model_dump(include=set(EXECUTION))
    with disk_errors(log), log.open("ab") as errors:
        # Imported by name and not with the parent's memory: an engine wants a process that nothing else has touched.
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", _PROCESS, str(session.run.folder), json.dumps(options), json.dumps(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    refused = None
    try:
        for line in process.stdout:
            told = json.loads(line)
            if "say" in told:
                session.watcher.say(told["say"])
            elif "refused" in told:
                refused = told["refused"]
            else:
                on_done(told["done"])
        code = process.wait()
    finally:
        process.stdin.close()
        process.wait()
    if refused:
        raise UserError(refused)
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]
        raise MixsdError(
            f"--backend {session.settings.backend} ended with code {code}: {last.strip()[:300]} (the rest is in {log})"
        )


TRANSFORMERS = "transformers"
BACKENDS = {"vllm": "mixsd.decoding.on_vllm:connect"}  # by the module that must be there


def check_backend(name: str) -> None:
    """Raise a `UserError` for a name that is unknown or whose engine is not installed; nothing is imported."""
    if name == TRANSFORMERS or is_function_name(name):
        return
    if name not in BACKENDS:
        known = [TRANSFORMERS, *BACKENDS, "package.module:function"]
        raise UserError(f'--backend "{name}": unknown{did_you_mean(name, known)}; known: {", ".join(known)}')
    if importlib.util.find_spec(name) is None:
        raise UserError(f"--backend {name}: {name} is not installed; pip install 'mixsd[{name}]'")


def get_backend(name: str) -> Any:
    """Import the backend of a name that `check_backend` has passed, other than transformers."""
    return load_function(BACKENDS.get(name, name), f"--backend {name}")
