"""KGFact: the sizes of the paper, one right answer to every question, the splits as they are described, the same bytes everywhere.

What is true in a world is decided by `world_checker`, which reads the sentences and knows nothing of the generator; and the checker
must find whatever is broken in a world on purpose.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mixsd
from mixsd.corpora import corpus as corpora
from mixsd.corpora.kgfact import kgfact
from mixsd.errors import UserError
from mixsd.facts import Fact, to_json, unique
from tests.corpora.world_checker import Checker, Query, Relation, Triple, load

DATA = Path(mixsd.__file__).parent / "data"
SPLITS = ["paraphrase", "validation", "retrieval", "two_hop", "two_hop_context"]
DOMAINS = ["Person", "Location", "Organization", "Event", "Profession", "Hobby", "Skill"]
BACKGROUND = "Background information:\n"
# The bytes of `kgfact("small")`. They may change only when somebody means to change a text (relations, endings, frames, the wording of
# a background), how names and edges are drawn, or which fields are written; then no earlier score on KGFact is comparable, and the
# changelog has to say so. A new version of a library or another machine is no reason.
GOLDEN = "01eaefa06c6c0d65c4cc537155bdfe4f"

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
    assert match
    return [line.removeprefix("- ") for line in match[1].splitlines()], match[2]


def digest(folder: Path) -> str:
    """A hash of the bytes of all files of a corpus, with their names."""
    files = sorted(folder.iterdir())
    return hashlib.blake2b(b"".join(file.name.encode() + b"\n" + file.read_bytes() for file in files), digest_size=16).hexdigest()


# Sizes


@pytest.mark.parametrize(
    ("size", "facts", "pairs", "entities"),
    [
        (None, 100, 10, 10),
        ("small", 100, 10, 10),
        ("large", 525, 21, 25),
        ("7x2", 42, 21, 2),
        ("2x40", 40, 1, 40),
        ("07x01", 21, 21, 1),
    ],
)
def test_each_entity_of_a_pair_of_domains_gives_one_fact(size: str | None, facts: int, pairs: int, entities: int) -> None:
    corpus = kgfact(size)
    found = [fact.meta["domains"] for fact in corpus.facts()]
    assert len(found) == facts
    assert Counter(found) == dict.fromkeys(dict.fromkeys(found), entities)
    assert len(set(found)) == pairs
    assert set(found) <= {f"{one}-{other}" for one, other in combinations(DOMAINS, 2)}
    assert (corpus.options["domains"] * (corpus.options["domains"] - 1) // 2, corpus.options["entities"]) == (pairs, entities)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": "huge"}, 'size "huge": unknown; known: small, large, DOMAINSxENTITIES (such as 7x1000)'),
        ({"size": "larg"}, 'did you mean "large"?'),
        ({"size": ""}, 'size "": unknown'),
        ({"size": "7 x 4"}, 'size "7 x 4": unknown'),
        ({"size": "7x"}, 'size "7x": unknown'),
        ({"size": "-7x4"}, 'size "-7x4": unknown'),
        ({"size": "1x5"}, 'size "1x5": from 2 to 14 domains'),
        ({"size": "0x5"}, 'size "0x5": from 2 to 14 domains'),
        ({"size": "15x5"}, 'size "15x5": from 2 to 14 domains'),
        ({"size": "7x0"}, 'size "7x0": from 2 to 14 domains, and at least one entity'),
        ({"size": "8x10"}, "between 7 domains only (none for PhysicalObject)"),
        ({"size": "14x1"}, "TimePeriod"),
        ({"retrieval": "trainee"}, "--retrieval 'trainee': expected held-out or trained"),
    ],
)
def test_what_cannot_be_made_is_named_in_one_line(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        kgfact(**values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# One right answer


@pytest.mark.parametrize("retrieval", ["held-out", "trained"])
@pytest.mark.parametrize(("size", "seed"), [("small", 0), ("large", 0), ("small", 1), ("large", 7)])
def test_every_question_of_the_papers_corpora_has_exactly_one_right_answer(size: str, seed: int, retrieval: str) -> None:
    assert checker().problems(made(size, seed, retrieval)) == []


@given(st.integers(0, 2**63), st.integers(2, 7), st.integers(1, 30), st.sampled_from(["held-out", "trained"]))
@example(0, 7, 1, "held-out")
@example(0, 2, 1, "trained")
@example(5, 7, 30, "held-out")
@settings(max_examples=10, deadline=None)
def test_every_question_of_any_corpus_has_exactly_one_right_answer(seed: int, number: int, entities: int, retrieval: str) -> None:
    files = made.__wrapped__(f"{number}x{entities}", seed, retrieval)
    # A checker of its own: this one remembers every statement.
    assert Checker(templates()).problems(files) == []
    facts = entities * number * (number - 1) // 2
    assert {name: len(rows) for name, rows in files.items()} == {
        name: min(facts, entities * comb(number, 3)) if "two_hop" in name else facts for name in ["train", *SPLITS]
    }
    check_backgrounds(files, retrieval)
    for rows in files.values():
        assert len({row["id"] for row in rows}) == len(unique(("", Fact(**row)) for row in rows).facts) == len(rows)


def check_backgrounds(files: Files, retrieval: str) -> None:
    """How long a background is, that it holds what answers the question, and where the rest comes from."""
    trained = {row["statement"] for row in files["train"]}
    statements = {row["id"]: row["statement"] for row in files["train"]}
    names = {name for statement in trained for name in ends(statement)}
    for split, length in (("retrieval", 50 if retrieval == "held-out" else 51), ("two_hop_context", 51)):
        for row in files[split]:
            background, _ = parts(row)
            assert len(background) == len(set(background)) == min(len(trained), length)
            needed = [statements[key] for key in row["meta"]["hops"]] if split == "two_hop_context" else [row["statement"]]
            assert set(background).issuperset(needed)
            if (split, retrieval) == ("retrieval", "held-out"):
                assert names.isdisjoint(name for statement in background for name in ends(statement))
            else:
                assert trained.issuperset(background)


def ends(statement: str) -> tuple[str, str]:
    triple = checker().triple(statement)
    return triple.source, triple.target


# The checker finds what is wrong


def inverse_of_birth() -> dict[str, str]:
    """A relation that says from the place what 'born_in' says from the person."""
    return {
        "source": "Location",
        "target": "Person",
        "relation": "birthplace_of",
        "inverse": "born_in",
        "statement": "{s} saw the birth of {t}.",
        "question": "Of which person did {s} see the birth?",
        "phrase": "the person whose birth {s} saw",
    }


def test_the_checker_reads_statements_and_questions() -> None:
    born = Relation("Person", "Location", "born_in")
    spring = Relation("Location", "Event", "hosts_in_spring")
    query = checker().query("Tell me: In which place was Una Vell born? Thanks!")
    assert query == Query(born, "Una Vell")
    nested = checker().query("Which event takes place every spring in the place where Una Vell was born?")
    assert nested == Query(spring, Query(born, "Una Vell"))
    birth = checker().triple("Una Vell was born during a storm in Orm Bay.")
    event = checker().triple("The Kell Summit takes place every spring in Orm Bay.")
    assert (birth, event) == (Triple("Una Vell", born, "Orm Bay"), Triple("Orm Bay", spring, "Kell Summit"))
    assert checker().answers(nested, {birth, event}) == {"Kell Summit"}
    assert checker().answers(nested, {event}) == checker().answers(query, {event}) == set()
    both = Checker([*templates(), inverse_of_birth()])
    back = both.triple("Orm Bay saw the birth of Una Vell.")
    assert both.closed([back]) == both.closed([birth]) == {back, birth}
    assert both.answers(query, both.closed([back])) == {"Orm Bay"}


def pair(files: Files, split: str = "train") -> tuple[dict[str, Any], dict[str, Any]]:
    """Two rows that share the pair of domains and nothing else."""
    rows = files[split]
    return next(
        (one, other)
        for one, other in combinations(rows, 2)
        if one["meta"]["domains"] == other["meta"]["domains"]
        and one["meta"].get("relation", "") != other["meta"].get("relation", "-")
        and one["answer"] != other["answer"]
    )


def second_target(files: Files) -> None:
    one, other = pair(files)
    extra = {**one, "statement": one["statement"].replace(one["answer"], other["answer"]), "answer": other["answer"]}
    files["train"].append(extra)


def second_source(files: Files) -> None:
    one, other = pair(files)
    swap = {name: one[name].replace(one["subject"], other["subject"]) for name in ("statement", "question")}
    files["train"].append({**one, **swap})


def twice(files: Files) -> None:
    files["train"].append(files["train"][3])


def swapped(files: Files) -> None:
    one, other = pair(files, "paraphrase")
    one["answer"], other["answer"] = other["answer"], one["answer"]


def foreign_alias(files: Files) -> None:
    one, other = pair(files, "validation")
    one["aliases"] = [other["answer"]]


def nothing_true(files: Files) -> None:
    row = files["retrieval"][5]
    row["question"] = row["question"].replace(f"- {row['statement']}\n", "")


def contradiction(files: Files) -> None:
    row, other = pair(files, "retrieval")
    wrong = row["statement"].replace(row["answer"], other["answer"])
    row["question"] = row["question"].replace(BACKGROUND, f"{BACKGROUND}- {wrong}\n")


def repeated(files: Files) -> None:
    row = files["two_hop_context"][5]
    row["question"] = row["question"].replace(BACKGROUND, f"{BACKGROUND}- {parts(row)[0][7]}\n")


def halfway(files: Files) -> None:
    row = files["two_hop"][8]
    (first,) = [fact for fact in files["train"] if fact["id"] == row["meta"]["hops"][0]]
    row["answer"] = first["answer"]


def unfitting(files: Files) -> None:
    row = files["two_hop"][0]
    row["question"] = "Which event takes place every spring in the organization founded by Una Vell?"


def unreadable(files: Files) -> None:
    files["train"][7]["statement"] += " Or so they say."


def no_question(files: Files) -> None:
    files["validation"][7]["question"] = "What about Una Vell?"


def two_questions(files: Files) -> None:
    files["validation"][7]["question"] += f" {files['train'][8]['question']}"


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (second_target, ["two targets", "is right"]),
        (second_source, ["two sources"]),
        (twice, ["said twice"]),
        (swapped, ["paraphrase", "is right"]),
        (foreign_alias, ["validation", "is given"]),
        (nothing_true, ["retrieval 6: [] is right"]),
        (contradiction, ["retrieval", "two targets", "is right"]),
        (repeated, ["two_hop_context 6: a statement stands there twice"]),
        (halfway, ["two_hop 9", "is right"]),
        (unfitting, ["two_hop 1: a Organization stands for a Location"]),
        (unreadable, ["train: 0 readings", "[] is right"]),
        (no_question, ["validation 8: 0 readings"]),
        (two_questions, ["validation 8: 2 readings"]),
    ],
)
def test_the_checker_finds_a_broken_world(break_it: Callable[[Files], None], said: list[str]) -> None:
    files = deepcopy(made())
    break_it(files)
    found = "\n".join(checker().problems(files))
    assert [text for text in said if text not in found] == []


def test_the_checker_finds_what_only_an_inverse_relation_makes_ambiguous() -> None:
    files = {
        "train": [
            {
                "question": "In which place was Una Vell born?",
                "answer": "Orm Bay",
                "statement": "Una Vell was born during a storm in Orm Bay.",
            },
            {
                "question": "Of which person did Kell Cove see the birth?",
                "answer": "Bo Vell",
                "statement": "Kell Cove saw the birth of Bo Vell.",
            },
        ]
    }
    both = Checker([*templates(), inverse_of_birth()])
    assert both.problems(files) == []
    files["train"][1] = {
        "question": "Of which person did Kell Cove see the birth?",
        "answer": "Una Vell",
        "statement": "Kell Cove saw the birth of Una Vell.",
    }
    assert [problem.split(":")[0] for problem in both.problems(files)] == ["train", "train", "train 1"]
    assert "train: Una Vell has by born_in two targets: Kell Cove, Orm Bay" in both.problems(files)
    assert "train: Una Vell has by birthplace_of two sources: Kell Cove, Orm Bay" in both.problems(files)
    # Without the inverse they would be facts of their own.
    assert Checker([*templates(), {**inverse_of_birth(), "inverse": ""}]).problems(files) == []
    files["train"][1] = {
        "question": "Of which person did Orm Bay see the birth?",
        "answer": "Una Vell",
        "statement": "Orm Bay saw the birth of Una Vell.",
    }
    assert any("said twice" in problem for problem in both.problems(files))


def test_the_checker_finds_templates_that_cannot_be_told_apart() -> None:
    used = made()["train"][0]["meta"]["relation"]
    (row,) = [row for row in templates() if row["relation"] == used and row["source"] == "Person"]
    for column, where in (("statement", "train: "), ("question", "train 1: "), ("phrase", "two_hop 1: ")):
        alike = {**inverse_of_birth(), "inverse": "", column: row[column]}
        found = Checker([*templates(), alike]).problems(made())
        assert any(problem.startswith(f"{where}2 readings") for problem in found)


def test_trained_entities_in_a_background_are_found() -> None:
    files = {**made(), "retrieval": made(retrieval="trained")["retrieval"]}
    with pytest.raises(AssertionError, match="isdisjoint"):
        check_backgrounds({**files, "retrieval": [shortened(row) for row in files["retrieval"]]}, "held-out")


def shortened(row: dict[str, Any]) -> dict[str, Any]:
    """With one statement less in the background, not the true one."""
    spare = next(statement for statement in parts(row)[0] if statement != row["statement"])
    return {**row, "question": row["question"].replace(f"- {spare}\n", "", 1)}


# Facts and splits


def test_a_fact_has_its_reference_its_subject_and_the_answer_as_sentences_have_it() -> None:
    found = set()
    for row in made("large")["train"]:
        name, domains = row["answer"], row["meta"]["domains"]
        target = domains.split("-")[1]
        assert row["reference"] == f"The answer is {name}."
        assert row["subject"] in row["question"]
        assert name in row["statement"]
        assert name not in row["question"]
        assert list(row["meta"]) == ["relation", "domains"]
        aliases = {
            "Event": [f"the {name}"],
            "Skill": [f"the {name}"],
            "Profession": [f"the {name} profession", f"{name} profession"],
        }
        assert row.get("aliases", []) == aliases.get(target, [])
        assert any(text in row["statement"] for text in (*row.get("aliases", [name]), f"The {name}"))
        found.add(target)
    assert found == set(DOMAINS[1:])
    assert kgfact().labels == ("relation", "domains")


@pytest.mark.parametrize("size", ["small", "large"])
def test_the_wordings_are_ten_frames_each_and_none_is_in_both(size: str) -> None:
    frames = json.loads((DATA / "frames.json").read_text("utf-8"))
    assert len({*frames["report"], *frames["validation"]}) == 20
    for split, name in (("paraphrase", "report"), ("validation", "validation")):
        used = Counter()
        for row, fact in zip(made(size)[split], made(size)["train"], strict=True):
            assert row["question"].count(fact["question"]) == 1
            used[row["question"].replace(fact["question"], "{question}")] += 1
            assert row["meta"] == {**fact["meta"], "fact": fact["id"]}
            assert row["id"] == f"{split}-{fact['id']}"
            assert {k: v for k, v in row.items() if k not in ("id", "question", "meta")} == {
                k: v for k, v in fact.items() if k not in ("id", "question", "meta")
            }
        assert set(used) == set(frames[name])
        assert max(used.values()) < 3 * len(made(size)["train"]) / 10


def test_retrieval_asks_about_other_entities_or_about_the_trained_facts() -> None:
    for size in ("small", "large"):
        held_out, trained = made(size)["retrieval"], made(size, retrieval="trained")["retrieval"]
        facts = made(size)["train"]
        assert facts == made(size, retrieval="trained")["train"]
        assert [parts(row)[1] for row in trained] == [fact["question"] for fact in facts]
        assert [row["meta"]["fact"] for row in trained] == [fact["id"] for fact in facts]
        assert len(held_out) == len(facts)
        asked, known = ({name for row in rows for name in (row["subject"], row["answer"])} for rows in (held_out, facts))
        assert asked.isdisjoint(known)
        # As many of each kind.
        assert Counter(row["meta"]["domains"] for row in held_out) == Counter(fact["meta"]["domains"] for fact in facts)
        check_backgrounds(made(size), "held-out")
        check_backgrounds(made(size, retrieval="trained"), "trained")


def levels(statements: list[str], chosen: set[str]) -> dict[str, int]:
    """How far every statement is from the chosen ones: 1 if they share an entity, 2 if one in between does, and so on."""
    found = dict.fromkeys(chosen, 0)
    reached: set[str] = set()
    level = 0
    while True:
        reached |= {name for statement in found for name in ends(statement)}
        level += 1
        new = [statement for statement in statements if statement not in found and reached.intersection(ends(statement))]
        if not new:
            return {statement: found.get(statement, level) for statement in statements}
        found.update(dict.fromkeys(new, level))


@pytest.mark.parametrize("retrieval", ["held-out", "trained"])
@pytest.mark.parametrize("size", ["small", "large", "2x70", "3x18", "7x2"])
def test_a_background_has_the_nearest_statements(size: str, retrieval: str) -> None:
    """Whatever touches either entity comes before everything else, then the neighbours, then what no path leads to."""
    files = made(size, 3, retrieval)
    trained = [row["statement"] for row in files["train"]]
    by_id = {row["id"]: row["statement"] for row in files["train"]}
    whole = [row["statement"] for row in files["retrieval"]]
    touching = []
    for row in files["retrieval"][::7]:
        distances = levels(whole, {row["statement"]})
        background, _ = parts(row)
        assert sorted(distances[statement] for statement in background) == sorted(distances.values())[: len(background)]
        touching.append(sum(distance == 1 for distance in distances.values()))
    if size == "large":
        # Nothing that touches the entities is ever left out, and there is room for more.
        assert 0 < min(touching) < max(touching) < 49
    for row in files["two_hop_context"][::11]:
        distances = levels(trained, {by_id[key] for key in row["meta"]["hops"]})
        background, _ = parts(row)
        assert sorted(distances[statement] for statement in background) == sorted(distances.values())[: len(background)]


def test_the_true_statement_stands_anywhere() -> None:
    for retrieval, length in (("held-out", 50), ("trained", 51)):
        places = Counter(parts(row)[0].index(row["statement"]) for row in made("large", 0, retrieval)["retrieval"])
        assert set(places) <= set(range(length))
        assert len(places) >= 45
        assert max(places.values()) < 30
        assert 0.42 < sum(place * n for place, n in places.items()) / 525 / (length - 1) < 0.58


@pytest.mark.parametrize(
    ("size", "each"), [("small", {10}), ("large", {15}), ("3x8", {8}), ("4x5", {5}), ("6x10", {7, 8}), ("7x1", {0, 1})]
)
def test_two_hop_questions_join_two_trained_facts_and_are_spread_evenly(size: str, each: set[int]) -> None:
    files = made(size)
    facts = {row["id"]: row for row in files["train"]}
    kinds = Counter(row["meta"]["domains"] for row in files["two_hop"])
    number = kgfact(size).options["domains"]
    assert {kinds["-".join(triple)] for triple in combinations(DOMAINS[:number], 3)} == each
    if size == "large":
        # Nor are some entities left out.
        assert len({facts[row["meta"]["hops"][0]]["subject"] for row in files["two_hop"]}) > 110
    assert len(files["two_hop"]) == len({row["question"] for row in files["two_hop"]}) <= len(facts)
    for row, context in zip(files["two_hop"], files["two_hop_context"], strict=True):
        first, second = (facts[key] for key in row["meta"]["hops"])
        assert first["answer"] == second["subject"]
        # The middle must be found, not read.
        assert first["answer"] not in row["question"]
        assert first["subject"] in row["question"]
        assert (row["answer"], row.get("aliases")) == (second["answer"], second.get("aliases"))
        assert row["statement"] == f"{first['statement']} {second['statement']}"
        source, middle = first["meta"]["domains"].split("-")
        assert row["meta"]["domains"] == f"{source}-{middle}-{second['meta']['domains'].split('-')[1]}"
        assert row["id"] == f"two_hop-{row['meta']['fact']}"
        assert parts(context)[1] == row["question"]
        assert context["id"] == f"two_hop_context-{row['meta']['fact']}"
        same = ("answer", "aliases", "statement", "meta")
        assert [context.get(name) for name in same] == [row.get(name) for name in same]


# The same bytes


def test_what_is_written_is_what_is_streamed_in_any_order_and_as_often_as_asked(tmp_path: Path) -> None:
    corpus = kgfact("3x4", seed=9)
    next(corpus.splits["two_hop_context"]())
    for name in reversed(SPLITS):
        assert [to_json(fact) for fact in corpus.splits[name]()] == made("3x4", 9)[name]
    counts = corpora.write(corpus, tmp_path / "kg")
    assert counts == {"train": 12, "paraphrase": 12, "validation": 12, "retrieval": 12, "two_hop": 4, "two_hop_context": 4}
    assert load(tmp_path / "kg") == made("3x4", 9)
    assert list(corpora.read(tmp_path / "kg").facts()) == list(corpus.facts())


def test_a_seed_decides_everything_and_another_one_changes_everything(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        corpora.write(kgfact(seed=seed), tmp_path / name)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    answers = [{row["answer"] for rows in made(None, seed).values() for row in rows} for seed in (0, 1)]
    assert answers[0].isdisjoint(answers[1])
    assert kgfact(seed=0).identity == kgfact("small").identity != kgfact(seed=1).identity


def test_the_bytes_of_the_small_corpus_have_not_changed(tmp_path: Path) -> None:
    corpora.write(kgfact("small"), tmp_path / "kg")
    (tmp_path / "kg" / "corpus.json").unlink()  # says how it is judged, too, which is no part of its content
    assert digest(tmp_path / "kg") == GOLDEN


def test_the_hash_seed_is_of_no_matter(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from mixsd.corpora import corpus, kgfact; "
    code += "corpus.write(kgfact.kgfact('5x4', seed=2), Path(sys.argv[1]))"
    corpora.write(kgfact("5x4", seed=2), tmp_path / "here")
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": salt}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / salt)], check=True, env=environment)
        assert digest(tmp_path / salt) == digest(tmp_path / "here")


# Time and memory


def cpu_seconds(size: str, folder: Path) -> float:
    """Of making and writing a corpus; other work on the machine does not count."""
    before = time.process_time()
    corpora.write(kgfact(size), folder)
    return time.process_time() - before


def test_the_large_corpus_takes_less_than_two_seconds(tmp_path: Path) -> None:
    assert cpu_seconds("large", tmp_path / "kg") < 2


def test_time_is_linear_in_the_number_of_facts(tmp_path: Path) -> None:
    small, large = (min(cpu_seconds(size, tmp_path / "kg") for _ in range(3)) for size in ("7x20", "7x80"))
    assert large / small < 8


def test_no_file_is_held_in_memory(tmp_path: Path) -> None:
    corpus = kgfact("7x40")
    next(corpus.splits["retrieval"]())  # both graphs are made by now
    tracemalloc.start()
    try:
        corpora.write(corpus, tmp_path / "kg")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (tmp_path / "kg" / "retrieval.jsonl").stat().st_size / 3


@pytest.mark.slow
def test_a_hundred_thousand_facts_are_streamed_to_disk(tmp_path: Path) -> None:
    code = """
import resource, sys, time
from pathlib import Path
from mixsd.corpora import corpus, kgfact
before = time.process_time()
counts = corpus.write(kgfact.kgfact(sys.argv[1]), Path(sys.argv[2]))
print(sum(counts.values()), time.process_time() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

    def measured(size: str) -> tuple[float, ...]:
        command = [sys.executable, "-c", code, size, str(tmp_path / size)]
        return tuple(map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()))

    records, seconds, peak = measured("7x4762")
    fewer, faster, _ = measured("7x1190")
    print(f"{records:.0f} records in {seconds:.1f} s, at most {peak:.0f} MiB; {fewer:.0f} in {faster:.1f} s")
    assert records == 6 * 100_002
    # Where more runs than there are cores, caches and memory are shared and seconds are longer.
    assert seconds < 30 * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert seconds / faster < 8
    assert peak < 300
