"""What is asked, how items are called, and which records are refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from mixsd.errors import UserError
from mixsd.evaluation.benchmarks.benchmark import (
    BENCHMARKS,
    HELD_OUT,
    Item,
    Names,
    answer_of_another,
    data_hash,
    get_benchmark,
    sample,
)

from . import small
from .test_data import NAMES, items, refusal

STEP_BY_STEP = "\n\nThink it through step by step, then give the final answer alone inside \\boxed{}."


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return small.write_all(tmp_path / "data")


def stems(name: str) -> dict[str, list[dict[str, Any]]]:
    return small.FILES[name]


def test_the_table() -> None:
    assert list(BENCHMARKS) == list(HELD_OUT) == ["aime24", "math500", "gsm8k", "humaneval", "mmlu"]
    assert [get_benchmark(name).name for name in BENCHMARKS] == list(BENCHMARKS)
    assert [get_benchmark(name).size for name in BENCHMARKS] == [30, 500, 1319, 164, 14042]
    with pytest.raises(UserError, match=r"'gsmk': no such benchmark \(did you mean \"gsm8k\"\?\); known: aime24, math500, "):
        get_benchmark("gsmk")


# The prompts, to the letter: a figure depends on them.


def test_prompt_of_aime24(data: Path) -> None:
    first, second = items("aime24", data)
    assert first.user == "How many?" + STEP_BY_STEP
    assert (first.reference, second.reference) == ("By $x$, it is 25.\n\n\\boxed{025}", "Clearly $\\boxed{7}$.\n\n\\boxed{7}")
    assert [(item.id, item.expected.answer, item.labels) for item in (first, second)] == [("60", "025", ()), ("61", "7", ())]


def test_prompt_of_math500(data: Path) -> None:
    first, second = items("math500", data)
    assert first.user == "What is $1/2 + 1/2$?" + STEP_BY_STEP
    assert (first.reference, second.expected.answer) == ("It is $\\boxed{1}$.", "\\frac{3}{2}")
    assert [item.id for item in (first, second)] == ["test/prealgebra/1.json", "test/algebra/2.json"]
    assert [item.labels for item in (first, second)] == [("subject Prealgebra", "level 2"), ("subject Algebra", "level 5")]


def test_prompt_of_gsm8k(data: Path) -> None:
    first, second, third = items("gsm8k", data)
    assert first.user == "Two and two?" + STEP_BY_STEP
    assert first.reference == "It is 2+2=4.\n\n\\boxed{4}"
    assert second.reference == "That is 1450 eggs.\n\n\\boxed{1,450}"
    assert (second.expected.answer, third.expected.answer) == ("1,450", "0")


def test_prompt_of_humaneval(data: Path) -> None:
    first, second = items("humaneval", data)
    assert first.user == (
        "Write the Python function that this signature and docstring describe. Reply with the whole function, and the imports it needs, "
        "in one fenced code block that begins with ```python.\n\n"
        '```python\ndef twice(x: int) -> int:\n    """ Twice {x}.\n    >>> twice(2)\n    4\n    """\n```'
    )
    assert second.reference.endswith('    """ The first. """\n    return xs[0]\n\n```')
    assert [(item.id, item.expected.answer) for item in (first, second)] == [("HumanEval/0", "twice"), ("HumanEval/1", "first")]
    twin = get_benchmark("humaneval").corrupt([first, second], 1)
    assert twin == "```python\ndef first(*arguments, **named):\n    return None\n```"


def test_prompt_of_mmlu(data: Path) -> None:
    first = items("mmlu", data)[0]
    shots = "".join(
        f"Question: What is {place} in high_school_physics, dev?\nA. dev{place}\nB. None\nC. 2\nD. 3, or so\n"
        f"Answer: \\boxed{{{letter}}}\n\n"
        for place, letter in enumerate("ABCDA")
    )
    assert first.user == (
        "Multiple-choice questions about high school physics, the first 5 with their answers.\n\n"
        f"{shots}Question: What is 0 in high_school_physics, test?\nA. test0\nB. None\nC. 2\nD. 3, or so\n\n"
        "Think it through if that helps, then give the letter of the right answer alone inside \\boxed{}."
    )
    assert (first.reference, first.labels) == ("The answer is \\boxed{A}.", ("high_school_physics",))
    assert [item.expected.answer for item in items("mmlu", data)] == ["A", "B", "C", "A", "B"]
    benchmark, every = get_benchmark("mmlu"), items("mmlu", data)
    assert [benchmark.corrupt(every, place)[-4:-2] for place in range(5)] == ["{B", "{C", "{D", "{B", "{C"]


def test_answers_of_mmlu_may_be_letters(tmp_path: Path) -> None:
    lettered = [{**record, "answer": "ABCD"[record["answer"]]} for record in small.MMLU["test"]]
    small.write(tmp_path / "mmlu" / "test.jsonl", lettered)
    small.write(tmp_path / "mmlu" / "dev.csv", small.MMLU["dev"])
    numbered = items("mmlu", small.write_all(tmp_path / "other"))
    assert [(item.id, item.user) for item in items("mmlu", tmp_path)] == [(item.id, item.user) for item in numbered]


# Names and hashes


@pytest.mark.parametrize("name", NAMES)
def test_order_changes_nothing(name: str, data: Path, tmp_path: Path) -> None:
    expected = {item.id: item for item in items(name, data)}
    for stem, records in stems(name).items():
        # The order of the examples is part of what is asked.
        shuffled = records if stem == "dev" else random.Random(3).sample(records, len(records))
        small.write(tmp_path / "other" / name / f"{stem}.jsonl", shuffled)
    found = items(name, tmp_path / "other")
    assert {item.id: (item.user, item.content) for item in found} == {
        key: (item.user, item.content) for key, item in expected.items()
    }
    assert data_hash(found) == data_hash(list(expected.values()))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_is_hashed(name: str, data: Path, tmp_path: Path) -> None:
    whole = data_hash(items(name, data))
    assert data_hash(items(name, data)[1:]) != whole
    question = {"aime24": "problem", "math500": "problem", "humaneval": "prompt"}.get(name, "question")
    for stem, records in stems(name).items():
        changed = [{**record, question: record[question] + " Really?"} for record in records[:1]] + records[1:]
        small.write(tmp_path / "other" / name / f"{stem}.jsonl", changed)
    found = items(name, tmp_path / "other")
    assert data_hash(found) != whole
    assert found[1].content == items(name, data)[1].content


def test_records_without_ids_are_called_by_their_content(tmp_path: Path) -> None:
    small.write(tmp_path / "gsm8k" / "test.jsonl", [small.GSM8K[0], small.GSM8K[1], small.GSM8K[0]])
    first, second, third = items("gsm8k", tmp_path)
    assert first.id == first.content[:12] != second.id
    assert (third.id, third.content) == (f"{first.id}-2", first.content)
    for name, key in (("aime24", "id"), ("math500", "unique_id")):
        records = [{k: v for k, v in record.items() if k != key} for record in stems(name)["test"]]
        small.write(tmp_path / name / "test.jsonl", records)
        assert [item.id for item in items(name, tmp_path)] == [item.content[:12] for item in items(name, tmp_path)]
        small.write(tmp_path / name / "test.jsonl", [{**record, key: None} for record in records])
        assert [item.id for item in items(name, tmp_path)] == [item.content[:12] for item in items(name, tmp_path)]
    called = Names()
    assert [called("abc"), called("abc", "x/"), called("abc"), called("abd")] == ["abc", "x/abc", "abc-2", "abd"]


def test_two_records_of_one_name(tmp_path: Path) -> None:
    small.write(tmp_path / "math500" / "test.jsonl", small.MATH500 + small.MATH500[:1])
    assert refusal("math500", tmp_path).endswith("math500: two records of MATH-500 are called test/prealgebra/1.json")


def test_aime_answers_with_and_without_zeros_are_one_content(tmp_path: Path, data: Path) -> None:
    plain = [{**record, "answer": int(record["answer"])} for record in small.AIME24]
    small.write(tmp_path / "aime24" / "test.jsonl", plain)
    assert data_hash(items("aime24", tmp_path)) == data_hash(items("aime24", data))


def made(count: int) -> list[Item]:
    records = small.mmlu("anatomy", count, "test")
    return [_item(str(place), record["question"]) for place, record in enumerate(records)]


def _item(name: str, question: str) -> Item:
    from mixsd.evaluation.grading import letters
    from mixsd.facts.answers import Expected
    from mixsd.storage import digest

    return Item(name, question, Expected("A"), "", letters.strict, letters.lenient, digest(question))


def test_samples_are_nested_and_do_not_depend_on_order() -> None:
    every = made(40)
    shuffled = random.Random(1).sample(every, 40)
    before: set[str] = set()
    for limit in range(41):
        chosen = sample(every, limit)
        ids = {item.id for item in chosen}
        assert len(ids) == limit
        assert before <= ids
        assert ids == {item.id for item in sample(shuffled, limit)}
        assert [item.id for item in chosen] == [item.id for item in every if item.id in ids]
        before = ids
    assert sample(every, None) == sample(every, 40) == sample(every, 1000) == every
    # It is not the first ones.
    assert {item.id for item in sample(every, 10)} != {str(place) for place in range(10)}


def test_a_twin_has_another_answer(data: Path) -> None:
    every = items("gsm8k", data)
    assert [answer_of_another(every, place) for place in range(3)] == [every[(place + 1) % 3].reference for place in range(3)]
    assert answer_of_another(every[:1], 0) == ""
    assert answer_of_another([every[0], every[0], every[1]], 0) == every[1].reference


# Refusals

BAD = [
    ("aime24", {"problem": None}, "line 2: field problem is missing; there is answer, id, problem, question, solution, url"),
    ("aime24", {"answer": "1000"}, 'line 2: field answer is "1000", expected a whole number from 0 to 999'),
    ("aime24", {"answer": "7 or 8"}, 'line 2: field answer is "7 or 8", expected a whole number from 0 to 999'),
    ("aime24", {"answer": -7}, 'line 2: field answer is "-7", expected'),
    ("aime24", {"answer": True}, "line 2: field answer: expected text, got true or false"),
    ("math500", {"solution": ["a"]}, "line 2: field solution: expected text, got a list"),
    ("math500", {"problem": " \n"}, "line 2: field problem is empty"),
    ("gsm8k", {"answer": "4"}, "line 2: field answer has no number behind ####; this is not a record of GSM8K"),
    ("gsm8k", {"answer": "so #### "}, "line 2: field answer has no number behind ####"),
    ("gsm8k", {"question": {}}, "line 2: field question: expected text, got an object"),
    ("humaneval", {"test": None}, "line 2: field test is missing; there is"),
    ("humaneval", {"entry_point": ""}, "line 2: field entry_point is empty"),
    ("mmlu", {"choices": ["a", "b", "c"]}, "line 2: expected 4 choices, in `choices` or in choice0 to choice3"),
    ("mmlu", {"choices": None}, "line 2: expected 4 choices, in `choices` or in choice0 to choice3"),
    ("mmlu", {"choices": ["a", None, "c", "d"]}, "line 2: expected 4 choices"),
    ("mmlu", {"choices": ["a", ["b"], "c", "d"]}, "line 2: choice B: expected text, got a list"),
    ("mmlu", {"answer": 4}, "line 2: field answer is '4', expected 0 to 3 or a letter"),
    ("mmlu", {"answer": "E"}, "line 2: field answer is 'E', expected"),
    ("mmlu", {"answer": "AB"}, "line 2: field answer is 'AB', expected"),
    ("mmlu", {"answer": "1.0"}, "line 2: field answer is '1.0', expected"),
    ("mmlu", {"subject": None}, "line 2: field subject is missing; there is"),
    ("mmlu", {"subject": "law"}, "line 2: law has 0 examples in the split dev, expected 5"),
]


@pytest.mark.parametrize(("name", "change", "said"), BAD, ids=lambda value: str(value)[:30])
def test_bad_records(name: str, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    for stem, records in stems(name).items():
        changed = records if stem == "dev" else [records[0], {**records[1], **change}, *records[2:]]
        small.write(tmp_path / name / f"{stem}.jsonl", changed)
    file = next(iter(stems(name)))
    assert refusal(name, tmp_path).startswith(f"{tmp_path / name / file}.jsonl: {said}")


@pytest.mark.parametrize("name", NAMES)
def test_a_table_without_the_columns(name: str, tmp_path: Path) -> None:
    for stem in stems(name):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{stem}.csv").write_text("one,two\n1,2\n")
    message = refusal(name, tmp_path)
    assert "line 1: the first line must name the columns, " in message
    assert message.endswith(" among them")


def test_the_hendrycks_files_without_a_header_are_told_apart(tmp_path: Path) -> None:
    for split in ("test", "dev"):
        (tmp_path / "mmlu" / split).mkdir(parents=True)
        (tmp_path / "mmlu" / split / f"law_{split}.csv").write_text("Who?,a,b,c,d,B\n")
    assert "the first line must name the columns, question, choice0, " in refusal("mmlu", tmp_path)


def test_too_few_examples(tmp_path: Path) -> None:
    small.write(tmp_path / "mmlu" / "test.jsonl", small.MMLU["test"])
    small.write(tmp_path / "mmlu" / "dev.jsonl", small.MMLU["dev"][:-1])
    assert refusal("mmlu", tmp_path).endswith("line 4: anatomy has 4 examples in the split dev, expected 5")


def test_the_page_names_them_all() -> None:
    page = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in BENCHMARKS:
        benchmark = get_benchmark(name)
        asked, data, checked = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"| {benchmark.size:,} |" in asked
        assert (f"| {benchmark.samples} to each, temperature" if benchmark.temperature else "| 1, greedy") in asked
        assert f"`{benchmark.source.hub}`" in data
        assert all(f"`{benchmark.source.folder}/{stem}`" in data for stem in benchmark.source.files.values())
        assert all(column.startswith("choice") or column in data for column in benchmark.source.columns)
        assert f"| {benchmark.proof.most_missed} |" in checked
