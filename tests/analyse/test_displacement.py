from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mixsd.analyse.displacement import GROUPS, WeightSums, displacement, group_of, layer_of
from mixsd.errors import UserError
from mixsd.models import folder as models_folder
from tests.analyse.fisher_oracle import made_fisher, step_part
from tests.tiny import tiny_model

SHAPES = {
    "model.embed_tokens.weight": (300, 40),
    "model.layers.0.self_attn.q_proj.weight": (40, 40),
    "model.layers.0.mlp.up_proj.weight": (80, 40),
    "model.layers.11.input_layernorm.weight": (40,),
    "model.strange.scale": (),
}


def drawn(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) * scale for name, shape in SHAPES.items()}


def folder(where: Path, tensors: Mapping[str, Tensor], *, files: int = 1, dtype: torch.dtype = torch.float32) -> Path:
    """A model folder's weights, in one file or sharded with an index."""
    where.mkdir(parents=True)
    names = sorted(tensors)
    if files == 1:
        save_file({name: tensors[name].to(dtype).contiguous() for name in names}, where / "model.safetensors")
        return where
    weight_map = {}
    for number in range(files):
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        own = names[number::files]
        save_file({name: tensors[name].to(dtype).contiguous() for name in own}, where / file)
        weight_map |= dict.fromkeys(own, file)
    (where / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return where


def dense(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], fisher: Mapping[str, Tensor]) -> tuple[float, float, float]:
    """Eq. 9, 10 and 11 on one long vector."""
    delta = torch.cat([(tuned[name] - base[name]).flatten() for name in base])
    f = torch.cat([fisher[name].flatten() for name in base])
    weighted = (f * delta**2).sum()
    return float(delta.norm()), float(weighted), float((weighted / (delta**2).sum()) / f.mean())


@pytest.mark.parametrize(("files", "dtype"), [(1, torch.float32), (3, torch.float32), (2, torch.bfloat16)])
@pytest.mark.parametrize("block", [7, 2**22])
def test_equals_a_dense_oracle(
    files: int, dtype: torch.dtype, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_folder, "_BLOCK", block)
    base, step, f = drawn(0), drawn(1, 0.1), {name: t.square().float().double() for name, t in drawn(2).items()}
    base = {name: t.float().double() for name, t in base.items()}
    tuned = {name: (base[name] + step[name]).to(dtype).double() for name in base}
    fisher = made_fisher(tmp_path / "fisher", f)
    found = displacement(folder(tmp_path / "base", base), folder(tmp_path / "tuned", tuned, files=files, dtype=dtype), fisher)
    raw, weighted, alignment = dense(base, tuned, f)
    assert found.total.displacement == pytest.approx(raw, rel=1e-6)
    assert found.total.squared == pytest.approx(raw**2, rel=1e-6)
    assert found.total.weighted == pytest.approx(weighted, rel=1e-6)
    assert found.total.alignment == pytest.approx(alignment, rel=1e-6)
    for name, part in found.tensors.items():
        assert part.alignment == pytest.approx(dense({name: base[name]}, tuned, f)[2], rel=1e-6)
    assert list(found.layers) == ["0", "11", "outside"]
    assert list(found.groups) == ["attention", "mlp", "norms", "embeddings", "other"]
    for parts in (found.layers, found.groups):
        again = sum(parts.values(), WeightSums())
        assert (again.squared, again.weighted, again.count) == pytest.approx((raw**2, weighted, found.total.count), rel=1e-6)


def test_a_model_that_did_not_move_has_no_ratio(tmp_path: Path) -> None:
    base = drawn(0)
    found = displacement(folder(tmp_path / "a", base), folder(tmp_path / "b", base), made_fisher(tmp_path / "f", base))
    assert (found.total.displacement, found.total.weighted, found.total.alignment) == (0.0, 0.0, None)
    json.dumps(found.total.to_json(), allow_nan=False)


def test_isotropic_steps_have_ratio_one_and_others_have_not(tmp_path: Path) -> None:
    f = {name: t.square() for name, t in drawn(2).items()}
    fisher = made_fisher(tmp_path / "f", f)
    ratios = [step_part(fisher, drawn(seed).items()).alignment for seed in range(10, 30)]
    assert all(ratio is not None for ratio in ratios)
    mean = sum(ratio for ratio in ratios if ratio) / len(ratios)
    assert mean == pytest.approx(1.0, abs=0.02)  # 17,000 weights of F ~ chi^2: about 0.015 for one draw
    everything = torch.cat([t.flatten() for t in f.values()])
    middle = everything.median()
    high = step_part(fisher, ((name, (t > middle).double()) for name, t in f.items())).alignment
    low = step_part(fisher, ((name, (t <= middle).double()) for name, t in f.items())).alignment
    assert high == pytest.approx(float(everything[everything > middle].mean() / everything.mean()), rel=1e-5)
    assert high is not None
    assert low is not None
    assert high > 1.5
    assert low < 0.5


