"""Decoding in a process of its own, for engines that keep the memory they took until their process ends.

The process opens the run folder that its parent holds, fills a journal, of mixing's attempts or of a model's replies, and ends, or
ends with its parent. It tells it how far it is, one JSON line each; what the engine prints goes to `backend.log` in the run folder.
"""

import json
import os
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

from mixsd.decoding.requests import Decoding
from mixsd.errors import UserError
from mixsd.killable import end_with_parent
from mixsd.progress import Watcher
from mixsd.run.session import Session


class _Teller(Watcher):
    def __init__(self, out: IO[str]) -> None:
        self.out = out

    def tell(self, **values: Any) -> None:
        self.out.write(json.dumps(values) + "\n")
        self.out.flush()

    def say(self, text: str) -> None:
        self.tell(say=text)


def main(folder: str, options: str, work: str) -> None:
    end_with_parent()
    # The parent reads standard output, and engines print there.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    teller = _Teller(out)
    from mixsd.commands import opening
    from mixsd.run.folder import Run

    try:
        session = opening.resume(Run(Path(folder)), teller, json.loads(options))
        _work(session, json.loads(work), teller)
    except UserError as error:
        teller.tell(refused=str(error))


def _work(session: Session, work: dict[str, Any], teller: _Teller) -> None:
    from mixsd.evaluation import stage
    from mixsd.models import loading
    from mixsd.run.engines import get_backend
    from mixsd.targets import stage as targets_stage

    backend = get_backend(session.settings.backend)
    folder = Path(work.get("folder", session.located.folder))
    loaded = cache(partial(backend, folder, **session.placement))  # when the first token is needed: a whole journal needs none

    def decode(*arguments: Any, **options: Any) -> Iterator[Decoding]:
        yield from loaded()(*arguments, **options)

    if work["kind"] == "attempts":
        with targets_stage.mixing(session, lambda *done: teller.tell(done=done), decode) as mixer:
            mixer.fill_journal(session.part)
        return
    model = stage.Candidate(work["model"], folder, loading.model_hash(folder))
    stage.answer_apart(session, model, work["suites"], Path(work["journal"]), decode, lambda count: teller.tell(done=count))


if __name__ == "__main__":
    main(*sys.argv[1:])
