"""Where a benchmark's records are: a folder of the user's, or the hub, whose copy in the cache is taken where there is one.

A folder holds `NAME/test.jsonl` (or .jsonl.gz, .json, .csv, .parquet), with the fields of the published data set; what a benchmark
calls its files otherwise is in its `Source`. It may also hold the files as the hub has them, `test-00000-of-00002.parquet` and so on. The
folder is `--data`, else $MIXSD_DATA. What `datasets` keeps in its cache is taken without asking the hub: the benchmarks do not change.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mixsd.errors import UserError
from mixsd.facts.records import Records, read_csv, read_hub, read_json, read_jsonl, read_parquet

_KINDS = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<place>\d{5})-of-(?P<number>\d{5})(?P<ending>\..+)")


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
    """Where the data was found: `files` by split, of the user's folder; or `cached`, the builder of the hub's cache; or the hub's.

    `where` is for people.
    """

    source: Source
    where: str
    kind: Literal["folder", "cache", "hub"]
    files: dict[str, list[Path]] | None = None
    cached: Any = None

    @property
    def place(self) -> str:
        """The one file that holds the data, else as `where`."""
        files = [file for files in (self.files or {}).values() for file in files]
        return str(files[0]) if len(files) == 1 else self.where

    def records(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The records of one split, with the place of each ("FILE: line 7").

        Raises:
            UserError: they cannot be read.
        """
        yield from ((where, record) for _, where, record in self.records_by_file(split))

    def records_by_file(self, split: str) -> Iterator[tuple[Path | None, str, dict[str, Any]]]:
        """As `records`, with the file of each; None where it is the hub's."""
        if self.files is not None:
            for file in self.files[split]:
                yield from ((file, where, record) for where, record in _reader(file, self.source.columns)(file))
            return
        name = f"{self.source.hub}:{split}"
        rows = read_hub(name, config=self.source.config) if self.cached is None else _read_cached(self.cached, split, name)
        yield from ((None, where, record) for where, record in rows)


def find(source: Source, folder: str | None, *, offline: bool, only_at_hand: bool = False) -> Found:
    """Look for a benchmark's data: in the user's folder, in $MIXSD_DATA, in the hub's cache, on the hub.

    Args:
        folder: the user's; then it has to be there.
        offline: the network is forbidden; what the cache of the hub holds may be taken.
        only_at_hand: take nothing that would have to be downloaded.

    Raises:
        UserError: it is nowhere that may be looked; says where it was looked. Or a file of several is missing.
    """
    looked = []
    if root := folder or os.environ.get("MIXSD_DATA"):
        # Absolute, for "." may well be the benchmark's own folder.
        for place in _folders(source, Path(root).expanduser().absolute()):
            if files := _files(source, place):
                return Found(source, str(place), "folder", files=files)
            looked.append(f"no {' and '.join(source.files.values())} (.jsonl, .parquet, ...) in {place}")
    if not folder:
        if (cached := _cached(source)) is not None:
            return Found(source, f"hub: {source.hub}, in the cache", "cache", cached=cached)
        if not (offline or only_at_hand):
            return Found(source, f"hub: {source.hub}", "hub")
        looked.append(f"{source.hub} is not in the hub's cache" + (", and the network is forbidden" if offline else ""))
    raise UserError("; ".join(looked) + ("" if folder else "; name a folder that holds it with --data"))


def _folders(source: Source, root: Path) -> list[Path]:
    """Where in `root` a benchmark may be: in a folder of its name or, where `root` has that name, in itself."""
    return [root / source.folder, *([root] if root.name == source.folder else [])]


def _files(source: Source, folder: Path) -> dict[str, list[Path]] | None:
    found = {split: _files_of(folder, split, stem, source.per_part) for split, stem in source.files.items()}
    return found if all(found.values()) else None


def _files_of(folder: Path, split: str, stem: str, per_part: bool) -> list[Path]:
    for ending in _KINDS:
        if (file := folder / f"{stem}{ending}").is_file():
            return [file]
    if shards := [
        file for file in _data_files(folder) if (shard := _SHARD.fullmatch(file.name)) and shard["stem"] in (stem, split)
    ]:
        return _whole(shards)
    return _whole(_data_files(folder / stem)) if per_part else []


def _data_files(folder: Path) -> list[Path]:
    # What some systems leave beside a file ("._anatomy_test.csv") is none of its kind.
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(file for file in found if file.name.endswith(_KINDS) and file.name[0] != ".")


def _whole(files: list[Path]) -> list[Path]:
    """The files; a `UserError` that names the first one that is missing among those called "-00000-of-00002"."""
    names = {file.name for file in files}
    for file in files:
        if shard := _SHARD.fullmatch(file.name):
            for place in range(int(shard["number"])):
                name = f"{shard['stem']}-{place:05}-of-{shard['number']}{shard['ending']}"
                if name not in names:
                    raise UserError(f"{file.parent / name}: is missing; {file.name} is a part of {int(shard['number'])}")
    return files


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
    }
    return readers[file.suffix]


def _cached(source: Source) -> Any:
    """The library's own reader of what it prepared in its cache, which is what it falls back on without the network; None where there is none.

    Asked for directly: the library's offline mode is fixed when it is imported.
    """
    try:
        from datasets.packaged_modules.cache.cache import Cache
    except ImportError:
        return None
    logging.getLogger("datasets.packaged_modules.cache.cache").setLevel(logging.ERROR)  # it warns of every use
    name = source.hub.rpartition("/")[2]
    try:
        found = Cache(repo_id=source.hub, dataset_name=name, config_name=source.config, version="auto", hash="auto")
    except (ValueError, OSError):  # nothing there, or the rest of a download that was stopped
        return None
    return found if source.files.keys() <= (found.info.splits or {}).keys() else None


def _read_cached(builder: Any, split: str, name: str) -> Records:
    try:
        rows: Iterable[Any] = builder.as_dataset(split=split)
    except (ValueError, OSError) as error:
        raise UserError(f"{name}: its copy in the cache cannot be read ({' '.join(str(error).split())})") from None
    yield from ((f"{name}: row {number}", dict(row)) for number, row in enumerate(rows, 1))
