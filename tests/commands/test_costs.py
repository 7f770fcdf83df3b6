"""The arithmetic of the dry run, by hand: memory and disk of an invented model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mixsd.commands import costs
from mixsd.decoding.continuous import tokens_per_pass
from mixsd.settings import Settings


def work_of(**changes: Any) -> costs.Work:
    known: dict[str, Any] = {"asked": 10, "usable": 10, "unusable": {}, "measured": 10, "targets": 10, "attempts": 2, "steps": 50}
    lengths = {"naive": costs.Lengths(20, 30), "expert": costs.Lengths(60, 80), "reference": costs.Lengths(12, 16)}
    return costs.Work(**{**known, **lengths, "questions": 10, "limit": 64, **changes})


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
