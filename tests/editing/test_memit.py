from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mixsd.editing import EditResult, MemitConfig, edit, memit
from mixsd.editing.edits import sampled_prefixes
from mixsd.editing.memit import Value
from mixsd.editing.parts import down_projection
from mixsd.errors import MixsdError, UserError
from mixsd.facts.fact import Fact
from mixsd.storage import Journal
from tests.editing.helpers import FACTS, QUICK, THOROUGH, moments_of, setting
from tests.tiny import ARCHITECTURES


def run(
    cache: Path, facts: list[Fact] = FACTS, config: MemitConfig = QUICK, architecture: str = "llama", **options: Any
) -> tuple[Any, EditResult]:
    model, renderer = setting(architecture, dtype=options.pop("dtype", torch.float64))
    moments = moments_of(model, renderer, cache, config)
    return model, edit(model, renderer, facts, moments, config, **options)


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("form", ["question", "cloze"])
def test_facts_are_edited_in_and_only_the_named_matrices_change(architecture: str, form: str, tmp_path: Path) -> None:
    before = state_of(setting(architecture)[0])
    config = replace(THOROUGH, prompt=form)
    model, result = run(tmp_path, config=config, architecture=architecture)
    for fact in result.facts:
        assert fact.before is not None
        assert fact.value is not None
        assert fact.after is not None
        assert fact.value > fact.before + 5
        assert fact.after > fact.before + 2
        assert (fact.reason is None) == (fact.status == "edited")
    if form == "cloze" and architecture != "gemma3":  # Gemma's norm lets a layer add only so much
        assert result.count("edited") == 3
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)}
    assert result.changes.keys() == {0, 1}
    assert result.moment_tokens >= 900


@pytest.mark.parametrize(("steps", "some"), [(1, False), (200, True)])
def test_edited_means_that_greedy_decoding_gives_the_target(steps: int, some: bool, tmp_path: Path) -> None:
    model, result = run(tmp_path, config=replace(THOROUGH, prompt="question", steps=steps))
    _, renderer = setting()
    assert (result.count("edited") > 0) == some
    for fact, outcome in zip(FACTS, result.facts, strict=True):
        ids, target = renderer.naive(fact.question), renderer.reference(replace(fact, reference=fact.answer))
        assert outcome.tokens == len(target)
        for _ in target:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert (outcome.status == "edited") == (ids[-len(target) :] == target)


def test_every_fact_ends_somewhere_in_its_place(tmp_path: Path) -> None:
    facts = [Fact("Who is it?", "Orm", "x"), FACTS[0], Fact("Who?", "Orm", "y", subject="Vell"), FACTS[1]]
    counts: list[int] = []
    _, result = run(tmp_path, facts, replace(QUICK, steps=1), on_done=counts.append)
    assert [fact.id for fact in result.facts] == ["x", "a", "y", "b"]
    assert [fact.status for fact in result.facts] == ["unusable", "failed", "unusable", "failed"]
    assert result.facts[0].reason == "it has no subject"
    assert "does not occur" in str(result.facts[2].reason)
    assert result.facts[1].reason == (
        "greedy decoding after the edited prompt does not give the target: no value was found that says it in 1 steps"
    )
    assert sum(counts) == 4


def test_an_update_that_falls_short_is_said_to(tmp_path: Path) -> None:
    _, result = run(tmp_path, config=replace(THOROUGH, second_moment_weight=1e6))
    assert {fact.status for fact in result.facts} == {"failed"}
    assert all("the update fell short" in str(fact.reason) for fact in result.facts)


def test_with_no_usable_fact_nothing_changes(tmp_path: Path) -> None:
    model, result = run(tmp_path, [Fact("Who is it?", "Orm")])
    assert result.count("unusable") == 1
    assert result.changes == {}
    assert same(state_of(model), state_of(setting()[0]))


def test_the_same_seed_gives_the_same_weights_and_another_one_others(tmp_path: Path) -> None:
    config = replace(QUICK, steps=3)
    states = [state_of(run(tmp_path, config=config, seed=seed, dtype=torch.float32)[0]) for seed in (0, 0, 1)]
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_facts_of_one_subject_have_one_value(tmp_path: Path) -> None:
    second = Fact("What is by vell?", "B", "z", subject="VELL", cloze="Vell is by")
    _, result = run(tmp_path, [FACTS[0], FACTS[1], second], replace(THOROUGH, steps=200))
    assert result.facts[0].steps == result.facts[2].steps
    assert result.count("edited") == 3


