from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixsd.decoding.engine import decode_all
from mixsd.decoding.requests import Decoding, Request, Sampling
from mixsd.storage import Journal
from mixsd.training import Step, train
from mixsd.training.examples import collate
from mixsd.training.objectives import Student
from mixsd.training.teacher import Rehearsal
from tests.training.tiny import batch_nll, make_examples, make_model, make_settings, make_tokenizer, same_bits, weights

PROMPTS = {f"p{number}": [3 + number, 5, 7] for number in range(12)}
LIMIT = 6


class Scripted:
    """Decodes a length that the request's own noise decides, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def __call__(self, requests: list[Request]) -> Iterable[Decoding]:
        for request in requests:
            self.asked.append(request)
            assert request.noise is not None
            length = 1 + int(request.noise[0] * LIMIT)
            yield Decoding(request.key, [9] * length, "n" * length, [], True)


def rehearsal(ratio: float = 1.0, **changes: Any) -> Rehearsal:
    return Rehearsal(PROMPTS, **{"ratio": ratio, "limit": LIMIT, "seed": 0, **changes})


def live(ratio: float = 1.0, seed: int = 0) -> tuple[Rehearsal, Scripted]:
    decode = Scripted()
    return rehearsal(ratio, seed=seed, decode=lambda student, requests: decode(requests)), decode


def replies(made: Rehearsal, step: int, tokens: int) -> list[tuple[str, tuple[int, ...]]]:
    part = made.part(None, step, tokens)  # type: ignore[arg-type] # nothing here looks at the student
    return [(example.key, example.target_ids) for example in part.examples]


@given(st.integers(0, 400), st.floats(0.1, 4.0), st.integers(1, 50))
def test_as_many_tokens_as_asked_for_as_nearly_as_whole_replies_allow(tokens: int, ratio: float, step: int) -> None:
    made, _ = live(ratio)
    total = sum(len(ids) for _, ids in replies(made, step, tokens))
    assert abs(total - ratio * tokens) <= LIMIT / 2


def test_other_prompts_and_other_replies_at_each_step_and_the_same_ones_each_time() -> None:
    made, decode = live()
    first, second = replies(made, 1, 30), replies(made, 2, 30)
    assert [key.split("/")[-1] for key, _ in first] != [key.split("/")[-1] for key, _ in second]
    assert replies(live()[0], 1, 30) == first
    assert replies(live(seed=1)[0], 1, 30) != first
    noise = {request.key: request.noise for request in decode.asked}
    again = [key for key in noise if key.startswith("1/")]
    assert not any(np.array_equal(noise[key], noise.get(f"2/{key[2:]}")) for key in again)


def test_after_all_prompts_the_next_round_has_other_noise() -> None:
    made, decode = live()
    rounds = {key.split("/")[2] for key, _ in replies(made, 1, 100)}  # 12 prompts hold about 42 tokens
    assert {"0", "1"} <= rounds
    by_key = {request.key: request.noise for request in decode.asked}
    assert not np.array_equal(by_key["1/0/p3"], by_key["1/1/p3"])


def test_prepared_replies_are_those_made_at_need_and_a_second_preparation_decodes_nothing(tmp_path: Path) -> None:
    tokens = {1: 20, 2: 33, 3: 5}
    decode = Scripted()
    prepared = rehearsal(journal=Journal(tmp_path / "r.jsonl"))
    prepared.prepare(tokens, decode)
    assert len({request.key for request in decode.asked}) == len(decode.asked)
    for step, count in tokens.items():
        assert replies(prepared, step, count) == replies(live()[0], step, count)
    again = Scripted()
    resumed = rehearsal(journal=Journal(tmp_path / "r.jsonl"))
    resumed.prepare(tokens, again)
    assert not again.asked
    assert replies(resumed, 2, 33) == replies(prepared, 2, 33)


def test_what_was_not_prepared_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step 4 was not prepared"):
        replies(rehearsal(journal=Journal(tmp_path / "r.jsonl")), 4, 10)


def decode_with(model: Any) -> Any:
    def decode(requests: list[Request]) -> Iterable[Decoding]:
        return decode_all(model, requests, Sampling({2: 2}, temperature=1.0), token_budget=4096)

    return decode


def run(folder: Path, ratio: float, **changes: Any) -> tuple[Any, list[Step], Rehearsal | None]:
    examples, settings = make_examples(6), make_settings(epochs=1, rehearse=ratio, rehearse_tokens=LIMIT, **changes)
    made = None
    if ratio:
        base = make_model()
        made = rehearsal(ratio, decode=lambda student, requests: decode_with(base)(requests))
    steps: list[Step] = []
    model = make_model()
    result = train(model, make_tokenizer(), examples, settings=settings, folder=folder, rehearsal=made, on_step=steps.append)
    return result, steps, made


def test_the_step_is_the_targets_mean_plus_ratio_times_the_replies_mean(tmp_path: Path) -> None:
    """By hand: the gradient of the first step from two batches, through the model's own weights."""
    settings = {"batch_size": 6, "micro_batch": 6, "warmup_steps": 0, "weight_decay": 0.0, "clip": 1e9}
    _, steps, made = run(tmp_path / "a", 2.0, **settings)
    assert made is not None
    examples = make_examples(6)
    tokens = sum(len(example.target_ids) for example in examples)
    student = Student(make_model(), None, None, torch.device("cpu"), torch.no_grad)  # type: ignore[arg-type]
    beside = made.part(student, 1, tokens).examples
    rehearsed = sum(len(example.target_ids) for example in beside)
    assert steps[0].rehearsed == rehearsed
    assert abs(rehearsed - 2 * tokens) <= LIMIT / 2
    model = make_model()
    targets, replies_ = batch_nll(model, collate(examples)), batch_nll(model, collate(beside))
    assert steps[0].loss == pytest.approx(targets.item() / tokens, rel=1e-5)
    assert steps[0].rehearsal_loss == pytest.approx(replies_.item() / rehearsed, rel=1e-5)
    ((targets + replies_) / tokens).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
    assert steps[0].grad_norm == pytest.approx(norm, rel=1e-4)


def test_without_rehearsal_nothing_changes_and_with_it_the_weights_differ(tmp_path: Path) -> None:
    plain, steps, _ = run(tmp_path / "a", 0.0)
    rehearsed, _, _ = run(tmp_path / "b", 1.0)
    assert {step.rehearsed for step in steps} == {0}
    assert not same_bits(weights(plain.model), weights(rehearsed.model))


def test_a_run_resumed_in_the_middle_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole, _, _ = run(tmp_path / "a", 1.0, checkpoint_every=1)

    def stop(step: Step) -> None:
        if step.step == 2:
            raise KeyboardInterrupt

    base = make_model()
    for on_step in (stop, None):
        made = rehearsal(1.0, decode=lambda student, requests: decode_with(base)(requests))
        settings = make_settings(epochs=1, rehearse=1.0, rehearse_tokens=LIMIT, checkpoint_every=1)
        try:
            result = train(
                make_model(),
                make_tokenizer(),
                make_examples(6),
                settings=settings,
                folder=tmp_path / "b",
                rehearsal=made,
                on_step=on_step,
            )
        except KeyboardInterrupt:
            continue
    assert same_bits(weights(whole.model), weights(result.model))
