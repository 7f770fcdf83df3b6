"""KGFact's files as they are written, and what its tests ask of them: the checker, backgrounds read back, and what these hold."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import mixsd
from mixsd.facts.fact import to_json
from mixsd.facts.kgfact import kgfact
from tests.facts.world_checker import Checker

DATA = Path(mixsd.__file__).parent / "data"
SPLITS = ["paraphrase", "validation", "retrieval", "two_hop", "two_hop_context"]
DOMAINS = ["Person", "Location", "Organization", "Event", "Profession", "Hobby", "Skill"]
BACKGROUND = "Background information:\n"

Files = dict[str, list[dict[str, Any]]]


@cache
def templates() -> list[dict[str, str]]:
    header, *lines = [line.split("\t") for line in (DATA / "kgfact_relations.tsv").read_text("utf-8").splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


@cache
def checker() -> Checker:
    return Checker(templates())


@cache
def made(size: str | None = None, seed: int = 0, retrieval: str = "held-out") -> Files:
    """All files of a corpus, as they are written."""
    corpus = kgfact(size, seed=seed, retrieval=retrieval)  # type: ignore[arg-type]
    streams = {"train": corpus.facts, **corpus.splits}
    return {name: [to_json(fact) for fact in facts()] for name, facts in streams.items()}


def parts(row: dict[str, Any]) -> tuple[list[str], str]:
    """The statements of a background, and the question after it."""
    match = re.fullmatch(
        rf"{BACKGROUND}((?:- .+\n)+)\nUse the background information to answer this question: (.+)", row["question"]
    )
    assert match, row["question"]
    return [line.removeprefix("- ") for line in match[1].splitlines()], match[2]


def ends(statement: str) -> tuple[str, str]:
    triple = checker().triple(statement)
    return triple.source, triple.target


def check_backgrounds(files: Files, retrieval: str) -> None:
    """How long a background is, that it holds what answers the question, and where the rest comes from.

    Its messages are its own: pytest explains the asserts of test files only.
    """
    trained = {row["statement"] for row in files["train"]}
    statements = {row["id"]: row["statement"] for row in files["train"]}
    names = {name for statement in trained for name in ends(statement)}
    for split, length in (("retrieval", 50 if retrieval == "held-out" else 51), ("two_hop_context", 51)):
        for row in files[split]:
            background, _ = parts(row)
            assert len(background) == len(set(background)) == min(len(trained), length), (
                f"{row['id']}: {len(background)} statements"
            )
            needed = [statements[key] for key in row["meta"]["hops"]] if split == "two_hop_context" else [row["statement"]]
            assert set(background).issuperset(needed), f"{row['id']}: lacks what answers it"
            if (split, retrieval) == ("retrieval", "held-out"):
                met = names.intersection(name for statement in background for name in ends(statement))
                assert not met, f"{row['id']}: trained entities: {met}"
            else:
                assert trained.issuperset(background), f"{row['id']}: statements that were not trained"
