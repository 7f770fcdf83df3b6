"""Progress on stderr: a live bar on a terminal, now and then a line elsewhere, so that a log stays readable.

The expected time counts from what was done in this process over the last minute, so a resumed run is not credited with the
items that it found finished.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from mixsd.formats import printable
from mixsd.progress import Task, Watcher

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_WINDOW = 60.0  # seconds over which the pace is taken
_PAUSE = 10.0  # seconds between two plain lines


def watcher(file: TextIO | None = None) -> Watcher:
    """The watcher that fits stderr, or `file`: live on a terminal, plain lines elsewhere."""
    file = file or sys.stderr
    if not file.isatty():
        return PlainWatcher(file)
    from rich.console import Console

    console = Console(file=file)
    # A terminal that cannot move its cursor (TERM=dumb) gets lines too.
    return LiveWatcher(console) if console.is_terminal and not console.is_dumb_terminal else PlainWatcher(file)


class Pace:
    """How fast work goes. `done` counts items; times are seconds of `clock`."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.done = 0
        self.clock = clock
        self._marks: deque[tuple[float, int]] = deque()

    def reach(self, done: int) -> None:
        """`done` items are done in all."""
        self.done = min(done, self.total)
        now = self.clock()
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and now - self._marks[0][0] > _WINDOW:
            self._marks.popleft()

    @property
    def rate(self) -> float | None:
        """Items per second, or None before two reports."""
        if len(self._marks) < 2:
            return None
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / (end - start) if end > start and after > before else None

    @property
    def left(self) -> float | None:
        """Expected seconds to the end."""
        return (self.total - self.done) / self.rate if self.rate else None


class PlainWatcher(Watcher):
    """A line at the start of a task, at most one every ten seconds, and one at its end."""

    def __init__(self, file: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.file = file
        self.clock = clock

    def say(self, text: str) -> None:
        print(printable(text), file=self.file, flush=True)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        started = self.clock()
        self.say(f"{name}: {total:,} to do")
        task = _PlainTask(self, name, total)
        yield task
        task.finish(self.clock() - started)


class _PacedTask(Task):
    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def advance(self, count: int = 1, note: str = "") -> None:
        self.reach(self.pace.done + count, note)


class _PlainTask(_PacedTask):
    def __init__(self, watcher: PlainWatcher, name: str, total: int) -> None:
        super().__init__(Pace(total, watcher.clock))
        self.watcher = watcher
        self.name = name
        self._first: int | None = None
        self._told = watcher.clock()

    def reach(self, done: int, note: str = "") -> None:
        self.pace.reach(done)
        if self._first is None:
            self._first = self.pace.done
        now = self.watcher.clock()
        if now - self._told >= _PAUSE and self.pace.done < self.pace.total:
            self._told = now
            parts = [
                f"{self.name}: {self.pace.done:,}/{self.pace.total:,}",
                note,
                rate_text(self.pace.rate),
                left_text(self.pace.left),
            ]
            self.watcher.say(", ".join(part for part in parts if part))

    def finish(self, seconds: float) -> None:
        made = self.pace.done - (self._first or 0)
        rate = rate_text(made / seconds) if made and seconds > 0 else ""
        parts = [f"{self.name}: {self.pace.done:,}/{self.pace.total:,} done in {duration(seconds)}", rate]
        self.watcher.say(", ".join(part for part in parts if part))


class LiveWatcher(Watcher):
    """A bar that moves, with the pace and the expected time."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}", markup=False, style="dim"),
        )
        with Progress(*columns, console=self.console, refresh_per_second=4, redirect_stdout=False) as bar:
            yield _LiveTask(bar, bar.add_task(name, total=total, state=""), Pace(total))


class _LiveTask(_PacedTask):
    def __init__(self, bar: Progress, key: TaskID, pace: Pace) -> None:
        super().__init__(pace)
        self.bar = bar
        self.key = key

    def reach(self, done: int, note: str = "") -> None:
        self.pace.reach(done)
        left = left_text(self.pace.left) if self.pace.done < self.pace.total else ""
        state = ", ".join(part for part in (note, rate_text(self.pace.rate), left) if part)
        self.bar.update(self.key, completed=self.pace.done, state=printable(state))


def rate_text(rate: float | None) -> str:
    """'3.2/s', or '14/min' for what is slower than one a second; empty where nothing is known."""
    if not rate:
        return ""
    return f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"


def left_text(seconds: float | None) -> str:
    """'about 2 min 5 s left'; empty where nothing is known."""
    return "" if seconds is None else f"about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """A time in words: '0.4 s', '42 s', '2 min 5 s', '3 h 20 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
