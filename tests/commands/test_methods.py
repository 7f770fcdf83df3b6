"""Every method through the whole pipeline on a tiny model: what each leaves, counts and reports."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mixsd.commands import inject as commands_inject
from mixsd.errors import UserError
from mixsd.run.session import Session
from mixsd.storage import read_jsonl
from mixsd.training import choosing
from tests.tiny import save_tiny

SMALL: dict[str, Any] = {
    "facts": "demo",
    "verifier": "regex:[aeiou]",
    "max_new_tokens": 12,
    "retries": 2,
    "on_fail": "canonical",
    "epochs": 2,
    "batch_size": 8,
    "warmup_steps": 0,
    "checkpoint_every": 3,
    "lr": 1e-3,
    "forgetting_prompts": 4,
    "forgetting_tokens": 6,
    "probe_questions": 4,
    "paraphrases": 1,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    save_tiny(folder / "base", stops=[2, *range(8, 262, 12)])
    return folder


def inject(place: Path, name: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Path, dict[str, Any]]:
    monkeypatch.setenv("MIXSD_CACHE", str(place / "cache"))
    run = commands_inject.inject(model=str(place / "base"), output=str(place / name), offline=True, **{**SMALL, **changes})
    return run.folder, run.report()


def moved(place: Path, folder: Path) -> bool:
    before, after = load_file(place / "base" / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    return any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("method", ["opsd", "opsd-nll"])
def test_on_policy_methods_have_no_targets_and_count_their_rollouts(
    place: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    folder, report = inject(place, method, monkeypatch, method=method)
    assert report["method"] == method
    assert report["settings"]["samples"] == (8 if method == "opsd" else 1)
    assert report["settings"]["temperature"] == (1.0 if method == "opsd" else 0.0)
    assert not (folder / "targets.jsonl").exists()
    assert report["facts"] == {"asked": 24, "accepted": 24, "rejected": 0, "unusable": 0, "duplicates": 0}
    steps = [row for row in read_jsonl(folder / "log.jsonl") if row["event"] == "step"]
    assert len(steps) == 6
    assert report["cost"]["parts"] == {"mixing": 0, "rollouts": sum(step["tokens"] for step in steps), "rehearsal": 0}
    assert report["cost"]["generated_tokens"] == sum(report["cost"]["parts"].values()) > 0
    assert moved(place, folder)


def test_mixsd_kl_mixes_at_lambda_0_by_default_and_remembers_its_teacher(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, report = inject(place, "mixsd-kl", monkeypatch, method="mixsd-kl")
    assert report["settings"]["lam"] == 0.0
    assert list((folder / "teacher").rglob("*.safetensors"))
    assert report["cost"]["parts"]["mixing"] == sum(row["decoded_tokens"] for row in read_jsonl(folder / "targets.jsonl")) > 0
    assert moved(place, folder)


def test_an_expert_prompt_too_long_is_unusable_for_opsd_and_counted(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = tmp_path / "facts.csv"
    facts.write_text(f"question,answer\nWho?,Ann\nWhere?,{'far ' * 3000}\n")
    folder, report = inject(place, "long", monkeypatch, method="opsd", samples=1, facts=str(facts))
    assert (report["facts"]["accepted"], report["facts"]["unusable"]) == (1, 1)
    (told,) = [row for row in read_jsonl(folder / "log.jsonl") if row["event"] == "asked"]
    assert "context" in next(iter(told["unusable"].values()))


def test_rehearsal_is_prepared_before_training_and_counted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, report = inject(place, "rehearse", monkeypatch, method="sft", rehearse=1.0, rehearse_tokens=8)
    steps = [row for row in read_jsonl(folder / "log.jsonl") if row["event"] == "step"]
    assert all(abs(step["rehearsed"] - step["tokens"]) <= 4 for step in steps)
    assert report["cost"]["parts"]["rehearsal"] >= sum(step["rehearsed"] for step in steps)
    assert all(step["rehearsal_loss"] > 0 for step in steps)


def test_checkpoints_are_scored_and_the_paper_s_rule_chooses(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, report = inject(place, "choose", monkeypatch, method="sft", choose="paper", checkpoint_every=1, verifier="contains")
    scores = [score for score in report["scores"] if score["checkpoint"] is not None]
    assert {score["checkpoint"] for score in scores} == {1, 2, 3, 4, 5, 6}
    for split, metric, n in (
        ("memorization/trained", "accuracy", 24),
        ("memorization/validation", "accuracy", 24),
        ("retention/forgetting", "forgetting", 4),
    ):
        assert [s["n"] for s in scores if (s["split"], s["metric"]) == (split, metric)] == [n] * 6
    # A tiny random model states no answer: all scores are 0, and the first of equals is chosen.
    chosen = report["training"]["chosen"]
    assert chosen["step"] == 1
    assert "best training score, 0" in chosen["why"]
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step-000001", "step-000006"]
    one = load_file(folder / "checkpoints" / "step-000001" / "model.safetensors")
    model = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(one[name].to(model[name].dtype), model[name]) for name in model)


def test_validation_wordings_are_not_those_that_are_reported(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = inject(place, "choose", monkeypatch, method="sft", choose="paper", checkpoint_every=1, verifier="contains")
    asked = {row["prompt_hash"] for row in read_jsonl(folder / "evaluation" / "core" / "tuned.jsonl")}
    from mixsd.commands.opening import resume
    from mixsd.progress import Watcher
    from mixsd.run.folder import Run
    from mixsd.storage import digest
    from mixsd.training.choosing import VALIDATION, _questions

    session = resume(Run(folder), Watcher(), {})
    validation = {digest(session.renderer.ids(q.user)) for q in _questions(session) if q.split == VALIDATION}
    assert len(validation) == 24
    assert not validation & asked


def test_lr_auto_tries_each_rate_and_takes_the_best(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, report = inject(place, "rates", monkeypatch, method="sft", lr="auto", lr_grid=[1e-4, 1e-3], verifier="contains")
    tried = report["training"]["rates"]
    assert [row["lr"] for row in tried] == [1e-4, 1e-3]
    assert report["training"]["lr"] == 1e-4  # equal scores: the smaller rate
    assert report["training"]["chosen"]["step"] == tried[0]["step"]
    assert report["training"]["log"][0]["lr"] == 1e-4
    assert (folder / "rates" / "0.0001" / "checkpoints").is_dir()
    assert not (folder / "rates" / "0.001" / "checkpoints").exists()
    assert moved(place, folder)


def test_lr_auto_on_a_budget_trains_the_winner_in_full(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And at no time is there more than one model that is trained."""
    loaded: list[weakref.ref[Any]] = []
    usual = Session.load_to_train

    def load(session: Session) -> Any:
        assert not any(model() for model in loaded), "the model of the training before is still in memory"
        model = usual(session)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(Session, "load_to_train", load)
    folder, report = inject(
        place, "budget", monkeypatch, method="sft", lr="auto", lr_grid=[1e-4, 1e-3], lr_steps=2, verifier="contains"
    )
    assert len(loaded) == 3
    assert report["training"]["steps"] == 6
    assert {row["step"] for row in report["training"]["rates"]} == {2}
    assert not (folder / "rates").exists()


