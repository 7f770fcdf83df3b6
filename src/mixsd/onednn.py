"""Linear layers through oneDNN with their weights laid out once: on some CPUs faster than torch's own path (docs/notes.md).

torch multiplies fp32 matrices with MKL, which uses half the width of the vector units of a CPU that is not Intel's, and lays
bf16 weights out anew at every call. Only for models that are read: the weights laid out anew do not follow the old
ones. Where this build of torch lacks the operation, or it does not agree with torch's own for a layer, that layer and those
after it are left as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

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
