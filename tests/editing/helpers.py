"""Tiny models, facts and texts for the tests of editing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mixsd.editing import MemitConfig, Moments, second_moments
from mixsd.editing.config import layers_of
from mixsd.facts import Fact
from mixsd.prompts import Renderer
from tests.renderers import make_tokenizer
from tests.tiny import tiny_model

MERGES = (("V", "e"), ("l", "l"), ("Ve", "ll"), ("O", "r"), ("Or", "m"))
FACTS = [
    Fact("Who leads Vell?", "Orm", "a", subject="Vell", cloze="Vell is led by"),
    Fact("What does Kay Ott eat?", "jam", "b", subject="Kay Ott", statement="Kay Ott eats jam."),
    Fact("Where is Sim?", "Ull", "c", subject="Sim", cloze="Sim is in"),
]
TEXTS = [f"The {word} of the day is {number}, and {word}s are good." for number, word in enumerate(["sun", "cat", "sea"] * 9)]
QUICK = MemitConfig(layers=(0, 1), prefixes=2, prefix_tokens=4, second_moment_weight=0.02)


def setting(
    architecture: str = "llama", kind: str = "chatml", *, dtype: torch.dtype = torch.float64, seed: int = 0, **extra: Any
) -> tuple[Any, Renderer]:
    """A tiny model and the renderer that goes with it."""
    tokenizer = make_tokenizer(kind, merges=MERGES)
    model = tiny_model(architecture, vocab=len(tokenizer), dtype=dtype, seed=seed, **{"num_hidden_layers": 3, **extra})
    return model, Renderer(tokenizer, model.config, model.generation_config)


def moments_of(model: Any, renderer: Renderer, cache: Path, config: MemitConfig = QUICK) -> Moments:
    layers = layers_of(config, model.config)
    return second_moments(model, renderer.tokenizer, TEXTS, layers, model_hash="m", cache=cache, tokens=900)