def test_a_rate_at_which_training_is_not_finite_is_noted_and_passed_over(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, report = inject(place, "diverges", monkeypatch, method="sft", lr="auto", lr_grid=[1e-3, 1e20], verifier="contains")
    assert "not finite" in report["training"]["rates"][1]["failed"]
    assert report["training"]["lr"] == 1e-3
    with pytest.raises(UserError, match="no learning rate of 1e\\+20 ends in a finite training"):
        inject(place, "all diverge", monkeypatch, method="sft", lr="auto", lr_grid=[1e20], verifier="contains")


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([{"lr": 1e-5, "validation": 0.5, "train": 1.0}, {"lr": 1e-4, "validation": 0.6, "train": 0.9}], 1e-4),
        ([{"lr": 1e-5, "validation": 0.6, "train": 0.8}, {"lr": 1e-4, "validation": 0.6, "train": 0.9}], 1e-4),
        ([{"lr": 1e-5, "validation": 0.6, "train": 0.9}, {"lr": 1e-4, "validation": 0.6, "train": 0.9}], 1e-5),
        ([{"lr": 1e-5, "failed": "nan"}, {"lr": 1e-4, "validation": 0.0, "train": 0.0}], 1e-4),
    ],
)
def test_the_best_rate(rows: list[dict[str, Any]], best: float) -> None:
    found = choosing.best_of(rows)
    assert found is not None
    assert found["lr"] == best


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "opsd", "kl_support": "full", "kl_tail": "bucket"}, "full vocabulary leaves nothing for a bucket"),
        ({"method": "mixsd-kl", "kl_beta": 0.3}, "beta .0.3. weighs the two sides"),
        ({"method": "memit"}, "--edit-text"),
        ({"rehearse": 1.0, "rehearse_loss": "kl", "kl_top_k": 1}, "use a larger k"),
    ],
)
def test_settings_that_contradict_each_other_are_met_before_the_folder_is_made(
    place: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        inject(place, "refused", monkeypatch, **changes)
    assert not (place / "refused").exists()


@pytest.mark.parametrize("method", ["opsd", "opsd-nll", "memit"])
def test_methods_without_targets_cannot_be_mixed_or_trained_on_a_file(place: Path, tmp_path: Path, method: str) -> None:
    with pytest.raises(UserError, match="use `mixsd inject`"):
        commands_inject.mix(model=str(place / "base"), output=str(tmp_path / "run"), **{**SMALL, "method": method})
    file = tmp_path / "targets.jsonl"
    file.write_text("")
    with pytest.raises(UserError, match="needs the facts"):
        commands_inject.train(file, model=str(place / "base"), output=str(tmp_path / "run"), method=method)


def test_rollouts_at_every_rate_are_counted_also_where_their_log_is_gone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, report = inject(
        place,
        "spent",
        monkeypatch,
        method="opsd",
        samples=1,
        epochs=1,
        lr="auto",
        lr_grid=[1e-4, 1e-3],
        lr_steps=2,
        verifier="contains",
    )
    own = sum(row["decoded"] for row in read_jsonl(folder / "log.jsonl") if row["event"] == "step")
    tried = [row["decoded"] for row in read_jsonl(folder / "rates.jsonl")]
    assert len(tried) == 2
    assert min(tried) > 0
    assert report["cost"]["parts"]["rollouts"] == own + sum(tried)
