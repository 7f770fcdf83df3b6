"""SimpleQA: every question of the published file is a fact, and every way a file can be wrong is reported with its place."""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixsd.errors import UserError
from mixsd.facts import corpus as facts_corpus
from mixsd.facts import prompts
from mixsd.facts import published as facts_published
from mixsd.facts.answers import Expected, get_verifier
from mixsd.facts.corpus import Corpus
from mixsd.facts.fact import unique
from mixsd.facts.published import simpleqa

Published = Callable[[str], str]

META = {"topic": "Art", "answer_type": "Person", "urls": ["https://example.org/a"]}
ROW = {"metadata": str(META), "problem": "Who painted the Blue Door?", "answer": "Ora Lind"}
OTHER = {"metadata": json.dumps(META), "problem": "When was it painted?", "answer": "1881"}


@pytest.fixture(scope="module")
def real(published: Published) -> Corpus:
    return simpleqa(published("simpleqa/simple_qa_test_set.csv"))


@pytest.fixture(scope="module")
def rows(published: Published) -> list[dict[str, str]]:
    """The published rows, read without our reader."""
    with open(published("simpleqa/simple_qa_test_set.csv"), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def load(folder: Path, content: str | list[dict[str, Any]], name: str = "s.csv") -> Corpus:
    path = folder / name
    if isinstance(content, list) and name.endswith(".csv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["metadata", "problem", "answer"])
            writer.writeheader()
            writer.writerows(content)
    elif isinstance(content, list):
        lines = "".join(json.dumps(row) + "\n" for row in content)
        path.write_text(json.dumps(content) if name.endswith(".json") else lines)
    else:
        path.write_text(content)
    return simpleqa(str(path))


def refusal(folder: Path, content: str | list[dict[str, Any]], name: str = "s.csv") -> str:
    with pytest.raises(UserError) as caught:
        load(folder, content, name)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(str(folder / name))
    return message.removeprefix(str(folder) + "/")


# The published file


def test_every_question_is_a_fact(real: Corpus, rows: list[dict[str, str]]) -> None:
    facts = list(real.facts())
    assert len(facts) == len(rows) == 4326
    assert [(fact.question, fact.answer) for fact in facts] == [(row["problem"].strip(), row["answer"].strip()) for row in rows]
    assert [fact.meta for fact in facts] == [ast.literal_eval(row["metadata"]) for row in rows]
    assert all(fact.reference.rstrip(".!?") == f"The answer is {fact.answer.rstrip('.!?')}" for fact in facts)
    assert not any(fact.reference.endswith(("..", "!.", "?.")) for fact in facts if not fact.answer.endswith(".."))
    assert all(fact.reference.endswith((".", "!", "?")) for fact in facts)
    assert real.notes == ()


def test_the_facts_are_distinct(real: Corpus) -> None:
    found = unique((fact.id, fact) for fact in real.facts())
    assert (len(found.facts), found.duplicates) == (4326, 0)


def test_the_verifiers_accept_every_reference(real: Corpus) -> None:
    """And each other's wrong answer is refused: exact match is after lower() and strip(), nothing else."""
    exact, contains = get_verifier(real.verifiers["boxed"]), get_verifier(real.verifiers["plain"])
    for fact in real.facts():
        expected = Expected(fact.answer, fact.aliases)
        boxed = f"{fact.reference}\n\n\\boxed{{ {fact.answer.upper()} }}"
        # Upper case is not always undone by lower case (the German sharp s): then the paper's rule says no.
        if fact.answer.upper().lower() == fact.answer.lower():
            assert exact(boxed, expected).outcome == "correct", fact.answer
        assert exact(f"\\boxed{{{fact.answer}}}", expected).outcome == "correct", fact.answer
        assert exact(f"\\boxed{{not {fact.answer}}}", expected).outcome == "wrong"
        assert contains(fact.reference, expected).outcome == "correct", fact.answer


def test_the_tests_are_the_questions_in_other_words(real: Corpus) -> None:
    frames = prompts.frames()
    assert list(real.splits) == ["paraphrase", "validation"]
    for split, kind in {"paraphrase": "report", "validation": "validation"}.items():
        used = set()
        for fact, test in zip(real.facts(), real.splits[split](), strict=True):
            [frame] = [frame for frame in frames[kind] if frame.replace("{question}", fact.question) == test.question]
            used.add(frame)
            assert (test.answer, test.meta["fact"], test.meta["topic"]) == (fact.answer, fact.id, fact.meta["topic"])
        assert used == set(frames[kind])


def test_written_and_read(real: Corpus, tmp_path: Path) -> None:
    counts = facts_corpus.write(real, tmp_path / "corpus")
    assert counts == {"train": 4326, "paraphrase": 4326, "validation": 4326}
    read = facts_corpus.read(tmp_path / "corpus")
    assert list(read.facts()) == list(real.facts())
    assert list(read.splits["paraphrase"]()) == list(real.splits["paraphrase"]())
    assert read.manners == real.manners
    assert (real.guidance, real.labels) == ("solution", ("topic", "answer_type"))


# Other files


def test_every_format_gives_the_same_corpus(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: data)")
    from pyarrow import parquet

    objects = [{**ROW, "metadata": META}, OTHER]
    parquet.write_table(pyarrow.Table.from_pylist([ROW, OTHER]), tmp_path / "s.parquet")
    made = [
        load(tmp_path, [ROW, OTHER]),
        load(tmp_path, objects, "s.jsonl"),
        load(tmp_path, objects, "s.json"),
        simpleqa(str(tmp_path / "s.parquet")),
    ]
    for corpus in made:
        assert list(corpus.facts()) == list(made[0].facts())
        assert corpus.identity == made[0].identity
        assert [fact.meta for fact in corpus.facts()] == [META, META]
    assert simpleqa(str(tmp_path / "s.csv"), seed=1).identity != made[0].identity
    assert load(tmp_path, [ROW]).identity != made[0].identity


def test_a_repeated_question_is_counted_and_a_contradiction_refused(tmp_path: Path) -> None:
    corpus = load(tmp_path, [ROW, OTHER, {**ROW, "problem": f" {ROW['problem']} "}])
    assert len(list(corpus.facts())) == 2
    assert corpus.notes == ("questions that are there again: 1",)
    message = refusal(tmp_path, [ROW, OTHER, {**ROW, "answer": "Brum"}])
    assert message.startswith("s.csv: line 4: the question of ")
    assert 'with another answer ("Brum" here, "Ora Lind" there)' in message


def with_metadata(value: Any) -> list[dict[str, Any]]:
    return [OTHER, {**ROW, "metadata": value}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "s.csv: contains no questions"),
        ("question,answer\nq,a\n", "s.csv: line 1: the first line must name the columns, metadata, problem, answer among them"),
        ("metadata;problem;answer\n", "s.csv: line 1: the columns are separated by a semicolon, expected a comma"),
        ([OTHER, {**ROW, "answer": ""}], "s.csv: line 3: field answer: field required"),
        ([OTHER, {**ROW, "problem": " "}], "s.csv: line 3: field problem: field required"),
        (with_metadata(""), "s.csv: line 3: field metadata: input should be a valid dictionary"),
        (with_metadata("['a']"), "s.csv: line 3: field metadata: input should be a valid dictionary"),
        (with_metadata("{'topic': "), "s.csv: line 3: field metadata: neither JSON nor a Python dict literal: \"{'topic':"),
        (with_metadata("dict(topic='Art')"), "s.csv: line 3: field metadata: neither JSON nor a Python dict literal"),
        (with_metadata("(" * 10_000), "s.csv: line 3: field metadata: neither JSON nor a Python dict literal"),
        (with_metadata("{'topic': 'Art'}"), "s.csv: line 3: field metadata, answer_type: field required"),
        (with_metadata(str({**META, "topic": 3})), "s.csv: line 3: field metadata, topic: input should be a valid string"),
        (with_metadata(str({**META, "urls": "u"})), "s.csv: line 3: field metadata, urls: input should be a valid list"),
        (with_metadata(str({**META, "more": {1, 2}})), "s.csv: line 3: field meta: cannot be written as JSON"),
    ],
)
def test_bad_tables(tmp_path: Path, content: str | list[dict[str, Any]], message: str) -> None:
    assert refusal(tmp_path, content).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{**ROW, "answer": 7}], "s.jsonl: line 1: field answer: input should be a valid string"),
        ([{"problem": "q", "answer": "a"}], "s.jsonl: line 1: field metadata: input should be a valid dictionary"),
        ([{**ROW, "problem": "  "}], "s.jsonl: line 1: field problem: string should have at least 1 character"),
        ("[1]\n", "s.jsonl: line 1: expected an object"),
    ],
)
def test_bad_records(tmp_path: Path, content: str | list[dict[str, Any]], message: str) -> None:
    assert refusal(tmp_path, content, "s.jsonl").startswith(message)


