from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mixsd.decoding.continuous import tokens_per_pass
from mixsd.decoding.packed import Piece, forward
from mixsd.decoding.pool import Pool
from mixsd.errors import UserError
from mixsd.loading import load_model
from mixsd.mixing.mix import Mixer
from mixsd.pipeline import costs
from mixsd.pipeline import plan as module
from mixsd.pipeline.plan import measure_shape, measure_speed, measure_work, plan
from mixsd.pipeline.session import Session, preview
from mixsd.progress import Watcher
from mixsd.settings import Settings
from mixsd.storage import Journal
from tests.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("own_cache")

Opener = Callable[..., Session]


@pytest.fixture
def settings(options: dict[str, Any], tmp_path: Path) -> Settings:
    return Settings(**options, output=str(tmp_path / "run"))


@pytest.fixture
def opened(settings: Settings) -> Opener:
    """Opens a session with other settings."""
    return lambda **changes: preview(Settings(**{**settings.dump(), **changes}), Watcher())


def write_facts(file: Path, *facts: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(fact) + "\n" for fact in facts), encoding="utf-8")
    return str(file)


def test_the_plan_of_a_tiny_run(settings: Settings, tmp_path: Path, opened: Opener) -> None:
    report = plan(settings)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert not (tmp_path / "run").exists()
    renderer, facts = opened().renderer, opened().facts
    naive = [len(renderer.naive(fact.question)) for fact in facts]
    reference = [len(renderer.reference(fact)) for fact in facts]
    assert report["facts"] == {"asked": 3, "usable": 3, "unusable": {}, "duplicates": 0}
    assert report["tokens"]["naive"] == {"mean": sum(naive) / 3, "longest": max(naive)}
    assert report["tokens"]["expert"]["longest"] == max(len(renderer.expert(fact)) for fact in facts)
    # Longer references, replies of at most 8 tokens, two attempts (--retries 1).
    assert min(reference) > 8
    assert (report["tokens"]["targets"], report["tokens"]["decoded"], report["tokens"]["decoded_at_most"]) == (24, 48, 48)
    assert report["training"]["steps"] == 2
    assert report["training"]["tokens"] == sum(naive) + 24
    assert report["seconds"]["accuracy"] == "rough: within a factor of 3"
    stages = [report["memory"][stage]["total"] for stage in ("mixing", "training", "evaluation")]
    assert report["memory"]["peak"] == max(stages) <= report["memory"]["available"]
    assert report["warnings"] == [
        f"the longest reference has {max(reference)} tokens, a reply at most 8: raise --max-new-tokens",
        "at --lam 0.5 without --gate a small model seldom completes a name: try --gate 0.1",
    ]


def test_steps_follow_samples_and_epochs(opened: Opener) -> None:
    work = measure_work(opened(samples=3, epochs=7, batch_size=4))
    assert (work.targets, work.steps) == (9, 21)


@pytest.mark.parametrize(
    ("changes", "attempts"),
    [
        ({"retries": 10}, 3),
        ({"retries": 1}, 2),
        ({"gate": 0.1}, 1),
        ({"lam": 0.0}, 1),
        ({"lam": 1.0}, 1),
        ({"lam": 0.0, "temperature": 1.0, "retries": 10}, 3),
    ],
)
def test_attempts_are_assumed_only_where_they_can_differ(changes: dict[str, Any], attempts: int, opened: Opener) -> None:
    assert measure_work(opened(**changes)).attempts == attempts


def test_sft_decodes_nothing(settings: Settings) -> None:
    report = plan(settings.model_copy(update={"method": "sft"}))
    assert (report["tokens"]["decoded"], report["tokens"]["decoded_at_most"]) == (0, 0)
    assert report["memory"]["mixing"]["cache"] == 0


@pytest.mark.parametrize("method", ["mixsd", "sft"])
def test_what_is_unusable_here_is_unusable_in_mixing(method: str, opened: Opener, tmp_path: Path) -> None:
    """Lengths around the limit, one token apart, and a forged turn: the same facts for the same reasons."""
    facts = [
        {"id": str(n), "question": f"Q{n}?", "answer": "A", "reference": "r" * n} for n in (*range(70, 90), *range(460, 490))
    ]
    facts.append({"id": "forged", "question": "Q<|end|>?", "answer": "A"})
    session = opened(facts=write_facts(tmp_path / "facts.jsonl", *facts), method=method, max_new_tokens=1, retries=0)
    mixer = Mixer(
        session.load_to_read, session.renderer, session.settings, session.verifier, session.context, Journal(tmp_path / "none")
    )
    reasons = {target.id: target.reason for target in mixer.run(session.facts) if not target.usable}
    work = measure_work(session)
    assert work.unusable == reasons
    assert 0 < work.usable == len(facts) - len(reasons)


def test_a_sample_stands_for_many_facts(opened: Opener, tmp_path: Path) -> None:
    facts = [{"question": f"Who is number {n}?", "answer": "x" if n % 4 else "y" * 600} for n in range(1000)]
    work = measure_work(opened(facts=write_facts(tmp_path / "facts.jsonl", *facts)))
    assert (work.asked, work.measured) == (1000, 200)
    # Every fifth fact is measured, every fourth is unusable.
    assert work.usable == 750


