from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, GPT2Config, PreTrainedModel
from transformers.models.auto import AutoModelForCausalLM

from mixsd.randomness import uniforms
from mixsd.training import Example
from mixsd.training.lora import Lora
from mixsd.training.states import packed_states, path, recomputed_alike
from tests.training.tiny import VOCABULARY, make_model

pytestmark = pytest.mark.matrix

# The families' norms are fp32 whatever the weights are.
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
FAMILIES = ["llama", "llama-tied", "qwen3", "gemma3", "cohere", "granite", "gpt2", "gemma2"]
# (prompt, target) lengths beside those of the shared beginning
UNEQUAL = [(3, 2), (1, 9), (7, 1), (4, 4), (1, 25), (2, 3)]


def model_of(family: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """The tiny models and two more: absolute positions without attention dropout, and capped attention scores."""
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    gemma2 = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    gemma2 |= {"num_key_value_heads": 2, "sliding_window": 6, "initializer_range": 0.2}
    if family not in ("gpt2", "gemma2"):
        return make_model(family, dtype=dtype)
    config = GPT2Config(**shape, **gpt2) if family == "gpt2" else Gemma2Config(**shape, **gemma2, attn_logit_softcapping=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
        return made


def examples_of(shared: int, lengths: Sequence[tuple[int, int]], *, seed: int = 0) -> list[Example]:
    """Examples whose prompts all begin with `shared` tokens."""
    ids = [3 + int(draw * (VOCABULARY - 3)) for draw in uniforms(seed, "evaluation", "packed", n=shared + sum(map(sum, lengths)))]
    beginning, at, made = ids[:shared], shared, []
    for number, (prompt, target) in enumerate(lengths):
        cut = at + prompt
        made.append(Example(f"fact-{number}", tuple(beginning + ids[at:cut]), tuple(ids[cut : cut + target])))
        at = cut + target
    return made


def padded_states(model: PreTrainedModel, examples: Sequence[Example]) -> torch.Tensor:
    """The same states as transformers computes them, from a batch padded on the right."""
    texts = [[*example.prompt_ids, *example.target_ids] for example in examples]
    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    hidden = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return torch.cat([row[len(e.prompt_ids) - 1 : len(text) - 1] for row, e, text in zip(hidden, examples, texts, strict=True)])


def gradients(model: PreTrainedModel, states: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view(states.shape)
    (states * weights).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same(model: PreTrainedModel, examples: Sequence[Example], *, alone: bool = False, **close: Any) -> None:
    """Compare with the padded batch, or with one example at a time."""
    batches = [[example] for example in examples] if alone else [examples]
    wanted = torch.cat([padded_states(model, batch) for batch in batches])
    found = packed_states(model, examples)
    torch.testing.assert_close(found, wanted, **close)
    expected, got = gradients(model, wanted), gradients(model, found)
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], **close, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared", [0, 1, 11])
def test_states_and_gradients_are_those_of_the_padded_batch(family: str, shared: int) -> None:
    model = model_of(family)
    assert path(model) == "packed"
    # transformers' eager attention makes NaN of a place that sees nothing, as padding beyond a window does.
    assert_same(model.train(), examples_of(shared, UNEQUAL), alone=family == "gemma2", **CLOSE)


@pytest.mark.parametrize(
    ("shared", "lengths"),
    [
        pytest.param(5, [(3, 4)], id="one example"),
        pytest.param(0, [(1, 1)], id="one example of two tokens"),
        pytest.param(9, [(0, 5), (0, 2), (0, 7)], id="one prompt for all"),
        pytest.param(4, [(0, 1), (3, 2), (0, 1)], id="a text that all the others begin with"),
        pytest.param(3, [(2, 40), (1, 1)], id="very different lengths"),
        pytest.param(40, [(1, 2)] * 7, id="a beginning longer than the rest"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_odd_microbatches(family: str, shared: int, lengths: list[tuple[int, int]]) -> None:
    assert_same(model_of(family), examples_of(shared, lengths), **CLOSE)


def test_the_same_text_twice_and_a_target_shared_in_part() -> None:
    one = Example("one", (5, 6, 7), (8, 9, 10, 2))
    same, longer = Example("same", (5, 6, 7), (8, 9, 10, 2)), Example("longer", (5, 6), (7, 8, 9, 11, 12, 2))
    for examples in ([one, same], [longer, one], [one, longer, same]):
        assert_same(model_of("llama"), examples, **CLOSE)


@settings(max_examples=40, deadline=None)
@given(
    shared=st.integers(0, 12),
    lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 15)), min_size=1, max_size=9),
    seed=st.integers(0, 3),
)
def test_any_lengths_and_any_beginning(shared: int, lengths: list[tuple[int, int]], seed: int) -> None:
    assert_same(model_of("gemma3"), examples_of(shared, lengths, seed=seed), **CLOSE)


def tokens_read(model: PreTrainedModel, examples: Sequence[Example]) -> int:
    seen: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(args[0].numel()))
    packed_states(model, examples)
    hook.remove()
    return sum(seen)


def test_no_padding_and_the_shared_beginning_once() -> None:
    own = sum(prompt + target - 1 for prompt, target in UNEQUAL)
    assert 20 + own <= tokens_read(model_of("llama"), examples_of(20, UNEQUAL)) < 20 + own + 16


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_gradient_checkpointing_changes_nothing(family: str) -> None:
    model, examples = model_of(family).train(), examples_of(6, UNEQUAL)
    wanted = gradients(model, packed_states(model, examples))
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False, "context_fn": recomputed_alike(model)})
    found = gradients(model, packed_states(model, examples))
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())
    assert_same(model, examples, **CLOSE)  # the padded pass is computed again in its own way


