"""The tensors of a model folder one at a time, by name, whatever files they lie in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mixsd.errors import UserError

_INDEX = "model.safetensors.index.json"
_BLOCK = 2**22  # numbers that are read at a time


class Weights:
    """The safetensors files of a model folder, opened for reading; only what is asked for is read.

    Raises:
        UserError: there are none, or one is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = ExitStack()
        self._opened: dict[str, Any] = {}
        try:
            for file in _files(folder):
                tensors = self._files.enter_context(safe_open(file, framework="pt"))
                self._opened |= dict.fromkeys(tensors.keys(), tensors)
        except (OSError, SafetensorError) as error:
            self._files.close()
            raise UserError(f"{folder}: its weights cannot be read ({' '.join(str(error).split())})") from error

    @property
    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self._opened)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return tuple(self._opened[name].get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """One tensor, in the precision of its file, on the CPU."""
        found: Tensor = self._opened[name].get_tensor(name)
        return found

    def blocks(self, name: str) -> Iterator[Tensor]:
        """One tensor in consecutive parts along its first axis, each of a bounded size, in the precision of its file."""
        yield from blocks(self._opened[name], name)

    def close(self) -> None:
        """Let go of the files."""
        self._files.close()
        self._opened = {}

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def blocks(tensors: Any, name: str) -> Iterator[Tensor]:
    """A tensor of an open safetensors file in consecutive parts along its first axis."""
    part = tensors.get_slice(name)
    shape = part.get_shape()
    if not shape:
        yield tensors.get_tensor(name)
        return
    width = 1
    for size in shape[1:]:
        width *= size
    rows = max(1, _BLOCK // max(1, width))
    for start in range(0, shape[0], rows):
        yield part[start : start + rows]


def _files(folder: Path) -> list[Path]:
    """The files of the model's weights: those that its index names, where it has one."""
    index = folder / _INDEX
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index}: is not the index of a model's weights") from error
        return sorted(folder / name for name in names)
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise UserError(f"{folder}: no .safetensors weights")
    return found
