"""`mixsd plan`: the grid, its sample, and its numbers against what the targets themselves say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixsd.errors import UserError
from mixsd.loading import load_model
from mixsd.pipeline import first_step, prediction
from mixsd.pipeline.session import preview
from mixsd.progress import Watcher
from mixsd.settings import Settings
from mixsd.storage import read_json, read_jsonl
from tests.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose head prefers the stop token now and then, so that a random reply ends."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_tiny(tmp_path_factory.mktemp("ending"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    stop = AutoTokenizer.from_pretrained(folder).eos_token_id
    torch.manual_seed(0)
    with torch.no_grad():
        model.get_output_embeddings().weight[stop] *= 400
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def choices(options: dict[str, Any], ending: Path, tmp_path: Path) -> dict[str, Any]:
    keep = ("facts", "verifier", "retries", "max_new_tokens")
    return {
        **{name: options[name] for name in keep},
        "max_new_tokens": 60,
        "temperature": 1.0,
        "top_k": 1000,
        "model": str(ending),
        "output": str(tmp_path / "plan"),
    }


def test_numbers_are_those_of_the_targets(choices: dict[str, Any]) -> None:
    found = prediction.predict(**choices, lams=(0.5, 0), gates=(0, 0.1), examples=0)
    assert [item["label"] for item in found["configurations"]] == ["lambda 0", "lambda 0.5", "lambda 0.5, gate 0.1"]
    assert found["facts"]["sampled"] == found["facts"]["of"] == 3
    assert any(item["acceptance"]["value"] for item in found["configurations"])
    for item in found["configurations"]:
        rows = list(read_jsonl(Path(item["run"]) / "targets.jsonl")) if (Path(item["run"]) / "targets.jsonl").exists() else []
        accepted = [row for row in rows if row["accepted"]]
        assert item["acceptance"]["value"] == len(accepted) / 3
        attempts = list(read_jsonl(Path(item["run"]) / "attempts.jsonl"))
        assert item["cost"]["decoded_tokens"] == sum(len(row["target_ids"]) for row in attempts)
        assert item["cost"]["decoded_tokens_of_all_facts"] == item["cost"]["decoded_tokens"]
        nll = -np.array([value for row in accepted for value in row["base_logprobs"]])
        told = item["likelihood"]["all"]
        assert told["tokens"] == len(nll)
        if len(nll):
            assert told["mean_nll"]["value"] == pytest.approx(nll.mean())
            assert told["share_above_5"]["value"] == pytest.approx((nll > 5).mean())
            assert told["share_above_8"]["value"] == pytest.approx((nll > 8).mean())
        else:
            assert told["mean_nll"] is None
    assert found["reference"]["likelihood"]["all"]["facts"] == 3
    assert json.loads(json.dumps(found, allow_nan=False)) == read_json(Path(choices["output"]) / "plan.json")


def test_common_facts_leave_out_what_loses_most(choices: dict[str, Any]) -> None:
    accepted = [{"a", "b", "c"}, {"b", "c"}, {"a"}]
    made = [{"targets": [type("T", (), {"id": name})() for name in ids]} for ids in accepted]
    assert prediction._common(made, 3) == {"b", "c"}
    assert prediction._common(made[2:], 3) == set()


def test_a_second_plan_decodes_nothing(choices: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = prediction.predict(**choices, lams=(0.5,), gates=(0,), examples=0)

    def no_model(*args: Any, **options: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mixsd.loading.load_to_read", no_model)
    assert prediction.predict(**choices, lams=(0.5,), gates=(0,), examples=0) == first


def test_the_sample_is_a_draw_that_order_does_not_change(choices: dict[str, Any]) -> None:
    facts = preview(Settings(**choices), Watcher()).facts
    some = prediction._sampled(facts, 2, 0)
    assert [fact.id for fact in some] == [fact.id for fact in facts if fact in some]
    assert len(some) == 2
    assert {fact.id for fact in prediction._sampled(facts[::-1], 2, 0)} == {fact.id for fact in some}
    assert len({tuple(fact.id for fact in prediction._sampled(facts, 2, seed)) for seed in range(20)}) > 1


def test_alignment_is_that_of_the_dense_gradient(choices: dict[str, Any], own_cache: Path) -> None:
    found = prediction.predict(**choices, lams=(0.5,), gates=(0,), examples=3, reference="general")
    model = load_model(Path(choices["model"]), dtype=torch.float32, device=torch.device("cpu"))
    rows = list(read_jsonl(Path(found["configurations"][0]["run"]) / "references.jsonl"))
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["target_ids"]])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        total = total - logprobs[range(len(row["prompt_ids"]) - 1, ids.shape[1] - 1), row["target_ids"]].sum()
    (total / sum(len(row["target_ids"]) for row in rows)).backward()
    from safetensors.torch import load_file

    (file,) = own_cache.glob("fisher/*/fisher.safetensors")
    fisher = load_file(file)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients.keys() == fisher.keys()
    squared = sum(float((g.double() ** 2).sum()) for g in gradients.values())
    weighted = sum(float((fisher[name].double() * g.double() ** 2).sum()) for name, g in gradients.items())
    mean = sum(float(f.double().sum()) for f in fisher.values()) / sum(f.numel() for f in fisher.values())
    assert found["reference"]["alignment"] == pytest.approx(weighted / squared / mean, rel=1e-3)
    assert found["fisher"]["reference"] == "general"


def test_without_examples_there_is_no_alignment(choices: dict[str, Any]) -> None:
    session = preview(Settings(**choices), Watcher())
    assert first_step.alignments(session, {"a": []}, examples=0) == {"fisher": None, "values": {}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lams": (1.5,)}, "--lam"),
        ({"gates": (-0.1,)}, "--gate"),
        ({"sample": 0}, "--sample"),
        ({"examples": -1}, "--examples"),
        ({"method": "sft"}, "--method sft"),
    ],
)
def test_bad_input(choices: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prediction.predict(**{**choices, **changes})
    assert not Path(choices["output"]).exists()


def test_a_run_is_no_place_for_a_plan(choices: dict[str, Any], tiny_run: Path) -> None:
    with pytest.raises(UserError, match="folder of a run"):
        prediction.predict(**{**choices, "output": str(tiny_run)}, examples=0)
