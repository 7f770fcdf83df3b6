"""A sweep: the order of its runs, what is checked before the first, what is not done twice, and what a failure leaves."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixsd.commands import opening
from mixsd.commands import sweep as commands_sweep
from mixsd.commands.sweep import SweepResult, read_sweep, survey, sweep
from mixsd.comparison import material  # noqa: F401 - it keeps the functions that a test replaces, if it is imported then
from mixsd.errors import RequirementMissedError, UserError
from mixsd.progress import Watcher
from mixsd.run.folder import Run
from mixsd.settings import Settings
from mixsd.storage import read_json, write_json
from tests.reports.sample import typed

compared = commands_sweep._compared


def write_report(session: Any, checked: list[dict[str, Any]]) -> None:
    made = typed({"settings": session.settings.dump(), "requirements": checked})
    write_json(session.run.report_json, made.model_dump(mode="json"))


class Told(Watcher):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def wanted(options: dict[str, Any], tmp_path: Path, own_cache: Path) -> dict[str, Any]:
    """Two configurations at two seeds, on the tiny model."""
    shared = {name: value for name, value in options.items() if name != "lam"}
    return {
        "output": str(tmp_path / "sweep"),
        "seeds": [0, 1],
        "settings": shared,
        "runs": [{"method": "sft"}, {"method": "mixsd", "lam": 0.5}],
    }


ALL = ["sft-s0", "mixsd-lam0.5-s0", "sft-s1", "mixsd-lam0.5-s1"]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were done, by a fake that leaves a run folder with a report."""
    found: list[str] = []

    def fake(settings: Settings, watcher: Watcher) -> None:
        session = opening.claim(opening.open_checked(settings, watcher))
        found.append(session.run.name)
        write_report(session, [])

    monkeypatch.setattr("mixsd.commands.inject.inject", fake)
    monkeypatch.setattr(commands_sweep, "_compared", lambda result, folders: result)
    return found


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, name: str) -> None:
    """Let the work on one run end with an error, when the folder is its own already."""
    from mixsd.commands import inject

    before = inject.inject

    def fake(settings: Settings, watcher: Watcher) -> None:
        if settings.output.endswith(name):
            opening.claim(opening.open_checked(settings, watcher))
            raise error
        before(settings, watcher=watcher)

    monkeypatch.setattr(inject, "inject", fake)


def test_runs_are_done_in_order_and_once(wanted: dict[str, Any], done: list[str], tmp_path: Path) -> None:
    told = Told()
    result = sweep(wanted, watcher=told)
    assert done == result.finished == ALL
    assert result == SweepResult(tmp_path / "sweep", ALL, failed={}, missed={}, left=[])
    said = [line for line in told.lines if line.startswith("run ")]
    assert said[0] == "run 1 of 4: sft-s0"
    assert said[1].startswith("run 2 of 4: mixsd-lam0.5-s0; about 0:00:0")
    assert said[1].endswith("(h:mm:ss) left for all")
    again = Told()
    assert sweep(wanted, watcher=again).finished == ALL
    assert done == ALL
    assert again.lines == [f"4 of 4 runs are done already: {', '.join(ALL)}"]


