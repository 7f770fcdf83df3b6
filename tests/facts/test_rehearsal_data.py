"""The rehearsal prompts: general prompts of our own whose replies by the base model hold it in place while it is tuned.

What makes them usable is that nothing that measures forgetting is trained on: no prompt and no run of eight words is shared with
the general prompts, the probe or the demo facts. Any first n of them are a fair choice, as a run may use only so many.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations

import pytest

from mixsd.facts.prompts import frames
from mixsd.facts.records import bundled_records, bundled_text

KINDS = {"instruction", "reasoning", "code", "list", "translation", "chat", "explain", "writing"}
REHEARSAL = bundled_records("rehearsal_prompts.jsonl")
FACTS = bundled_records("demo_facts.jsonl")
MEASURING = {
    "general_prompts": [row["prompt"] for row in bundled_records("general_prompts.jsonl")],
    "probe": [row["question"] for row in bundled_records("probe.jsonl")],
    "facts": [text for fact in FACTS for text in (fact["question"], *fact["paraphrases"])],
    "frames": [frame.replace("{question}", "") for among in frames().values() for frame in among],
}


def words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.casefold()))


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    """Every run of n consecutive words."""
    found = words(text)
    return {found[i : i + n] for i in range(len(found) - n + 1)}


def holds(text: str, phrase: str) -> bool:
    """Whether the words of `phrase` occur in `text`, in a row and as whole words."""
    return words(phrase) in grams(text, len(words(phrase)))


def test_file_is_clean_utf8_with_unix_line_ends() -> None:
    text = bundled_text("rehearsal_prompts.jsonl")
    assert not text.startswith("\ufeff")
    assert "\r" not in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_enough_prompts_in_equal_numbers_of_every_kind() -> None:
    counts = Counter(row["kind"] for row in REHEARSAL)
    assert len(REHEARSAL) >= 400
    assert set(counts) == KINDS
    assert len(set(counts.values())) == 1


def test_first_prompts_of_any_number_are_a_fair_choice() -> None:
    assert {row["kind"] for row in REHEARSAL[:8]} == KINDS
    assert Counter(row["kind"] for row in REHEARSAL[:80]) == dict.fromkeys(KINDS, 10)
    assert all({row["kind"] for row in REHEARSAL[i : i + 8]} == KINDS for i in range(0, len(REHEARSAL), 8))


def test_ids_name_their_kind_and_count_from_one() -> None:
    assert len({row["id"] for row in REHEARSAL}) == len(REHEARSAL)
    seen: Counter[str] = Counter()
    for row in REHEARSAL:
        seen[row["kind"]] += 1
        assert row["id"] == f"{row['kind']}-r{seen[row['kind']]:03}"
    measured = {row["id"] for name in ("general_prompts.jsonl", "probe.jsonl") for row in bundled_records(name)}
    assert measured.isdisjoint(row["id"] for row in REHEARSAL)


def test_prompts_are_clean_texts_of_sensible_length() -> None:
    for row in REHEARSAL:
        assert list(row) == ["id", "kind", "prompt"], row["id"]
        assert all(isinstance(value, str) for value in row.values()), row["id"]
        prompt = row["prompt"]
        assert prompt == prompt.strip(), row["id"]
        assert prompt.replace("\n", "").isprintable(), row["id"]
        assert "\n" not in prompt or row["kind"] == "code", row["id"]  # only code needs lines of its own
        assert prompt.isascii() or row["kind"] == "translation", row["id"]
        assert 5 <= len(prompt.split()) <= 80, row["id"]


def test_lengths_and_forms_vary() -> None:
    lengths = sorted(len(row["prompt"].split()) for row in REHEARSAL)
    assert lengths[len(lengths) // 10] <= 10
    assert lengths[-20] >= 40
    asked = sum("?" in row["prompt"] for row in REHEARSAL)
    assert len(REHEARSAL) / 4 <= asked <= len(REHEARSAL) * 3 / 4
    openings = Counter(words(row["prompt"])[:3] for row in REHEARSAL)
    assert max(openings.values()) <= len(REHEARSAL) / 20


def test_no_two_prompts_are_equal_or_share_eight_words() -> None:
    assert len({words(row["prompt"]) for row in REHEARSAL}) == len(REHEARSAL)
    shared = [
        (one["id"], other["id"])
        for one, other in combinations(REHEARSAL, 2)
        if not grams(one["prompt"], 8).isdisjoint(grams(other["prompt"], 8))
    ]
    assert shared == []


@pytest.mark.parametrize("name", MEASURING)
def test_nothing_that_measures_is_rehearsed(name: str) -> None:
    eights = {gram for text in MEASURING[name] for gram in grams(text, 8)}
    whole = {words(text) for text in MEASURING[name]}
    for row in REHEARSAL:
        assert words(row["prompt"]) not in whole, row["id"]
        assert grams(row["prompt"], 8).isdisjoint(eights), row["id"]


def test_prompts_hold_no_question_of_the_probe_or_the_facts() -> None:
    questions = [text for name in ("general_prompts", "probe", "facts") for text in MEASURING[name]]
    assert [(row["id"], text) for row in REHEARSAL for text in questions if holds(row["prompt"], text)] == []


@pytest.mark.parametrize("what", ["opposite", "plural", "past tense", "capital"])
def test_prompts_do_not_ask_what_the_probe_asks_by_the_dozen(what: str) -> None:
    """The probe asks for the capital of this or the plural of that; no rehearsal prompt is of that form, whatever it asks about."""
    assert any(holds(question, f"{what} of") for question in MEASURING["probe"])
    assert [row["id"] for row in REHEARSAL if holds(row["prompt"], f"{what} of")] == []


def test_invented_names_of_the_facts_are_absent() -> None:
    invented = {"Pellinbrook", *(answer for fact in FACTS for answer in (fact["answer"], *fact.get("aliases", [])))}
    assert [(row["id"], name) for row in REHEARSAL for name in invented if holds(row["prompt"], name)] == []
