from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mixsd.editing import MemitConfig
from mixsd.editing.edits import EditPrompt, edit_prompts, essence
from mixsd.editing.memit import optimize
from mixsd.editing.parts import Reader, block, hidden_of, with_hidden
from tests.editing.helpers import FACTS, HIDDEN, QUICK, THOROUGH, setting
from tests.tiny import ARCHITECTURES

LAYER = 1
PREFIXES = ("Say it at once.", "Ah!")


def rows_of(renderer: Any, fact: Any = FACTS[0], **options: Any) -> list[EditPrompt]:
    return edit_prompts(fact, renderer, replace(QUICK, **options), PREFIXES, 4096)


def plainly(model: Any, prompt: EditPrompt, delta: torch.Tensor | None) -> torch.Tensor:
    """The log-probabilities (T, V) of one whole row by one uncached pass, with delta added by a hook."""

    def add(output: Any) -> Any:
        hidden = hidden_of(output)
        at = torch.zeros(hidden.shape[1], dtype=hidden.dtype)
        at[prompt.place] = 1
        return with_hidden(output, hidden if delta is None else hidden + at[None, :, None] * delta)

    hook = block(model, LAYER).register_forward_hook(lambda _, args, output: add(output))
    ids = [*prompt.ids, *prompt.target]
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    hook.remove()
    return torch.log_softmax(logits, dim=-1)


