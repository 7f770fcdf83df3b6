"""Read records through the `datasets` library: a data set of the Hugging Face hub, or a folder that holds one.

A folder is read where it lies; a hub name needs the network, and is refused before anything is tried when that is forbidden. No
code that comes with a data set is run: `datasets` does so only on request, and this module never asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mixsd.errors import UserError, did_you_mean


def read_hub(source: str, *, config: str | None = None, offline: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of "org/name" or "org/name:split". A data set with several splits needs one named.

    `config`: which of the data set's configurations, where it has several.
    """
    if offline:
        raise UserError(f"{source}: no such file, and a data set of the hub cannot be fetched offline; name a local file")
    library = _library(source)
    name, _, split = source.partition(":")
    try:
        data = library.load_dataset(name, *([config] if config else []))
    except Exception as error:
        raise UserError(f"{source}: neither a file nor a data set that could be fetched ({_first_line(error)})") from error
    yield from _rows(data, split, source)


def read_folder(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a local folder: one that `save_to_disk` wrote, or one of data files in a format `datasets` knows."""
    library = _library(str(folder))
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        data = library.load_from_disk(str(folder)) if saved else library.load_dataset(str(folder))
    except Exception as error:
        raise UserError(f"{folder}: not a data set that can be read ({_first_line(error)}); name a file") from error
    yield from _rows(data, "", str(folder))


def _library(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{source}: reading a data set needs datasets; install it with: pip install 'mixsd[data]'") from None
    return datasets


def _rows(data: Any, split: str, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # A mapping of splits and a single split are both possible, depending on how the folder was saved.
    if isinstance(data, Mapping):
        splits = list(data)
        if split and split not in splits:
            raise UserError(f'{source}: no split "{split}"{did_you_mean(split, splits)}; it has {", ".join(splits)}')
        if not split and len(splits) != 1:
            raise UserError(f"{source}: name the split after a colon, as in {source}:{splits[0]}; it has {', '.join(splits)}")
        data = data[split or splits[0]]
    for number, row in enumerate(data, 1):
        yield f"{source}: row {number}", dict(row)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
