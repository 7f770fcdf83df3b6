"""Beginnings for the prompts to stand behind, so that a key is that of the subject and not of one sentence.

They are sampled from the model itself after a common first word, with addressed noise: any model has some, in its own kind of
text, and no prompt that measures forgetting is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixsd.decoding.engine import decode_all
from mixsd.decoding.requests import Request, Sampling
from mixsd.editing.subjects import start_ids
from mixsd.randomness import uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_FIRST_WORDS = ("The", "In", "Because", "When", "Many", "If", "There", "It", "Since", "One")


def sampled_prefixes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, count: int, tokens: int, seed: int
) -> list[str]:
    """So many beginnings of about so many tokens each, ending in a full stop."""
    firsts = [tokenizer.encode(_FIRST_WORDS[number % len(_FIRST_WORDS)], add_special_tokens=False) for number in range(count)]
    start = start_ids(tokenizer)
    requests = [
        Request(str(number), [*start, *first], tokens, noise=uniforms(seed, "order", f"memit prefix {number}", n=tokens))
        for number, first in enumerate(firsts)
    ]
    found = decode_all(model, requests, Sampling({}, temperature=1.0, top_k=50), token_budget=4096)
    ids = {item.key: item.ids for item in found}
    texts = [tokenizer.decode([*first, *ids[str(number)]], skip_special_tokens=True) for number, first in enumerate(firsts)]
    return [" ".join(str(text).split()).rstrip(" .,;:!?") + "." for text in texts]
