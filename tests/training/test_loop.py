from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from mixsd.errors import MixsdError, UserError
from mixsd.models.cpu import fast_products
from mixsd.storage import Journal
from mixsd.training import Example, Step, TrainResult, objectives, train
from mixsd.training.examples import collate, microbatches, plan_epoch
from mixsd.training.loop import learning_rate, make_optimizer
from mixsd.training.losses import chunked_nll
from mixsd.training.states import Reading
from tests.garbage import alive
from tests.training.test_losses import oracle_nll
from tests.training.tiny import (
    files,
    make_examples,
    make_model,
    make_settings,
    make_tokenizer,
    same_bits,
    weights,
)

pytestmark = pytest.mark.matrix


def run(
    folder: Path, *, model: PreTrainedModel | None = None, examples: list[Example] | None = None, **changes: Any
) -> TrainResult:
    callbacks = {name: changes.pop(name) for name in ("on_step", "on_checkpoint") if name in changes}
    return train(
        model or make_model(), None, examples or make_examples(11), settings=make_settings(**changes), folder=folder, **callbacks
    )


def log_lines(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for _, row in Journal(folder / "log.jsonl").read()]


def test_a_run_learns_its_targets_and_reports_each_step(tmp_path: Path) -> None:
    seen: list[Step] = []
    written: list[tuple[str, int]] = []
    result = run(
        tmp_path,
        epochs=12,
        checkpoint_every=15,
        on_step=seen.append,
        on_checkpoint=lambda path, step: written.append((path.name, step)),
    )
    assert result.steps == len(seen) == 36
    assert result.losses == tuple(step.loss for step in seen)
    assert result.losses[-1] < 0.5 * result.losses[0]
    assert written == [("step-000015", 15), ("step-000030", 30), ("step-000036", 36)]
    assert sum(step.tokens for step in seen[:3]) == sum(len(example.target_ids) for example in make_examples(11))
    assert [step.epoch for step in seen[:4]] == [1, 1, 1, 2]
    lines = [row for row in log_lines(tmp_path) if row["event"] == "step"]
    assert [(row["step"], row["loss"], row["lr"]) for row in lines] == [(step.step, step.loss, step.lr) for step in seen]
    assert not result.model.training


def test_the_first_loss_and_gradient_norm_are_those_of_the_step_s_examples(tmp_path: Path) -> None:
    examples, model = make_examples(11), make_model(dtype=torch.float64)
    step = [examples[index] for index in plan_epoch(0, 0, [example.key for example in examples], 4)[0]]
    loss = oracle_nll(model, collate(step)) / sum(len(example.target_ids) for example in step)
    loss.backward()
    norm = math.sqrt(sum(float((parameter.grad**2).sum()) for parameter in model.parameters() if parameter.grad is not None))
    seen: list[Step] = []
    run(tmp_path, model=make_model(dtype=torch.float64), epochs=1, on_step=seen.append)
    assert seen[0].loss == pytest.approx(loss.item(), abs=1e-9)
    assert seen[0].grad_norm == pytest.approx(norm, abs=1e-6)


