from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixsd.editing import Moments
from mixsd.editing.edits import EditPrompt, MemitConfig, by_depth, edit_prompts, layers_of, of_settings, parse_layers, weight_of
from mixsd.editing.memit import keys_of, least_squares, spread
from mixsd.editing.parts import before_norm, block, check_path, down_projection, hidden_of
from mixsd.errors import UserError
from mixsd.settings import Settings
from tests.editing.helpers import FACTS, HIDDEN, QUICK, moments_of, setting
from tests.tiny import ARCHITECTURES
from tests.training.tiny import make_model

PREFIXES = ("Say it at once.", "Ah!")
WEIGHT = 0.02


def prompts_of(renderer: Any, prefixes: tuple[str, ...] = PREFIXES) -> list[list[EditPrompt]]:
    return [edit_prompts(fact, renderer, QUICK, prefixes, 4096) for fact in FACTS]


def by_hand(model: Any, layer: int, last: int, prompts: list[list[EditPrompt]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean keys of a layer and mean hidden states of the last one, each prompt whole and alone."""
    keys, states = [], []
    for own in prompts:
        found = []
        for prompt in own:
            seen: list[torch.Tensor] = []
            hooks = [
                down_projection(model, layer).register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0])),
                block(model, last).register_forward_hook(lambda _, args, out, seen=seen: seen.append(hidden_of(out))),
            ]
            with torch.no_grad():
                model(input_ids=torch.tensor([[*prompt.ids, *prompt.target]]), use_cache=False)
            for hook in hooks:
                hook.remove()
            found.append([tensor[0, prompt.place].numpy() for tensor in seen])
        keys.append(np.mean([pair[0] for pair in found], axis=0))
        states.append(np.mean([pair[1] for pair in found], axis=0))
    return np.array(keys), np.array(states)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("budget", [4096, 60])
def test_keys_are_the_inputs_at_the_subject_averaged_over_prompts(architecture: str, budget: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("mixsd.editing.memit.TOKENS_PER_PASS", budget)
    model, renderer = setting(architecture)
    prompts = prompts_of(renderer)
    for layer in (0, 1):
        keys, outputs, hidden = keys_of(model, layer, prompts, 1)
        expected_keys, expected_hidden = by_hand(model, layer, 1, prompts)
        np.testing.assert_allclose(keys.numpy(), expected_keys, atol=1e-6)
        np.testing.assert_allclose(hidden.numpy(), expected_hidden, atol=1e-6)
        weight = down_projection(model, layer).weight.detach().numpy()
        np.testing.assert_allclose(outputs.numpy(), expected_keys @ weight.T, atol=1e-6)


def test_least_squares_by_hand() -> None:
    """One key (1, 2), moment I, weight 3: D = r k^T / (3 + |k|^2)."""
    keys, residuals = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 0.0, -8.0]])
    change = least_squares(torch.eye(2, dtype=torch.float64), 3.0, keys, residuals)
    expected = torch.tensor([[0.5, 1.0], [0.0, 0.0], [-1.0, -2.0]], dtype=torch.float64)
    torch.testing.assert_close(change, expected)


def test_least_squares_is_numpys_solution_of_the_stacked_system() -> None:
    rng = np.random.default_rng(0)
    ordinary, keys, residuals = rng.normal(size=(50, 7)), rng.normal(size=(3, 7)), rng.normal(size=(3, 4))
    weight = 2.5
    # Rows: the ordinary keys, which shall give nothing more, weighted; then the edited ones.
    rows = np.vstack([np.sqrt(weight / 50) * ordinary, keys])
    wanted = np.vstack([np.zeros((50, 4)), residuals])
    expected = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    moment = torch.from_numpy(ordinary.T @ ordinary / 50)
    found = least_squares(moment, weight, torch.from_numpy(keys), torch.from_numpy(residuals))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_a_second_moment_that_spans_too_little_is_refused() -> None:
    moment = torch.zeros(3, 3, dtype=torch.float64)
    with pytest.raises(UserError, match="more of it"):
        least_squares(moment, 1.0, torch.ones(1, 3), torch.ones(1, 2))


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_spreading_is_the_papers(architecture: str, tmp_path: Path) -> None:
    """Layer by layer in numpy: a share of what is missing at the last layer, the closed form, keys and states read anew."""
    model, renderer = setting(architecture)
    prompts, moments = prompts_of(renderer), moments_of(model, renderer, tmp_path)
    deltas = torch.randn(3, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    copy, _ = setting(architecture)
    _, start = by_hand(copy, 1, 1, prompts)
    for layers_left, layer in ((2, 0), (1, 1)):
        keys, hidden = by_hand(copy, layer, 1, prompts)
        residual = (start + deltas.numpy() - hidden) / layers_left
        moment = moments.matrix(layer).numpy()
        change = residual.T @ keys @ np.linalg.inv(WEIGHT * moment + keys.T @ keys)
        with torch.no_grad():
            down_projection(copy, layer).weight += torch.from_numpy(change)
    changes = spread(model, [0, 1], moments, WEIGHT, prompts, deltas)
    for layer in (0, 1):
        torch.testing.assert_close(down_projection(model, layer).weight, down_projection(copy, layer).weight, rtol=0, atol=1e-5)
    assert set(changes) == {0, 1}
    assert all(change > 0 for change in changes.values())
    untouched = {
        name for name in model.state_dict() if not name.endswith(("layers.0.mlp.down_proj.weight", "1.mlp.down_proj.weight"))
    }
    fresh, _ = setting(architecture)
    assert all(torch.equal(model.state_dict()[name], fresh.state_dict()[name]) for name in untouched)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_little_weight_the_states_arrive_where_they_shall(architecture: str, tmp_path: Path) -> None:
    model, renderer = setting(architecture)
    prompts, moments = prompts_of(renderer, ()), moments_of(model, renderer, tmp_path)
    deltas = torch.randn(3, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, start = by_hand(model, 1, 1, prompts)
    spread(model, [0, 1], moments, 1e-6, prompts, deltas)
    _, end = by_hand(model, 1, 1, prompts)
    moved, wanted = end - start, deltas.numpy()
    if architecture == "gemma3":  # the norm keeps the length of what a layer adds, so only most of the way
        assert np.linalg.norm(moved - wanted) < 0.7 * np.linalg.norm(wanted)
    else:
        np.testing.assert_allclose(moved, wanted, atol=1e-3)


def test_the_way_back_through_a_norm_is_right_to_first_order() -> None:
    model, _ = setting("gemma3")
    norm = block(model, 0).post_feedforward_layernorm
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-0.5, 1, HIDDEN))
    outputs = torch.randn(4, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    # A residual that a norm can give, one that keeps the length of what it scales: at right angles to the output.
    residual = torch.randn(4, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    gain = norm(torch.ones(1, HIDDEN, dtype=torch.float64))
    raw = residual / gain
    raw -= outputs * (raw * outputs).sum(-1, keepdim=True) / outputs.square().sum(-1, keepdim=True)
    residual = 1e-3 * raw * gain
    change = before_norm(model, 0, outputs, residual)
    got = norm(outputs + change) - norm(outputs)
    assert (got - residual).norm() < 0.02 * residual.norm()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_the_known_families_add_their_mlp_as_reckoned(family: str) -> None:
    model, _ = setting(family)
    for layer in range(3):
        check_path(model, layer)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_family_that_scales_its_mlp_is_refused() -> None:
    model = make_model("granite")
    for layer in model.model.layers:
        layer.residual_multiplier = 0.5
    with pytest.raises(UserError, match="does not add its MLP's output"):
        check_path(model, 0)


def test_a_model_without_down_proj_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

    small: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50))
    mixtral = MixtralForCausalLM(MixtralConfig(**small, intermediate_size=8, num_key_value_heads=2, num_local_experts=2))
    for model in (gpt2, mixtral):
        with pytest.raises(UserError, match="use another method"):
            down_projection(model, 0)


def test_half_precision_is_refused() -> None:
    model, _ = setting(dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="fp32"):
        down_projection(model, 0)


class _Shape:
    def __init__(self, depth: int, size: int) -> None:
        self.num_hidden_layers, self.hidden_size = depth, size


@pytest.mark.parametrize(
    ("depth", "size", "first", "last"),
    [
        (28, 2048, 3, 11),
        (36, 2560, 4, 14),
        (36, 4096, 5, 14),
        (30, 576, 3, 12),
        (36, 1024, 4, 14),
        (28, 1024, 3, 11),
        (2, 32, 0, 1),
    ],
)
def test_layers_by_depth(depth: int, size: int, first: int, last: int) -> None:
    assert layers_of(MemitConfig(), _Shape(depth, size)) == list(range(first, last + 1))


@pytest.mark.parametrize(
    ("depth", "size", "width", "weight"),
    [(28, 2048, 6144, 15_000), (36, 2560, 9728, 15_000), (36, 4096, 12288, 15_000), (30, 576, 1536, 614.4), (2, 8, 100, 40)],
)
def test_the_weight_by_model(depth: int, size: int, width: int, weight: float) -> None:
    assert weight_of(MemitConfig(), _Shape(depth, size), width) == pytest.approx(weight)
    assert weight_of(MemitConfig(second_moment_weight=7.0), _Shape(depth, size), width) == 7


def test_some_layer_of_every_depth() -> None:
    for depth in range(1, 130):
        layers = by_depth(depth)
        assert len(layers) >= 1
        assert layers[0] >= 0
        assert layers[-1] < depth


def test_layers_that_are_named() -> None:
    shape = _Shape(4, 32)
    assert layers_of(MemitConfig(layers=(3, 1, 1)), shape) == [1, 3]
    for layers in ((4,), (-1,), ()):
        with pytest.raises(UserError, match="layers 0 to 3"):
            layers_of(MemitConfig(layers=layers), shape)


@pytest.mark.parametrize(
    ("text", "layers"), [("3-6", (3, 4, 5, 6)), ("7", (7,)), (" 5, 3,5 ", (3, 5)), ("8-9,2-3,0", (0, 2, 3, 8, 9)), ("4-4", (4,))]
)
def test_layers_as_they_are_typed(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "3-", "-3", "6-3", "3..6", "3,,5", "all", "3 6", "\u0663", "99999"])
def test_layers_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UserError, match=r"--edit-layers .*expected layers such as 3-11 or 3,5,7"):
        parse_layers(text)


def test_the_runs_settings_are_memits_and_have_its_defaults() -> None:
    assert of_settings(Settings()) == MemitConfig()
    settings = Settings(
        edit_layers="1-2", edit_steps=7, edit_lr=0.1, edit_decay=0.2, edit_kl=0.3, edit_clamp=0.4, edit_weight=0.5
    )
    assert of_settings(settings) == MemitConfig(
        layers=(1, 2),
        steps=7,
        v_lr=0.1,
        v_weight_decay=0.2,
        kl_factor=0.3,
        clamp_norm_factor=0.4,
        second_moment_weight=0.5,
    )


def test_moments_are_read_from_disk_one_at_a_time(tmp_path: Path) -> None:
    model, renderer = setting()
    moments = moments_of(model, renderer, tmp_path)
    assert isinstance(moments, Moments)
    assert moments.matrix(0).shape == (64, 64)
