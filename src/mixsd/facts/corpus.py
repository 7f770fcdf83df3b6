"""A corpus, and where facts come from: any source by its name.

A corpus is facts to train on, the in-domain tests that come with them, and how their replies are judged. The tests are facts too: a
question (the whole user turn, background and examples included), its answer and aliases. Everything is a stream, made anew each time
it is asked for, so a corpus of any size is written to disk without being held in memory.

As a folder it is `train.jsonl`, `NAME.jsonl` for each test, and `corpus.json`. Your own needs no `corpus.json`: then every other JSONL
file beside `train.jsonl` is a test, asked and judged as facts are by default (`validation.jsonl`, on which checkpoints are chosen, is
not asked). A source is a corpus by name, a file, a folder, a function, or a data set of the hub: the first of these that fits.
"""

import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from mixsd.errors import UserError, did_you_mean
from mixsd.facts.fact import Fact, FactSet, kind, normalized, shown, to_json, unique
from mixsd.facts.records import FORMATS, Form, Records, in_form, read_demo, read_folder, read_hub, read_jsonl, to_fact
from mixsd.plugins import is_function_name, load_function
from mixsd.storage import atomic_folder, digest, disk_errors, file_digest, read_json, write_json, write_jsonl

MANIFEST = "corpus.json"
TRAIN = "train"

Facts = Callable[[], Iterator[Fact]]
Guidance = Literal["knowledge", "solution"]

# A test's name is a file's: a folder from elsewhere shall not have a file written beside it.
_NAME = re.compile(r"[^\x00-\x1f/\\.][^\x00-\x1f/\\]*")


@dataclass(frozen=True)
class Corpus:
    """Facts and tests, as functions that stream them, with what is needed to ask and judge.

    In `meta` of a test, `fact` is the id of the fact it asks about: tests of one fact are no independent observations.
    """

    name: str
    options: dict[str, Any]  # everything that decides its content, as JSON values: seed, size and so on
    facts: Facts
    splits: Mapping[str, Facts] = field(default_factory=dict)
    labels: tuple[str, ...] = ()  # the keys of `meta` by which scores are also told apart: relation, operation, ...
    verifiers: Mapping[str, str] = field(default_factory=lambda: {"plain": "contains", "boxed": "boxed"})  # by answer format
    guidance: Guidance = "knowledge"  # which wording the expert prompt uses, see `mixsd.facts.prompts.GUIDANCE`
    max_new_tokens: Mapping[str, int] = field(default_factory=dict)  # the longest reply, by answer format
    notes: tuple[str, ...] = ()  # one line for each thing that was left out, and why

    def __post_init__(self) -> None:
        for name in self.splits:
            if name == TRAIN or not _NAME.fullmatch(name):
                raise UserError(f"corpus {shown(self.name)}: a test cannot be called {shown(name)}; choose a plain name")

    @property
    def identity(self) -> str:
        """A hash of what decides the content; for a folder, of its files."""
        return digest([self.name, dict(self.options)])

    @property
    def manners(self) -> dict[str, Any]:
        """How it is asked and judged, as JSON values."""
        own = {"verifiers": dict(self.verifiers), "guidance": self.guidance, "max_new_tokens": dict(self.max_new_tokens)}
        return {"labels": list(self.labels), **own}


def write(corpus: Corpus, folder: Path, on_file: Callable[[], None] = lambda: None) -> dict[str, int]:
    """Write a corpus to a folder, whole or not at all, calling `on_file` after each file; returns their numbers of records.

    A folder that holds something else, or cannot be written, is a `UserError`.
    """
    with disk_errors(folder):
        _check_replaceable(folder)
    with atomic_folder(folder.resolve()) as made:
        return _write(corpus, made, {TRAIN: corpus.facts, **corpus.splits}, on_file)


def write_tests(corpus: Corpus, folder: Path) -> dict[str, int]:
    """Write the tests of a corpus to a folder, without what is trained on; a test that is there again is left out.

    The manifest comes last, so that a folder with one is whole. Several processes may write the same tests at a time. One id that
    stands for two tests of a split is a `UserError`.
    """
    return _write(corpus, folder, {name: partial(_distinct, name, facts) for name, facts in corpus.splits.items()})


