"""Renderers over small tokenizers, with the kinds of chat templates that are about."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mixsd.facts.fact import Fact
from mixsd.facts.prompts import Renderer

# One turn after another, each with its role, as ChatML has it; a system message of its own where none is given.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The same without a default system message; with thinking off, the generation prompt holds an empty think block.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# name: template, bos, eos, special tokens, other added tokens
KINDS: dict[str, tuple[str | None, str | None, str, list[str], list[str]]] = {
    "chatml": (CHATML, None, "<|im_end|>", ["<|im_start|>", "<|im_end|>"], []),
    "thinking": (THINKING, None, "<|im_end|>", ["<|im_start|>", "<|im_end|>"], ["<think>", "</think>", "<tool>"]),
    "headers": (
        HEADERS,
        "<|begin|>",
        "<|eot_id|>",
        ["<|begin|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"],
        [],
    ),
    "no system": (NO_SYSTEM, "<bos>", "<eos>", ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], []),
    "none": (None, "<|begin|>", "<|end|>", ["<|begin|>", "<|end|>"], []),
}

FACT = Fact("Where is Vell?", "Orm", reference="Vell lies in Orm.", statement="Vell: in Orm.")


def make_tokenizer(
    kind: str = "chatml", *, merges: tuple[tuple[str, str], ...] = (), adds_eos: bool = False, **options: Any
) -> Any:
    """A lossless byte-level BPE tokenizer: one token per byte, and one per merge."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    template, bos, eos, special, added = KINDS[kind]
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    core.add_tokens([AddedToken(token, special=False) for token in added])
    if template is None:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A {eos}" if adds_eos else f"{bos} $A",
            special_tokens=[(token, core.token_to_id(token)) for token in (bos, eos)],
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, **options)
    tokenizer.chat_template = template
    return tokenizer


def make(kind: str = "chatml", *, tokenizer: Any = None, config: Any = None, generation: Any = None, **options: Any) -> Renderer:
    return Renderer(tokenizer or make_tokenizer(kind), config, generation, **options)


def ends(*ids: int | None) -> Any:
    """A configuration that names these end tokens: none, one or a list."""
    return SimpleNamespace(eos_token_id=None if not ids else ids[0] if len(ids) == 1 else list(ids))


def text_of(renderer: Renderer, ids: list[int]) -> str:
    return str(renderer.tokenizer.decode(ids, skip_special_tokens=False))


def id_of(renderer: Renderer, token: str) -> int:
    found: int = renderer.tokenizer.convert_tokens_to_ids(token)
    return found