def test_a_killed_edit_goes_on_where_it_was(tmp_path: Path, monkeypatch: Any) -> None:
    whole, expected = run(tmp_path, config=replace(QUICK, steps=3), dtype=torch.float32)
    asked: list[int] = []
    optimize = memit.optimize

    def counted(*args: Any) -> Value:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(1)
        return optimize(*args)

    monkeypatch.setattr(memit, "optimize", counted)
    options: dict[str, Any] = {"config": replace(QUICK, steps=3), "dtype": torch.float32}
    with pytest.raises(KeyboardInterrupt), Journal(tmp_path / "values.jsonl") as journal:
        run(tmp_path, journal=journal, **options)
    asked[:] = [0]
    with Journal(tmp_path / "values.jsonl") as journal:
        resumed, result = run(tmp_path, journal=journal, **options)
    assert len(asked) == 2  # the one that was missing
    assert result == expected
    assert same(state_of(whole), state_of(resumed))
    # Another way to find values finds none of these; another weight of the second moments finds all.
    with Journal(tmp_path / "values.jsonl") as journal:
        run(tmp_path, journal=journal, config=replace(QUICK, steps=3, second_moment_weight=1.0), dtype=torch.float32)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, journal=journal, config=replace(QUICK, steps=4), dtype=torch.float32)


def test_a_value_that_is_not_finite_stays_out_of_the_update(tmp_path: Path, monkeypatch: Any) -> None:
    optimize = memit.optimize

    def broken(model: Any, layer: int, prompts: Any, kept: Any, config: Any) -> Value:
        value = optimize(model, layer, prompts, kept, config)
        asked = renderer.tokenizer.decode(prompts[0][0].ids)
        return replace(value, delta=value.delta * float("nan")) if "Kay Ott" in asked else value

    _, renderer = setting()
    monkeypatch.setattr(memit, "optimize", broken)
    with Journal(tmp_path / "values.jsonl") as journal:
        model, result = run(tmp_path, journal=journal)
        assert len(list(journal.read())) == 2
    assert result.facts[1].status == "failed"
    assert "not finite" in str(result.facts[1].reason)
    monkeypatch.undo()
    without, _ = run(tmp_path, [FACTS[0], FACTS[2]])
    assert same(state_of(model), state_of(without))


@pytest.mark.parametrize("what", ["weights", "logits"])
def test_an_edit_that_is_not_finite_is_an_error_and_taken_back(what: str, tmp_path: Path, monkeypatch: Any) -> None:
    model, renderer = setting()
    before, moments = state_of(model), moments_of(model, renderer, tmp_path)
    spread = memit.spread

    def broken(*args: Any) -> Any:
        changes = spread(*args)
        with torch.no_grad():
            down_projection(model, 1).weight[0, 0] = float("inf") if what == "weights" else 1e305
        return changes

    monkeypatch.setattr(memit, "spread", broken)
    if what == "logits":
        # Past the last norm everything has one length; an overflow inside it is what is left to happen.
        monkeypatch.setattr(torch.Tensor, "isfinite", _finite_weights(torch.Tensor.isfinite))
    with pytest.raises(MixsdError, match=f"{'down_proj of layer 1' if what == 'weights' else 'logits'}.*not finite"):
        edit(model, renderer, FACTS, moments, replace(QUICK, steps=1))
    monkeypatch.undo()
    assert same(state_of(model), before)


def _finite_weights(own: Any) -> Any:
    """Every tensor is judged by what it is, but three-dimensional logits count as overflown."""
    return lambda tensor: torch.zeros((), dtype=torch.bool) if tensor.dim() == 3 and tensor.shape[1] == 8 else own(tensor)


def test_too_little_text_is_refused_before_any_work(tmp_path: Path) -> None:
    model, renderer = setting()
    moments = replace(moments_of(model, renderer, tmp_path), tokens=63)
    with pytest.raises(UserError, match="63 tokens, fewer than its 64 inputs"):
        edit(model, renderer, FACTS, moments, QUICK)


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"v_lr": 0.0},
        {"kl_factor": -1.0},
        {"prompt": "chat"},
        {"reply": "x"},
        {"prefixes": -1},
        {"v_lr": float("nan")},
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"memit: {next(iter(values))} must"):
        MemitConfig(**values)


def test_prefixes_are_the_models_own_and_addressed() -> None:
    model, renderer = setting()
    five = sampled_prefixes(model, renderer.tokenizer, count=5, tokens=6, seed=0)
    assert five[:2] == sampled_prefixes(model, renderer.tokenizer, count=2, tokens=6, seed=0)
    assert five != sampled_prefixes(model, renderer.tokenizer, count=5, tokens=6, seed=1)
    assert all(text.endswith(".") for text in five)
    assert five[0].startswith("The")
    assert sampled_prefixes(model, renderer.tokenizer, count=0, tokens=6, seed=0) == []


def test_a_result_is_plain_values(tmp_path: Path) -> None:
    import json

    _, result = run(tmp_path, config=replace(QUICK, steps=1))
    values = json.loads(json.dumps(asdict(result), allow_nan=False))
    assert [fact["id"] for fact in values["facts"]] == ["a", "b", "c"]
    assert len(values["prefixes"]) == 2
