"""The one door to what torch, transformers, peft and accelerate keep private, or call otherwise from release to release.

Each function says which releases do what. Nothing else in `mixsd` reaches for these names (a test holds that;
`evaluation/lm_eval*` has lm-eval's own).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# transformers


@contextmanager
def attention_of(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model with another attention function of transformers' `AttentionInterface`, for a while."""
    usual = attention_name(model)
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def attention_name(model: PreTrainedModel) -> str:
    """The name of the model's attention function. transformers 5.19 to 5.24: `config._attn_implementation`, with no public twin."""
    return str(model.config._attn_implementation)


# What layers hand to an attention function beside its own arguments, and what may be passed over.
HARMLESS = (
    *("position_ids", "position_embeddings", "cache_position", "use_cache", "is_causal"),
    *("output_attentions", "output_hidden_states", "output_router_logits"),
)


def recompute_activations(
    model: PreTrainedModel, context: Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]] | None = None
) -> None:
    """Have the layers compute their activations again in the backward pass, which torch's `context_fn` may frame (or `ValueError`).

    transformers 5.19 calls it `gradient_checkpointing_enable`, 5.23 `activation_checkpointing_enable`, and warns at the older name.
    """
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False, **({"context_fn": context} if context else {})})


def keep_activations(model: PreTrainedModel) -> None:
    """Undo `recompute_activations`; the names are as there."""
    (getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable)()


def recomputing_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that `recompute_activations` is about. transformers 5.19 to 5.24: `modeling_layers.GradientCheckpointingLayer`."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def forget_quantization(model: PreTrainedModel) -> None:
    """Make a model that was read from GGUF a plain one: what is left of the quantization would make its folder refuse to load.

    transformers 5.19 to 5.24: `hf_quantizer`, `quantization_config`; `_name_or_path` is the GGUF file's folder.
    """
    model.hf_quantizer = None  # type: ignore[assignment]
    for name in ("quantization_config", "_name_or_path"):
        model.config.__dict__.pop(name, None)


def stated_dtype(config: Any) -> torch.dtype | None:
    """The precision that a configuration states. transformers 5 calls it `dtype`; remote code may go on with 4's `torch_dtype`."""
    stated = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    if isinstance(stated, str):
        stated = getattr(torch, stated, None)
    return stated if isinstance(stated, torch.dtype) else None


def text_config(config: Any) -> Any:
    """The part of a configuration that is about text; remote code may not have `get_text_config`."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


# peft


def adapted_layers(base: PreTrainedModel) -> dict[str, Any]:
    """The modules that carry LoRA adapters, by name. peft 0.18 to 0.21: `tuners.lora.LoraLayer`, a mixin, and a module too."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}


def is_zero(layer: Any) -> bool:
    """Whether a layer's adapters add nothing. peft 0.18 to 0.21: the second factors are in `lora_B`, zero at first."""
    return not any(bool(matrix.weight.any()) for matrix in layer.lora_B.values())


def forget_merge(layer: Any) -> None:
    """Tell a layer that its adapters are not in its weights. peft 0.18 to 0.21: `merged_adapters` names those that are."""
    layer.merged_adapters.clear()


def forget_adapters(model: PreTrainedModel) -> None:
    """Make a model whose adapters were merged a plain one. peft 0.18 to 0.21 leaves `peft_config` on it, and saving would heed it."""
    if hasattr(model, "peft_config"):
        del model.peft_config


# torch


def onednn_relayout(weight: Tensor) -> Tensor:
    """A weight (out, in) in oneDNN's own layout. torch 2.6 to 2.13: `mkldnn._reorder_linear_weight`, where the build has oneDNN."""
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return found


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias by oneDNN. torch 2.6 to 2.13: `mkldnn._linear_pointwise`, for a weight of either layout."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found
