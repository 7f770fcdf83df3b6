"""The arithmetic of the dry run, by hand: memory, disk and time of an invented model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mixsd.commands import costs
from mixsd.decoding.continuous import tokens_per_pass
from mixsd.settings import Settings


def work_of(**changes: Any) -> costs.Work:
    known: dict[str, Any] = {"asked": 10, "usable": 10, "unusable": {}, "measured": 10, "targets": 10, "attempts": 2, "steps": 50}
    lengths = {"naive": costs.Lengths(20, 30), "expert": costs.Lengths(60, 80), "reference": costs.Lengths(12, 16)}
    return costs.Work(**{**known, **lengths, "questions": 10, "asked_tokens": 40.0, "general": 10, "limit": 64, **changes})


SHAPE = costs.Shape(
    parameters=1000,
    adapters=0,
    adapted=600,
    layers=2,
    hidden=10,
    inner=20,
    cache_width=8,
    vocabulary=100,
    stored_item=2,
)


def test_kept_checkpoints_and_the_optimizers_state_on_disk() -> None:
    def disk(shape: costs.Shape = SHAPE, **changes: Any) -> dict[str, int]:
        return costs.disk(Settings(checkpoint_every=20, **changes).resolved, work_of(), shape)

    # 50 steps: checkpoints after 20, 40 and 50.
    assert disk(keep_checkpoints=1)["checkpoints"] == 4000 + 8000
    assert disk(keep_checkpoints=2)["checkpoints"] == 8000 + 8000
    assert disk(keep_checkpoints=0)["checkpoints"] == disk(keep_checkpoints=5)["checkpoints"] == 12000 + 8000
    assert disk()["model"] == 2000
    assert disk()["peak"] == 2 * 12000 + disk()["records"] > disk()["total"]
    lora = costs.Shape(**{**SHAPE.__dict__, "adapters": 50})
    assert disk(lora, lora=4)["checkpoints"] == 4000 + 12 * 50


def test_training_memory() -> None:
    def training(shape: costs.Shape = SHAPE, *, on_cpu: bool = True, item: int = 4, **changes: Any) -> dict[str, int]:
        settings = Settings(**changes).resolved
        return costs.memory(settings, work_of(), shape, item=4, train_item=item, on_cpu=on_cpu)["training"]

    full = training()
    assert (full["weights"], full["gradients"], full["optimizer"]) == (4000, 4000, 8000)
    lora = training(costs.Shape(**{**SHAPE.__dict__, "adapters": 50}), lora=4)
    assert (lora["weights"], lora["gradients"], lora["optimizer"]) == (4200, 200, 400)
    assert training(micro_batch=2)["activations"] < training(micro_batch=4)["activations"]
    assert training(gradient_checkpointing=True)["activations"] < full["activations"]
    assert training(item=2)["activations"] < full["activations"]
    # With next to no activations it is the reloaded checkpoint that counts, where it shares the memory.
    tiny = costs.Shape(**{**SHAPE.__dict__, "parameters": 10**9, "adapters": 50, "adapted": 10**8})
    assert training(tiny, lora=4)["activations"] == 4 * (10**9 + 10**8) - 200
    assert training(tiny, lora=4, on_cpu=False)["activations"] < 10**9


def test_seconds_of_training_by_hand() -> None:
    settings = Settings(method="sft", epochs=5, batch_size=5, checkpoint_every=1000).resolved
    speed = costs.Speed(read=0.0, token=1e-6)
    found = costs.seconds(settings, work_of(), SHAPE, speed, speed)
    # 5 epochs x 10 targets x 32 tokens, forward and twice as much backward; 10 passes of 5 through 2 layers; one checkpoint.
    assert found["train"] == pytest.approx(3 * (1600 * 1000 * 1e-6 + 10 * 2 * costs._LAYER_SECONDS), abs=0.06)
    assert found["total"] == pytest.approx(found["mix"] + found["train"] + found["evaluate"], abs=0.11)
    slower = costs.seconds(settings, work_of(), SHAPE, speed, costs.Speed(0.0, 2e-6))
    assert slower["train"] == pytest.approx(2 * found["train"], rel=0.05)
    assert slower["mix"] == found["mix"]


def test_lora_and_more_attempts_and_questions_change_the_time() -> None:
    speed = costs.Speed(1e-6, 1e-6)

    def seconds(work: costs.Work | None = None, **changes: Any) -> dict[str, float]:
        return costs.seconds(Settings(**changes).resolved, work or work_of(), SHAPE, speed, speed)

    assert seconds(gradient_checkpointing=True)["train"] > seconds()["train"]
    assert seconds(work_of(attempts=4))["mix"] > 1.2 * seconds()["mix"]
    assert seconds(work_of(questions=1000))["evaluate"] > 2 * seconds()["evaluate"]
    assert seconds(work_of(questions=1000, asked_tokens=1300.0))["evaluate"] > 2 * seconds(work_of(questions=1000))["evaluate"]
    assert seconds(method="sft")["mix"] < seconds()["mix"]


def test_a_decoding_pass_is_counted_as_long_as_it_is_made() -> None:
    """Wide layers, so that a pass of decoding takes more than the logits of a scoring pass."""
    settings = Settings(method="mixsd").resolved
    wide = replace(SHAPE, hidden=1000, inner=2000)
    for on_cpu in (True, False):
        parts = costs.memory(settings, work_of(), wide, item=4, train_item=4, on_cpu=on_cpu)["mixing"]
        assert parts["activations"] == tokens_per_pass(on_cpu=on_cpu) * (4 * 1000 + 3 * 2000 + wide.vocabulary) * 4


def test_checkpoints_of_a_search_on_disk() -> None:
    def disk(**changes: Any) -> dict[str, int]:
        return costs.disk(Settings(method="sft", checkpoint_every=10, **changes).resolved, work_of(), SHAPE)

    # Five checkpoints: the newest and the chosen one stay; while one is written the best, two open ones and the newest are there.
    paper = disk(choose="paper")
    assert paper["checkpoints"] == 2 * 4000 + 8000
    assert paper["peak"] - paper["records"] == 5 * 4000 + 2 * 8000
    # The best rate's are kept beside.
    auto = disk(lr="auto", lr_grid=[1e-5, 1e-4])
    assert auto["checkpoints"] == paper["checkpoints"]
    assert auto["peak"] - auto["records"] == paper["checkpoints"] + 5 * 4000 + 2 * 8000
    cut = disk(lr="auto", lr_grid=[1e-5, 1e-4], lr_steps=10)
    assert cut["peak"] - cut["records"] == max(5 * 4000 + 2 * 8000, 4000 + 8000 + 4000 + 8000)


def test_seconds_of_each_method_by_hand() -> None:
    """Without the reading of weights, a pass costs a microsecond for each token and parameter."""
    fast = costs.Speed(read=0.0, token=1e-6)
    shape = replace(SHAPE, layers=0)

    def parts(work: costs.Work, **changes: Any) -> dict[str, float]:
        settings = Settings(epochs=5, batch_size=5, checkpoint_every=1000, **changes).resolved
        found: dict[str, float] = costs.seconds(settings, work, shape, fast, fast)["train_parts"]
        return found

    def thousand(tokens: float) -> Any:
        return pytest.approx(tokens * 1000 * 1e-6, abs=0.06)

    anew = work_of(targets=0, rollouts=20, steps=10)
    found = parts(anew, method="opsd", samples=2)
    # 5 epochs of 20 replies of 12 tokens: decoded behind 20, learnt, and read behind the expert's 60.
    assert found == {"steps": thousand(3 * 100 * 32), "rollouts": thousand(100 * 32), "teacher": thousand(100 * 72)}
    assert parts(work_of(steps=10), method="mixsd-kl")["teacher"] == thousand(10 * 72)
    assert parts(work_of(steps=10), method="mixsd-kl", kl_support="full")["teacher"] == thousand(50 * 72)
    assert parts(work_of(steps=10), method="mixsd-kl", lam=0.3, kl_teacher="picked")["teacher"] == thousand(10 * (72 + 32))
    # Half of 600 supervised tokens, in replies of 48 behind 30: decoded and learnt; then with the base's distributions.
    prompts = costs.Lengths(30, 40)
    for loss, times in (("nll", 4), ("kl", 5)):
        rehearsal = parts(work_of(steps=10, rehearsal=prompts), method="sft", rehearse=0.5, rehearse_loss=loss)["rehearsal"]
        assert rehearsal == thousand(times * 300 / 48 * 78)
    assert parts(work_of(steps=10), method="sft", lr="auto", lr_grid=[1e-5, 1e-4], lr_steps=5)["steps"] == thousand(
        3 * 2 * 50 * 32
    )
    scored = parts(work_of(steps=10, scored=4, references=6), method="sft", choose="paper")["scoring"]
    assert scored == thousand(4 * (40 - 20 + 48) + 6 * (48 + 64))


def test_seconds_of_an_edit_follow_facts_steps_and_text() -> None:
    speed = costs.Speed(1e-6, 1e-6)
    edit = costs.Edit(1, 0, 5, 10, costs.Lengths(20, 30), costs.Lengths(3, 5), costs.Lengths(8, 12))

    def edited(work: costs.Work, **changes: Any) -> float:
        settings = Settings(method="memit", **changes).resolved
        return float(costs.seconds(settings, work, SHAPE, speed, speed)["edit"])

    def work(**changes: Any) -> costs.Work:
        return work_of(targets=0, steps=0, **{"edit": edit, **changes})

    assert edited(work(usable=100)) > edited(work())
    # Of the layers above the edited one half is left, forward and backward: 6 prompts' 8 tokens.
    more = edited(work(), edit_steps=35, edit_tokens=1) - edited(work(), edit_steps=25, edit_tokens=1)
    assert more == pytest.approx(10 * 10 * (1000e-6 + 2 * costs._LAYER_SECONDS + 6 * 8 * 1000e-6), rel=0.05)
    assert edited(work(), edit_tokens=200_000) > 1.5 * edited(work())
    assert edited(work(edit=replace(edit, last=1))) < edited(work(), edit_tokens=100_000, edit_steps=250)