def test_adapters_get_the_same_gradients() -> None:
    model = model_of("llama", torch.float32)
    lora = Lora(model, rank=4, seed=0)
    with torch.no_grad():
        for name, parameter in lora.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
    assert path(model) == "packed"
    assert any(parameter.requires_grad for parameter in model.parameters())
    assert_same(model.train(), examples_of(7, UNEQUAL), rtol=1e-3, atol=1e-3)


def test_bf16_autocast_is_as_close_as_bf16_can_be() -> None:
    model, examples = model_of("llama", torch.float32), examples_of(6, UNEQUAL)
    exact = padded_states(model, examples)
    with torch.autocast("cpu", torch.bfloat16):
        usual, found = padded_states(model, examples), packed_states(model, examples)
    assert found.dtype == usual.dtype
    assert (found - exact).abs().max() <= 2 * (usual - exact).abs().max()
    wanted, got = gradients(model, usual), gradients(model, found)
    for name, gradient in got.items():
        assert (gradient - wanted[name]).norm() <= 0.03 * wanted[name].norm(), name


def test_attention_that_cannot_be_packed_is_noticed() -> None:
    assert path(make_model("dropout")) == "padded: its attention drops out in training"  # GPT-2


def test_what_fails_in_the_model_is_not_taken_for_attention_that_cannot_be_packed() -> None:
    model = model_of("llama")
    usual = model.model.layers[0].mlp.forward

    def broken(*args: Any) -> Any:
        if args[0].shape[1] == 16:  # a packed row; the examples alone are shorter
            raise RuntimeError("a fault")
        return usual(*args)

    model.model.layers[0].mlp.forward = broken
    with pytest.raises(RuntimeError, match="a fault"):
        path(model)


def test_states_that_are_not_the_models_own_are_noticed() -> None:
    model = model_of("llama")
    usual = model.model.layers[0].self_attn.forward

    def odd(*args: Any, **kwargs: Any) -> Any:
        output, weights = usual(*args, **kwargs)
        return output * (2 if "mixsd_pass" in kwargs else 1), weights

    model.model.layers[0].self_attn.forward = odd
    assert path(model) != "packed"


def test_the_trial_leaves_mode_attention_and_randomness_alone() -> None:
    model = model_of("llama").train()
    usual, state = model.config._attn_implementation, torch.get_rng_state()
    assert path(model) == "packed"
    assert model.training
    assert model.config._attn_implementation == usual
    assert torch.equal(torch.get_rng_state(), state)
