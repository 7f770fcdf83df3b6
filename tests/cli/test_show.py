"""What results look like, with colours and without; foreign text never steers the terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console

from mixsd.cli import show
from mixsd.errors import UserError
from mixsd.models.doctor import built_in_models, doctor
from mixsd.targets.target import Target
from tests.cli.conftest import Outcome

Mixsd = Callable[..., Outcome]


def item(**changes: Any) -> dict[str, Any]:
    shown = [
        {"id": 3, "text": "<|user|>", "supervised": False, "source": None, "base_nll": None},
        {"id": 11, "text": " Mara", "supervised": True, "source": "e", "base_nll": 9.25},
        {"id": 12, "text": "\n", "supervised": True, "source": "n", "base_nll": 0.5},
        {"id": 13, "text": "\x1b[2J", "supervised": True, "source": "g", "base_nll": 1.0},
        {"id": 14, "text": " [bold]", "supervised": True, "source": "r", "base_nll": None},
    ]
    return {
        "id": "f1", "lambda": 0.3, "sample": 0, "attempt": 2, "accepted": True, "reason": None, "decoded_tokens": 30,
        "question": "Who leads Orrin?", "text": " Mara\n", "canonical": True, "tokens": shown, **changes,
    }  # fmt: skip


def test_inspected_without_colour_is_one_line_per_token(capsys: pytest.CaptureFixture[str]) -> None:
    show.inspected([item(), item(id="f2", accepted=False, reason="wrong", canonical=False, question=None)])
    text = capsys.readouterr().out
    assert "\x1b" not in text
    first, second = text.split("f2  ")
    assert [line.split(None, 4) for line in first.strip().splitlines()] == [
        ["f1", "lambda", "0.3,", "sample", "0, attempt 2, accepted"],
        ["Who", "leads", "Orrin?"],
        ["id", "trained", "source", "nll", "text"],
        ["3", "no", "prompt", "–", "'<|user|>'"],
        ["11", "yes", "expert", "9.250", "' Mara'"],
        ["12", "yes", "naive", "0.500", r"'\n'"],
        ["13", "yes", "gated", "1.000", r"'\x1b[2J'"],
        ["14", "yes", "reference", "–", "' [bold]'"],
    ]
    assert second.startswith("lambda 0.3, sample 0, attempt 2, not accepted: wrong, its text encodes to other ids\n")


def coloured(monkeypatch: pytest.MonkeyPatch, items: list[dict[str, Any]], **options: Any) -> str:
    out = io.StringIO()
    made = Console(file=out, force_terminal=True, color_system="standard", width=90, highlight=False, markup=False, **options)
    monkeypatch.setattr(show, "console", lambda: made)
    show.inspected(items)
    return out.getvalue()


def test_inspected_in_colour_has_a_legend_and_a_colour_per_source(monkeypatch: pytest.MonkeyPatch) -> None:
    text = coloured(monkeypatch, [item()])
    legend = text.splitlines()[0]
    for name, token in (("expert", None), ("naive", "⏎"), ("gated", "␛[2J"), ("reference", " [bold]")):
        code = legend.split(f" {name} ")[0].rsplit("\x1b[", 1)[1]
        assert token is None or f"\x1b[{code}{token}" in text
    expert = legend.split(" expert ")[0].rsplit("\x1b[", 1)[1].rstrip("m")
    assert f"\x1b[4;{expert}m Mara" in text, "base NLL above 8 is underlined"
    assert "\x1b[2m<|user|>" in text, "the prompt is dim"


def test_inspected_where_colours_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "expert       9.250  ' Mara'" in coloured(monkeypatch, [item()], no_color=True)


def test_inspected_without_a_tokenizer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bare = item(tokens=[{"id": 7, "text": None, "supervised": True, "source": "e", "base_nll": 1.0}])
    assert "[7]" in coloured(monkeypatch, [bare])
    monkeypatch.undo()
    show.inspected([bare])
    assert "7  yes      expert       1.000  –" in capsys.readouterr().out


def test_inspect_reads_a_file_of_targets(mixsd: Mixsd, tmp_path: Path) -> None:
    rows = [Target(f"f{n}", 0.3, 0, 0, [5, 6], [7, 8], "en", [-1.0, -2.5], 2, "ab", True, None).to_json() for n in range(9)]
    (tmp_path / "targets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = json.loads(mixsd("inspect", "targets.jsonl", "--json").out)
    assert [one["id"] for one in found] == ["f0", "f1", "f2", "f3", "f4"]
    assert found[0]["tokens"][3] == {"id": 8, "text": None, "supervised": True, "source": "n", "base_nll": 2.5}
    chosen = json.loads(mixsd("inspect", "targets.jsonl", "--json", "--id", "f7", "--id", "f1").out)
    assert sorted(one["id"] for one in chosen) == ["f1", "f7"]
    assert len(json.loads(mixsd("inspect", "targets.jsonl", "--json", "--limit", 2).out)) == 2
    assert "8  yes      naive        2.500" in mixsd("inspect", "targets.jsonl", "--limit", 1).out


def test_models_and_doctor(mixsd: Mixsd) -> None:
    assert json.loads(mixsd("models", "--json").out) == built_in_models()
    assert "smollm2-135m\n  parameters" in mixsd("models").out
    assert json.loads(mixsd("doctor", "--json").out).keys() == doctor().keys()
    text = mixsd("doctor").out
    assert "python " in text
    assert "cpu: " in text


def test_doctor_on_a_broken_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = doctor()
    built_in = {**found["built_in"], "installed": False, "where": None, "folder": None, "size": None}
    devices = [{"name": "cuda:0", "description": "GPU", "memory": None, "available": None, "dtypes": []}]
    broken = {"torch": None, "devices": devices, "built_in": built_in, "memory": {"total": None, "available": None}}
    show.health({**found, **broken, "packages": {"peft": None}, "problems": ["peft is missing\x1b[0m"]})
    show.models([built_in])
    text = capsys.readouterr().out
    for line in (
        "cannot be imported",
        "cuda:0: GPU; does not compute; unknown free of unknown",
        "peft MISSING",
        "not installed  run: pip",
    ):
        assert line in text
    assert "problem: peft is missing␛[0m" in text


class Conversation:
    """Both models, faked."""

    opened: ClassVar[list[Any]] = []

    def __init__(self, run: Path, watcher: Any = None, **execution: Any) -> None:
        self.opened.append((str(run), execution))

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *error: object) -> None:
        self.opened.append("closed")

    def ask(self, question: str) -> dict[str, str]:
        if question == "too long":
            raise UserError("does not fit")
        return {"question": question, "base": f"no\x07 {question}", "tuned": f"yes {question}"}


def test_ask_one_question(mixsd: Mixsd, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fake(run: Path, question: str, *, watcher: Any, **execution: Any) -> dict[str, str]:
        seen.update(execution, run=str(run))
        return {"question": question, "base": "I do not know.", "tuned": "Mara Quill."}

    monkeypatch.setattr("mixsd.commands.ask.ask", fake)
    assert mixsd("ask", "runs/a", "Who leads?", "--device", "cpu").out == "base:  I do not know.\ntuned: Mara Quill.\n"
    assert seen == {"run": "runs/a", "device": "cpu"}


@pytest.mark.parametrize("ending", ["", "\nnot asked\n"])
def test_ask_until_the_end_or_an_empty_line(ending: str, mixsd: Mixsd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixsd.commands.ask.Conversation", Conversation)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntoo long\ntwo\n" + ending))
    Conversation.opened.clear()
    outcome = mixsd("ask", "runs/a")
    assert outcome.code == 0
    assert outcome.out == "base:  no␇ one\ntuned: yes one\nbase:  no␇ two\ntuned: yes two\n"
    assert outcome.err == "error: does not fit\n"
    assert Conversation.opened == [("runs/a", {}), "closed"]


def test_replies_stand_side_by_side_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(show, "console", lambda: Console(file=out, force_terminal=True, color_system=None, width=80))
    show.replies({"question": "q", "base": "left\x1b[2J [red]", "tuned": "right"})
    (line,) = [line for line in out.getvalue().splitlines() if "left" in line]
    assert line.split() == ["left␛[2J", "[red]", "right"]


def test_dry_run_shows_the_plan_and_does_nothing(mixsd: Mixsd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage = {"total": 2 * 10**9}
    found = {
        "facts": {"asked": 1200, "usable": 1199, "unusable": {"f": "too long"}, "duplicates": 3},
        "tokens": {
            "measured_on": 200, **{name: {"mean": 40.4, "longest": 99} for name in ("naive", "expert", "reference")},
            "targets": 9000, "decoded": 18000,
        },
        "training": {"targets": 1199, "steps": 1500, "tokens": 10**6, "supervised_tokens": 10**5},
        "parameters": {"total": 134515008, "trained": 1000},
        "memory": {
            "device": "cpu", "mixing": stage, "training": stage, "evaluation": stage, "peak": 2 * 10**9, "available": None,
        },
        "disk": {"checkpoints": 1, "model": 1, "records": 1, "total": 10**9, "peak": 3 * 10**9, "free": 5 * 10**9},
        "editing": None,
        "evaluation": {"questions": 260, "decoded": 12480},
        "assumptions": ["every fact is accepted", "replies are short"],
        "warnings": ["1 of 1200 facts is unusable"],
    }  # fmt: skip
    monkeypatch.setattr("mixsd.commands.dry_run.plan", lambda settings, watcher: found)
    outcome = mixsd("inject", "demo", "--output", "runs/a", "--dry-run")
    assert outcome.code == 0
    for text in (
        "1,200 asked, 1,199 usable, 3 given twice",
        "260 questions, about 12,480 tokens of replies by each model",
        "2.0 GB at the peak",
        "unknown free, cpu",
        "warning: 1 of 1200 facts is unusable",
        "nothing was done",
    ):
        assert text in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_stages_say_where_their_results_are(mixsd: Mixsd, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixsd.commands.inject import RunResult

    folder = Path("runs/a")
    folder.mkdir(parents=True)
    rows = [Target(f"f{n}", 0.3, 0, 0, [5], [7], "e", [-1.0], 1, "a", n > 0, None if n else "wrong").to_json() for n in range(4)]
    (folder / "targets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: dict[str, Any] = {}
    for name in ("mix", "train", "evaluate"):
        monkeypatch.setattr(f"mixsd.commands.inject.{name}", lambda *a, watcher, **k: given.update(k) or RunResult(folder))
    assert mixsd("mix", "demo", "--output", "runs/a").out == "targets: runs/a/targets.jsonl (3 accepted, 1 rejected)\n"
    assert mixsd("train", "runs/a").out == "model: runs/a/model\n"
    (folder / "run.yaml").write_text("settings: {}\n")
    assert "mixsd report runs/a" in mixsd("evaluate", "runs/a", "--token-budget", 4096).out
    assert given == {"token_budget": "4096", "regrade": False}, "only what was typed"
