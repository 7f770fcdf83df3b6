"""Where a benchmark's records are: a folder of the user's (`--data`, else $MIXSD_DATA), the hub's cache, or the hub.

A folder holds `NAME/test.jsonl` (or .jsonl.gz, .json, .csv, .parquet), with the fields of the published data set, or the files as the hub
has them, `test-00000-of-00002.parquet` and so on. The cache is taken without asking the hub: the benchmarks do not change.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mixsd.errors import UserError
from mixsd.facts.records import Records, read_csv, read_hub, read_json, read_jsonl, read_parquet

# By the last part of a file's name; the order is that in which files of one stem are preferred.
_READERS: dict[str, Callable[..., Records]] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
}
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
    """Where the data was found: `files` of the user's folder by split, `cached`, the builder of the hub's cache, or neither: on the hub."""

    source: Source
    where: str
    kind: Literal["folder", "cache", "hub"]
    files: dict[str, list[Path]] | None = None
    cached: Any = None

    def records(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The records of one split, with the place of each ("FILE: line 7")."""
        yield from ((where, record) for _, where, record in self.records_by_file(split))

    def records_by_file(self, split: str) -> Iterator[tuple[Path | None, str, dict[str, Any]]]:
        """As `records`, with the file of each; None where it is the hub's."""
        if self.files is not None:
            for file in self.files[split]:
                ending = file.name.removeprefix(part_of(file))
                options = {"columns": self.source.columns} if ending == ".csv" else {}
                yield from ((file, where, record) for where, record in _READERS[ending](file, **options))
            return
        name = f"{self.source.hub}:{split}"
        if self.cached is not None:
            try:
                rows = self.cached.as_dataset(split=split)
            except (ValueError, OSError) as error:
                raise UserError(f"{name}: its copy in the cache cannot be read ({' '.join(str(error).split())})") from None
            yield from ((None, f"{name}: row {number}", dict(row)) for number, row in enumerate(rows, 1))
            return
        yield from ((None, where, record) for where, record in read_hub(name, config=self.source.config))


def find(source: Source, folder: str | None, *, offline: bool, only_at_hand: bool = False) -> Found:
    """Look for a benchmark's data in the user's folder (then it has to be there), $MIXSD_DATA, the hub's cache, and on the hub.

    offline: the network is forbidden; what the cache of the hub holds may be taken. only_at_hand: take nothing that would have to be
    downloaded. A `UserError` says where it was looked, or which file of several is missing.
    """
    looked = []
    if root := folder or os.environ.get("MIXSD_DATA"):
        base = Path(root).expanduser().absolute()  # for "." may well be the benchmark's own folder
        for place in (base / source.folder, *([base] if base.name == source.folder else [])):
            files = {split: _files_of(place, split, stem, source.per_part) for split, stem in source.files.items()}
            if all(files.values()):
                return Found(source, str(place), "folder", files=files)
            looked.append(f"no {' and '.join(source.files.values())} (.jsonl, .parquet, ...) in {place}")
    if not folder:
        if (cached := _cached(source)) is not None:
            return Found(source, f"hub: {source.hub}, in the cache", "cache", cached=cached)
        if not (offline or only_at_hand):
            return Found(source, f"hub: {source.hub}", "hub")
        looked.append(f"{source.hub} is not in the hub's cache" + (", and the network is forbidden" if offline else ""))
    raise UserError("; ".join(looked) + ("" if folder else "; name a folder that holds it with --data"))


def _files_of(folder: Path, split: str, stem: str, per_part: bool) -> list[Path]:
    for ending in _READERS:
        if (file := folder / f"{stem}{ending}").is_file():
            return [file]
    named = [(file, _SHARD.fullmatch(file.name)) for file in _data_files(folder)]
    if shards := [file for file, shard in named if shard and shard["stem"] in (stem, split)]:
        return _whole(shards)
    return _whole(_data_files(folder / stem)) if per_part else []


def _data_files(folder: Path) -> list[Path]:
    # What some systems leave beside a file ("._anatomy_test.csv") is none of its kind.
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(file for file in found if file.name.endswith(tuple(_READERS)) and file.name[0] != ".")


def _whole(files: list[Path]) -> list[Path]:
    """The files; a `UserError` that names the first one that is missing among those called "-00000-of-00002"."""
    for file in files:
        if shard := _SHARD.fullmatch(file.name):
            for place in range(int(shard["number"])):
                other = file.with_name(f"{shard['stem']}-{place:05}-of-{shard['number']}{shard['ending']}")
                if other not in files:
                    raise UserError(f"{other}: is missing; {file.name} is a part of {int(shard['number'])}")
    return files


def part_of(file: Path) -> str:
    """The name of a data file without the ending that says how to read it."""
    return next(file.name.removesuffix(ending) for ending in _READERS if file.name.endswith(ending))


def _cached(source: Source) -> Any:
    """The library's own reader of its cache, or None; asked for directly, since its offline mode is fixed when it is imported."""
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
