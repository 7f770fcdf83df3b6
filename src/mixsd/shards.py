"""Shards: a part of the facts and questions, chosen by their keys, for several processes or machines to share the work.

A shard depends on nothing but the key and the number of shards. Its finished items go to a journal of its own; the command without
`--shard` takes them over and does what is still missing, so the merged result is the single run's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
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

    def holds(self, key: str) -> bool:
        """Whether a key's item is this shard's."""
        return int(digest(["shard", key])[:12], 16) % self.count == self.number - 1

    def beside(self, journal: Path) -> Path:
        """This shard's own journal, beside the one it will be merged into."""
        return journal.with_name(f"{journal.stem}.{self.number}-of-{self.count}{journal.suffix}")


def merge(journal: Path, item: Callable[[dict[str, Any]], Any], into: Journal | None = None) -> int:
    """Take over what shards left beside `journal`; returns how many items were new. A shard's file stays.

    `item` identifies a row. Rows of one file keep their order.
    """
    files = _journals(journal)
    if not files:
        return 0
    own = into or Journal(journal)
    known = {item(row) for _, row in own.read()}
    taken = 0
    for file in files:
        for _, row in Journal(file).read():
            if (name := item(row)) not in known:
                known.add(name)
                own.append(row)
                taken += 1
    if into is None:
        own.close()
    return taken


def _journals(journal: Path) -> Iterable[Path]:
    return sorted(journal.parent.glob(f"{journal.stem}.*-of-*{journal.suffix}"))
