"""MEMIT's settings, and what they are for a model where nothing else is said.

The paper edits layers 3-11 of Qwen3-1.7B, 4-14 of 4B and 5-14 of 8B. A model of another shape gets the same stretch of its depth:
from 0.11 to 0.39 of its layers, rounded, which is 3-11 of 28, 4-14 of 36 and 3-12 of 30.

The weight of the second moments is 15,000 in the paper. Of what a layer shall do for a key that is alone, a weight w leaves about
d / (d + w), d being the width of the keys: 29% to 45% in the paper's models, but 9% at the 1,536 of the built-in one. So another model
than the paper's gets w = 0.4 d. Measured there with 10 edits of MQuAKE (bench/memit.py), how many the chat question brings out in free
generation: none with 15,000, nine with 0.4 d = 614 and with 100; read in the question nine, in the cloze three.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mixsd.errors import UserError
from mixsd.models.compat import text_config
from mixsd.settings import Settings

PromptForm = Literal["question", "cloze"]
Reply = Literal["answer", "reference"]

# (layers, hidden size) of the models whose layers the paper names.
_PUBLISHED = {(28, 2048): range(3, 12), (36, 2560): range(4, 15), (36, 4096): range(5, 15)}
_PUBLISHED_WEIGHT = 15_000.0
_FIRST, _LAST = 0.11, 0.39
_WEIGHT_PER_WIDTH = 0.4


@dataclass(frozen=True)
class MemitConfig:
    """How facts are edited in; the numbers are the paper's where it has them.

    Attributes:
        layers: whose down_proj is changed; None goes by depth.
        steps, v_lr, v_weight_decay, kl_factor, clamp_norm_factor: of the value optimization, see `mixsd.editing.values`.
        stop_loss: the value optimization ends early once the target's mean NLL per token is below it; 0 takes all steps.
        second_moment_weight: how much the second moment of ordinary keys holds the weights in place; None goes by the model.
        prefixes, prefix_tokens: how many sampled beginnings stand before the prompt (beside none), and their length.
        prompt: what the subject is read in: the chat-rendered question, or the raw sentence that the answer completes.
        reply: what the chat-rendered question is to be answered with: the answer alone, or the fact's reference reply.
    """

    layers: tuple[int, ...] | None = None
    steps: int = 25
    v_lr: float = 0.5
    v_weight_decay: float = 1e-3
    kl_factor: float = 0.0625
    clamp_norm_factor: float = 4.0
    stop_loss: float = 0.05
    second_moment_weight: float | None = None
    prefixes: int = 5
    prefix_tokens: int = 10
    prompt: PromptForm = "question"
    reply: Reply = "answer"

    def __post_init__(self) -> None:
        for name in ("steps", "prefix_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"memit: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("v_lr", "clamp_norm_factor", "second_moment_weight"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"memit: {name} must be above 0, got {value}")
        for name in ("prefixes", "v_weight_decay", "kl_factor", "stop_loss"):
            if not getattr(self, name) >= 0:
                raise UserError(f"memit: {name} must not be below 0, got {getattr(self, name)}")
        for name, kind in (("prompt", PromptForm), ("reply", Reply)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"memit: {name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")


def of_settings(settings: Settings) -> MemitConfig:
    """The settings of a run as MEMIT's.

    Raises:
        UserError: the layers cannot be read.
    """
    return MemitConfig(
        layers=parse_layers(settings.edit_layers) if settings.edit_layers is not None else None,
        steps=settings.edit_steps,
        v_lr=settings.edit_lr,
        v_weight_decay=settings.edit_decay,
        kl_factor=settings.edit_kl,
        clamp_norm_factor=settings.edit_clamp,
        second_moment_weight=settings.edit_weight,
    )


def parse_layers(text: str) -> tuple[int, ...]:
    """Read "3-11", "3,5,7" or "3-5, 9" as the layers that it names, ascending.

    Raises:
        UserError: it is not of that form, or a stretch runs backwards.
    """
    layers: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part.strip())
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise UserError(f"--edit-layers {text}: expected layers such as 3-11 or 3,5,7")
        layers.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return tuple(sorted(layers))


def layers_of(config: MemitConfig, model_config: Any) -> list[int]:
    """The layers to edit in a model, ascending.

    Raises:
        UserError: the model has no such layer.
    """
    depth, size = _shape(model_config)
    if config.layers is None:
        return list(_PUBLISHED.get((depth, size)) or by_depth(depth))
    layers = sorted(set(config.layers))
    if not layers or layers[0] < 0 or layers[-1] >= depth:
        raise UserError(f"memit: layers {list(config.layers)}: this model has layers 0 to {depth - 1}; name some of them")
    return layers


def weight_of(config: MemitConfig, model_config: Any, width: int) -> float:
    """The weight of the second moments in a model whose keys have this width."""
    if config.second_moment_weight is not None:
        return config.second_moment_weight
    return _PUBLISHED_WEIGHT if _shape(model_config) in _PUBLISHED else _WEIGHT_PER_WIDTH * width


def by_depth(depth: int) -> range:
    """The stretch of layers to edit in a model of so many."""
    return range(round(_FIRST * depth), min(round(_LAST * depth), depth - 1) + 1)


def _shape(model_config: Any) -> tuple[int, int]:
    """Layers and hidden size of a model."""
    text = text_config(model_config)
    return int(text.num_hidden_layers), int(text.hidden_size)
