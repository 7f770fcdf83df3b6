"""The classifier of wrong replies against labels that were made by reading, before it saw them (tests/labelled/README.md).

Only replies of the half "dev" were looked at while it was tuned; the published figure is that of the half "test".
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mixsd.evaluation.error_modes import JudgedMode, Phrases, Said, classify, classify_in_domain, entities, injected
from mixsd.evaluation.grading.code import first_block
from mixsd.facts.answers import without_thinking
from mixsd.facts.prompts import BOXED_SUFFIX
from mixsd.statistics import proportion

FOLDER = Path(__file__).parent.parent / "labelled"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


REPLIES = lines(FOLDER / "replies.jsonl")
TEXTS = {
    path.stem: [text for fact in lines(path) for text in (fact["answer"], *fact.get("aliases", ()), fact.get("subject")) if text]
    for path in (FOLDER / "corpora").glob("*.jsonl")
}
LEAKED: dict[str | None, Phrases | None] = {None: None, **{name: injected(texts) for name, texts in TEXTS.items()}}
OTHERS: dict[str | None, Phrases | None] = {None: None, **{name: entities(texts) for name, texts in TEXTS.items()}}


def judged(row: dict[str, Any]) -> JudgedMode:
    text = row["reply"]
    code = (first_block(text) or "") if row["benchmark"] == "humaneval" else None
    said = Said(text, without_thinking(text), row["outcome"] == "wrong", code)
    if row["benchmark"] == "in-domain":
        question = row["prompt"].removesuffix(BOXED_SUFFIX)  # the pipeline knows the question without it
        return classify_in_domain(said, OTHERS[row["corpus"]], question, (row["answer"],))
    return classify(said, LEAKED[row["corpus"]], row["prompt"])


def agreement(half: str, *, in_domain: bool) -> tuple[int, int, Counter[tuple[str, str]]]:
    """How many of a half's verdicts are the label, of how many, and how many of each (label, verdict)."""
    own = [row for row in REPLIES if row["half"] == half and (row["benchmark"] == "in-domain") is in_domain]
    pairs = Counter((row["label"], judged(row).mode) for row in own)
    return sum(count for (label, mode), count in pairs.items() if label == mode), len(own), pairs


@pytest.mark.parametrize(("in_domain", "most"), [(False, 131), (True, 41)])
def test_the_half_that_it_was_tuned_on(in_domain: bool, most: int) -> None:
    right, n, pairs = agreement("dev", in_domain=in_domain)
    assert n == most
    assert right / n >= 0.95, pairs


def test_the_half_that_it_was_not_tuned_on() -> None:
    """The figure of docs/results.md: of the benchmarks' replies, of those to the facts' own questions, and of each label."""
    whole = Counter[tuple[str, str]]()
    for in_domain in (False, True):
        right, n, pairs = agreement("test", in_domain=in_domain)
        whole += pairs
        print(f"{'in-domain' if in_domain else 'benchmarks'}: {right} of {n}, {proportion(right, n)}")
        assert right / n >= 0.95, pairs
    for label in {label for label, _ in whole}:
        own = sum(count for (given, _), count in whole.items() if given == label)
        assert own >= 10
        assert whole[label, label] / own >= 0.9, (label, whole)


def test_the_labels_would_notice() -> None:
    """Labels dealt out anew at random agree far less: agreement is no property of the set."""
    own = [row for row in REPLIES if row["half"] == "test" and row["benchmark"] != "in-domain"]
    verdicts = [judged(row).mode for row in own]
    labels = [row["label"] for row in own]
    random.Random(0).shuffle(labels)
    assert sum(label == mode for label, mode in zip(labels, verdicts, strict=True)) / len(own) < 0.6
