"""Linear layers on a CPU through oneDNN, where that is faster than torch's own path and gives the same products.

torch multiplies fp32 matrices with MKL, which uses half the width of the vector units of a CPU that is not Intel's, and lays
bf16 weights out anew at every call (docs/notes.md). For models that are read, `relayout` lays the weights out once. In training they
stay as they are (`fast_products`); under autocast torch keeps a bf16 copy of every weight from the forward to the backward pass, and here
the copy is made anew in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixsd.models.compat import onednn_linear, onednn_relayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DTYPES = (torch.float32, torch.bfloat16)
# How far a product may be from torch's own, relative to the largest value: of a weight that was laid out anew, and as it is.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
_PRODUCT_TOLERANCE = 1e-4

_paths: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


class OneDNNLinear(nn.Module):
    """A linear layer for inference: its weights (out, in) in oneDNN's own layout. They do not follow the old ones."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._weight = onednn_relayout(linear.weight.detach())
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return onednn_linear(x, self._weight, self._bias)


@torch.no_grad()
def relayout(model: PreTrainedModel) -> str:
    """Replace the linear layers of a model on the CPU by oneDNN's; returns what `path` then says."""
    _paths[model] = "torch"
    if model.device.type == "cpu" and model.dtype in _DTYPES:
        reason = _layers_differ(model.dtype) or _replaced(model)
        _paths[model] = f"torch: {reason}" if reason else "oneDNN"
    return _paths[model]


def path(model: PreTrainedModel) -> str:
    """How a model's linear layers are computed: "oneDNN", "torch" where nothing else is meant to, or "torch: " and the reason."""
    return _paths.get(model, "torch")


def training_path(device: torch.device) -> str:
    """As `path`, of fp32 weights in training on `device`."""
    reason = _products_differ() if device.type == "cpu" else None
    return "oneDNN" if device.type == "cpu" and not reason else f"torch: {reason}" if reason else "torch"


def _replaced(model: PreTrainedModel) -> str | None:
    """Put oneDNN's layers in place, one at a time, so that there is never more than one's weights twice; why not all, or None."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.dtype in _DTYPES:
                own = OneDNNLinear(child)
                if not _same_products(child, own):
                    return f"oneDNN computes a layer {tuple(child.weight.shape)} otherwise, and those behind it were left"
                setattr(parent, name, own)
    return None


def _same_products(linear: nn.Linear, other: OneDNNLinear) -> bool:
    probe = torch.linspace(-1, 1, 2 * linear.in_features).view(2, -1).to(linear.weight.dtype)
    wanted, found = linear(probe).float(), other(probe).float()
    close = (wanted - found).abs().max() <= _TOLERANCE[linear.weight.dtype] * wanted.abs().max() + 1e-12
    return bool(close and found.isfinite().all())


@torch.no_grad()
def _layers_differ(dtype: torch.dtype) -> str | None:
    """Why oneDNN's layout is not used for weights of this precision; None where it works."""
    linear = nn.utils.skip_init(nn.Linear, 15, 7, dtype=dtype)  # which draws no random numbers
    linear.bias.zero_()
    linear.weight.copy_(torch.linspace(-3, 1, 105).view(7, 15))
    return _tried(lambda: _same_products(linear, OneDNNLinear(linear)))


@cache
@torch.no_grad()
def _products_differ() -> str | None:
    """Why training does not use oneDNN's products; None where they work."""
    one, other = torch.linspace(-1, 2, 60).view(4, 15), torch.linspace(-3, 1, 105).view(7, 15)
    pairs = [(one, other), (one, other.t().contiguous().t()), (one.t().contiguous().t(), other)]
    wanted = one @ other.t()
    allowed = _PRODUCT_TOLERANCE * wanted.abs().max()
    return _tried(lambda: all(bool((_times(*pair) - wanted).abs().max() <= allowed) for pair in pairs))


def _tried(same: Callable[[], bool]) -> str | None:
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    try:
        return None if same() else "oneDNN gives other products than torch"
    except (AttributeError, RuntimeError) as error:
        # A build without the operation, or a CPU that oneDNN has no kernel for: on a few plain numbers it can be nothing else.
        return f"oneDNN's linear operation does not work here ({str(error).strip().splitlines()[0]})"


@contextmanager
def fast_products(model: nn.Module) -> Iterator[None]:
    """Within the block, compute the model's fp32 linear layers on a CPU through oneDNN; the backward pass belongs inside too."""
    linear = [layer for layer in model.modules() if type(layer) is nn.Linear]
    layers = [layer for layer in linear if layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32]
    for layer in layers:
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else layer.weight.dtype
    if dtype == torch.float32 and (x.dtype != dtype or not x.numel() or _products_differ()):
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
    """one @ other.T, which is oneDNN's already in other precisions."""
    return onednn_linear(one, other) if one.dtype == torch.float32 else one @ other.t()