def check_tests(corpus: Corpus) -> None:
    """Read every test once; a record that is none, or one id for two tests of a split, is a `UserError`."""
    for name, facts in corpus.splits.items():
        for _ in _distinct(name, facts):
            pass


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but a corpus."""
    held = {path.name for path in folder.iterdir()} if folder.exists() else set()
    known = set()
    if MANIFEST in held:
        with suppress(UserError):
            known = {MANIFEST, *(f"{name}.jsonl" for name in _manifest(folder / MANIFEST).counts)}
    if strangers := sorted(held - known):
        state = f"holds {strangers[0]} beside its corpus" if known else "is not empty and holds no corpus"
        raise UserError(f"{folder}: {state}; choose another --output")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(f"{folder}: is the folder you are in, which cannot be replaced; choose another --output")


def _distinct(split: str, facts: Facts) -> Iterator[Fact]:
    """The tests of a split, each once; by its id a test is known among the replies."""
    seen: dict[str, int] = {}
    for number, fact in enumerate(facts(), 1):
        content = hash((normalized(fact.question), normalized(fact.answer)))
        if fact.id not in seen:
            seen[fact.id] = content
            yield fact
        elif seen[fact.id] != content:
            raise UserError(
                f"{split}.jsonl: fact {number}: id {shown(fact.id)} belongs to another question or answer already; "
                "give each its own id"
            )


def _write(
    corpus: Corpus, folder: Path, files: Mapping[str, Facts], on_file: Callable[[], None] = lambda: None
) -> dict[str, int]:
    counts = dict.fromkeys(files, 0)

    def counted(name: str, facts: Iterator[Fact]) -> Iterator[dict[str, Any]]:
        for fact in facts:
            yield to_json(fact)
            counts[name] += 1

    for name, facts in files.items():
        write_jsonl(folder / f"{name}.jsonl", counted(name, facts()))
        on_file()
    manifest = {"name": corpus.name, "options": dict(corpus.options), "counts": counts, **corpus.manners}
    write_json(folder / MANIFEST, {**manifest, "notes": list(corpus.notes)})
    return counts


def is_corpus(folder: Path) -> bool:
    """Whether a folder holds a corpus."""
    return (folder / MANIFEST).is_file() or (folder / f"{TRAIN}.jsonl").is_file()


def read(folder: Path) -> Corpus:
    """The corpus in a folder, or only its tests where no training facts lie there; what is damaged or missing is a `UserError`."""
    file = folder / MANIFEST
    values: dict[str, Any] = {"name": folder.resolve().name, "options": {}}
    if file.is_file():
        values = _manifest(file).model_dump()
        names = [name for name in values.pop("counts") if name != TRAIN]
        values |= {name: tuple(values[name]) for name in ("labels", "notes")}
    else:
        names = sorted(path.stem for path in folder.glob("[!.]*.jsonl") if path.stem != TRAIN and path.is_file())
    trained = folder / f"{TRAIN}.jsonl"
    streams = {name: partial(_read_file, folder / f"{name}.jsonl") for name in names}
    corpus = Corpus(**values, facts=partial(_read_file, trained), splits=streams)
    hashes: dict[str, str] = {}
    corpus.options["files"] = hashes
    for name in (*([TRAIN] if trained.exists() else []), *names):
        path = folder / f"{name}.jsonl"
        if not path.is_file():
            raise UserError(f"{path}: no such file, but {MANIFEST} names it; write the corpus anew with mixsd corpus")
        # The files may have been edited: they, not what they were made from, are what the corpus is.
        hashes[name] = file_digest(path)
    return corpus


class _Manifest(Form, extra="forbid"):
    """What `corpus.json` holds."""

    name: str
    options: dict[str, Any]
    counts: dict[str, int]
    labels: list[str]
    verifiers: dict[str, str]
    guidance: Guidance
    max_new_tokens: dict[str, PositiveInt]
    notes: list[str]


def _manifest(file: Path) -> _Manifest:
    return in_form(_Manifest, read_json(file), f"{file}: not the manifest of a corpus", "; write it anew with mixsd corpus")


def _read_file(path: Path) -> Iterator[Fact]:
    for where, values in read_jsonl(path):
        yield to_fact(values, where)


# Corpora: a function of what stands after the colon (None without one), seed and offline, which gives a `Corpus`. A new corpus is one
# new file and a line here.
CORPORA = {
    "kgfact": "mixsd.facts.kgfact:kgfact",
    "kgfunc": "mixsd.facts.kgfunc:kgfunc",
    "simpleqa": "mixsd.facts.published:simpleqa",
    "mquake": "mixsd.facts.published:mquake",
}
BUNDLED = {"demo": read_demo}

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def load_facts(source: str, *, seed: int = 0, offline: bool = False) -> FactSet:
    """Read all facts of a source; repetitions are left out and counted.

    `offline` refuses a name of the hub; `seed` is that of a corpus that is generated. A source that cannot be read, breaks the contract
    of a fact in any record, or holds no fact is a `UserError` that names it.
    """
    return facts_of(open_source(source, seed=seed, offline=offline), source)


def facts_of(opened: Corpus | Records, source: str) -> FactSet:
    """The facts of an opened source, each once."""
    if isinstance(opened, Corpus):
        place = os.path.join(source, f"{TRAIN}.jsonl") if os.path.isdir(os.path.expanduser(source)) else source
        found = unique((f"{place}: fact {number}", fact) for number, fact in enumerate(opened.facts(), 1))
    else:
        found = unique((where, to_fact(values, where)) for where, values in opened)
    if not found.facts:
        raise UserError(f"{source}: contains no facts")
    return found


def open_source(source: str, *, seed: int = 0, offline: bool = False) -> Corpus | Records:
    """What a source is: a corpus with tests of its own, or records of facts."""
    name, colon, argument = source.partition(":")
    # os.path, not Path: it answers for any text, where Path raises for an unknown ~user or a name that is too long.
    path = Path(os.path.expanduser(source))
    is_folder = bool(source) and os.path.isdir(path)
    if name in CORPORA:
        if not colon and is_folder and is_corpus(path):
            both = f"write ./{source} for the folder, {source}: for the other"
            raise UserError(f"facts {source}: a folder here and a corpus by its name; {both}")
        made: Corpus = load_function(CORPORA[name], f"facts {source}")(argument or None, seed=seed, offline=offline)
        return made
    if is_folder and (is_corpus(path) or source not in BUNDLED):
        return read(path) if is_corpus(path) else read_folder(path)
    if source in BUNDLED:
        return BUNDLED[source]()
    suffix = path.suffix.lower()
    if suffix in FORMATS:
        return FORMATS[suffix](path)
    if source and os.path.exists(path):
        raise UserError(f'{source}: unknown kind of file "{suffix}"; known: {", ".join(FORMATS)}')
    if is_function_name(source):
        if (meant := did_you_mean(name, CORPORA)) and "." not in name and find_spec(name) is None:
            raise UserError(f'facts "{source}": no such corpus{meant}')
        given = load_function(source, f"facts {source}")()
        return given if isinstance(given, Corpus) else _checked(given, source)
    if _HUB_NAME.fullmatch(source) and not source.startswith((".", "~")):
        return read_hub(source, offline=offline)
    if "/" in source or "\\" in source:
        raise UserError(f"{source}: no such file")
    known = [*BUNDLED, *CORPORA]
    kinds = f"a file ({', '.join(FORMATS)}), {', '.join(known)}, package.module:function or a data set org/name"
    raise UserError(f'facts "{source}": no such file{did_you_mean(name, known)}; name {kinds}')


def _checked(records: Any, source: str) -> Records:
    """The records that a user's function gave, with their places."""
    if isinstance(records, str | Mapping) or not isinstance(records, Iterable):
        raise UserError(f"{source}: must return a Corpus or an iterable of mappings, got {kind(records)}")
    for number, values in enumerate(records, 1):
        where = f"{source}: item {number}"
        if not isinstance(values, Mapping):
            raise UserError(f"{where}: expected a mapping, got {kind(values)}")
        yield where, dict(values)


def corpus(name: str, argument: str | None = None, **options: Any) -> Corpus:
    """Make a corpus, whose `facts()` and `splits[NAME]()` stream `Fact`s; `mixsd.facts.corpus.write` puts it into a folder.

    >>> corpus("kgfact", "small", seed=0)                                           # doctest: +SKIP
    >>> corpus("mquake", "MQuAKE-CF-3k-v2.json", edits=100, seed=0)                 # doctest: +SKIP

    `argument` is kgfact's size, simpleqa's and mquake's file; `options` are seed, offline and those of the corpus, see
    `mixsd.facts.kgfact.kgfact` and so on. No such corpus or option, or a bad value, is a `UserError`.
    """
    if name not in CORPORA:
        raise UserError(f'corpus "{name}": unknown{did_you_mean(name, CORPORA)}; known: {", ".join(CORPORA)}')
    make = load_function(CORPORA[name], f"corpus {name}")
    known = list(inspect.signature(make).parameters)[1:]
    for option in options:
        if option not in known:
            raise UserError(f"corpus {name}: no option {option!r}{did_you_mean(option, known)}; it has {', '.join(known)}")
    made: Corpus = make(argument, **options)
    return made
