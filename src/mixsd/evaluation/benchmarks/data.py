"""Where a benchmark's records are: a folder of the user's, or the hub, whose copy in the cache is taken where there is one.

A folder holds `NAME/test.jsonl` (or .jsonl.gz, .json, .csv, .parquet), with the fields of the published data set; what a benchmark
calls its files otherwise is in its `Source`. The folder is `--data`, else $MIXSD_DATA.

The cache is read as the files that `datasets` left there, without that library: it would ask the hub first, and without the network
it takes whatever configuration is the newest. The benchmarks do not change, so nothing is lost by not asking.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mixsd.errors import UserError
from mixsd.facts.records import Records, read_csv, read_hub, read_json, read_jsonl, read_parquet

_KINDS = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv")


@dataclass(frozen=True)
class Source:
    """A benchmark's data: its folder's name, the files in it by split (without the ending), the hub's name and configuration.

    columns: the fields that a CSV file must have. per_part: a split may also be a folder of files, one per part.
    """

    folder: str
    files: dict[str, str]
    hub: str
    config: str | None = None
    columns: Sequence[str] = ()
    per_part: bool = False


@dataclass(frozen=True)
class Found:
    """Where the data was found: `files` by split, of the user's folder or of the hub's cache; None for the hub. `where` is for people."""

    source: Source
    where: str
    files: dict[str, list[Path]] | None
    kind: Literal["folder", "cache", "hub"]
    offline: bool = False

    def records(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The records of one split, with the place of each ("FILE: line 7").

        Raises:
            UserError: they cannot be read.
        """
        yield from ((where, record) for _, where, record in self.records_by_file(split))

    def records_by_file(self, split: str) -> Iterator[tuple[Path | None, str, dict[str, Any]]]:
        """As `records`, with the file of each; None where it is the hub's."""
        if self.files is None:
            name = f"{self.source.hub}:{split}"
            for where, record in read_hub(name, config=self.source.config, offline=self.offline):
                yield None, where, record
            return
        for file in self.files[split]:
            for where, record in _reader(file, self.source.columns)(file):
                yield file, where, record


def find(source: Source, folder: str | None, *, offline: bool, only_at_hand: bool = False) -> Found:
    """Look for a benchmark's data: in the user's folder, in $MIXSD_DATA, in the hub's cache, on the hub.

    Args:
        folder: the user's; then it has to be there.
        offline: the network is forbidden; what the cache of the hub holds may be taken.
        only_at_hand: take nothing that would have to be downloaded.

    Raises:
        UserError: it is nowhere that may be looked; says where it was looked.
    """
    looked = []
    if root := folder or os.environ.get("MIXSD_DATA"):
        # Absolute, for "." may well be the benchmark's own folder.
        for place in _folders(source, Path(root).expanduser().absolute()):
            if files := _files(source, place):
                return Found(source, str(place), files, "folder", offline)
            looked.append(f"no {' and '.join(source.files.values())} (.jsonl, .parquet, ...) in {place}")
    if not folder:
        if cached := _cached(source):
            return Found(source, f"hub: {source.hub}, in the cache", cached, "cache", offline)
        if not (offline or only_at_hand):
            return Found(source, f"hub: {source.hub}", None, "hub", offline)
        looked.append(f"{source.hub} is not in the hub's cache" + (", and the network is forbidden" if offline else ""))
    raise UserError("; ".join(looked) + ("" if folder else "; name a folder that holds it with --data"))


def _folders(source: Source, root: Path) -> list[Path]:
    """Where in `root` a benchmark may be: in a folder of its name or, where `root` has that name, in itself."""
    return [root / source.folder, *([root] if root.name == source.folder else [])]


def _files(source: Source, folder: Path) -> dict[str, list[Path]] | None:
    found = {split: _files_of(folder, stem, source.per_part) for split, stem in source.files.items()}
    return found if all(found.values()) else None


def _files_of(folder: Path, stem: str, per_part: bool) -> list[Path]:
    for ending in _KINDS:
        if (file := folder / f"{stem}{ending}").is_file():
            return [file]
    if per_part and (folder / stem).is_dir():
        # What some systems leave beside a file ("._anatomy_test.csv") is none of its kind.
        return sorted(file for file in (folder / stem).iterdir() if file.name.endswith(_KINDS) and file.name[0] != ".")
    return []


def part_of(file: Path) -> str:
    """The name of a file without the ending that says how to read it."""
    return next(file.name.removesuffix(ending) for ending in (*_KINDS, "") if file.name.endswith(ending))


def _reader(file: Path, columns: Sequence[str]) -> Callable[[Path], Records]:
    readers: dict[str, Callable[[Path], Records]] = {
        ".jsonl": read_jsonl,
        ".gz": read_jsonl,
        ".json": read_json,
        ".parquet": read_parquet,
        ".csv": partial(read_csv, columns=columns),
        ".arrow": _read_arrow,
    }
    return readers[file.suffix]


def _cached(source: Source) -> dict[str, list[Path]] | None:
    """The files of every split that `datasets` prepared in its cache: CACHE/ORG___NAME/CONFIG/VERSION/HASH/NAME-SPLIT.arrow.

    Beside them may stand HASH.incomplete, of a download that was stopped.
    """
    organisation, _, name = source.hub.partition("/")
    prepared = _hub_cache() / f"{organisation}___{name.lower()}"
    folders = [folder for folder in prepared.glob(f"{source.config or '*'}/*/*") if folder.is_dir() and not folder.suffix]
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True):
        shards = {split: (f"*-{split}.arrow", f"*-{split}-*-of-*.arrow") for split in source.files}
        found = {split: sorted(file for shape in shapes for file in folder.glob(shape)) for split, shapes in shards.items()}
        if all(found.values()):
            return found
    return None


def _hub_cache() -> Path:
    """The folder where `datasets` puts what it prepared, by its own rules; importing it to ask takes seconds."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_DATASETS_CACHE") or os.path.join(home, "datasets")).expanduser()


def _read_arrow(path: Path) -> Records:
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{path}: reading it needs pyarrow; install it with: pip install 'mixsd[data]'") from None
    number = 0
    try:
        with pyarrow.memory_map(str(path)) as file:
            for batch in pyarrow.ipc.open_stream(file):
                for values in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", values
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable Arrow file ({' '.join(str(error).split())})") from None
