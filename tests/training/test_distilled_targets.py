from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixsd.errors import UserError
from mixsd.training import Step, TrainResult, distilled, train
from mixsd.training.distilled import Distilled, DistilledTargets, remember
from mixsd.training.examples import Example
from mixsd.training.losses import Divergence
from mixsd.training.objectives import Student
from mixsd.training.states import Reading
from mixsd.training.teacher import FrozenBase
from tests.training.tiny import make_examples, make_model, make_settings, make_tokenizer, same_bits, weights

K = 8


def make_targets(count: int = 6) -> list[Distilled]:
    sources = "eneegnnene"
    return [
        Distilled(example, (*example.prompt_ids, 40, 41 + place % 3, 50), (sources[place:] + sources)[: len(example.target_ids)])
        for place, example in enumerate(make_examples(count))
    ]


def student(model: PreTrainedModel) -> Student:
    return Student(model, None, Reading(model, make_examples(1)[0]), torch.device("cpu"), torch.enable_grad)


def objective(folder: Path | None = None, **changes: Any) -> DistilledTargets:
    """Remembered in `folder`, or with the teacher beside it."""
    values: dict[str, Any] = {"divergence": Divergence(k=K), "picked": False, **changes}
    made = DistilledTargets(make_targets(), teacher=folder or FrozenBase(make_model), **values)
    if folder:
        remember(folder, made.targets, made.divergence.k, made.picked, make_model)
    return made


def values_of(made: DistilledTargets, model: PreTrainedModel, items: list[int]) -> Tensor:
    known = student(model)
    part = made.part(known, 1, items)
    return part.loss(known, known.reading.states(model, part.examples), part.examples)


def dense_log_probs(model: PreTrainedModel, prompt: tuple[int, ...], reply: tuple[int, ...]) -> Tensor:
    logits = model(input_ids=torch.tensor([[*prompt, *reply]])).logits[0].double()
    return torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)


@pytest.mark.parametrize("picked", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_the_loss_is_the_divergence_from_the_expert_or_from_what_was_picked(tmp_path: Path, picked: bool, kept: bool) -> None:
    model, base = make_model(seed=1), make_model()
    found = values_of(objective(tmp_path if kept else None, picked=picked), model, [3, 0, 1])
    expected: list[float] = []
    for item in (3, 0, 1):
        one = make_targets()[item]
        q = dense_log_probs(model, one.example.prompt_ids, one.example.target_ids)
        expert = dense_log_probs(base, one.expert_ids, one.example.target_ids)
        naive = dense_log_probs(base, one.example.prompt_ids, one.example.target_ids)
        for place, source in enumerate(one.sources):
            p = naive[place] if picked and source == "n" else expert[place]
            ids = p.topk(K).indices
            log_p, log_q = torch.log_softmax(p[ids], 0), torch.log_softmax(q[place][ids], 0)
            expected.append((log_p.exp() * (log_p - log_q)).sum().item())
    assert found.tolist() == pytest.approx(expected, abs=2e-5)


def test_a_support_that_is_not_the_teacher_s_needs_the_teacher_beside(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs the teacher in memory"):
        values_of(objective(tmp_path, divergence=Divergence(support="full")), make_model(seed=1), [0])
    assert (values_of(objective(divergence=Divergence(support="full")), make_model(seed=1), [0]) > 0).all()


def test_remembering_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distilled, "_READ_AT_ONCE", 2)
    whole = values_of(objective(tmp_path / "a"), make_model(seed=1), list(range(6)))
    made = DistilledTargets(make_targets(), Divergence(k=K), False, tmp_path / "b")
    done: list[int] = []

    def stop(count: int) -> None:
        done.append(count)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remember(tmp_path / "b", made.targets, K, False, make_model, stop)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*.safetensors")}
    assert len(before) == 2
    remember(tmp_path / "b", made.targets, K, False, make_model)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert torch.equal(values_of(made, make_model(seed=1), list(range(6))), whole)

    def never() -> PreTrainedModel:
        raise AssertionError("the base was loaded for nothing")

    remember(tmp_path / "b", made.targets, K, False, never)


def test_what_is_gone_is_named(tmp_path: Path) -> None:
    made = objective(tmp_path)
    shutil.rmtree(tmp_path / "targets-000000")
    with pytest.raises(UserError, match=r"targets-000000/teacher.safetensors: what the teacher said is gone"):
        values_of(made, make_model(), [0])


def test_a_target_too_long_behind_the_expert_prompt_is_named_or_dropped() -> None:
    long = Distilled(Example("long", (3, 4), (5,) * 20), (3,) * 60, "e" * 20)
    given = [*make_targets(3), long]
    with pytest.raises(UserError, match=r"context of 64 tokens in 1 example \(long\)"):
        DistilledTargets(given, Divergence(k=K), False, FrozenBase(make_model), 64)
    made = DistilledTargets(given, Divergence(k=K), False, FrozenBase(make_model), 64, drop_overlong=True)
    assert made.dropped == ("long",)
    assert list(made.keys) == ["fact-0", "fact-1", "fact-2"]


def run(folder: Path, *, kept: bool = True, **changes: Any) -> TrainResult:
    on_step = changes.pop("on_step", None)
    settings = make_settings(method="mixsd-kl", **{"epochs": 2, "warmup_steps": 0, "checkpoint_every": 1, "lr": 1e-2, **changes})
    made = objective(folder / "teacher" if kept else None)
    return train(make_model(), make_tokenizer(), made, settings=settings, folder=folder, on_step=on_step)


@pytest.mark.parametrize("lora", [0, 4])
def test_a_killed_training_resumes_to_the_same_weights(tmp_path: Path, lora: int) -> None:
    whole = run(tmp_path / "a", lora=lora)
    assert whole.losses[-1] < whole.losses[0]

    def stop(step: Step) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", lora=lora, on_step=stop)
    resumed = run(tmp_path / "b", lora=lora)
    assert resumed.losses == whole.losses
    assert same_bits(weights(resumed.model), weights(whole.model))


def test_a_remembered_teacher_trains_like_one_in_memory(tmp_path: Path) -> None:
    assert run(tmp_path / "a").losses == pytest.approx(run(tmp_path / "b", kept=False).losses, abs=1e-5)
