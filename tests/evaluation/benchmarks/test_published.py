"""The published files, where they are at hand: $MIXSD_DATA, else the folder beside the project."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from mixsd import sandbox
from mixsd.evaluation.benchmarks.benchmark import BENCHMARKS, Item, Means, data_hash, get_benchmark, sample
from mixsd.evaluation.benchmarks.checking import check
from mixsd.evaluation.benchmarks.data import find

# Read before the fixtures take the variable away.
DATA = Path(os.environ.get("MIXSD_DATA") or Path(__file__).parents[4] / "shared" / "data")
_KNOWN: dict[str, list[Item]] = {}


def published(name: str) -> list[Item]:
    benchmark = get_benchmark(name)
    if not (DATA / benchmark.source.folder).is_dir():
        pytest.skip(f"{benchmark.title} is not in {DATA}; name its folder in MIXSD_DATA")
    if name not in _KNOWN:
        _KNOWN[name] = benchmark.items(find(benchmark.source, str(DATA), offline=True), Means())
    return _KNOWN[name]


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_counts(name: str) -> None:
    items = published(name)
    assert len(items) == get_benchmark(name).size
    assert len({item.id for item in items}) == len(items)
    for item in items:
        assert item.user.strip() == item.user
        assert item.reference.strip()
        assert item.expected.answer.strip()
        assert "None" not in item.id


# What was asked, when the figures of docs/ were taken.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aime24", "a391c28d1b928a6f72d135db90108c8b"),
        ("math500", "6ab9ea5fb451fca3598391111f5ae91a"),
        ("gsm8k", "8e2ce0b180d8b1d40766307c6c387eef"),
        ("humaneval", "41fa785fa8e4b217bb0cb16d3367e55b"),
        ("mmlu", "117b02e7e9630f3adf7c15a3219f5e08"),
    ],
)
def test_hashes(name: str, expected: str) -> None:
    assert data_hash(published(name)) == expected


# MMLU itself has 27 questions twice within a subject; they stay, so that its n is the published one.
@pytest.mark.parametrize(("name", "twice"), [("aime24", 0), ("math500", 0), ("gsm8k", 0), ("humaneval", 0), ("mmlu", 27)])
def test_duplicates(name: str, twice: int) -> None:
    counts = Counter(item.content for item in published(name))
    assert sum(count - 1 for count in counts.values()) == twice


def test_labels() -> None:
    assert len({item.labels for item in published("mmlu")}) == 57
    levels = Counter(item.labels[1] for item in published("math500"))
    assert levels == {"level 1": 43, "level 2": 90, "level 3": 105, "level 4": 128, "level 5": 134}
    assert len({item.labels[0] for item in published("math500")}) == 7


def test_the_examples_of_the_first_subject() -> None:
    first = published("mmlu")[0]
    with (DATA / "mmlu" / "dev" / "abstract_algebra_dev.csv").open(encoding="utf-8", newline="") as file:
        shots = list(csv.DictReader(file))
    assert first.labels == ("abstract_algebra",)
    assert len(shots) == 5
    place = -1
    for shot in shots:
        later = first.user.index(f"Question: {shot['question'].strip()}\n", place + 1)
        assert later > place
        place = later
        behind = first.user[later:].split("\n\n")[0].splitlines()
        assert behind[-5:] == [
            *(f"{letter}. {shot[f'choice{number}'].strip()}" for number, letter in enumerate("ABCD")),
            f"Answer: \\boxed{{{'ABCD'[int(shot['answer'])]}}}",
        ]
    assert first.user.count("Answer: \\boxed{") == 5


def test_first_records() -> None:
    assert published("aime24")[7].expected.answer == "025"
    assert published("aime24")[0].user.startswith("Every morning Aya goes for a $9$-kilometer-long walk")
    assert published("gsm8k")[0].expected.answer == "18"
    assert published("math500")[0].id == "test/precalculus/807.json"
    assert published("humaneval")[0].expected.answer == "has_close_elements"


def test_samples_of_fifty_are_spread() -> None:
    chosen = sample(published("mmlu"), 50)
    assert len(chosen) == 50
    assert len({item.labels for item in chosen}) > 20


@pytest.mark.parametrize("name", ["aime24", "math500", "gsm8k", "mmlu"])
def test_the_judges_hold(name: str) -> None:
    n = len(published(name))
    found = check(name, str(DATA), offline=True)
    assert found["passed"], found["problems"]
    assert found["strict"]["right"] == found["lenient"]["right"] == n


@pytest.mark.slow  # a minute on two cores: 656 programs, each in two fresh processes
def test_the_judge_of_humaneval_holds() -> None:
    if sandbox.isolation().kind == "none":
        pytest.skip("no sandbox here")
    n = len(published("humaneval"))
    found = check("humaneval", str(DATA), offline=True, allow_code_execution=True)
    assert found["passed"], found["problems"]
    assert (found["strict"]["right"], found["strict"]["refused"]) == (n, n)
