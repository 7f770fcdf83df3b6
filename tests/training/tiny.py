"""Tiny random models, examples and settings for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    CohereConfig,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

from mixsd.randomness import uniforms
from mixsd.settings import Settings
from mixsd.training import Example
from mixsd.training.examples import UNSUPERVISED, Batch
from mixsd.training.losses import chunked_nll
from mixsd.training.states import padded_states

VOCABULARY = 64

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_SHAPE, tie_word_embeddings=False),
    "llama-tied": lambda: LlamaConfig(**_SHAPE, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**_SHAPE, tie_word_embeddings=True),
    # A cap this low bends the logits visibly.
    "gemma3": lambda: Gemma3TextConfig(**_SHAPE, final_logit_softcapping=2.0, sliding_window=8),
    "cohere": lambda: CohereConfig(**_SHAPE, logit_scale=0.25),
    "granite": lambda: GraniteConfig(**_SHAPE, logits_scaling=4.0),
    "dropout": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.2, bos_token_id=1, eos_token_id=2
    ),
}


def make_model(kind: str = "llama-tied", *, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(_CONFIGS[kind](), dtype=dtype)
        return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{index}": index for index in range(3, VOCABULARY)}
    core = Tokenizer(WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def make_examples(count: int = 8, *, seed: int = 0) -> list[Example]:
    """Examples of unequal lengths (prompts 2-7, targets 1-9 tokens) that end in the eos id 2."""
    examples = []
    for number in range(count):
        draws = uniforms(seed, "evaluation", f"example {number}", n=20)
        ids = [3 + int(draw * (VOCABULARY - 3)) for draw in draws]
        prompt, target = 2 + int(draws[18] * 6), int(draws[19] * 9)
        examples.append(Example(f"fact-{number}", tuple(ids[:prompt]), (*ids[prompt : prompt + target], 2)))
    return examples


def make_settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {"epochs": 3, "batch_size": 4, "micro_batch": 2, "lr": 3e-3, "warmup_steps": 2, "device": "cpu"}
    return Settings(**values | {"checkpoint_every": 2} | changes).resolved


def batch_nll(model: PreTrainedModel, batch: Batch, *, chunk: int | None = None, dense: bool = False) -> torch.Tensor:
    """The summed NLL of a batch's supervised tokens, as training computes it."""
    states = padded_states(model, batch, chunk=chunk, dense=dense)
    labels = batch.labels[:, 1:]
    return chunked_nll(states.rows, states.head, labels[labels != UNSUPERVISED], states.chunk).sum()


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