def plain_target(model: Any, prompt: EditPrompt, delta: torch.Tensor | None) -> torch.Tensor:
    logprobs = plainly(model, prompt, delta)[len(prompt.ids) - 1 : -1]
    return logprobs.gather(-1, torch.tensor(prompt.target)[:, None]).squeeze(-1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("form", ["question", "cloze"])
def test_a_reader_equals_whole_uncached_passes_and_so_does_its_gradient(architecture: str, form: str) -> None:
    model, renderer = setting(architecture)
    prompts = [*rows_of(renderer, prompt=form), essence("Vell", renderer.tokenizer)]
    reader = Reader(model, LAYER, prompts)
    for size in (None, 0.0, 1.0):
        delta = None if size is None else torch.full((HIDDEN,), size, dtype=torch.float64, requires_grad=True)
        logits = reader.logits(delta)
        found = reader.target_logprobs(logits)
        expected = [plain_target(model, prompt, delta) for prompt in prompts[:-1]]
        for own, other in zip(found[:-1], expected, strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-6)  # fp32 inside the families' norms
        assert len(found[-1]) == 0
        last = torch.log_softmax(logits[-1, -1], dim=-1)
        torch.testing.assert_close(last, plainly(model, prompts[-1], delta)[-1], rtol=0, atol=1e-6)
        if delta is not None:
            (own,) = torch.autograd.grad(torch.cat(found).sum(), delta)
            (other,) = torch.autograd.grad(torch.cat(expected).sum(), delta)
            torch.testing.assert_close(own, other, rtol=0, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_is_what_the_layer_gives_at_the_place(architecture: str) -> None:
    model, renderer = setting(architecture)
    prompts = rows_of(renderer)
    seen: list[torch.Tensor] = []
    for prompt in prompts:
        hook = block(model, LAYER).register_forward_hook(lambda _, args, output: seen.append(hidden_of(output)))
        model(input_ids=torch.tensor([prompt.ids]), use_cache=False)
        hook.remove()
    expected = torch.stack([states[0, prompt.place] for states, prompt in zip(seen, prompts, strict=True)])
    torch.testing.assert_close(Reader(model, LAYER, prompts).hidden, expected, rtol=0, atol=1e-6)


def test_a_subject_at_the_very_first_token_needs_no_beginning() -> None:
    model, _ = setting()
    prompts = [EditPrompt([5, 6], 0, [7, 8]), EditPrompt([9, 5, 6], 1, [7, 8])]
    reader = Reader(model, LAYER, prompts)
    delta = torch.ones(HIDDEN, dtype=torch.float64)
    for own, prompt in zip(reader.target_logprobs(reader.logits(delta)), prompts, strict=True):
        torch.testing.assert_close(own, plain_target(model, prompt, delta), rtol=0, atol=1e-6)
    only = Reader(model, LAYER, prompts[:1])
    assert only.split == 0
    own = only.target_logprobs(only.logits(delta))[0]
    torch.testing.assert_close(own, plain_target(model, prompts[0], delta), rtol=0, atol=1e-6)


def test_bare_says_whether_greedy_decoding_gives_the_target() -> None:
    model, renderer = setting()
    prompt = rows_of(renderer)[0]
    ids = list(prompt.ids)
    for _ in range(3):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    greedy = EditPrompt(prompt.ids, prompt.place, ids[-3:])
    logprob, said = Reader(model, LAYER, [greedy]).bare(None)
    assert said
    assert logprob == pytest.approx(plain_target(model, greedy, None).sum().item(), abs=1e-6)
    wrong = EditPrompt(prompt.ids, prompt.place, [*ids[-3:-1], (ids[-1] + 1) % 97])
    assert not Reader(model, LAYER, [wrong, greedy]).bare(None)[1]


def test_a_reader_leaves_no_trace_in_the_model() -> None:
    model, renderer = setting()
    prompts = rows_of(renderer)
    before = plain_target(model, prompts[0], None)
    reader = Reader(model, LAYER, prompts)
    with pytest.raises(RuntimeError):
        reader.logits(torch.ones(HIDDEN - 1, dtype=torch.float64))
    reader.logits(torch.ones(HIDDEN, dtype=torch.float64))
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(plain_target(model, prompts[0], None), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_value_raises_its_target_and_touches_nothing_else(architecture: str) -> None:
    model, renderer = setting(architecture)
    model.requires_grad_(True)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prompts = rows_of(renderer, prompt="cloze")
    value = optimize(model, LAYER, [prompts], essence("Vell", renderer.tokenizer), THOROUGH)
    assert value.before[0] == pytest.approx(plain_target(model, prompts[0], None).sum().item(), abs=1e-6)
    assert value.reached[0] == pytest.approx(plain_target(model, prompts[0], value.delta).sum().item(), abs=1e-6)
    assert value.before[0] < -5
    assert value.reached[0] > -0.5
    assert value.said == [True]
    assert value.finite
    assert not value.delta.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_the_loss_is_what_its_definition_says() -> None:
    """One step of Adam from zero moves each coordinate by the learning rate against the gradient's sign; a few more by hand."""
    model, renderer = setting()
    config = MemitConfig(steps=4, v_lr=0.1, kl_factor=2.0, v_weight_decay=3.0, stop_loss=0)
    own, kept = rows_of(renderer), essence("Vell", renderer.tokenizer)
    hidden = Reader(model, LAYER, own).hidden[0]
    delta = torch.zeros(HIDDEN, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=0.1)
    base = plainly(model, kept, None)[-1].detach()
    for _ in range(4):
        nll = -torch.stack([plain_target(model, prompt, delta).mean() for prompt in own]).mean()
        now = plainly(model, kept, delta)[-1]
        kl = (now.exp() * (now - base)).sum()
        optimizer.zero_grad()
        (nll + 2.0 * kl + 3.0 * delta.square().sum() / hidden.square().sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    value = optimize(model, LAYER, [own], kept, config)
    torch.testing.assert_close(value.delta, delta.detach(), rtol=0, atol=1e-5)
    assert value.steps == 4


def test_delta_is_held_to_its_length() -> None:
    model, renderer = setting()
    own = rows_of(renderer)
    norm = Reader(model, LAYER, own).hidden[0].norm().item()
    config = MemitConfig(steps=10, v_lr=5.0, clamp_norm_factor=0.3, stop_loss=0)
    value = optimize(model, LAYER, [own], essence("Vell", renderer.tokenizer), config)
    assert value.delta.norm().item() == pytest.approx(0.3 * norm, rel=1e-6)


def test_it_ends_early_once_the_target_is_likely_enough() -> None:
    model, renderer = setting()
    own, kept = rows_of(renderer, prompt="cloze"), essence("Vell", renderer.tokenizer)
    whole, early, never = (optimize(model, LAYER, [own], kept, replace(THOROUGH, stop_loss=loss)) for loss in (0.0, 1.0, 99.0))
    assert whole.steps == 80
    assert 0 < early.steps < 80
    assert -1.5 < early.reached[0] < whole.reached[0]
    assert never.steps == 0
    assert never.reached == never.before == whole.before


def test_the_facts_of_one_subject_share_a_value_that_serves_both() -> None:
    model, renderer = setting()
    other = replace(FACTS[0], question="What is by Vell?", answer="B", id="z", cloze="Vell is by", reference="")
    both = [rows_of(renderer, prompt="cloze"), rows_of(renderer, other, prompt="cloze")]
    value = optimize(model, LAYER, both, essence("Vell", renderer.tokenizer), replace(THOROUGH, steps=200))
    assert len(value.before) == len(value.reached) == 2
    assert value.said == [True, True]
