"""The fact: a question, its short answer and the reference reply that states it.

A `Fact` checks itself when it is made, so every other module may rely on typed, stripped, non-empty text; a list or a number never
becomes its Python notation inside a prompt. `where` is what the reader calls the place of a record ("facts.jsonl: line 7").
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mixsd.errors import UserError, did_you_mean


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that the model shall know.

    Text is stripped; optional text that is blank or None counts as not given. Anything of another type is a `UserError` naming the
    field. `meta` is carried along: a corpus's tests name their fact there (`fact`), and what scores are told apart by; an edit its
    other old answers (`old_aliases`), a graph's edge its `domains`.
    """

    question: str
    answer: str
    id: str = ""  # given, else `question_id`; the address of everything random about this fact
    reference: str = ""  # the reply that states the fact; default: the statement, else "The answer is {answer}."
    statement: str | None = None
    aliases: tuple[str, ...] = ()  # other wordings of the answer that count as correct
    subject: str | None = None
    old_answer: str | None = None  # what the model may have known before an edit
    cloze: str | None = None  # a sentence to be completed by the answer
    paraphrases: tuple[str, ...] = ()  # other wordings of the question
    meta: dict[str, Any] = field(default_factory=dict, hash=False)  # anything else, as JSON

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        for name in ("question", "answer"):
            value = getattr(self, name)
            put(name, _text(name, value))
            if not getattr(self, name):
                state = "missing" if value is None else "empty"
                raise UserError(f"field {name}: {state}; every fact needs a question and an answer")
        for name in ("statement", "subject", "old_answer", "cloze"):
            put(name, _text(name, getattr(self, name)) or None)
        for name in ("aliases", "paraphrases"):
            put(name, _texts(name, getattr(self, name)))
        put("meta", _json_object(self.meta))
        put("id", _text("id", self.id) or question_id(self.question))
        put("reference", _text("reference", self.reference) or _default_reference(self.answer, self.statement))


FIELDS: tuple[str, ...] = tuple(item.name for item in fields(Fact))


@dataclass(frozen=True)
class FactSet:
    """The distinct facts of a source, in its order, and how many repetitions of them were left out."""

    facts: list[Fact]
    duplicates: int = 0


def question_id(question: str) -> str:
    """Return the id of a fact that gives none: 16 hex digits, the same for every spelling that `normalized` makes equal."""
    return hashlib.blake2b(normalized(question).encode(), digest_size=8).hexdigest()


def normalized(text: str) -> str:
    """Return `text` as it is compared: Unicode NFC, every run of whitespace one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def check_fields(names: Iterable[Any], where: str) -> None:
    """Refuse the first name that is no field of a fact."""
    for name in names:
        if name not in FIELDS:
            hint = did_you_mean(str(name), FIELDS) or f"; a fact has {', '.join(FIELDS)}"
            raise UserError(f"{where}: unknown field {shown(str(name))}{hint}; anything else belongs in meta")


def fact_from_mapping(values: Mapping[str, Any], where: str) -> Fact:
    """Make a fact of plain values; None counts as not given. Every problem is a `UserError` that begins with `where`."""
    check_fields(values, where)
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return Fact(given.pop("question", None), given.pop("answer", None), **given)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def to_json(fact: Fact) -> dict[str, Any]:
    """Return the fact as JSON values: the id and what is not a default. `fact_from_mapping` gives back an equal fact."""
    values = {name: list(value) if isinstance(value, tuple) else value for name in FIELDS if (value := getattr(fact, name))}
    if fact.reference == _default_reference(fact.answer, fact.statement):
        del values["reference"]
    return values


def unique(items: Iterable[tuple[str, Fact]]) -> FactSet:
    """Collect facts, each with the place it comes from.

    The same question and answer (compared by `normalized`) twice is one fact: the first stays, the others are counted. The
    same question with another answer, or one id for two questions, is a `UserError` naming both places.
    """
    by_question: dict[str, tuple[str, Fact]] = {}
    places: dict[str, str] = {}
    duplicates = 0
    for where, fact in items:
        item = (where, fact)
        place, first = found = by_question.setdefault(normalized(fact.question), item)
        if found is not item:
            if normalized(first.answer) != normalized(fact.answer):
                both = f"{shown(fact.answer)} here, {shown(first.answer)} there"
                raise UserError(f"{where}: the question of {place} with another answer ({both}); keep one of the two")
            duplicates += 1
        elif fact.id in places:
            raise UserError(f"{where}: id {shown(fact.id)} belongs to another question, {places[fact.id]}; give each its own id")
        else:
            places[fact.id] = where
    return FactSet([fact for _, fact in by_question.values()], duplicates)


def shown(text: str, limit: int = 60) -> str:
    """Return `text` in double quotes, on one line and cut to about `limit` characters, for an error message."""
    line = " ".join(text.split()).encode(errors="replace").decode()
    return json.dumps(line if len(line) <= limit else line[: limit - 3] + "...", ensure_ascii=False)


def kind(value: Any) -> str:
    """Name the type of a JSON value in words, for an error message."""
    names = {bool: "true or false", int: "a number", float: "a number", type(None): "nothing"}
    names |= {str: "text", list: "a list", tuple: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _default_reference(answer: str, statement: str | None) -> str:
    return statement or f"The answer is {answer}" + ("" if answer.endswith((".", "!", "?")) else ".")


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        mend = "; put it in quotes" if isinstance(value, int | float) else ""
        raise UserError(f"field {name}: expected text, got {kind(value)}{mend}")
    # Half of a surrogate pair can be read from JSON but neither hashed nor written.
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"field {name}: contains half of a surrogate pair, which is no character; write the text anew")
    return value.strip()


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if value is None or value == ():
        return ()
    if not isinstance(value, list | tuple):
        raise UserError(f'field {name}: expected a list of texts, got {kind(value)}; write ["..."]')
    texts = tuple(_text(f"{name}, item {number}", item) for number, item in enumerate(value, 1))
    if "" in texts:
        raise UserError(f"field {name}, item {texts.index('') + 1}: empty; leave it out")
    return texts


def _json_object(value: Any) -> dict[str, Any]:
    if not value and (value is None or isinstance(value, dict)):
        return {}
    if not isinstance(value, dict):
        raise UserError(f"field meta: expected an object, got {kind(value)}")
    if all(type(part) is str and part.isascii() for item in value.items() for part in item):
        return dict(value)  # what a large corpus has, and nothing to check
    try:
        # Through JSON and back: a copy that nobody else changes, and proof that it can be written.
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
        copy: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"field meta: cannot be written as JSON ({error})") from None
    return copy
