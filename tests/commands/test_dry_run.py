from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mixsd.commands import costs, dry_run
from mixsd.commands.dry_run import measure_shape, measure_work, plan
from mixsd.commands.opening import open_checked
from mixsd.decoding.packed import Piece, Pool, forward
from mixsd.errors import UserError
from mixsd.models.loading import load_model
from mixsd.progress import Watcher
from mixsd.run.session import Session
from mixsd.settings import Settings
from mixsd.storage import Journal
from mixsd.targets.stage import Mixer
from tests.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("own_cache")

Opener = Callable[..., Session]


@pytest.fixture
def settings(options: dict[str, Any], tmp_path: Path) -> Settings:
    return Settings(**options, output=str(tmp_path / "run"))


@pytest.fixture
def opened(settings: Settings) -> Opener:
    """Opens a session with other settings."""
    return lambda **changes: open_checked(Settings(**{**settings.dump(), **changes}), Watcher())


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
    assert (report["tokens"]["targets"], report["tokens"]["decoded"]) == (24, 48)
    assert report["training"]["steps"] == 2
    assert report["training"]["tokens"] == sum(naive) + 24
    # Three facts, two paraphrases of each, and the general questions; a reply to one is taken to have 48 tokens.
    assert report["evaluation"]["questions"] > 3 * 3
    assert report["evaluation"]["decoded"] == 48 * report["evaluation"]["questions"]
    assert "seconds" not in report
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
    assert report["tokens"]["decoded"] == 0
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


