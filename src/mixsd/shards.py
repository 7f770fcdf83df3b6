"""Shards: a part of the facts and questions, chosen by their keys, for several processes or machines to share the work.

A shard depends on nothing but the key and the number of shards. Its finished items go to a journal of its own; the command without
`--shard` takes them over and does what is still missing, so the merged result is the single run's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixsd.errors import UserError
from mixsd.storage import Journal, digest


@dataclass(frozen=True)
class Shard:
    """Shard `number` (from 1) of `count`."""

    number: int
    count: int

    @staticmethod
    def parse(text: str) -> Shard:
        """Read "2/8".

        Raises:
            UserError: it is not of that form, or there is no such shard.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"--shard {text}: expected I/N with I from 1 to N, such as 2/8")
        return Shard(int(found[1]), int(found[2]))

    @staticmethod
    def of(text: str | None) -> Shard | None:
        """As `parse`, for a setting that may say nothing: then there are no shards."""
        return Shard.parse(text) if text else None

    def holds(self, key: str) -> bool:
        """Whether a key's item is this shard's."""
        return int(digest(["shard", key])[:12], 16) % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}-of-{self.count}"

    def beside(self, journal: Path) -> Path:
        """This shard's own journal, beside the one it will be merged into."""
        return journal.with_name(f"{journal.stem}.{self}{journal.suffix}")


def left_beside(journal: Path) -> list[Path]:
    """The journals that shards left beside the one they will be merged into."""
    return sorted(journal.parent.glob(f"{journal.stem}.*-of-*{journal.suffix}"))


def merge(files: Sequence[Path], into: Path, item: Callable[[dict[str, Any]], Any]) -> int:
    """Take the items of some journals over into another; returns how many were new to it. The files stay.

    `item` identifies a row. Rows of one file keep their order.
    """
    if not files:
        return 0
    taken = 0
    with Journal(into) as own:
        known = {item(row) for _, row in own.read()}
        for file in files:
            for _, row in Journal(file).read():
                if (name := item(row)) not in known:
                    known.add(name)
                    own.append(row)
                    taken += 1
    return taken
