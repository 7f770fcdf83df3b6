"""LoRA on every linear layer, and a merge that is proven each time it is made.

Scaling is alpha = 2 * rank, without dropout. A merge adds the adapters to the fp32 base weights in place, lends the plain model
out, and puts the base weights back from a copy in main memory, bit for bit: subtracting what was added would not, and training
would drift at every checkpoint. A cast to a smaller type comes after the merge, where the folder is written.

Three checks follow every merge, since a merge that failed leaves a model that looks whole: every target moved, the logits are
those of the adapter model, and the tensors are those of the base in name, number and shape.

Layers that are no linear modules (the stacked experts of some mixtures) get no adapter.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from mixsd.errors import MixsdError
from mixsd.models import compat
from mixsd.models.folder import logits_of, probe_ids

_TOLERANCE = 1e-3


class Lora:
    """Adapters on one base model. `model` is what to train: the base's weights are frozen in it."""

    def __init__(self, base: PreTrainedModel, *, rank: int, seed: int) -> None:
        """Attach adapters of `rank`, drawn from `seed` alone; torch's own generator is left as it was."""
        self._shapes = _shapes_of(base)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        with torch.random.fork_rng(devices=[]):
            # peft draws on the CPU before it moves an adapter, so the device has no say in the numbers.
            torch.default_generator.manual_seed(seed)
            self.model = cast(PeftModel, get_peft_model(base, config))
        # While merged: each layer (a mixin, and a module too) by its name, with a copy of the base's weight.
        self._merged: dict[str, tuple[Any, Tensor]] = {}

    @property
    def base(self) -> PreTrainedModel:
        """The base model, with the adapters inside it."""
        return cast(PreTrainedModel, self.model.get_base_model())

    def state(self) -> dict[str, Tensor]:
        """The adapters' tensors by their parameter names."""
        return {name: tensor.detach() for name, tensor in self.model.state_dict().items() if "lora_" in name}

    @contextmanager
    def merged(self) -> Iterator[PreTrainedModel]:
        """Lend the base model as a plain one with the adapters merged in, checked; afterwards all is as before."""
        try:
            yield self._merge()
        finally:
            self._restore()

    def finish(self) -> PreTrainedModel:
        """Merge for good, checked, and return the plain model; this object is used up."""
        try:
            plain = self._merge()
        except BaseException:
            self._restore()
            raise
        self._merged.clear()
        compat.forget_adapters(plain)
        return plain.requires_grad_(True)

    def _merge(self) -> PreTrainedModel:
        base = self.base
        ids = probe_ids(base)
        expected = logits_of(self.model, ids)
        moved = {}
        for name, layer in compat.adapted_layers(base).items():
            plain = layer.get_base_layer()
            self._merged[name] = layer, plain.weight.detach().to("cpu", copy=True)
            if not compat.is_zero(layer):
                moved[name] = plain.weight.detach()
            layer.merge()
            base.set_submodule(name, plain)
        check_targets_moved({name: weight for name, (_, weight) in self._merged.items()}, moved)
        check_same_logits(expected, logits_of(base, ids))
        check_same_tensors(self._shapes, _shapes_of(base))
        return base

    @torch.no_grad()
    def _restore(self) -> None:
        for name, (layer, weight) in self._merged.items():
            layer.get_base_layer().weight.copy_(weight)
            compat.forget_merge(layer)
            self.base.set_submodule(name, layer)
        self._merged.clear()


def _shapes_of(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def check_targets_moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Raise `MixsdError` where a weight in `after` (targets whose adapter is not zero, merged) is still the base's."""
    for name, weight in after.items():
        if torch.equal(before[name], weight.to(before[name].device)):
            raise MixsdError(f"LoRA merge failed: {name} is still the base's weight")


def check_same_logits(adapter: Tensor, merged: Tensor) -> None:
    """Raise `MixsdError` where the merged model's logits (T, V) are further from the adapter model's than rounding explains."""
    tolerance = _TOLERANCE * max(1.0, adapter.abs().max().item())
    difference = (adapter - merged).abs().max().item()
    if not difference <= tolerance:  # also where it is NaN
        raise MixsdError(
            f"LoRA merge failed: logits differ by {difference:.3g} from the adapter model (tolerance {tolerance:.3g})"
        )


def check_same_tensors(base: Mapping[str, torch.Size], merged: Mapping[str, torch.Size]) -> None:
    """Raise `MixsdError` where the merged model's tensors are not those of the base in name, number and shape."""
    if differing := sorted({name for name, _ in base.items() ^ merged.items()}):
        raise MixsdError(
            f"LoRA merge failed: {len(merged)} tensors instead of {len(base)}; differing in name or shape, for one, {differing[0]}"
        )
