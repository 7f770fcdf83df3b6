"""What a stage took: every process that worked on it counts, also one that failed or was killed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mixsd.commands import opening
from mixsd.errors import UserError
from mixsd.progress import Task, Watcher
from mixsd.run import session as run_session
from mixsd.run.folder import Run
from mixsd.run.session import Session, timed


@pytest.fixture
def session(tiny_run: Path, tmp_path: Path) -> Session:
    return opening.resume(Run(Path(shutil.copytree(tiny_run, tmp_path / "run"))), Watcher(), {})


def seconds(session: Session) -> list[float]:
    return [event["seconds"] for event in session.run.events("stage") if event["name"] == "evaluate"]


def test_a_stage_that_failed_counts_with_the_one_that_ended_it(session: Session) -> None:
    with pytest.raises(UserError), timed(session, "evaluate"):
        raise UserError("stopped")
    with timed(session, "evaluate"):
        pass
    assert len(seconds(session)) == 2  # a report adds them up


def test_a_stage_is_logged_while_it_goes_on_since_a_kill_says_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_session, "_TICK", 0.0)
    with timed(session, "evaluate"), session.watcher.task("asking", 3) as task:
        task.advance()
        task.reach(2)
        assert len(seconds(session)) == 2
    monkeypatch.setattr(run_session, "_TICK", 3600.0)
    with timed(session, "evaluate"), session.watcher.task("asking", 3) as task:
        task.advance()
        assert len(seconds(session)) == 3
    assert len(seconds(session)) == 4


def test_the_watcher_hears_what_it_heard_before(session: Session) -> None:
    heard: list[object] = []

    class Listener(Watcher):
        def say(self, text: str) -> None:
            heard.append(text)

        def task(self, name: str, total: int) -> object:  # type: ignore[override]
            heard.append((name, total))
            return Watcher.task(self, name, total)

    session.watcher = listener = Listener()
    with timed(session, "evaluate"):
        session.watcher.say("a word")
        with session.watcher.task("asking", 3) as task:
            assert isinstance(task, Task)
    assert heard == ["a word", ("asking", 3)]
    assert session.watcher is listener
