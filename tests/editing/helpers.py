"""Tiny models, facts and texts for the tests of editing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mixsd.editing import MemitConfig, Moments, second_moments
from mixsd.editing.edits import layers_of
from mixsd.facts.fact import Fact
from mixsd.facts.prompts import Renderer
from tests.renderers import make_tokenizer
from tests.tiny import tiny_model

MERGES = (("V", "e"), ("l", "l"), ("Ve", "ll"), ("Ġ", "A"), ("Ġ", "B"), ("Ġ", "C"))
FACTS = [
    Fact("Who leads Vell?", "A", "a", subject="Vell", cloze="Vell is led by"),
    Fact("What does Kay Ott eat?", "B", "b", subject="Kay Ott", statement="Kay Ott eats B."),
    Fact("Where is Sim?", "C", "c", subject="Sim", cloze="Sim is in"),
]
HIDDEN = 128
TEXTS = [f"The {word} of the day is {number}, and {word}s are good." for number, word in enumerate(["sun", "cat", "sea"] * 9)]
QUICK = MemitConfig(layers=(0, 1), prefixes=2, prefix_tokens=4, second_moment_weight=0.02)
# Enough for every fact to be edited into the models of `setting`. A random model's keys have little in common behind prefixes.
THOROUGH = replace(QUICK, prompt="cloze", steps=80, v_lr=1.0, prefixes=0, second_moment_weight=1e-3)


def setting(
    architecture: str = "llama", kind: str = "chatml", *, dtype: torch.dtype = torch.float64, seed: int = 0, **extra: Any
) -> tuple[Any, Renderer]:
    """A tiny model and the renderer that goes with it."""
    tokenizer = make_tokenizer(kind, merges=MERGES)
    shape: dict[str, Any] = {"num_hidden_layers": 3, "hidden_size": HIDDEN, "head_dim": HIDDEN // 4}
    if architecture == "gemma3":  # the subject may stand further back than a sliding window reaches
        windows = ["sliding_attention", "sliding_attention", "full_attention"]
        shape |= {"layer_types": windows, "query_pre_attn_scalar": HIDDEN // 4}
    model = tiny_model(architecture, vocab=len(tokenizer), dtype=dtype, seed=seed, **{**shape, **extra})
    with torch.no_grad():
        # What a random model says depends little on any one place; with a loud and even attention on top it can be edited.
        top = model.model.layers[-1]
        top.self_attn.q_proj.weight.mul_(0.1)
        top.self_attn.o_proj.weight.mul_(30)
        if architecture == "gemma3":
            top.post_attention_layernorm.weight.add_(10)
    return model, Renderer(tokenizer, model.config, model.generation_config)


def moments_of(model: Any, renderer: Renderer, cache: Path, config: MemitConfig = QUICK) -> Moments:
    layers = layers_of(config, model.config)
    return second_moments(model, renderer.tokenizer, TEXTS, layers, model_hash="m", cache=cache, tokens=900)
