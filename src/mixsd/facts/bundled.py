"""The data that comes with mixsd: records and texts of its own writing, read once.

What the tests of several corpora have in common: other wordings of a question, and a background to find the answer in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from mixsd.facts.fact import Fact
from mixsd.randomness import uniforms


@cache
def text(name: str) -> str:
    """A bundled file as text."""
    return (files("mixsd") / "data" / name).read_text(encoding="utf-8")


@cache
def records(name: str) -> list[dict[str, Any]]:
    """The records of a bundled JSONL file."""
    return [json.loads(line) for line in text(name).splitlines()]


@cache
def rows(name: str) -> list[dict[str, str]]:
    """The lines of a bundled TSV file as records by its header; a line that begins with # is a comment."""
    header, *lines = [line.split("\t") for line in text(name).splitlines() if line and not line.startswith("#")]
    return [dict(zip(header, line, strict=True)) for line in lines]


@cache
def frames() -> dict[str, list[str]]:
    """The paraphrase frames: ten for `validation`, ten others for `report`."""
    found: dict[str, list[str]] = json.loads(text("frames.json"))
    return found


# The split that each set of frames makes.
SPLIT = {"report": "paraphrase", "validation": "validation"}


def framed(facts: Callable[[], Iterable[Fact]], frame_set: str, seed: int) -> Iterator[Fact]:
    """Each fact's question inside one paraphrase frame of a set ('report' or 'validation')."""
    for fact in facts():
        yield about(fact, in_frame(fact.question, fact.id, frame_set, seed), SPLIT[frame_set])


def in_frame(question: str, key: str, frame_set: str, seed: int) -> str:
    """A question inside one frame of a set, drawn at the address of its fact, whose id is `key`."""
    among = frames()[frame_set]
    frame = among[int(uniforms(seed, "evaluation", f"{frame_set} frame of {key}", n=1)[0] * len(among))]
    return frame.replace("{question}", question)


def about(fact: Fact, question: str, split: str) -> Fact:
    """A test of a fact: the same answer, asked for by another user turn."""
    return replace(fact, question=question, id=f"{split}-{fact.id}", paraphrases=(), meta={**fact.meta, "fact": fact.id})


def with_background(question: str, statements: Sequence[str], address: str, seed: int) -> str:
    """A user turn that gives statements in an order drawn at an address, one per line, before it asks."""
    order = np.argsort(uniforms(seed, "evaluation", address, n=len(statements)), kind="stable")
    lines = "\n- ".join([statements[i] for i in order.tolist()])
    return f"Background information:\n- {lines}\n\nUse the background information to answer this question: {question}"
