"""Decoding in a process of its own, for engines that keep the memory they took until their process ends.

The process opens the run folder that its parent holds, fills a journal, of mixing's attempts or of a model's replies, and ends. It
tells the parent how far it is, one JSON line each; what the engine prints goes to `backend.log` in the run folder. When the parent
ends, however it does, so does the process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from mixsd.decoding.requests import Decoding
from mixsd.errors import MixsdError, UserError
from mixsd.pipeline.session import Session
from mixsd.progress import Watcher
from mixsd.settings import EXECUTION
from mixsd.storage import disk_errors

LOG = "backend.log"


def attempt(session: Session, on_done: Callable[[int, int], None]) -> None:
    """Decode and verify on the run's backend until the journal of attempts is whole.

    Raises:
        UserError: the backend cannot be used here, or for this model.
        MixsdError: it ended before its work was done.
    """
    _run(session, {"kind": "attempts"}, lambda told: on_done(*told))


def answer(session: Session, model: str, folder: Path, suites: list[str], journal: Path, on_done: Callable[[int], None]) -> None:
    """Let a model's folder answer some suites on the run's backend, until the journal of replies has all of them.

    Raises:
        UserError: the backend cannot be used here, or for this model.
        MixsdError: it ended before its work was done.
    """
    work = {"kind": "replies", "model": model, "folder": str(folder), "suites": suites, "journal": str(journal)}
    _run(session, work, on_done)


def _run(session: Session, work: dict[str, Any], on_done: Callable[[Any], None]) -> None:
    settings, log = session.settings, session.run.folder / LOG
    options = {name: getattr(settings, name) for name in EXECUTION}
    with disk_errors(log), log.open("ab") as errors:
        # Imported by name and not with the parent's memory: an engine wants a process that nothing else has touched.
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", __name__, str(session.run.folder), json.dumps(options), json.dumps(work)],
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
        raise MixsdError(f"--backend {settings.backend} ended with code {code}: {last.strip()[:300]} (the rest is in {log})")


class _Teller(Watcher):
    def __init__(self, out: IO[str]) -> None:
        self.out = out

    def tell(self, **values: Any) -> None:
        self.out.write(json.dumps(values) + "\n")
        self.out.flush()

    def say(self, text: str) -> None:
        self.tell(say=text)


def main(folder: str, options: str, work: str) -> None:
    """What the process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The parent reads standard output, and engines print there.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    teller = _Teller(out)
    from mixsd.pipeline import session as sessions
    from mixsd.pipeline.run import Run

    try:
        session = sessions.resume(Run(Path(folder)), teller, json.loads(options))
        _work(session, json.loads(work), teller)
    except UserError as error:
        teller.tell(refused=str(error))


def _work(session: Session, work: dict[str, Any], teller: _Teller) -> None:
    from mixsd import loading
    from mixsd.decoding.backends import get_backend
    from mixsd.pipeline import evaluating, stages

    backend = get_backend(session.settings.backend)
    folder = Path(work.get("folder", session.located.folder))
    loaded: list[Callable[..., Iterator[Decoding]]] = []

    def decode(*arguments: Any, **options: Any) -> Iterator[Decoding]:
        # Loaded when the first token is needed: a whole journal needs none.
        if not loaded:
            loaded.append(backend(folder, **session.placement))
        yield from loaded[0](*arguments, **options)

    if work["kind"] == "attempts":
        with stages.mixing(session, lambda *done: teller.tell(done=done), decode) as mixer:
            mixer.attempt(session.part)
        return
    model = evaluating.Candidate(work["model"], folder, loading.model_hash(folder))
    evaluating.answer_apart(session, model, work["suites"], Path(work["journal"]), decode, lambda count: teller.tell(done=count))


def _end_with_parent() -> None:
    while os.read(0, 1):  # nothing is ever written; and a buffered reader would be locked when the process wants to end
        pass
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