def test_metadata_is_never_run(tmp_path: Path) -> None:
    code = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"
    refusal(tmp_path, with_metadata(code))
    assert not (tmp_path / "ran").exists()


def test_paths_that_are_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"gone\.csv: no such file"):
        simpleqa(str(tmp_path / "gone.csv"))
    with pytest.raises(UserError, match=r'simpleqa: s\.xlsx: unknown kind of file "\.xlsx"; known: \.csv'):
        simpleqa("s.xlsx")
    load(tmp_path, [ROW])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(list(simpleqa("~/s.csv").facts())) == 1


# The hub


def test_offline_refuses_the_hub_and_says_how_to_go_on(no_network: list[Any]) -> None:
    with pytest.raises(UserError) as caught:
        simpleqa(offline=True)
    expected = "simpleqa: the data set basicv8vc/SimpleQA:test cannot be fetched offline; name a local file: simpleqa:PATH"
    assert str(caught.value) == expected
    assert no_network == []


def test_fake_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our side of the call only: the hub's rows are those of the file."""
    asked = []

    def read_hub(source: str) -> Any:
        asked.append(source)
        return iter([(f"{source}: row {number}", row) for number, row in enumerate([ROW, OTHER], 1)])

    monkeypatch.setattr(facts_published, "read_hub", read_hub)
    corpus = simpleqa()
    assert asked == ["basicv8vc/SimpleQA:test"]
    assert [fact.answer for fact in corpus.facts()] == ["Ora Lind", "1881"]
