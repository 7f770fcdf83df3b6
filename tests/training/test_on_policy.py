from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixsd.decoding import oracle
from mixsd.decoding.requests import Request, Sampling
from mixsd.errors import MixsdError, UserError
from mixsd.randomness import uniforms
from mixsd.training import Step, TrainResult, train
from mixsd.training.distilled import OnPolicy, RolloutPrompt
from mixsd.training.examples import Example
from mixsd.training.lora import Lora
from mixsd.training.losses import Divergence
from mixsd.training.objectives import Student
from mixsd.training.states import Reading
from mixsd.training.teacher import FrozenBase
from tests.training.tiny import VOCABULARY, make_model, make_settings, make_tokenizer, same_bits, weights

LIMIT = 7
FACTS = [RolloutPrompt(f"fact-{n}", (1, 5 + n, 9), (1, 5 + n, 9, 20 + n, 30, 40 - n), LIMIT - n % 2) for n in range(6)]


def objective(load: Callable[[], PreTrainedModel], **changes: Any) -> OnPolicy:
    values: dict[str, Any] = {"samples": 2, "temperature": 1.0, "seed": 0, "stops": {2: 2}, "token_budget": 4096}
    return OnPolicy(FACTS, FrozenBase(load), **{**values, "loss": Divergence(k=8), **changes})


def student(model: PreTrainedModel, *, lora: Lora | None = None) -> Student:
    reading = Reading(model, Example("probe", (1, 5), (9,)))
    return Student(model, lora, reading, torch.device("cpu"), torch.enable_grad)


def run(folder: Path, method: str = "opsd", **changes: Any) -> TrainResult:
    own = {name: changes.pop(name) for name in ("samples", "temperature", "loss") if name in changes}
    on_step = changes.pop("on_step", None)
    settings = make_settings(method=method, **{"epochs": 2, "lr": 1e-2, "warmup_steps": 0, "checkpoint_every": 1, **changes})
    made = objective(make_model, **own)
    return train(make_model(), make_tokenizer(), made, settings=settings, folder=folder, on_step=on_step)


def dense_log_probs(model: PreTrainedModel, prompt: tuple[int, ...], reply: tuple[int, ...]) -> Tensor:
    """log-probabilities (N, V) at the places that predict the reply, without padding and without our head."""
    logits = model(input_ids=torch.tensor([[*prompt, *reply]])).logits[0]
    return torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)


def test_rollouts_are_the_oracle_s_at_their_addresses() -> None:
    model = make_model(dtype=torch.float64)
    part = objective(make_model).part(student(model), 3, [4, 1])
    assert [example.key for example in part.examples] == ["fact-4/0", "fact-4/1", "fact-1/0", "fact-1/1"]
    assert part.decoded == sum(len(example.target_ids) for example in part.examples)
    for example, (fact, sample) in zip(part.examples, [(4, 0), (4, 1), (1, 0), (1, 1)], strict=True):
        asked = FACTS[fact]
        noise = uniforms(0, "rollout", asked.key, sample=sample, attempt=3, n=asked.limit)
        request = Request("r", list(asked.naive_ids), asked.limit, noise=noise)
        expected = oracle.decode(model, request, Sampling({2: 2}, temperature=1.0))
        assert list(example.target_ids) == expected.ids
        assert example.prompt_ids == asked.naive_ids


