"""The bundled relations of KGFact: what the generator and its two-hop questions rely on."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations

import pytest

from mixsd.facts.records import bundled_rows, bundled_text

NAME = "kgfact_relations.tsv"
COLUMNS = ["source", "target", "relation", "inverse", "statement", "question", "phrase"]
TEMPLATES = ("statement", "question", "phrase")
DOMAINS = ("Person", "Location", "Organization", "Event", "Profession", "Hobby", "Skill")
PER_PAIR = 10
NOUN = {
    "Location": "place",
    "Organization": "organization",
    "Event": "event",
    "Profession": "profession",
    "Hobby": "hobby",
    "Skill": "skill",
}
SAMPLE = {
    "Person": "Maren Tolvik",
    "Location": "Vornelk Bay",
    "Organization": "Holbrisk Industries",
    "Event": "the Quennik Summit",
    "Profession": "the Drosken Binder profession",
    "Hobby": "Vorsk Weaving",
    "Skill": "the Olvar Method",
}
PLACEHOLDER = re.compile(r"\{[^{}]*\}")
ARTICLE = re.compile(r"\b(a|an|the) \{", re.IGNORECASE)
GLUED = re.compile(r"[^ ]\{|\}[^ .?]|\}[.?].")
DOUBLED = re.compile(r"\b(\w+) \1\b", re.IGNORECASE)
PRONOUN = re.compile(r"\b(he|she|his|her|hers|him|himself|herself|they|their|them)\b", re.IGNORECASE)
WORDS = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)*[.?]?")

RELATIONS = bundled_rows(NAME)
IDS = [f"{row['source']}-{row['target']}-{row['relation']}" for row in RELATIONS]

each = pytest.mark.parametrize("row", RELATIONS, ids=IDS)


def render(template: str, row: dict[str, str]) -> str:
    text = template.replace("{s}", SAMPLE[row["source"]]).replace("{t}", SAMPLE[row["target"]])
    return text[0].upper() + text[1:]


def test_the_first_line_is_the_header() -> None:
    text = bundled_text(NAME)
    assert text.splitlines()[0].split("\t") == COLUMNS
    assert text.endswith("\n")
    assert "\r" not in text
    assert text.isascii()


def test_each_pair_has_ten_relations_in_domain_order() -> None:
    pairs = [(row["source"], row["target"]) for row in RELATIONS]
    assert pairs == [pair for pair in combinations(DOMAINS, 2) for _ in range(PER_PAIR)]


def test_names_are_unique_within_a_pair() -> None:
    counts = Counter((row["source"], row["target"], row["relation"]) for row in RELATIONS)
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("column", TEMPLATES)
def test_no_template_occurs_twice(column: str) -> None:
    counts = Counter(row[column].lower() for row in RELATIONS)
    assert [template for template, count in counts.items() if count > 1] == []


@each
def test_placeholders(row: dict[str, str]) -> None:
    assert sorted(PLACEHOLDER.findall(row["statement"])) == ["{s}", "{t}"]
    assert PLACEHOLDER.findall(row["question"]) == ["{s}"]
    assert PLACEHOLDER.findall(row["phrase"]) == ["{s}"]
    for column in TEMPLATES:
        assert not ARTICLE.search(row[column])
        assert not GLUED.search(row[column])


@each
def test_form(row: dict[str, str]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", row["relation"])
    assert row["inverse"] == ""
    assert re.match(r"[A-Z{]", row["statement"])
    assert row["statement"].endswith(".")
    assert row["question"].endswith("?")
    assert row["phrase"].startswith("the ")
    assert re.search(r"[a-z}]$", row["phrase"])
    for column in TEMPLATES:
        # Words, single spaces between them, and the mark at the end: nothing else.
        assert WORDS.fullmatch(row[column].replace("{s}", "s").replace("{t}", "t"))
        assert not PRONOUN.search(row[column])


@each
def test_the_question_and_the_phrase_name_the_kind_of_the_target(row: dict[str, str]) -> None:
    noun = NOUN[row["target"]]
    assert re.match(rf"(Which|[A-Z][a-z]*( [a-z]+){{0,3}} which) {noun}\b", row["question"])
    assert row["phrase"].startswith(f"the {noun} ")


@each
def test_a_statement_has_six_to_sixteen_words(row: dict[str, str]) -> None:
    assert len(row["statement"].split()) >= 6
    assert len(render(row["statement"], row).split()) <= 16


@each
def test_no_word_is_doubled(row: dict[str, str]) -> None:
    for column in TEMPLATES:
        assert not DOUBLED.search(render(row[column], row))


@each
def test_the_phrase_fits_into_each_question_about_its_target(row: dict[str, str]) -> None:
    phrase = row["phrase"].replace("{s}", SAMPLE[row["source"]])
    questions = [other["question"].replace("{s}", phrase) for other in RELATIONS if other["source"] == row["target"]]
    assert len(questions) == PER_PAIR * (len(DOMAINS) - 1 - DOMAINS.index(row["target"]))
    assert [question for question in questions if DOUBLED.search(question)] == []