def test_the_gradient_does_not_depend_on_the_microbatch_not_even_in_the_partial_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, captured = torch.nn.utils.clip_grad_norm_, {}

    def gradients(micro_batch: int) -> list[list[torch.Tensor]]:
        steps: list[list[torch.Tensor]] = []

        def spy(parameters: Any, limit: float) -> torch.Tensor:
            listed = list(parameters)
            steps.append([parameter.grad.clone() for parameter in listed])
            return clip(listed, limit)

        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
        model = make_model("llama", dtype=torch.float64)
        run(tmp_path / str(micro_batch), model=model, epochs=1, batch_size=8, micro_batch=micro_batch, lr=1e-6)
        return steps

    captured = {micro_batch: gradients(micro_batch) for micro_batch in (1, 4, 8)}
    assert len(captured[1]) == 2  # 8 examples, then 3
    for micro_batch in (4, 8):
        for one, other in zip(captured[1], captured[micro_batch], strict=True):
            for left, right in zip(one, other, strict=True):
                torch.testing.assert_close(left, right, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama-tied", {}),
        ("llama-tied", {"train_dtype": "bf16"}),
        ("qwen3", {"lora": 4}),
        ("llama", {"lora": 4, "train_dtype": "bf16", "gradient_checkpointing": True}),
        ("dropout", {}),  # draws random numbers in every step
    ],
)
def test_a_killed_run_goes_on_to_the_same_losses_and_weights_bit_for_bit(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    undisturbed = run(tmp_path / "a", model=make_model(kind), **changes)

    def kill(at: int) -> Any:
        def on_step(step: Step) -> None:
            torch.rand(3)  # what a caller draws must not matter to the training, nor the reverse
            if step.step == at:
                raise KeyboardInterrupt

        return on_step

    for at in (1, 5, 8):  # before the first checkpoint; in the second epoch; in the third
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", model=make_model(kind), on_step=kill(at), **changes)
        torch.rand(at)
    redone: list[int] = []
    resumed = run(tmp_path / "b", model=make_model(kind), on_step=lambda step: redone.append(step.step), **changes)
    assert redone == [7, 8, 9]  # the newest checkpoint is that of step 6
    assert resumed.losses == undisturbed.losses
    assert same_bits(weights(resumed.model), weights(undisturbed.model))
    assert log_lines(tmp_path / "b") == log_lines(tmp_path / "a")


def test_training_leaves_the_caller_s_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    run(tmp_path, epochs=1, lora=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_finished_run_is_not_redone(tmp_path: Path) -> None:
    first = run(tmp_path)
    steps: list[Step] = []
    second = run(tmp_path, on_step=steps.append)
    assert steps == []
    assert second.losses == first.losses
    assert same_bits(weights(second.model), weights(first.model))


def test_log_lines_of_other_stages_survive_a_resume(tmp_path: Path) -> None:
    with Journal(tmp_path / "log.jsonl") as log:
        log.append({"event": "mixed", "facts": 11})
        log.append({"event": "step", "step": 1, "loss": 9.0})  # of a run killed before its first checkpoint
    run(tmp_path, epochs=1)
    assert [(row["event"], row.get("step")) for row in log_lines(tmp_path)] == [
        *[("mixed", None), ("step", 1), ("step", 2), ("checkpoint", 2), ("step", 3), ("checkpoint", 3)]
    ]


@pytest.mark.parametrize(("field", "value"), [("lr", 1e-3), ("seed", 1), ("lora", 2), ("train_dtype", "bf16")])
def test_a_resume_under_other_settings_is_refused_and_names_the_field(tmp_path: Path, field: str, value: Any) -> None:
    run(tmp_path, epochs=1)
    with pytest.raises(UserError, match=f"made with {field} = .*now {value}"):
        run(tmp_path, epochs=1, **{field: value})


def test_a_resume_on_other_examples_is_refused(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    with pytest.raises(UserError, match="made with examples"):
        run(tmp_path, epochs=1, examples=make_examples(11, seed=3))


def test_each_loss_in_bf16_is_that_of_a_fresh_model_with_the_weights_of_the_step_before(tmp_path: Path) -> None:
    """No stale bf16 copy of a weight lives on from one step to the next."""
    examples, settings = make_examples(8), {"train_dtype": "bf16", "checkpoint_every": 1, "keep_checkpoints": 0, "lr": 1e-2}
    result = run(tmp_path, examples=examples, epochs=2, warmup_steps=0, **settings)
    keys = [example.key for example in examples]
    plan = [step for epoch in (0, 1) for step in plan_epoch(0, epoch, keys, 4)]
    for step in (2, 3, 4):
        fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoints" / f"step-{step - 1:06d}")
        reading = Reading(fresh, examples[0])
        total, tokens = 0.0, 0
        for microbatch in microbatches([examples[index] for index in plan[step - 1]], 2):
            with torch.autocast("cpu", torch.bfloat16), fast_products(fresh):
                states = reading.states(fresh, microbatch)
                labels = torch.tensor([token for example in microbatch for token in example.target_ids])
                total += chunked_nll(states.rows, states.head, labels, states.chunk).sum().item()
            tokens += sum(len(example.target_ids) for example in microbatch)
        assert result.losses[step - 1] == pytest.approx(total / tokens, abs=1e-6)


@pytest.mark.parametrize("lora", [0, 4])
def test_training_holds_one_set_of_parameters(tmp_path: Path, lora: int) -> None:
    def floats() -> dict[int, int]:
        gc.collect()
        return {tensor.data_ptr(): tensor.numel() for tensor in alive(torch.Tensor) if tensor.is_floating_point()}

    model = make_model("llama")
    size, before = model.num_parameters(), floats()
    extra: list[int] = []
    run(
        tmp_path,
        model=model,
        lora=lora,
        checkpoint_every=100,
        epochs=1,
        on_step=lambda step: extra.append(sum(numel for at, numel in floats().items() if at not in before)),
    )
    moved = size if not lora else sum(4 * sum(shape) for shape in linear_shapes(model))
    # AdamW's two moments of what is trained, and the adapters themselves; gradients are freed; some scalars.
    assert max(extra) <= (3 if lora else 2) * moved + 200
    assert not lora or 3 * moved < size


def linear_shapes(model: PreTrainedModel) -> list[torch.Size]:
    return [
        module.weight.shape for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]


def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path: Path) -> None:
    plain = run(tmp_path / "a", epochs=1)
    recomputed = run(tmp_path / "b", epochs=1, gradient_checkpointing=True)
    assert recomputed.losses == pytest.approx(plain.losses, abs=1e-6)
    assert not recomputed.model.model.gradient_checkpointing


def test_a_model_that_cannot_be_taken_apart_trains_through_its_own_logits_and_says_so(tmp_path: Path) -> None:
    model = make_model()
    model.config.logits_scaling = 2.0  # a field that this family ignores: our head would divide, the model does not
    with pytest.warns(UserWarning, match="training: dense: its head"):
        dense = run(tmp_path / "a", model=model, epochs=1)
    chunked = run(tmp_path / "b", epochs=1)
    assert dense.path.startswith("dense: ")
    assert chunked.path == "packed"
    assert dense.losses == pytest.approx(chunked.losses, abs=1e-5)


def test_an_overlong_example_stops_the_run_or_is_dropped_and_named(tmp_path: Path) -> None:
    examples = [*make_examples(4), Example("long", tuple(range(3, 33)), (3,) * 35)]  # 65 > 64
    with pytest.raises(UserError, match=r"context of 64 tokens in 1 example \(long\)"):
        run(tmp_path, examples=examples)
    assert run(tmp_path, examples=examples, drop_overlong=True, epochs=1).dropped == ("long",)


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nll = objectives.target_nll
    monkeypatch.setattr(objectives, "target_nll", lambda *given: nll(*given) * math.nan)
    model = make_model()
    before = weights(model)
    with pytest.raises(MixsdError, match="step 1: loss nan"):
        run(tmp_path, model=model)
    assert same_bits(weights(model), before)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(objectives, "target_nll", fail)
    with pytest.raises(UserError, match=r"--micro-batch.*--gradient-checkpointing.*--lora.*--device"):
        run(tmp_path)
    error = RuntimeError("another fault")
    with pytest.raises(RuntimeError, match="another fault"):
        run(tmp_path)


def test_half_precision_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fp32"):
        run(tmp_path, model=make_model(dtype=torch.bfloat16))


def test_a_generation_config_that_cannot_be_written_is_noticed_before_the_first_step(tmp_path: Path) -> None:
    model = make_model()
    model.generation_config.temperature = 0.5  # without do_sample
    with pytest.raises(UserError, match=r"generation_config\.json"):
        run(tmp_path, model=model, on_step=lambda step: pytest.fail("a step was taken"))


def test_the_tokenizer_and_generation_config_are_in_every_checkpoint(tmp_path: Path) -> None:
    train(make_model(), make_tokenizer(), make_examples(4), settings=make_settings(epochs=1), folder=tmp_path)
    assert {"tokenizer.json", "generation_config.json", "config.json", "model.safetensors"} < set(
        files(tmp_path / "checkpoints" / "step-000001")
    )


def test_the_learning_rate_warms_up_linearly_and_stays() -> None:
    rates = [learning_rate(step, lr=4.0, warmup_steps=4) for step in (1, 2, 4, 5, 1000)]
    assert rates == [1.0, 2.0, 4.0, 4.0, 4.0]
    assert learning_rate(1, lr=4.0, warmup_steps=0) == 4.0


def test_adamw_has_the_paper_s_betas_and_decays_matrices_only() -> None:
    model = make_model()
    optimizer = make_optimizer(dict(model.named_parameters()), lr=1e-3, weight_decay=0.5)
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    assert all(decays[id(parameter)] == (0.5 if parameter.dim() > 1 else 0.0) for parameter in model.parameters())
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.9, 0.95), 1e-8)}


def test_one_step_is_adamw_by_hand(tmp_path: Path) -> None:
    examples, model = make_examples(4), make_model("llama", dtype=torch.float64)
    start = weights(model)
    (oracle_nll(model, collate(examples)) / sum(len(example.target_ids) for example in examples)).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
    result = run(
        tmp_path,
        model=make_model("llama", dtype=torch.float64),
        examples=examples,
        **{"epochs": 1, "lr": 0.01, "warmup_steps": 2, "weight_decay": 0.1, "clip": 0.5},
    )
    for name, weight in result.model.named_parameters():
        clipped = gradients[name] * min(1.0, 0.5 / (norm + 1e-6))
        decayed = start[name] * (1 - 0.005 * (0.1 if weight.dim() > 1 else 0))
        # After one step both moments, freed of their bias, are the gradient and its square.
        expected = decayed - 0.005 * clipped / (clipped.abs() + 1e-8)
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-6, msg=name)