def test_a_killed_sweep_goes_on_where_it_was(wanted: dict[str, Any], done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        failing(patch, KeyboardInterrupt(), "sft-s1")
        with pytest.raises(KeyboardInterrupt):
            sweep(wanted)
    assert done == ALL[:2]
    assert survey(read_sweep(wanted)) == dict(zip(ALL, ["done", "done", "begun", "to do"], strict=True))
    assert sweep(wanted).finished == ALL
    assert done == ALL


def test_a_run_that_fails_does_not_stop_the_others(wanted: dict[str, Any], done: list[str], monkeypatch: Any) -> None:
    told = Told()
    with monkeypatch.context() as patch:
        failing(patch, UserError("none of 3 facts was accepted"), "mixsd-lam0.5-s0")
        result = sweep(wanted, watcher=told)
    assert result.failed == {"mixsd-lam0.5-s0": "none of 3 facts was accepted"}
    assert result.finished == done == [ALL[0], *ALL[2:]]
    assert "mixsd-lam0.5-s0 failed: none of 3 facts was accepted" in told.lines
    assert sweep(wanted).failed == {}
    assert done == [ALL[0], *ALL[2:], ALL[1]]


def test_a_failed_run_says_nothing_of_how_long_one_takes(wanted: dict[str, Any], done: list[str], monkeypatch: Any) -> None:
    told = Told()
    failing(monkeypatch, UserError("broken"), ALL[0])
    sweep(wanted, watcher=told)
    said = [line for line in told.lines if line.startswith("run ")]
    assert said[1] == f"run 2 of 4: {ALL[1]}"
    assert said[2].endswith("(h:mm:ss) left for all")


def test_a_bug_stops_it(wanted: dict[str, Any], done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("ours"), "sft-s0")
    with pytest.raises(ZeroDivisionError):
        sweep(wanted)


def test_a_missed_requirement_is_told_now_and_later(wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch, done: Any) -> None:
    wanted["settings"]["require"] = ["memorization>=0.9"]

    def fake(settings: Settings, watcher: Watcher) -> None:
        session = opening.claim(opening.open_checked(settings, watcher))
        checked = [{"text": "memorization>=0.9", "value": None, "passed": settings.method == "sft"}]
        write_report(session, checked)
        if settings.method != "sft":
            raise RequirementMissedError("missed")

    monkeypatch.setattr("mixsd.commands.inject.inject", fake)
    for _ in range(2):
        result = sweep(wanted)
        assert (result.finished, result.failed) == (ALL, {})
        assert result.missed == {name: ["memorization>=0.9"] for name in ALL[1::2]}


def test_a_report_that_was_asked_for_otherwise_is_made_anew(wanted: dict[str, Any], done: list[str]) -> None:
    sweep(wanted)
    assert sweep(wanted, device="cpu", token_budget=99).finished == ALL
    assert done == ALL
    wanted["settings"]["require"] = ["memorization>=0.1"]
    assert set(survey(read_sweep(wanted)).values()) == {"begun"}
    sweep(wanted)
    assert done == ALL * 2


def test_only_some(wanted: dict[str, Any], done: list[str]) -> None:
    result = sweep(wanted, only=["sft", "mixsd-lam0.5-s1"])
    assert done == result.finished == ["sft-s0", "sft-s1", "mixsd-lam0.5-s1"]
    assert result.left == ["mixsd-lam0.5-s0"]
    with pytest.raises(UserError, match=r'--only mixsd-lam0\.5-s9: sweep has no such run \(did you mean "mixsd-lam0\.5-s'):
        sweep(wanted, only=["mixsd-lam0.5-s9"])


def test_everything_is_checked_before_the_first_run(wanted: dict[str, Any], done: list[str], tmp_path: Path) -> None:
    for change, said in [
        ({"facts": str(tmp_path / "nowhere.jsonl")}, r"sweep: runs: entry 2 \(mixsd-.*-s0\): .*nowhere\.jsonl: no such file"),
        ({"model": str(tmp_path / "nowhere")}, r"sweep: runs: entry 2 .*nowhere: no such folder"),
        ({"verifier": "contians"}, r'sweep: runs: entry 2 .*did you mean "contains"'),
        ({"device": "abacus"}, r"sweep: runs: entry 2 .*--device abacus"),
        ({"require": ["memorisation>=0.9"]}, r"sweep: runs: entry 2 .*nothing is called"),
    ]:
        with pytest.raises(UserError, match=said):
            sweep({**wanted, "runs": [{"method": "sft"}, change]})
    assert done == []
    assert not (tmp_path / "sweep").exists()


def test_a_folder_of_something_else_is_refused(wanted: dict[str, Any], done: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    sweep(wanted)
    with pytest.raises(UserError, match=r"entry 1 \(sft-s0\): .*sft-s0: this run was made with epochs 1, the command says 2"):
        sweep({**wanted, "settings": {**wanted["settings"], "epochs": 2}})
    with pytest.raises(UserError, match="sft-s0: is the folder of a single run"):
        sweep(wanted, output=folder / "sft-s0")
    with pytest.raises(UserError, match=r"cannot hold runs \(.*run\.yaml is a file\)"):
        sweep(wanted, output=folder / "sft-s0" / "run.yaml" / "x")
    facts = Path(wanted["settings"]["facts"])
    other = tmp_path / "facts.jsonl"
    other.write_bytes(facts.read_bytes().replace(b"1987", b"1988"))
    (folder / "sft-s0" / "run.yaml").write_text(
        (folder / "sft-s0" / "run.yaml").read_text().replace(str(facts), str(other)), encoding="utf-8"
    )
    with pytest.raises(UserError, match="this run was made with facts_hash"):
        sweep({**wanted, "settings": {**wanted["settings"], "facts": str(other)}})
    shutil.rmtree(folder / "sft-s0")
    (folder / "sft-s0").mkdir()
    (folder / "sft-s0" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"sft-s0: is not empty and not a run folder \(it holds thesis\.tex\)"):
        sweep(wanted)
    assert done == ALL


def test_a_done_sweep_says_so_without_torch(wanted: dict[str, Any], done: list[str], tmp_path: Path) -> None:
    import subprocess

    sweep(wanted)
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    probe = (
        "import sys; from mixsd.commands import sweep; sweep._compared = lambda result, folders: result\n"
        "assert len(sweep.sweep(sys.argv[1]).finished) == 4\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", probe, str(file)], check=True, timeout=60)


def test_a_corpus_with_tests_is_done_when_it_is(wanted: dict[str, Any], done: list[str]) -> None:
    """Its verifier and length of reply are the corpus's, in the run folder and in the judgement of it."""
    names_to_fit = ("verifier", "max_new_tokens", "facts")
    shared = {name: value for name, value in wanted["settings"].items() if name not in names_to_fit}
    wanted["settings"] = {**shared, "facts": "kgfact:small"}
    for _ in range(2):
        assert sweep(wanted).finished == ALL
    assert done == ALL
    with pytest.raises(UserError, match="made with verifier"):
        sweep({**wanted, "settings": {**wanted["settings"], "verifier": "exact"}})


def test_runs_that_cannot_be_compared_are_finished_all_the_same(
    wanted: dict[str, Any], done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(folders: list[Path]) -> None:
        assert folders == [tmp_path / "sweep" / name for name in ALL]
        raise UserError("other prompts")

    monkeypatch.setattr(commands_sweep, "_compared", compared)
    monkeypatch.setattr("mixsd.comparison.compare.compare", refuse)
    result = sweep(wanted)
    assert (result.finished, result.problem, result.comparison) == (ALL, "other prompts", None)


def test_a_tiny_sweep_to_its_comparison(wanted: dict[str, Any], tmp_path: Path) -> None:
    """Nothing faked: two configurations, two seeds, killed once in between; the rest is not done again."""
    extra = {"forgetting_prompts": 2, "forgetting_tokens": 4, "probe_questions": 2, "paraphrases": 1}
    wanted["settings"] |= extra
    first = sweep(wanted, only=["sft-s0"])
    assert (first.finished, first.comparison) == (["sft-s0"], None)
    before = (tmp_path / "sweep" / "sft-s0" / "model" / "model.safetensors").stat().st_mtime_ns
    result = sweep(wanted)
    assert (result.finished, result.failed, result.problem) == (ALL, {}, None)
    assert (tmp_path / "sweep" / "sft-s0" / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert result.comparison is not None
    assert len(result.comparison["configurations"]) == 2
    assert result.page is not None
    assert result.page.is_file()
    for name in ALL:
        run = Run(tmp_path / "sweep" / name)
        assert read_json(run.report_json)["settings"]["seed"] == int(name[-1])