def test_the_loss_is_the_divergence_from_the_base_behind_the_expert_prompt() -> None:
    """Forward KL on the teacher's top k, renormalized, computed from the two models' dense logits one row at a time."""
    model, base = make_model(dtype=torch.float64, seed=1), make_model(dtype=torch.float64)
    known = student(model)
    part = objective(lambda: make_model(dtype=torch.float64)).part(known, 1, [0, 3])
    values = part.loss(known, known.reading.states(model, part.examples), part.examples)
    expected: list[Tensor] = []
    for example in part.examples:
        asked = next(fact for fact in FACTS if example.key.startswith(f"{fact.key}/"))
        q = dense_log_probs(model, example.prompt_ids, example.target_ids)
        p = dense_log_probs(base, asked.expert_ids, example.target_ids).detach()
        for row_q, row_p in zip(q, p, strict=True):
            ids = row_p.topk(8).indices
            log_p, log_q = torch.log_softmax(row_p[ids], 0), torch.log_softmax(row_q[ids], 0)
            expected.append((log_p.exp() * (log_p - log_q)).sum())
    assert values.tolist() == pytest.approx(torch.stack(expected).tolist(), abs=1e-9)
    gradients = torch.autograd.grad(values.sum(), list(model.parameters()))
    wanted = torch.autograd.grad(torch.stack(expected).sum(), list(model.parameters()))
    for found, by_hand in zip(gradients, wanted, strict=True):
        # The norms of these models are in fp32, whatever the weights are in.
        torch.testing.assert_close(found, by_hand, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("kl", ["forward", "reverse", "jsd"])
def test_all_tokens_as_support_are_the_full_divergence(kl: Any) -> None:
    model = make_model(dtype=torch.float64, seed=1)
    known = student(model)
    found = []
    for loss in (Divergence(kl=kl, k=VOCABULARY), Divergence(kl=kl, support="full"), Divergence(kl=kl, k=999, support="student")):
        part = objective(lambda: make_model(dtype=torch.float64), loss=loss).part(known, 1, [0, 3])
        found.append(part.loss(known, known.reading.states(model, part.examples), part.examples))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_opsd_nll_learns_the_teacher_s_best_token_at_each_of_the_student_s() -> None:
    model, base = make_model(dtype=torch.float64, seed=1), make_model(dtype=torch.float64)
    known = student(model)
    made = objective(lambda: make_model(dtype=torch.float64), samples=1, temperature=0.0, loss="top1")
    part = made.part(known, 1, [2])
    (example,) = part.examples
    greedy = oracle.decode(model, Request("r", list(example.prompt_ids), FACTS[2].limit), Sampling({2: 2}))
    assert list(example.target_ids) == greedy.ids
    values = part.loss(known, known.reading.states(model, [example]), [example])
    best = dense_log_probs(base, FACTS[2].expert_ids, example.target_ids).argmax(-1)
    assert best.tolist() != list(example.target_ids)
    log_q = dense_log_probs(model, example.prompt_ids, example.target_ids)
    assert values.tolist() == pytest.approx((-log_q.gather(-1, best[:, None])[:, 0]).tolist(), abs=1e-9)


def test_the_sampled_token_comes_from_the_teacher_s_distribution() -> None:
    model, base = make_model(dtype=torch.float64, seed=1), make_model(dtype=torch.float64)
    known = student(model)
    made = objective(lambda: make_model(dtype=torch.float64), samples=1, temperature=0.0, loss="sampled")
    drawn: list[list[int]] = []
    for step in (1, 2):
        part = made.part(known, step, [2])
        (example,) = part.examples
        values = part.loss(known, known.reading.states(model, [example]), [example])
        p = dense_log_probs(base, FACTS[2].expert_ids, example.target_ids).exp()
        noise = uniforms(0, "noise", example.key, attempt=step, n=len(example.target_ids))
        labels = [int((row.cumsum(0) <= number).sum()) for row, number in zip(p, noise, strict=True)]
        log_q = dense_log_probs(model, example.prompt_ids, example.target_ids)
        expected = [-log_q[place, label].item() for place, label in enumerate(labels)]
        assert values.tolist() == pytest.approx(expected, abs=1e-9)
        drawn.append(labels)
    assert drawn[0] != drawn[1]


def test_stale_rollouts_are_refused() -> None:
    model = make_model()
    known = student(model)
    part = objective(make_model).part(known, 1, [0])
    states = known.reading.states(model, part.examples)
    part.loss(known, states, part.examples)
    known.steps = 1
    with pytest.raises(MixsdError, match="stale rollouts: decoded after 0 optimizer steps, trained on after 1"):
        part.loss(known, states, part.examples)


def test_with_lora_the_teacher_is_the_same_weights_with_the_adapters_off() -> None:
    def never() -> PreTrainedModel:
        raise AssertionError("a second model was loaded")

    model, base = make_model(), make_model()
    lora = Lora(model, rank=4, seed=0)
    with torch.no_grad():
        for name, parameter in lora.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    known = student(model, lora=lora)
    model.train()
    examples = [Example("a", (1, 7, 9), (11, 12, 2))]
    found = FrozenBase(never).states(known, examples)
    expected = Reading(base, examples[0]).states(base.eval(), examples)
    torch.testing.assert_close(found.rows, expected.rows, atol=1e-6, rtol=1e-5)
    assert not found.rows.requires_grad
    assert model.training
    own = known.reading.states(model, examples).rows
    assert not torch.allclose(own, found.rows, atol=1e-2)
    assert all(parameter.requires_grad for name, parameter in lora.model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("lora", [0, 4])
def test_training_lowers_the_divergence_and_the_teacher_stays_what_it_was(tmp_path: Path, lora: int) -> None:
    loaded: list[PreTrainedModel] = []

    def load() -> PreTrainedModel:
        loaded.append(make_model())
        return loaded[-1]

    settings = make_settings(method="opsd", epochs=10, lr=2e-2 if lora else 5e-3, warmup_steps=0, lora=lora, checkpoint_every=99)
    result = train(make_model(), make_tokenizer(), objective(load), settings=settings, folder=tmp_path)
    assert sum(result.losses[-4:]) < 0.7 * sum(result.losses[:4])
    assert len(loaded) == (0 if lora else 1)
    if loaded:
        assert same_bits(weights(loaded[0]), weights(make_model()))


def test_the_step_counts_what_was_decoded_and_learns_from_every_token(tmp_path: Path) -> None:
    steps: list[Step] = []
    run(tmp_path, on_step=steps.append)
    assert [step.decoded for step in steps] == [step.tokens for step in steps]
    assert all(0 < step.tokens <= 8 * LIMIT for step in steps)


def test_mean_over_sequences_weighs_a_short_reply_as_much_as_a_long_one(tmp_path: Path) -> None:
    steps: list[Step] = []
    run(tmp_path, epochs=1, batch_size=6, micro_batch=3, kl_reduction="sequence", on_step=steps.append)
    model = make_model()
    known = student(model)
    part = objective(make_model).part(known, 1, list(range(6)))
    values = part.loss(known, known.reading.states(model, part.examples), part.examples)
    lengths = [len(example.target_ids) for example in part.examples]
    assert len(set(lengths)) > 1
    means = [own.mean().item() for own in values.split(lengths)]
    assert steps[0].loss == pytest.approx(sum(means) / len(means), rel=1e-4)


CASES: dict[str, dict[str, Any]] = {
    "opsd": {},
    "opsd, LoRA": {"lora": 4},
    "opsd-nll": {"method": "opsd-nll", "samples": 1, "temperature": 0.0, "loss": "top1"},
    "opsd-nll, sampled": {"method": "opsd-nll", "samples": 1, "temperature": 0.0, "loss": "sampled"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_training_resumes_to_the_same_weights(tmp_path: Path, case: str) -> None:
    whole = run(tmp_path / "a", **CASES[case])

    def stop(step: Step) -> None:
        if step.step == 3:  # after its log line, before its checkpoint
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", **CASES[case], on_step=stop)
    resumed = run(tmp_path / "b", **CASES[case])
    assert resumed.losses == whole.losses
    assert same_bits(weights(resumed.model), weights(whole.model))


def test_a_resume_with_other_rollouts_is_refused(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    with pytest.raises(UserError, match="made with examples"):
        run(tmp_path, epochs=1, samples=3)
    with pytest.raises(UserError, match="made with examples"):
        run(tmp_path, epochs=1, loss=Divergence(kl="reverse", k=8))


def test_nothing_to_ask_is_an_error() -> None:
    with pytest.raises(UserError, match="no usable fact"):
        OnPolicy([], FrozenBase(make_model), 1, 0.0, 0, {2: 2}, 64, "top1")
