"""Where facts come from.

A source is a bundled corpus by name, a file, a folder, "package.module:function", or a data set of the Hugging Face hub: the
first of these that fits. Each kind is a reader of (where, values) pairs, listed by name so that none is imported before it is
used. A new corpus is one new file and one line in `CORPORA`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mixsd.errors import UserError, did_you_mean
from mixsd.facts import Fact, FactSet, fact_from_mapping, kind, unique
from mixsd.plugins import is_function_name, load_function

# Bundled corpora: a function without arguments that yields (where, values).
CORPORA = {"demo": "mixsd.corpora.files:read_demo"}

# Files by suffix: a function of the path that yields (where, values).
FORMATS = {
    ".jsonl": "mixsd.corpora.files:read_jsonl",
    ".ndjson": "mixsd.corpora.files:read_jsonl",
    ".json": "mixsd.corpora.files:read_json",
    ".csv": "mixsd.corpora.files:read_csv",
    ".tsv": "mixsd.corpora.files:read_tsv",
    ".parquet": "mixsd.corpora.files:read_parquet",
}

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def load_facts(source: str, *, offline: bool = False) -> FactSet:
    """Read all facts of a source; repetitions are left out and counted.

    With `offline`, a name of the hub is refused. A source that does not exist, cannot be read, breaks the contract of a fact in
    any record, or holds no fact is a `UserError` that names it.
    """
    found = unique((where, to_fact(values, where)) for where, values in _records(source, offline))
    if not found.facts:
        raise UserError(f"{source}: contains no facts")
    return found


def to_fact(values: Mapping[str, Any], where: str) -> Fact:
    """Make a fact of one record: a chat record if it has `messages`, else the plain fields."""
    if values.get("messages") is not None:
        from mixsd.corpora.messages import fact_from_messages

        return fact_from_messages(values, where)
    return fact_from_mapping({name: value for name, value in values.items() if name != "messages"}, where)


def _records(source: str, offline: bool) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if source in CORPORA:
        return load_function(CORPORA[source], f"facts {source}")()
    # os.path, not Path: it answers for any text, where Path raises for an unknown ~user or a name that is too long.
    path = Path(os.path.expanduser(source))
    if source and os.path.isdir(path):
        from mixsd.corpora.hub import read_folder

        return read_folder(path)
    suffix = path.suffix.lower()
    if suffix in FORMATS:
        return load_function(FORMATS[suffix], f"facts {source}")(path)
    if source and os.path.exists(path):
        raise UserError(f'{source}: unknown kind of file "{suffix}"; known: {", ".join(FORMATS)}')
    if is_function_name(source):
        return _read_function(source)
    if _HUB_NAME.fullmatch(source) and not source.startswith((".", "~")):
        from mixsd.corpora.hub import read_hub

        return read_hub(source, offline=offline)
    if "/" in source or "\\" in source:
        raise UserError(f"{source}: no such file")
    raise UserError(
        f'facts "{source}": no such file{did_you_mean(source, CORPORA)}; name a file ({", ".join(FORMATS)}), '
        f"{', '.join(CORPORA)}, package.module:function or a data set org/name"
    )


def _read_function(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    records = load_function(source, f"facts {source}")()
    if isinstance(records, str | Mapping) or not isinstance(records, Iterable):
        raise UserError(f"{source}: must return an iterable of mappings, got {kind(records)}")
    for number, values in enumerate(records, 1):
        where = f"{source}: item {number}"
        if not isinstance(values, Mapping):
            raise UserError(f"{where}: expected a mapping, got {kind(values)}")
        yield where, values
