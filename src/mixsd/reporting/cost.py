"""What a run cost: tokens that were decoded to train on, and seconds by stage (the paper's claim about OPSD is about these)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mixsd.storage import Journal, read_jsonl

if TYPE_CHECKING:
    from mixsd.pipeline.session import Session


def costs_of(session: Session) -> dict[str, Any]:
    """Decoded tokens in all and by purpose, and the seconds of each stage over all processes that worked on it.

    mixing: all attempts of all targets. rollouts: the student's replies, with `--lr auto` those at every rate. rehearsal: the
    base model's replies that were trained on.
    """
    run = session.run
    mixing = 0
    if run.targets_file.is_file():
        mixing = sum(row.get("decoded_tokens", 0) for row in read_jsonl(run.targets_file))
    # A learning rate that was tried is a training of its own, summed up in its line.
    steps = run.events("step") + [row for _, row in Journal(run.folder / "rates.jsonl").read()]
    kept = run.folder / "rehearsal.jsonl"
    rehearsal = sum(len(row["ids"]) for _, row in Journal(kept).read())
    parts = {
        "mixing": mixing,
        "rollouts": sum(step.get("decoded", 0) for step in steps),
        # Without a journal the replies were made as they were needed.
        "rehearsal": rehearsal if kept.is_file() else sum(step.get("rehearsed", 0) for step in steps),
    }
    seconds: dict[str, float] = {}
    for event in run.events("stage"):
        seconds[event["name"]] = round(seconds.get(event["name"], 0.0) + event["seconds"], 3)
    return {"generated_tokens": sum(parts.values()), "parts": parts, "seconds": seconds}