def test_no_usable_fact(settings: Settings, tmp_path: Path) -> None:
    facts = write_facts(tmp_path / "facts.jsonl", {"id": "long", "question": "Q?", "answer": "a" * 600})
    with pytest.raises(UserError, match="no usable fact among the 1 looked at; the first one, long: its expert prompt"):
        plan(settings.model_copy(update={"facts": facts}))


def test_bad_input_is_met_as_in_inject(settings: Settings) -> None:
    for changes, message in (({"facts": ""}, "no facts"), ({"output": ""}, "--output"), ({"model": "/no/model"}, "/no/model")):
        with pytest.raises(UserError, match=message):
            plan(settings.model_copy(update=changes))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_parameters_and_cache_are_those_of_the_loaded_model(architecture: str, tmp_path: Path, opened: Opener) -> None:
    from mixsd.training.lora import Lora

    folder = save_tiny(tmp_path / "model", architecture)
    session = opened(model=str(folder), lora=4, token_budget=640, max_new_tokens=10)
    shape, work = measure_shape(session), measure_work(session)
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    pool = Pool(640, 64)
    forward(model, pool, [Piece(0, 0, [5, 6, 7])], [(0, 2)])
    used = sum(block.nbytes for blocks in (pool.keys, pool.values) for block in blocks.values())
    planned = costs.memory(session.settings, work, shape, item=4, train_item=4, on_cpu=True)["mixing"]
    assert planned["cache"] == used
    head = model.get_output_embeddings().weight.numel()
    assert planned["weights"] == 4 * (shape.parameters + head)
    adapters = [parameter for parameter in Lora(model, rank=4, seed=0).model.parameters() if parameter.requires_grad]
    assert shape.adapters == shape.trained == sum(parameter.numel() for parameter in adapters)


def test_disk_is_what_a_run_leaves(settings: Settings, tiny_run: Path) -> None:
    def weights(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))

    disk = plan(settings)["disk"]
    assert disk["checkpoints"] == pytest.approx(weights(tiny_run / "checkpoints"), rel=0.1)
    assert disk["model"] == pytest.approx(weights(tiny_run / "model"), rel=0.1)


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


def test_the_machine_is_timed() -> None:
    speed = measure_speed(SHAPE, torch.device("cpu"), torch.float32)
    assert 0 < speed.read < 1e-6
    assert 0 <= speed.token < 1e-6


def test_too_little_memory_and_disk_are_said(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "device_memory", lambda device: (10**8, 10**7))
    monkeypatch.setattr(module, "free_disk", lambda path: 1000)
    warnings = plan(settings)["warnings"]
    stages = ["mixing", "training", "evaluation"]
    assert [line.split(" may need ")[0] for line in warnings if " may need " in line] == stages
    assert any("cpu has 0.0 GB free: lower --micro-batch" in line for line in warnings)
    assert any(line.startswith("the run folder needs") for line in warnings)
    monkeypatch.setattr(module, "device_memory", lambda device: (None, None))
    assert not any(" may need " in line for line in plan(settings)["warnings"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": 2}, "the warm-up of 2 steps is longer than half of the training's 2"),
        ({"lam": 0.0, "samples": 2}, "all 2 samples of a fact will be equal: --lam 0 at --temperature 0 draws nothing"),
        ({"lam": 0.5}, "at --lam 0.5 without --gate a small model seldom completes a name: try --gate 0.1"),
    ],
)
def test_settings_that_may_not_be_meant(changes: dict[str, Any], message: str, settings: Settings) -> None:
    calm = settings.model_copy(update={"lam": 0.3, "max_new_tokens": 40})
    assert plan(calm)["warnings"] == []
    assert plan(calm.model_copy(update=changes))["warnings"] == [message]


def test_facts_left_out_and_a_run_that_is_there_are_said(settings: Settings, tiny_run: Path, tmp_path: Path) -> None:
    long = {"id": "long", "question": "Q?", "answer": "a" * 600}
    facts = write_facts(
        tmp_path / "facts.jsonl", {"question": "Who?", "answer": "Bo"}, {"question": "Who?", "answer": "Bo"}, long
    )
    report = plan(settings.model_copy(update={"facts": facts, "output": str(tiny_run)}))
    assert report["facts"]["duplicates"] == 1
    assert report["warnings"][0].startswith("1 of 2 facts are unusable, among them long: its expert prompt of ")
    assert report["warnings"][-1].startswith(f"{tiny_run} is a run already")


def test_a_decoding_pass_is_counted_as_long_as_it_is_made() -> None:
    """Wide layers, so that a pass of decoding takes more than the logits of a scoring pass."""
    settings = Settings(method="mixsd").resolved
    wide = replace(SHAPE, hidden=1000, inner=2000)
    for on_cpu in (True, False):
        parts = costs.memory(settings, work_of(), wide, item=4, train_item=4, on_cpu=on_cpu)["mixing"]
        assert parts["activations"] == tokens_per_pass(on_cpu=on_cpu) * (4 * 1000 + 3 * 2000 + wide.vocabulary) * 4
