"""Tiny random models and a tiny tokenizer, made on the spot: the tests' own toy family of architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

ARCHITECTURES = ("llama", "qwen3", "gemma3")


def tiny_model(architecture: str = "llama", *, vocab: int = 97, seed: int = 0, dtype: torch.dtype = torch.float64, **extra: Any):
    """A random causal model with two or three layers, in evaluation mode. Gemma-3's sliding window is shorter than the prompts."""
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

    shape: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": architecture != "qwen3",
    }
    if architecture == "gemma3":
        shape |= {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
        shape |= {"num_hidden_layers": 3, "query_pre_attn_scalar": 8}
    shape |= extra
    config = {"llama": LlamaConfig, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}[architecture](**shape)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + ' <|end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)


def tiny_tokenizer(*, template: str | None = TEMPLATE, words: int = 60):
    """A byte-level BPE-free tokenizer: one token per character of a small alphabet plus control tokens, lossless."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|unk|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    vocab = {token: i for i, token in enumerate(special)}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[byte] = len(vocab)
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        unk_token="<|unk|>",
        pad_token="<|end|>",
        extra_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def save_tiny(
    folder: Path,
    architecture: str = "llama",
    *,
    seed: int = 0,
    template: str | None = TEMPLATE,
    stops: int | list[int] = 2,
    **extra: Any,
) -> Path:
    """A tiny model folder with its tokenizer, fp32, as a user would have it on disk.

    `stops` is what its generation config names as end tokens: with many, a random model's replies end by themselves.
    """
    tokenizer = tiny_tokenizer(template=template)
    model = tiny_model(architecture, vocab=len(tokenizer), seed=seed, dtype=torch.float32, **extra)
    model.generation_config.eos_token_id = stops
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
