"""An independent checker of worlds of facts: it reads sentences, and knows nothing of how they were made.

It is given the sentence templates of the relations and what was written to the files. Every statement and every question is read in
all ways that the templates allow, and must have exactly one reading; a question is then answered by trying every triple, those
included that hold by an inverse relation; and the answer must be the file's, and the only one. `problems` returns what is wrong.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

# Two capitalized words name an entity; an article before it and the word profession after it are no part of the name.
ENTITY = r"(?:[Tt]he )?([A-Z][a-z]+ [A-Z][a-z]+)(?: profession)?"
LIST_ITEM = "- "

Row = Mapping[str, Any]
Files = Mapping[str, list[Row]]


class Relation(NamedTuple):
    source: str
    target: str
    name: str


class Triple(NamedTuple):
    source: str
    relation: Relation
    target: str


class Query(NamedTuple):
    """What is asked for: the target of a relation, whose source is an entity or what another query asks for."""

    relation: Relation
    source: str | Query


class UnreadableError(Exception):
    """A text without a reading, or with several."""


def load(folder: Path) -> dict[str, list[Row]]:
    """The files of a corpus: their lines, by the name of the file."""
    return {path.stem: [json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in folder.glob("*.jsonl")}


class Checker:
    """Reads worlds whose sentences are made from these templates: rows with source, target, relation, inverse and three texts."""

    def __init__(self, templates: Iterable[Mapping[str, str]]) -> None:
        templates = list(templates)
        self._statements: list[tuple[Relation, re.Pattern[str]]] = []
        self._questions: list[tuple[Relation, str, str]] = []
        self._phrases: list[tuple[Relation, str, str]] = []
        self._inverses: list[tuple[Relation, Relation]] = []
        for row in templates:
            relation = Relation(row["source"], row["target"], row["relation"])
            pattern = re.escape(row["statement"])
            for place in "st":
                pattern = pattern.replace(re.escape("{" + place + "}"), f"(?P<{place}>{ENTITY})")
            self._statements.append((relation, re.compile(pattern)))
            for found, text in ((self._questions, row["question"]), (self._phrases, row["phrase"])):
                before, after = text.split("{s}")
                found.append((relation, before, after))
            if row["inverse"]:
                inverse = Relation(row["target"], row["source"], row["inverse"])
                self._inverses += [(relation, inverse), (inverse, relation)]
        self._read_before: dict[str, Triple] = {}

    def triple(self, statement: str) -> Triple:
        """What a statement says."""
        if statement in self._read_before:
            return self._read_before[statement]
        readings = [
            Triple(_name(match["s"]), relation, _name(match["t"]))
            for relation, pattern in self._statements
            if (match := pattern.fullmatch(statement))
        ]
        self._read_before[statement] = _only(readings, statement)
        return self._read_before[statement]

    def query(self, text: str) -> Query:
        """The question in a text, which may say other things as well."""
        readings = []
        for relation, before, after in self._questions:
            for start in _places(text, before):
                for end in _places(text[start + len(before) :], after):
                    inner = text[start + len(before) :][:end]
                    readings += [Query(relation, source) for source in self._sources(inner)]
        return _only(readings, text)

    def _sources(self, text: str) -> list[str | Query]:
        """Every reading of a text as an entity or as a phrase that stands for one."""
        readings: list[str | Query] = [_name(text)] if re.fullmatch(ENTITY, text) else []
        for relation, before, after in self._phrases:
            if text.startswith(before) and text.endswith(after) and len(text) > len(before + after):
                inner = text[len(before) : len(text) - len(after)]
                readings += [Query(relation, source) for source in self._sources(inner)]
        return readings

    def closed(self, triples: Iterable[Triple]) -> set[Triple]:
        """These triples and those that say the same from the other end."""
        found = set(triples)
        for one, other in self._inverses:
            found |= {Triple(triple.target, other, triple.source) for triple in found if triple.relation == one}
        return found

    def problems(self, files: Files) -> list[str]:
        """Everything that is wrong with the files of a corpus."""
        found: list[str] = []
        trained = self._read(found, "train", [row["statement"] for row in files["train"]])
        found += self._clashes("train", trained)
        for name, rows in files.items():
            for number, row in enumerate(rows, 1):
                where = f"{name} {number}"
                lines = row["question"].splitlines()
                background = [line.removeprefix(LIST_ITEM) for line in lines if line.startswith(LIST_ITEM)]
                if len(set(background)) < len(background):
                    found.append(f"{where}: a statement stands there twice")
                world = self._read(found, where, background) if background else trained
                if background:
                    found += self._clashes(where, world)
                rest = " ".join(line for line in lines if not line.startswith(LIST_ITEM))
                found += self._wrong(where, rest, row, world)
        return found

    def _read(self, problems: list[str], where: str, statements: list[str]) -> set[Triple]:
        found: set[Triple] = set()
        for statement in statements:
            try:
                triple = self.triple(statement)
            except UnreadableError as error:
                problems.append(f"{where}: {error}")
                continue
            if triple in found:
                problems.append(f"{where}: said twice, the second time as: {statement}")
            found |= self.closed([triple])
        return found

    def _clashes(self, where: str, triples: set[Triple]) -> list[str]:
        """Where a source has two targets by one relation, or a target two sources."""
        targets: dict[tuple[str, Relation], set[str]] = defaultdict(set)
        sources: dict[tuple[str, Relation], set[str]] = defaultdict(set)
        for source, relation, target in triples:
            targets[source, relation].add(target)
            sources[target, relation].add(source)
        return [
            f"{where}: {entity} has by {relation.name} two {kind}: {', '.join(sorted(others))}"
            for kind, by in (("targets", targets), ("sources", sources))
            for (entity, relation), others in by.items()
            if len(others) > 1
        ]

    def _wrong(self, where: str, text: str, row: Row, world: set[Triple]) -> list[str]:
        try:
            query = self.query(text)
        except UnreadableError as error:
            return [f"{where}: {error}"]
        found = []
        inner = query
        while isinstance(inner.source, Query):
            if inner.source.relation.target != inner.relation.source:
                found.append(f"{where}: a {inner.source.relation.target} stands for a {inner.relation.source}: {text}")
            inner = inner.source
        names = {_name(text) for text in [row["answer"], *row.get("aliases", [])]}
        answers = self.answers(query, world)
        if names != {row["answer"]} or answers != names:
            found.append(f"{where}: {sorted(answers)} is right, {sorted(names)} is given: {text}")
        return found

    def answers(self, query: Query, world: set[Triple]) -> set[str]:
        """All right answers in a closed world."""
        sources = {query.source} if isinstance(query.source, str) else self.answers(query.source, world)
        return {target for source, relation, target in world if relation == query.relation and source in sources}


def _name(text: str) -> str:
    match = re.fullmatch(ENTITY, text)
    return match[1] if match else f"no name: {text}"


def _only(readings: list[Any], text: str) -> Any:
    if len(readings) != 1:
        raise UnreadableError(f"{len(readings)} readings {readings}: {text}")
    return readings[0]


def _places(text: str, part: str) -> list[int]:
    found, start = [], text.find(part)
    while start >= 0:
        found.append(start)
        start = text.find(part, start + 1)
    return found
