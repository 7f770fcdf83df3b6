"""Where facts come from.

A source is a corpus by name (with what is its own after a colon: `kgfact:small`, `simpleqa:FILE`), a file, a folder, a function
"package.module:function", or a data set of the Hugging Face hub: the first of these that fits. It is opened as a `Corpus`, which
has tests of its own, or as records: (where, values) pairs. Everything is listed by name, so that none is imported before it is
used. A new corpus is one new file and one line in `CORPORA`.

`mixsd.corpus`: any corpus by its name and options.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mixsd.errors import UserError, did_you_mean
from mixsd.facts.corpus import TRAIN, Corpus, is_corpus, read
from mixsd.facts.fact import FactSet, kind, unique
from mixsd.facts.records import to_fact
from mixsd.plugins import is_function_name, load_function

Records = Iterable[tuple[str, Mapping[str, Any]]]

# Corpora: a function of what stands after the colon (None without one), seed and offline, which gives a `Corpus`.
CORPORA = {
    "kgfact": "mixsd.facts.kgfact:kgfact",
    "kgfunc": "mixsd.facts.kgfunc:kgfunc",
    "simpleqa": "mixsd.facts.simpleqa:simpleqa",
    "mquake": "mixsd.facts.mquake:mquake",
}

# Bundled facts: a function without arguments that yields (where, values).
BUNDLED = {"demo": "mixsd.facts.records:read_demo"}

# Files by suffix: a function of the path that yields (where, values).
FORMATS = {
    ".jsonl": "mixsd.facts.records:read_jsonl",
    ".ndjson": "mixsd.facts.records:read_jsonl",
    ".json": "mixsd.facts.records:read_json",
    ".csv": "mixsd.facts.records:read_csv",
    ".tsv": "mixsd.facts.records:read_tsv",
    ".parquet": "mixsd.facts.records:read_parquet",
}

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def load_facts(source: str, *, seed: int = 0, offline: bool = False) -> FactSet:
    """Read all facts of a source; repetitions are left out and counted.

    With `offline`, a name of the hub is refused. `seed` is that of a corpus that is generated. A source that does not exist, cannot
    be read, breaks the contract of a fact in any record, or holds no fact is a `UserError` that names it.
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
    if name in CORPORA:
        if not colon and os.path.isdir(source) and is_corpus(Path(source)):
            raise UserError(
                f"facts {source}: a folder here and a corpus by its name; write ./{source} for the folder, {source}: for the other"
            )
        corpus: Corpus = load_function(CORPORA[name], f"facts {source}")(argument or None, seed=seed, offline=offline)
        return corpus
    # os.path, not Path: it answers for any text, where Path raises for an unknown ~user or a name that is too long.
    folder = os.path.expanduser(source)
    if source and os.path.isdir(folder) and is_corpus(Path(folder)):
        return read(Path(folder))
    return _records(source, offline)


def _records(source: str, offline: bool) -> Corpus | Records:
    if source in BUNDLED:
        return load_function(BUNDLED[source], f"facts {source}")()
    path = Path(os.path.expanduser(source))
    if source and os.path.isdir(path):
        from mixsd.facts.records import read_folder

        return read_folder(path)
    suffix = path.suffix.lower()
    if suffix in FORMATS:
        return load_function(FORMATS[suffix], f"facts {source}")(path)
    if source and os.path.exists(path):
        raise UserError(f'{source}: unknown kind of file "{suffix}"; known: {", ".join(FORMATS)}')
    if is_function_name(source):
        name = source.partition(":")[0]
        if (meant := did_you_mean(name, CORPORA)) and "." not in name and find_spec(name) is None:
            raise UserError(f'facts "{source}": no such corpus{meant}')
        made = load_function(source, f"facts {source}")()
        return made if isinstance(made, Corpus) else _checked(made, source)
    if _HUB_NAME.fullmatch(source) and not source.startswith((".", "~")):
        from mixsd.facts.records import read_hub

        return read_hub(source, offline=offline)
    if "/" in source or "\\" in source:
        raise UserError(f"{source}: no such file")
    known = [*BUNDLED, *CORPORA]
    raise UserError(
        f'facts "{source}": no such file{did_you_mean(source.partition(":")[0], known)}; name a file ({", ".join(FORMATS)}), '
        f"{', '.join(known)}, package.module:function or a data set org/name"
    )


def _checked(records: Any, source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The records that a user's function gave, with their places."""
    if isinstance(records, str | Mapping) or not isinstance(records, Iterable):
        raise UserError(f"{source}: must return a Corpus or an iterable of mappings, got {kind(records)}")
    for number, values in enumerate(records, 1):
        where = f"{source}: item {number}"
        if not isinstance(values, Mapping):
            raise UserError(f"{where}: expected a mapping, got {kind(values)}")
        yield where, values


def corpus(name: str, argument: str | None = None, **options: Any) -> Corpus:
    """Make a corpus.

    >>> corpus("kgfact", "small", seed=0)                                           # doctest: +SKIP
    >>> corpus("mquake", "MQuAKE-CF-3k-v2.json", edits=100, seed=0)                 # doctest: +SKIP

    Args:
        name: kgfact, kgfunc, simpleqa or mquake.
        argument: kgfact's size, simpleqa's and mquake's file.
        options: seed, offline and those of the corpus, see `mixsd.facts.kgfact.kgfact` and so on.

    Returns:
        The corpus, whose `facts()` and `splits[NAME]()` stream `Fact`s. `mixsd.facts.corpus.write` puts it into a folder.

    Raises:
        UserError: no such corpus or option, or a bad value.
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
