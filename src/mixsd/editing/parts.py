"""The parts of a model that editing reads and changes: its blocks and their down_proj.

Llama, Qwen, Gemma and whatever else has `layers[i].mlp.down_proj` under its decoder. MEMIT reckons with what down_proj gives
being added to the residual stream as it is. Gemma 2 and 3 and OLMo 2 put a norm in between, which is reckoned with here; that
nothing else is in between is tried out once per layer (`check_path`), since an unknown factor would spoil every edit in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mixsd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_POST_NORM = "post_feedforward_layernorm"
# Gains of a norm below this share of their root mean square are not divided by: what they let through is next to nothing.
_SMALL_GAIN = 1e-2


def decoder(model: PreTrainedModel) -> nn.Module:
    """The part of the model that turns ids into hidden states."""
    return cast(nn.Module, cast(Any, model).get_decoder())


def block(model: PreTrainedModel, layer: int) -> nn.Module:
    """One decoder layer.

    Raises:
        UserError: the model is built in another way.
    """
    layers = getattr(decoder(model), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UserError(f"memit: {type(model).__name__} has no decoder layers as Llama, Qwen and Gemma have; use another method")
    return layers[layer]


def down_projection(model: PreTrainedModel, layer: int) -> nn.Linear:
    """The matrix that is edited in one layer.

    Raises:
        UserError: the layer has none.
        ValueError: its weights are not plain ones in fp32 or fp64.
    """
    found = getattr(getattr(block(model, layer), "mlp", None), "down_proj", None)
    if found is None or not hasattr(found, "in_features"):
        raise UserError(
            f"memit: layer {layer} of {type(model).__name__} has no mlp.down_proj, which MEMIT edits (Llama, Qwen and Gemma "
            "have it); use another method"
        )
    if type(found) is not nn.Linear or found.weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"editing needs plain fp32 weights, and layer {layer} has {type(found).__name__}; see load_model")
    return found


class StopReadingError(Exception):
    """What was wanted of a forward pass has been seen."""


@contextmanager
def reading(model: PreTrainedModel, layers: list[int], last: int | None = None) -> Iterator[dict[int | str, Tensor]]:
    """Note the inputs of these layers' down_proj (by layer) and, of layer `last`, what the block gives ('hidden').

    A forward pass inside goes no further than it needs to. Call the model through `read`.
    """
    seen: dict[int | str, Tensor] = {}
    end = max([*layers, *([] if last is None else [last])])

    def note_key(layer: int, args: tuple[Any, ...]) -> None:
        seen[layer] = args[0].detach()
        if layer == end and last is None:
            raise StopReadingError

    def note_hidden(output: Any) -> None:
        seen["hidden"] = hidden_of(output).detach()
        raise StopReadingError

    with ExitStack() as hooks:
        for layer in layers:
            hook = down_projection(model, layer).register_forward_pre_hook(lambda _, args, layer=layer: note_key(layer, args))
            hooks.callback(hook.remove)
        if last is not None:
            hooks.callback(block(model, last).register_forward_hook(lambda _, args, output: note_hidden(output)).remove)
        yield seen


@torch.no_grad()
def read(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> None:
    """One forward pass of left-padded rows up to where `reading` has seen enough."""
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    try:
        decoder(model)(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    except StopReadingError:
        return


def left_padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (R, T), every row's end in the last column."""
    width = max(map(len, rows))
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device), mask


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block gives: itself, or the first of a tuple."""
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """What a block gives, with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@torch.no_grad()
def before_norm(model: PreTrainedModel, layer: int, outputs_NH: Tensor, residuals_NH: Tensor) -> Tensor:
    """How much down_proj's `outputs` must change for the block to give `residuals` more; without a norm in between, that much.

    A norm keeps the length, so behind one this is right to first order only; the next layer sees what is left.
    """
    norm = getattr(block(model, layer), _POST_NORM, None)
    if norm is None:
        return residuals_NH
    gain_H = norm(torch.ones_like(outputs_NH[:1]))
    floor = _SMALL_GAIN * gain_H.square().mean().sqrt()
    rms_N1 = outputs_NH.square().mean(dim=-1, keepdim=True).sqrt()
    return cast(Tensor, rms_N1 * residuals_NH * gain_H / (gain_H.square() + floor.square()))


@torch.no_grad()
def check_path(model: PreTrainedModel, layer: int) -> None:
    """Refuse a model that does more with down_proj's output than to add it, or its norm, to the residual stream (`UserError`)."""
    projection, whole = down_projection(model, layer), block(model, layer)
    norm = getattr(whole, _POST_NORM, None) or nn.Identity()
    seen: list[tuple[Tensor, Tensor]] = []
    given: list[Tensor] = []
    push = torch.zeros((), device=model.device)

    def push_output(output: Tensor) -> Tensor:
        given.append(output + push * output.abs().mean())
        return given[-1]

    with ExitStack() as hooks:
        hooks.callback(projection.register_forward_hook(lambda _, args, output: push_output(output)).remove)
        note = whole.register_forward_hook(lambda _, args, output: seen.append((given[-1], hidden_of(output))))
        hooks.callback(note.remove)
        ids = torch.arange(4, device=model.device)[None] % model.config.get_text_config().vocab_size
        for size in (0.0, 1.0):
            push = torch.tensor([size], device=model.device, dtype=model.dtype)
            decoder(model)(input_ids=ids, use_cache=False)
    (plain, before), (pushed, after) = seen
    wanted = norm(pushed) - norm(plain)
    # Behind the residual stream's own rounding, which is large where the stream is.
    allowed = 1e-2 * wanted.abs().max() + 1e-5 * before.abs().max()
    if not (after - before - wanted).abs().max() <= allowed:
        raise UserError(
            f"memit: layer {layer} of {type(model).__name__} does not add its MLP's output to its input as it is, so the update "
            "would not do what it is made for; use another method"
        )
