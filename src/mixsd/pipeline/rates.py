"""`--lr auto`: the paper's way to a learning rate, a training at each of a grid, and the best by validation (appendix D).

Each rate's training is scored at its checkpoints and chosen from by the paper's rule; the rate with the best validation score at its
chosen checkpoint wins, then the one with the better training score, then the smaller rate, which moves the model less. With
`--lr-steps` the search sees the beginning of each training only, and the winner is trained in full afterwards.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixsd.errors import MixsdError, UserError
from mixsd.pipeline.session import Session
from mixsd.storage import Journal

if TYPE_CHECKING:
    from mixsd.pipeline.training import Trained

# Trains at (rate, in a folder, so many steps).
Train = Callable[[float, Path, int | None], "Trained"]


def search(session: Session, train: Train) -> tuple[Trained, float]:
    """Train at every rate of the grid, in `rates/`, and return the best one's training, with the rate.

    Raises:
        UserError: training is not finite at any of them.
    """
    run, settings = session.run, session.settings
    tried = {row["lr"]: row for _, row in Journal(run.folder / "rates.jsonl").read()}
    trained: Trained | None = None
    with Journal(run.folder / "rates.jsonl") as journal:
        for rate in settings.lr_grid:
            if rate in tried:
                continue
            trained = None  # one model in memory at a time
            try:
                trained = train(rate, folder_of(session, rate), settings.lr_steps)
                tried[rate] = _row(rate, trained)
            except UserError:
                raise
            except MixsdError as error:
                tried[rate] = {"lr": rate, "failed": str(error)}
            tried[rate] |= _spent(folder_of(session, rate))
            journal.append(tried[rate])
            _clear_all_but_the_best(session, tried)
    best = best_of(list(tried.values()))
    if best is None:
        raise UserError(f"--lr auto: no learning rate of {', '.join(f'{rate:g}' for rate in tried)} ends in a finite training")
    _say(session, tried, best)
    rate = float(best["lr"])
    if settings.lr_steps is not None:
        shutil.rmtree(run.folder / "rates", ignore_errors=True)
        return train(rate, run.folder, None), rate
    # A training that has ended is resumed at its end, which brings its model back.
    return train(rate, folder_of(session, rate), None), rate


def best_of(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The best of the rates that were tried; None where all failed."""
    whole = [row for row in rows if "failed" not in row]
    return max(whole, key=lambda row: (row["validation"], row["train"], -row["lr"]), default=None)


def folder_of(session: Session, rate: float) -> Path:
    """Where the training at a rate is."""
    return session.run.folder / "rates" / f"{rate:g}"


def _row(rate: float, trained: Trained) -> dict[str, Any]:
    chosen = next(one for one in trained.scored if one.step == trained.choice.step)
    return {
        "lr": rate,
        "step": chosen.step,
        "train": chosen.train,
        "validation": chosen.validation,
        "why": trained.choice.why,
    }


def _spent(folder: Path) -> dict[str, int]:
    """The tokens that a training decoded and rehearsed: its log may go, what it cost is told."""
    steps = [row for _, row in Journal(folder / "log.jsonl").read() if row.get("event") == "step"]
    return {name: sum(step.get(name, 0) for step in steps) for name in ("decoded", "rehearsed")}


def _clear_all_but_the_best(session: Session, tried: dict[float, dict[str, Any]]) -> None:
    """Checkpoints are what is large; the scores of every rate stay."""
    best = best_of(list(tried.values()))
    for rate in tried:
        if best is None or rate != best["lr"]:
            shutil.rmtree(folder_of(session, rate) / "checkpoints", ignore_errors=True)


def _say(session: Session, tried: dict[float, dict[str, Any]], best: dict[str, Any]) -> None:
    failed = [f"{rate:g}" for rate, row in tried.items() if "failed" in row]
    note = f"; not finite at {', '.join(failed)}" if failed else ""
    session.watcher.say(
        f"learning rate {best['lr']:g}: validation {best['validation']:.3g}, training {best['train']:.3g} at step {best['step']}, "
        f"the best of {len(tried)}{note}"
    )
