"""Progress: what a log gets, what a terminal gets, and the arithmetic of both."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mixsd.cli.show import LiveWatcher, PlainWatcher, duration, rate_text, watcher


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_are_few_and_tell_rate_and_time_left() -> None:
    out, clock = io.StringIO(), Clock()
    with PlainWatcher(out, clock).task("mixing", 100) as task:
        for done in range(100):
            task.reach(done, f"{10 * done} tokens")
            clock.now += 0.5
        task.reach(100)
    assert out.getvalue().splitlines() == [
        "mixing: 100 to do",
        "mixing: 20/100, 200 tokens, 2.0/s, about 40 s left",
        "mixing: 40/100, 400 tokens, 2.0/s, about 30 s left",
        "mixing: 60/100, 600 tokens, 2.0/s, about 20 s left",
        "mixing: 80/100, 800 tokens, 2.0/s, about 10 s left",
        "mixing: 100/100 done in 50 s",
    ]


def test_short_work_is_two_lines_and_broken_work_claims_no_end() -> None:
    out = io.StringIO()
    with PlainWatcher(out).task("training", 3) as task:
        task.advance(3)
    assert len(out.getvalue().splitlines()) == 2
    broken = io.StringIO()
    with pytest.raises(RuntimeError), PlainWatcher(broken).task("training", 3):
        raise RuntimeError
    assert broken.getvalue() == "training: 3 to do\n"


def test_what_a_resumed_run_found_finished_is_no_speed() -> None:
    out, clock = io.StringIO(), Clock()
    with PlainWatcher(out, clock).task("training", 1000) as task:
        clock.now = 5.0
        task.reach(900)
        clock.now = 15.0
        task.reach(910)
    assert "training: 910/1,000, 1.0/s, about 1 min 30 s left" in out.getvalue()
    assert "training: 910/1,000 done in 15 s\n" in out.getvalue()


def test_pace_is_of_the_last_ten_minutes_and_never_beyond_the_end() -> None:
    out, clock = io.StringIO(), Clock()
    with PlainWatcher(out, clock).task("mixing", 10_000) as task:
        for second in range(1000):
            clock.now = float(second)
            task.reach(second if second < 300 else 300 + 5 * (second - 300))
        assert out.getvalue().splitlines()[-1].startswith("mixing: 3,750/10,000, 5.0/s, about 20 min 50 s left")
        task.reach(50_000)
    assert "mixing: 10,000/10,000 done in " in out.getvalue()


@pytest.mark.parametrize(("seconds", "said"), [(100.0, "0.3/min, about 6 min 40 s"), (3000.0, "0.6/h, about 3 h 20 min")])
def test_pace_of_slow_items_is_that_of_the_last_ones(seconds: float, said: str) -> None:
    out, clock = io.StringIO(), Clock()
    with PlainWatcher(out, clock).task("training", 4) as task:
        for done, now in enumerate((0.0, seconds, 3 * seconds)):
            clock.now = now
            task.reach(done)
    assert [line for line in out.getvalue().splitlines() if "left" in line] == [f"training: 2/4, {said} left"]


def test_words() -> None:
    assert [duration(s) for s in (0.44, 9.96, 42, 59.7, 125, 3599.6, 12000)] == [
        "0.4 s", "10 s", "42 s", "1 min 0 s", "2 min 5 s", "1 h 0 min", "3 h 20 min",
    ]  # fmt: skip
    assert [rate_text(r) for r in (None, 0.0, 0.5, 12.34)] == ["", "", "30.0/min", "12.3/s"]


def test_terminal_gets_a_bar_and_lines_above_it() -> None:
    out = io.StringIO()
    live = LiveWatcher(Console(file=out, force_terminal=True, width=100, color_system=None))
    with live.task("evaluating [base]", 8) as task:
        live.say("a word [bold]\x1b[2J")
        task.advance(3, "loss 1.234")
        task.reach(8)
    text = out.getvalue()
    assert "evaluating [base]" in text
    assert "8/8" in text
    assert "a word [bold]␛[2J" in text


def test_a_pipe_gets_lines_and_so_does_a_dumb_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(watcher(io.StringIO()), PlainWatcher)
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(watcher(terminal), LiveWatcher)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(watcher(terminal), PlainWatcher)
