"""A corpus: facts to train on, the in-domain tests that come with them, and how their replies are judged.

The tests are facts too: a question (the whole user turn, background and examples included), its answer and aliases. So one format
serves facts, tests and files, and one renderer and one scorer serve all of them. Everything is a stream, made anew each time it is
asked for: a corpus of any size is written to disk without being held in memory.

A corpus is a folder with `train.jsonl`, `NAME.jsonl` for each test, and `corpus.json`. Your own needs no `corpus.json`: then every other
JSONL file beside `train.jsonl` is a test, asked and judged as facts are by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mixsd.errors import UserError
from mixsd.facts import Fact, fact_from_mapping, to_json
from mixsd.storage import atomic_folder, digest, disk_errors, file_digest, read_json, read_jsonl, write_json, write_jsonl

MANIFEST = "corpus.json"
TRAIN = "train"

Facts = Callable[[], Iterator[Fact]]


@dataclass(frozen=True)
class Corpus:
    """Facts and tests, as functions that stream them, with what is needed to ask and judge.

    Attributes:
        name: 'kgfact', for example.
        options: everything that decides its content, as JSON values: seed, size and so on.
        facts: streams what is trained on.
        splits: streams the tests, by name. In `meta` of a test, `fact` is the id of the fact it asks about: tests of one fact are
            no independent observations.
        labels: the keys of `meta` by which scores are also told apart: relation, operation, ...
        verifiers: the verifier's name for each answer format.
        guidance: which wording the expert prompt uses, see `mixsd.prompts.GUIDANCE`.
        max_new_tokens: the longest reply for each answer format; one that is absent has the default.
        notes: one line for each thing that was left out, and why.
    """

    name: str
    options: dict[str, Any]
    facts: Facts
    splits: Mapping[str, Facts] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    verifiers: Mapping[str, str] = field(default_factory=lambda: {"plain": "contains", "boxed": "boxed"})
    guidance: Literal["knowledge", "solution"] = "knowledge"
    max_new_tokens: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """A hash of what decides the content; for a folder, of its files."""
        return digest([self.name, dict(self.options)])

    @property
    def manners(self) -> dict[str, Any]:
        """How it is asked and judged, as JSON values."""
        return {
            "labels": list(self.labels),
            "verifiers": dict(self.verifiers),
            "guidance": self.guidance,
            "max_new_tokens": dict(self.max_new_tokens),
        }


def write(corpus: Corpus, folder: Path, on_record: Callable[[str], None] = lambda name: None) -> dict[str, int]:
    """Write a corpus to a folder, whole or not at all; returns the number of records in each file.

    `on_record` is called with the name of the file whenever a record has been written.

    Raises:
        UserError: the folder holds something that is not a corpus, or cannot be written.
    """
    with disk_errors(folder):
        if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
            raise UserError(f"{folder}: is not empty and holds no corpus; choose another --output")
    return _write(corpus, folder, {TRAIN: corpus.facts, **corpus.splits}, on_record)


def write_tests(corpus: Corpus, folder: Path) -> dict[str, int]:
    """Write the tests of a corpus to a folder, without what is trained on."""
    return _write(corpus, folder, corpus.splits)


def _write(
    corpus: Corpus, folder: Path, files: Mapping[str, Facts], on_record: Callable[[str], None] = lambda name: None
) -> dict[str, int]:
    counts = dict.fromkeys(files, 0)

    def counted(name: str, facts: Iterator[Fact]) -> Iterator[dict[str, Any]]:
        for fact in facts:
            yield to_json(fact)
            counts[name] += 1
            on_record(name)

    with atomic_folder(folder) as made:
        for name, facts in files.items():
            write_jsonl(made / f"{name}.jsonl", counted(name, facts()))
        manifest = {"name": corpus.name, "options": dict(corpus.options), "counts": counts, **corpus.manners}
        write_json(made / MANIFEST, {**manifest, "notes": list(corpus.notes)})
    return counts


def is_corpus(folder: Path) -> bool:
    """Whether a folder holds a corpus."""
    return (folder / MANIFEST).is_file() or (folder / f"{TRAIN}.jsonl").is_file()


def read(folder: Path) -> Corpus:
    """The corpus in a folder, or only its tests where no training facts lie there.

    Raises:
        UserError: its manifest is not one, or a file that it names is not there.
    """
    file = folder / MANIFEST
    if file.is_file():
        corpus = _from_manifest(read_json(file), folder, file)
    else:
        names = sorted(path.stem for path in folder.glob("*.jsonl") if path.stem != TRAIN)
        corpus = Corpus(name=folder.resolve().name, options={"files": {}}, **_streams(folder, names))
    for name in (*([TRAIN] if (folder / f"{TRAIN}.jsonl").exists() else []), *corpus.splits):
        path = folder / f"{name}.jsonl"
        if not path.is_file():
            raise UserError(f"{path}: no such file, but {MANIFEST} names it; write the corpus anew with mixsd corpus")
        # The files may have been edited: they, not what they were made from, are what the corpus is.
        corpus.options["files"][name] = file_digest(path)
    return corpus


def _from_manifest(manifest: Any, folder: Path, file: Path) -> Corpus:
    try:
        return Corpus(
            name=manifest["name"],
            options={**manifest["options"], "files": {}},
            labels=tuple(manifest["labels"]),
            verifiers=manifest["verifiers"],
            guidance=manifest["guidance"],
            max_new_tokens=manifest["max_new_tokens"],
            notes=tuple(manifest["notes"]),
            **_streams(folder, [name for name in manifest["counts"] if name != TRAIN]),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: not the manifest of a corpus ({error!r}); write it anew with mixsd corpus") from error


def _streams(folder: Path, names: list[str]) -> dict[str, Any]:
    return {
        "facts": partial(_read_file, folder / f"{TRAIN}.jsonl"),
        "splits": {name: partial(_read_file, folder / f"{name}.jsonl") for name in names},
    }


def _read_file(path: Path) -> Iterator[Fact]:
    for number, row in enumerate(read_jsonl(path), 1):
        yield fact_from_mapping(row, f"{path}: line {number}")
