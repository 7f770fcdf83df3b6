"""Linear layers through oneDNN with their weights laid out once: on some CPUs faster than torch's own path (docs/notes.md).

torch multiplies fp32 matrices with MKL, which uses half the width of the vector units of a CPU that is not Intel's, and lays
bf16 weights out anew at every call. Only for models that are read: the weights laid out anew do not follow the old
ones. Where this build of torch lacks the operation, or it does not agree with torch's own for a layer, that layer and those
after it are left as they are.

The linear layers of a training step on a CPU: faster in fp32, and in less memory under bf16 autocast.

torch multiplies fp32 matrices with MKL, which uses half the width of the vector units of a CPU that is not Intel's; oneDNN uses
all of it (docs/notes.md), forward and backward. Under autocast torch keeps a bf16 copy of every weight from the forward to the
backward pass; here the copy is made anew in the backward pass. The weights stay as they are, so the optimizer and checkpoints
notice nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DTYPES = (torch.float32, torch.bfloat16)
# How far the packed product may be from torch's own, relative to the largest value.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


class OneDNNLinear(torch.nn.Module):
    """A linear layer for inference: its weights (out, in) in oneDNN's own layout."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return found


def relayout(model: PreTrainedModel) -> int:
    """Replace the linear layers of a model on the CPU by oneDNN's; returns how many were replaced."""
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return 0
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            # One at a time, so that there is never more than one layer's weights twice.
            if type(child) is torch.nn.Linear and child.weight.dtype in _DTYPES:
                own = _stand_in(child)
                if own is None:
                    return replaced
                setattr(parent, name, own)
                replaced += 1
    return replaced


@torch.no_grad()
def _stand_in(linear: torch.nn.Linear) -> OneDNNLinear | None:
    """The layer's stand-in, after a look at whether it does what the layer does."""
    probe = torch.linspace(-1, 1, 2 * linear.in_features).view(2, -1).to(linear.weight.dtype)
    try:
        packed = OneDNNLinear(linear)
        own, ours = linear(probe).float(), packed(probe).float()
    except (AttributeError, RuntimeError, NotImplementedError):  # another build of torch
        return None
    close = (own - ours).abs().max() <= _TOLERANCE[linear.weight.dtype] * own.abs().max() + 1e-12
    return packed if bool(close) and ours.isfinite().all() else None


_PRODUCT_TOLERANCE = 1e-4  # how far a product may be from torch's own, relative to the largest value


@contextmanager
def fast_products(model: nn.Module) -> Iterator[None]:
    """Within the block, compute the model's fp32 linear layers on a CPU in this way. The backward pass belongs inside too: what
    a checkpoint computes again has to go the way it went before.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _fits(layer.weight)]
    for layer in layers:
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _fits(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else layer.weight.dtype
    if dtype == torch.float32 and (x.dtype != dtype or not x.numel() or not _agrees()):
        return functional.linear(x, layer.weight, layer.bias)
    x = x.to(dtype)
    flat: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]).contiguous(), layer.weight)  # type: ignore[no-untyped-call]
    product = flat.view(*x.shape[:-1], layer.out_features)
    return product if layer.bias is None else product + layer.bias.to(dtype)


class _Product(torch.autograd.Function):
    """x (N, in) and weight (out, in), which may be of another type, to x @ weight.T (N, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _times(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_x, of_weight = ctx.needs_input_grad
        return (
            _times(gradient, weight.to(x.dtype).t()) if of_x else None,
            _times(gradient.t(), x.t()).to(weight.dtype) if of_weight else None,
        )


def _times(one: Tensor, other: Tensor) -> Tensor:
    """one @ other.T"""
    if one.dtype != torch.float32:
        return one @ other.t()  # which is oneDNN's already
    found: Tensor = torch.ops.mkldnn._linear_pointwise(one, other, None, "none", [], "")
    return found


@cache
@torch.no_grad()
def _agrees() -> bool:
    """Whether this build of torch has the operation, and it gives torch's own products."""
    if not torch.backends.mkldnn.is_available():
        return False
    one, other = torch.linspace(-1, 2, 60).view(4, 15), torch.linspace(-3, 1, 105).view(7, 15)
    try:
        pairs = [(one, other), (one, other.t().contiguous().t()), (one.t().contiguous().t(), other)]
        found = [_times(*pair) for pair in pairs]
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    wanted = one @ other.t()
    return all(bool((product - wanted).abs().max() <= _PRODUCT_TOLERANCE * wanted.abs().max()) for product in found)
