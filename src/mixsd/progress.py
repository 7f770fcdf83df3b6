"""What long work tells whoever watches: a `Watcher` that does nothing, for library use; the command line has a real one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Watcher:
    """Silent. Subclasses show what they are told."""

    def say(self, text: str) -> None:
        """One line for the user."""

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        """A piece of work with a known number of items; yields what to tell about it."""
        yield Task()


class Task:
    """The progress of one piece of work. Silent."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more items are done; `note` is a short state such as a loss."""

    def reach(self, done: int, note: str = "") -> None:
        """`done` items are done in all."""