def test_too_little_memory_and_disk_are_said(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "device_memory", lambda device: (10**8, 10**7))
    monkeypatch.setattr(dry_run, "free_disk", lambda path: 1000)
    warnings = plan(settings)["warnings"]
    stages = ["mixing", "training", "evaluation"]
    assert [line.split(" may need ")[0] for line in warnings if " may need " in line] == stages
    assert any("cpu has 0.0 GB free: lower --micro-batch" in line for line in warnings)
    assert any(line.startswith("the run folder needs") for line in warnings)
    monkeypatch.setattr(dry_run, "device_memory", lambda device: (None, None))
    assert not any(" may need " in line for line in plan(settings)["warnings"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": 2}, "the warm-up of 2 steps is longer than half of a training's 2"),
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


METHODS: dict[str, dict[str, Any]] = {
    "opsd": {"method": "opsd", "samples": 4, "temperature": 1.0},
    "opsd-nll": {"method": "opsd-nll"},
    "mixsd-kl": {"method": "mixsd-kl", "lam": 0.0},
    "mixsd-kl, full": {"method": "mixsd-kl", "lam": 0.0, "kl_support": "full"},
    "rehearsal": {"method": "sft", "rehearse": 0.5, "rehearse_tokens": 16},
    "rehearsal, kl": {"method": "sft", "rehearse": 0.5, "rehearse_tokens": 16, "rehearse_loss": "kl"},
    "scored": {"method": "sft", "score_checkpoints": True, "score_questions": 2},
}


def of_method(settings: Settings, name: str, **changes: Any) -> dict[str, Any]:
    """The plan of three facts whose replies take 8 tokens, in three epochs of steps of two facts."""
    return plan(Settings(**{**settings.dump(), "epochs": 3, "batch_size": 2, **METHODS[name], **changes}))


def test_a_student_that_answers_anew_has_no_targets(settings: Settings) -> None:
    report = of_method(settings, "opsd")
    training = report["training"]
    assert (training["targets"], training["rollouts"], training["steps"]) == (0, 3 * 4, 3 * 2)
    assert training["supervised_tokens"] == report["tokens"]["decoded"] == 3 * 12 * 8
    assert report["tokens"]["decoded_parts"] == {"mixing": 0, "rollouts": 288, "rehearsal": 0}
    assert report["memory"]["mixing"] == {"total": 0}
    work = measure_work(
        open_checked(Settings(**{**settings.dump(), **METHODS["opsd"], "method": "opsd-nll", "samples": 1}), Watcher())
    )
    assert (work.rollouts, work.attempts) == (3, 1)


@pytest.mark.parametrize("name", METHODS)
def test_who_holds_a_second_model_and_writes_down_what(name: str, settings: Settings) -> None:
    """Each part is there where it is needed and nowhere else."""
    report = of_method(settings, name)
    memory, disk = report["memory"], report["disk"]
    beside = name in ("opsd", "opsd-nll", "mixsd-kl, full", "rehearsal, kl")
    assert memory["training"].get("teacher", 0) == (memory["evaluation"]["weights"] if beside else 0)
    assert "teacher" not in of_method(settings, name, lora=4)["memory"]["training"]
    assert memory["scoring"].get("copy", 0) == (memory["evaluation"]["weights"] if name == "scored" else 0)
    vocabulary = 512
    # Three targets of 8 tokens, an int32 and a float each; 36 of 72 supervised tokens are rehearsed.
    assert disk["teacher"] == (8 * min(64, vocabulary) * 24 if name == "mixsd-kl" else 0)
    assert disk["rehearsal"] == (8 * 36 if name.startswith("rehearsal") else 0)
    assert memory["editing"]["total"] == disk["cache"] == 0
    assert report["editing"] is None
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_what_is_rehearsed_is_decoded_and_trained_on_too(settings: Settings, opened: Opener) -> None:
    training = of_method(settings, "rehearsal")["training"]
    assert (training["supervised_tokens"], training["rehearsed_tokens"]) == (72, 36)
    work = measure_work(opened(**{**METHODS["rehearsal"], "epochs": 3}))
    # Replies of 16 tokens, each behind its prompt.
    assert training["tokens"] == round(3 * 3 * work.naive.mean + 72 + 36 + 36 / 16 * work.rehearsal.mean)
    tokens = of_method(settings, "opsd", rehearse=0.5)["tokens"]
    assert tokens["decoded_parts"] == {"mixing": 0, "rollouts": 288, "rehearsal": 144}


def test_checkpoints_are_counted(settings: Settings) -> None:
    assert of_method(settings, "scored", checkpoint_every=4)["training"]["checkpoints"] == 2


def test_a_learning_rate_is_sought_in_several_trainings(settings: Settings) -> None:
    auto: dict[str, Any] = {"lr": "auto", "lr_grid": [1e-5, 1e-4, 1e-5], "checkpoint_every": 3}
    once = of_method(settings, "opsd", rehearse=0.5)
    whole = of_method(settings, "opsd", rehearse=0.5, **auto)
    assert (whole["training"]["trainings"], whole["training"]["checkpoints"], whole["training"]["steps"]) == (2, 4, 6)
    assert whole["training"]["tokens"] == pytest.approx(2 * once["training"]["tokens"], abs=1)
    assert whole["tokens"]["decoded"] == 2 * once["tokens"]["decoded"]
    # Three steps at each of two rates, then all six.
    cut = of_method(settings, "rehearsal", lr_steps=3, **auto)
    assert (cut["training"]["trainings"], cut["training"]["supervised_tokens"]) == (3, 2 * 72)
    assert cut["tokens"]["decoded_parts"]["rehearsal"] == 36
    assert cut["memory"]["scoring"]["total"] > 0


@pytest.fixture
def memit(tmp_path: Path) -> dict[str, Any]:
    """Two facts with a subject and one without, and a text."""
    subjects = ({"id": "lead", "question": "Who leads Vell?", "answer": "A", "subject": "Vell"}, {"id": "no", "question": "Who?", "answer": "B"},
                {"id": "eat", "question": "What does Kay eat?", "answer": "B", "subject": "Kay"})  # fmt: skip
    (tmp_path / "text.txt").write_text("The sun is good.")
    facts = write_facts(tmp_path / "edits.jsonl", *subjects)
    return {"method": "memit", "facts": facts, "edit_text": str(tmp_path / "text.txt"), "edit_layers": "0", "edit_steps": 5}


def test_an_edit_trains_nothing(memit: dict[str, Any], opened: Opener) -> None:
    session = opened(**memit)
    report, shape = plan(session.settings), measure_shape(session)
    assert report["facts"] == {"asked": 3, "usable": 2, "unusable": {"no": "it has no subject"}, "duplicates": 0}
    assert report["editing"] == {"facts": 2, "layers": 1, "text_tokens": 100_000, "steps": 5, "prompts": 6}
    assert {report["training"][name] for name in ("targets", "steps", "tokens", "trainings", "checkpoints")} == {0}
    assert report["parameters"]["trained"] == report["tokens"]["decoded"] == report["disk"]["checkpoints"] == 0
    assert [report["memory"][stage]["total"] for stage in ("mixing", "training", "scoring")] == [0] * 3
    assert report["disk"]["cache"] == 8 * shape.inner**2
    assert report["memory"]["editing"]["weights"] == 4 * shape.parameters
    (warning,) = report["warnings"]
    assert warning.startswith("1 of 3 facts are unusable, among them no: it has no subject")
    assert plan(session.settings.model_copy(update={"edit_tokens": 9}))["warnings"][1].startswith("--edit-tokens 9 is less than")
    work = measure_work(session)
    assert work.edit is not None
    turn = session.renderer.question("Who leads Vell?")
    assert work.edit.longest > len(session.renderer.ids(turn))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("opsd", {"temperature": 0.0}, "all 4 rollouts of a fact will be equal: --temperature 0 draws nothing"),
        ("scored", {"warmup_steps": 4}, "the warm-up of 4 steps is longer than half of a training's 6"),
        ("scored", {"choose": "paper", "checkpoint_every": 4}, "the paper's rule has 2 checkpoints to choose from"),
        ("scored", {"lr": "auto", "checkpoint_every": 2, "lr_steps": 6}, "--lr-steps 6 cuts nothing off 6 steps"),
        ("scored", {"lr": "auto", "checkpoint_every": 2, "lr_steps": 2, "warmup_steps": 2},
         "the warm-up of 2 steps is longer than half of a training's 2"),
    ],
)  # fmt: skip
def test_trainings_that_may_not_be_meant(name: str, changes: dict[str, Any], message: str, settings: Settings) -> None:
    assert of_method(settings, name)["warnings"] == []
    (warning,) = of_method(settings, name, **changes)["warnings"]
    assert warning.startswith(message)
