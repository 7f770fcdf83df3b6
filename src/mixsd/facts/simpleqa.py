"""SimpleQA: 4,326 short questions about the world, each with one answer (OpenAI, 2024), taught as new facts.

Read from a file in its published shape (CSV with the columns metadata, problem, answer; JSONL, JSON and Parquet with the same
fields), or from the hub. The questions are all different, so every row is a fact; in a file that repeats one, the repetition is
counted, and one question with two answers is refused. The tests are other wordings of the questions.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mixsd.errors import UserError
from mixsd.facts.bundled import framed
from mixsd.facts.corpus import Corpus
from mixsd.facts.fact import Fact, fact_from_mapping, kind, shown, to_json, unique
from mixsd.facts.records import Records, read_csv, read_hub, read_json, read_jsonl, read_parquet
from mixsd.storage import digest

HUB = "basicv8vc/SimpleQA:test"
FIELDS = ("metadata", "problem", "answer")

READERS: dict[str, Callable[[Path], Records]] = {
    ".csv": partial(read_csv, columns=FIELDS),
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
}


def simpleqa(argument: str | None = None, *, seed: int = 0, offline: bool = False) -> Corpus:
    """The corpus SimpleQA.

    Args:
        argument: the path of its file; None takes the data set of the hub.
        seed: of the wordings of the tests.
        offline: refuse the hub.

    Raises:
        UserError: there is no such file, a row of it is not one of SimpleQA, or one question has two answers.
    """
    found = unique((where, _fact(values, where)) for where, values in _records(argument, offline))
    if not found.facts:
        raise UserError(f"{argument or HUB}: contains no questions")

    def facts() -> Iterator[Fact]:
        return iter(found.facts)

    return Corpus(
        name="simpleqa",
        # Of the content, not of the file: CSV, Parquet and the hub give the same corpus.
        options={"seed": seed, "facts": digest([to_json(fact) for fact in found.facts])},
        facts=facts,
        splits={
            "paraphrase": partial(framed, facts, "report", seed),
            "validation": partial(framed, facts, "validation", seed),
        },
        labels=("topic", "answer_type"),
        verifiers={"plain": "contains", "boxed": "exact"},
        guidance="solution",
        notes=(f"questions that are there again: {found.duplicates}",) if found.duplicates else (),
    )


def _records(argument: str | None, offline: bool) -> Records:
    if argument is None:
        if offline:
            raise UserError(f"simpleqa: the data set {HUB} cannot be fetched offline; name a local file: simpleqa:PATH")
        return read_hub(HUB)
    path = Path(os.path.expanduser(argument))
    if path.suffix.lower() not in READERS:
        raise UserError(f'simpleqa: {argument}: unknown kind of file "{path.suffix}"; known: {", ".join(READERS)}')
    return READERS[path.suffix.lower()](path)


def _fact(values: Mapping[str, Any], where: str) -> Fact:
    for name in ("problem", "answer"):
        _text(values.get(name), f"{where}: field {name}")
    meta = _metadata(values.get("metadata"), f"{where}: field metadata")
    return fact_from_mapping({"question": values["problem"], "answer": values["answer"], "meta": meta}, where)


def _metadata(value: Any, where: str) -> dict[str, Any]:
    """Topic, answer type and sources of a question: an object, or the text of one in JSON or as a Python dict literal."""
    if isinstance(value, str):
        value = _literal(value, where)
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object, got {kind(value)}")
    for name in ("topic", "answer_type"):
        _text(value.get(name), f"{where}, {name}")
    urls = value.get("urls", [])
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise UserError(f"{where}, urls: expected a list of texts, got {kind(urls)}")
    return value


def _text(value: Any, where: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: expected text, got {'only spaces' if isinstance(value, str) else kind(value)}")


def _literal(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        # Literals only: nothing in the text is run.
        return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise UserError(f"{where}: neither JSON nor a Python dict literal: {shown(text)}") from None
