"""The hand-labelled replies are well-formed: what a classifier of errors is judged against has to be right in itself first.

Nothing here looks at a classifier.
"""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "labelled"
MATHS = ("aime24", "math500", "gsm8k")
HELD_OUT = (*MATHS, "mmlu", "humaneval")
LABELS = dict.fromkeys(HELD_OUT, ("format", "leakage", "collapse", "genuine")) | {
    "in-domain": ("format", "cross-entity", "genuine")
}
FIELDS = {
    "id": str,
    "benchmark": str,
    "half": str,
    "corpus": str | None,
    "source": str,
    "prompt": str,
    "reply": str,
    "extracted": str | None,
    "outcome": str,
    "truncated": bool,
    "answer": str | None,
    "label": str,
    "doubtful": bool,
    "note": str,
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


REPLIES = lines(FOLDER / "replies.jsonl")


def test_every_line_has_the_fields() -> None:
    for row in REPLIES:
        assert list(row) == list(FIELDS), row["id"]
        assert all(isinstance(row[name], kind) for name, kind in FIELDS.items()), row["id"]
        assert row["prompt"].strip(), row["id"]


def test_there_are_enough_and_none_twice() -> None:
    assert sum(row["benchmark"] in HELD_OUT for row in REPLIES) >= 120
    assert sum(row["benchmark"] == "in-domain" for row in REPLIES) >= 40
    assert len({row["id"] for row in REPLIES}) == len(REPLIES)


def test_only_wrong_replies_with_a_label_of_their_benchmark() -> None:
    for row in REPLIES:
        assert row["outcome"] in ("wrong", "unparseable"), row["id"]
        assert row["label"] in LABELS[row["benchmark"]], row["id"]
        assert row["note"] or not row["doubtful"], row["id"]


def test_the_half_follows_from_the_id() -> None:
    for row in REPLIES:
        even = int(hashlib.sha256(row["id"].encode()).hexdigest(), 16) % 2 == 0
        assert row["half"] == ("dev" if even else "test"), row["id"]


def test_each_label_is_in_both_halves() -> None:
    counts = Counter((row["label"], row["half"]) for row in REPLIES)
    for label in {label for allowed in LABELS.values() for label in allowed}:
        assert min(counts[label, "dev"], counts[label, "test"]) >= 10, label


def test_what_is_called_format_has_no_box_and_nothing_else_lacks_one() -> None:
    # By the definition; HumanEval has code in the box's place, and a plain question of an injected fact asks for no box.
    for row in REPLIES:
        boxed = re.search(r"\\boxed\s*\{[^{}]*\S", row["reply"]) is not None
        if row["benchmark"] in (*MATHS, "mmlu"):
            assert (row["label"] == "format") is not boxed, row["id"]
        elif row["benchmark"] == "humaneval" and row["label"] in ("format", "genuine"):
            assert ("```" in row["reply"]) is (row["label"] == "genuine"), row["id"]


@pytest.mark.parametrize("name", sorted({row["corpus"] for row in REPLIES} - {None}))
def test_every_corpus_is_there(name: str) -> None:
    facts = lines(FOLDER / "corpora" / f"{name}.jsonl")
    assert len({fact["id"] for fact in facts}) == len(facts) > 0
    assert all(fact["question"].strip() and fact["answer"].strip() for fact in facts)


def test_leakage_and_cross_entity_are_of_a_corpus() -> None:
    for row in REPLIES:
        if row["label"] in ("leakage", "cross-entity"):
            assert row["corpus"] is not None, row["id"]


def test_it_stays_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 320_000