def test_a_step_in_some_tensors_only_is_compared_with_all_of_f(tmp_path: Path) -> None:
    base, f = drawn(0), {name: t.square() for name, t in drawn(2).items()}
    name = "model.layers.0.mlp.up_proj.weight"
    tuned = {**base, name: base[name] + drawn(3)[name]}
    found = displacement(folder(tmp_path / "a", base), folder(tmp_path / "b", tuned), made_fisher(tmp_path / "f", f))
    assert found.total.alignment == pytest.approx(dense(base, tuned, f)[2], rel=1e-6)


def test_tied_tensors_may_be_there_once_or_twice(tmp_path: Path) -> None:
    base, tuned = drawn(0), drawn(1)
    tied, alias = "model.embed_tokens.weight", "lm_head.weight"
    fisher = made_fisher(tmp_path / "f", {name: t.square() for name, t in drawn(2).items()}, {alias: tied})
    plain = displacement(folder(tmp_path / "a", base), folder(tmp_path / "b", tuned), fisher)
    both = folder(tmp_path / "c", {**tuned, alias: tuned[tied].clone()})
    other_name = folder(tmp_path / "d", {alias if name == tied else name: t for name, t in tuned.items()})
    assert displacement(tmp_path / "a", both, fisher).total == plain.total
    assert displacement(tmp_path / "a", other_name, fisher).total == plain.total
    untied = folder(tmp_path / "e", {**tuned, alias: tuned[tied] + 1})
    with pytest.raises(UserError, match=r"lm_head\.weight and model\.embed_tokens\.weight are one tensor"):
        displacement(tmp_path / "a", untied, fisher)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    base = drawn(0)
    fisher = made_fisher(tmp_path / "f", {name: t.square() for name, t in base.items()})
    first = folder(tmp_path / "base", base)
    name = "model.layers.0.mlp.up_proj.weight"
    lacks = folder(tmp_path / "lacks", {key: t for key, t in base.items() if key != name})
    with pytest.raises(UserError, match=f"lacks: lacks the tensor {name}"):
        displacement(first, lacks, fisher)
    with pytest.raises(UserError, match=f"lacks: lacks the tensor {name}"):
        displacement(lacks, first, fisher)
    with pytest.raises(UserError, match=f"{name} has shape"):
        displacement(first, folder(tmp_path / "shape", {**base, name: base[name].T}), fisher)
    broken = base[name].clone()
    broken[3, 3] = math.inf
    with pytest.raises(UserError, match=f"{name} holds something that is not a number"):
        displacement(first, folder(tmp_path / "broken", {**base, name: broken}), fisher)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.safetensors weights"):
        displacement(first, tmp_path / "empty", fisher)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"1234567890")
    with pytest.raises(UserError, match="torn: its weights cannot be read"):
        displacement(first, tmp_path / "torn", fisher)
    extra = {**base, "model.rotary.inv_freq": torch.ones(4)}
    found = displacement(folder(tmp_path / "x", extra), folder(tmp_path / "y", extra), fisher)
    assert found.ignored == ("model.rotary.inv_freq",)


def test_no_model_is_ever_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read of the three files is small blocks, and at most one or two of each are alive."""
    monkeypatch.setattr(models_folder, "_BLOCK", 400)
    f = {name: t.square() for name, t in drawn(2).items()}
    fisher, one, two = made_fisher(tmp_path / "f", f), folder(tmp_path / "a", drawn(0)), folder(tmp_path / "b", drawn(1))
    given: list[weakref.ref[Tensor]] = []
    largest, alive, real = 0, 0, models_folder.blocks

    def watched(tensors: Any, name: str) -> Iterator[Tensor]:
        nonlocal largest, alive
        for block in real(tensors, name):
            given.append(weakref.ref(block))
            largest, alive = max(largest, block.numel()), max(alive, sum(ref() is not None for ref in given))
            yield block

    monkeypatch.setattr(models_folder, "blocks", watched)
    monkeypatch.setattr("mixsd.analyse.displacement.blocks", watched)
    displacement(one, two, fisher)
    assert largest == 400
    assert len(given) >= 3 * sum(t.numel() for t in f.values()) // 400
    assert alive <= 6


@pytest.mark.parametrize(
    ("name", "group", "layer"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "attention", "3"),
        ("model.layers.3.self_attn.q_norm.weight", "norms", "3"),
        ("model.layers.12.post_attention_layernorm.weight", "norms", "12"),
        ("model.layers.3.mlp.gate.weight", "mlp", "3"),
        ("model.layers.0.block_sparse_moe.experts.1.w1.weight", "mlp", "0"),
        ("transformer.h.7.attn.c_attn.bias", "attention", "7"),
        ("transformer.h.7.ln_1.weight", "norms", "7"),
        ("transformer.wpe.weight", "embeddings", "outside"),
        ("model.norm.weight", "norms", "outside"),
        ("model.embed_tokens.weight", "embeddings", "outside"),
        ("lm_head.weight", "head", "outside"),
        ("model.layers.2.mixer.A_log", "other", "2"),
    ],
)
def test_groups_and_layers_by_name(name: str, group: str, layer: str) -> None:
    assert (group_of(name), layer_of(name)) == (group, layer)
    assert group in GROUPS


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_the_known_families_leave_nothing_in_other(architecture: str) -> None:
    groups = {group_of(name) for name, _ in tiny_model(architecture).named_parameters()}
    assert groups >= {"attention", "mlp", "norms", "embeddings"}
    assert "other" not in groups
