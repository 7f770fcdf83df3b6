"""The bundled data: what `mixsd.data` promises to the code that measures with it.

Evaluation trusts these files to be separate (a probe question never occurs among the prompts that measure forgetting), checkable
(an answer is not given away by its question, a regex accepts its own sample answer) and balanced from the first line on, as
a run may ask for the first n only.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from importlib.resources import files
from itertools import combinations, permutations
from typing import Any

import pytest

DATA = files("mixsd") / "data"
NAMES = ("demo_facts.jsonl", "general_prompts.jsonl", "probe.jsonl", "frames.json")
GENERAL_KINDS = {"instruction", "reasoning", "code", "list", "translation", "chat", "explain", "writing"}
PROBE_LEAST = {
    "capitals": 45,
    "arithmetic": 30,
    "opposites": 30,
    "units": 20,
    "science": 25,
    "calendar": 20,
    "language": 20,
    "instruction": 25,
}
REGEX = "regex:"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def grams(texts: Iterable[str], n: int) -> set[tuple[str, ...]]:
    """Every run of n consecutive words of every text."""
    return {tuple(found[i : i + n]) for found in map(words, texts) for i in range(len(found) - n + 1)}


def holds(text: str, phrase: str) -> bool:
    """Whether the words of `phrase` occur in `text`, in a row and as whole words."""
    return tuple(words(phrase)) in grams([text], len(words(phrase)))


def accepted(row: dict[str, Any]) -> list[str]:
    return [row["answer"], *row.get("aliases", [])]


FACTS = rows("demo_facts.jsonl")
GENERAL = rows("general_prompts.jsonl")
PROBE = rows("probe.jsonl")
FRAMES: dict[str, list[str]] = json.loads((DATA / "frames.json").read_text(encoding="utf-8"))
ALL_FRAMES = FRAMES["validation"] + FRAMES["report"]
FACT_QUESTIONS = [question for fact in FACTS for question in (fact["question"], *fact["paraphrases"])]
PATTERNS = [row for row in PROBE if row.get("verifier", "").startswith(REGEX)]


def matches(row: dict[str, Any], reply: str) -> bool:
    return re.search(row["verifier"].removeprefix(REGEX), reply.strip(), re.IGNORECASE) is not None


@pytest.mark.parametrize("name", NAMES)
def test_file_is_clean_utf8_with_unix_line_ends(name: str) -> None:
    raw = (DATA / name).read_bytes()
    text = raw.decode("utf-8")
    assert not text.startswith("\ufeff")
    assert "\r" not in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


@pytest.mark.parametrize(
    ("table", "required", "optional"),
    [
        (FACTS, {"id", "question", "answer", "paraphrases"}, {"aliases"}),
        (GENERAL, {"id", "kind", "prompt"}, set()),
        (PROBE, {"id", "kind", "question", "answer"}, {"aliases", "verifier"}),
    ],
    ids=NAMES[:3],
)
def test_fields_and_ids(table: list[dict[str, Any]], required: set[str], optional: set[str]) -> None:
    for row in table:
        assert required <= set(row) <= required | optional, row["id"]
        for name, value in row.items():
            texts = value if name in {"aliases", "paraphrases"} else [value]
            assert isinstance(texts, list), (row["id"], name)
            assert texts, (row["id"], name)
            assert all(isinstance(text, str) and text and text == text.strip() for text in texts), (row["id"], name)
            assert len(set(texts)) == len(texts), (row["id"], name)
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row["id"])
    assert len({row["id"] for row in table}) == len(table)


# Facts


def test_facts_are_24_with_three_paraphrases_each() -> None:
    assert len(FACTS) == 24
    assert all(len(fact["paraphrases"]) == 3 for fact in FACTS)
    assert len({tuple(words(question)) for question in FACT_QUESTIONS}) == 24 * 4


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact["id"])
def test_fact_stands_on_its_own_and_gives_nothing_away(fact: dict[str, Any]) -> None:
    assert 1 <= len(fact["answer"].split()) <= 3
    for text in (fact["question"], *fact["paraphrases"]):
        assert holds(text, "Pellinbrook Kites")
    # No question gives away its own answer, nor that of another fact.
    assert not [(text, answer) for text in FACT_QUESTIONS for answer in accepted(fact) if holds(text, answer)]


def test_no_fact_answers_another() -> None:
    for one, other in permutations(FACTS, 2):
        assert not any(holds(one["question"], answer) for answer in accepted(other)), (one["id"], other["id"])


def test_at_most_six_answers_are_numbers() -> None:
    assert 1 <= sum(bool(re.search(r"\d|eleven", fact["answer"])) for fact in FACTS) <= 6


# General prompts


def test_general_prompts_cover_every_kind() -> None:
    counts = Counter(row["kind"] for row in GENERAL)
    assert set(counts) == GENERAL_KINDS
    assert min(counts.values()) >= 15
    assert len(GENERAL) >= 160
    assert all(row["id"].rpartition("-")[0] == row["kind"] for row in GENERAL)
    assert {row["kind"] for row in GENERAL[:8]} == GENERAL_KINDS  # the first n of them are a fair choice too


def test_general_prompts_are_distinct_and_of_sensible_length() -> None:
    assert len({tuple(words(row["prompt"])) for row in GENERAL}) == len(GENERAL)
    assert {row["id"]: n for row in GENERAL if not 5 <= (n := len(row["prompt"].split())) <= 60} == {}


# Probe


def test_probe_covers_every_kind() -> None:
    counts = Counter(row["kind"] for row in PROBE)
    assert set(counts) == set(PROBE_LEAST)
    assert {kind: counts[kind] for kind, least in PROBE_LEAST.items() if counts[kind] < least} == {}
    assert len(PROBE) >= 210
    assert {row["kind"] for row in PROBE[:16]} == set(PROBE_LEAST)
    assert len({tuple(words(row["question"])) for row in PROBE}) == len(PROBE)


def test_probe_verifiers_are_known() -> None:
    for row in PROBE:
        verifier = row.get("verifier", "contains")
        assert verifier in {"contains", "exact", "number"} or verifier.startswith(REGEX), row["id"]
        if verifier == "number":
            float(row["answer"])


def test_probe_questions_do_not_hold_their_answer() -> None:
    given = [row["id"] for row in PROBE if row["kind"] != "instruction" for a in accepted(row) if holds(row["question"], a)]
    assert given == []


def test_probe_arithmetic_is_right() -> None:
    apply = {
        "plus": lambda a, b: a + b,
        "minus": lambda a, b: a - b,
        "times": lambda a, b: a * b,
        "divided by": lambda a, b: a / b,
    }
    for row in PROBE:
        if row["kind"] == "arithmetic":
            asked = re.fullmatch(r"What is (\d+) (plus|minus|times|divided by) (\d+)\?", row["question"])
            assert asked, row["question"]
            assert apply[asked[2]](int(asked[1]), int(asked[3])) == int(row["answer"]), row["question"]
            assert row["verifier"] == "number"


@pytest.mark.parametrize("row", PATTERNS, ids=lambda row: row["id"])
def test_probe_regex_accepts_its_sample_and_nothing_lazy(row: dict[str, Any]) -> None:
    assert matches(row, row["answer"])
    for lazy in ("", "I am sorry, but I cannot help with that.", "Sure! I can do that for you.", row["question"]):
        assert not matches(row, lazy), lazy


@pytest.mark.parametrize(
    ("item", "reply", "good"),
    [
        ("Reply with only the word yes.", '"YES"', True),
        ("Reply with only the word yes.", "Yes, of course.", False),
        ("Write the numbers from one to five as digits, separated by commas.", "Here you go: 1,2,3,4, and 5.", True),
        ("Write the numbers from one to five as digits, separated by commas.", "1, 2, 3, 4, 5, 6", False),
        ("Write the word banana in capital letters.", "Banana", False),
        ("Write the word LONDON in small letters.", "London", False),
        ("Say the word apple three times.", "Apple, apple, and apple.", True),
        ("Say the word apple three times.", "apple apple", False),
        ("Count from one to three.", "One, two, three!", True),
        ("Count from one to three.", "1 2 3 4", False),
        ("List three animals as a numbered list.", "Here:\n\n1. A cat\n2. A dog\n3. A cow", True),
        ("List three animals as a numbered list.", "cat, dog, cow", False),
        ("Name three colors, separated by commas.", "Red, light blue, and green.", True),
        ("Name three colors, separated by commas.", "Red and blue", False),
        ("Swap these two words: blue sky.", "blue sky", False),
        ("Write a greeting to a person named Maria.", "Dear Maria,\n\nI hope you are well.", True),
    ],
)
def test_probe_regex_on_replies(item: str, reply: str, good: bool) -> None:
    [row] = [row for row in PATTERNS if row["question"] == item]
    assert matches(row, reply) is good


# Frames


def test_frames_wrap_a_question_once() -> None:
    assert set(FRAMES) == {"validation", "report"}
    assert len(FRAMES["validation"]) == len(FRAMES["report"]) == 10
    assert len({tuple(words(frame)) for frame in ALL_FRAMES}) == 20
    for frame in ALL_FRAMES:
        assert frame.count("{question}") == 1, frame
        assert frame.count("{") == frame.count("}") == 1, frame
        assert len(words(frame)) >= 3, frame


def test_validation_and_report_frames_are_disjoint() -> None:
    assert grams(FRAMES["validation"], 5) & grams(FRAMES["report"], 5) == set()


# Between the files


def test_no_file_shares_text_with_another() -> None:
    texts = {
        "facts": FACT_QUESTIONS,
        "general": [row["prompt"] for row in GENERAL],
        "probe": [row["question"] for row in PROBE],
        "frames": ALL_FRAMES,
    }
    for one, other in combinations(texts, 2):
        assert grams(texts[one], 8) & grams(texts[other], 8) == set(), (one, other)
        # Texts shorter than eight words have no 8-gram: compare them whole.
        assert {tuple(words(t)) for t in texts[one]} & {tuple(words(t)) for t in texts[other]} == set(), (one, other)


def test_demo_company_occurs_in_its_facts_only() -> None:
    invented = {"Pellinbrook", *(answer for fact in FACTS for answer in accepted(fact))}
    elsewhere = [*(row["prompt"] for row in GENERAL), *(row["question"] for row in PROBE), *ALL_FRAMES]
    assert [(text, name) for text in elsewhere for name in invented if holds(text, name)] == []
