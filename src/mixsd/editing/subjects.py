"""What a fact is edited at: a prompt, the place of its subject's last token in it, and the token ids that shall follow.

Two forms. The raw cloze ("The director of Polyphony Digital is") with the answer behind it, as MEMIT has it; and the chat-rendered
question, the very prompt that the model is asked with later, with a reply behind it. The place is found by the tokenizer's
own character offsets: the last token that covers the subject's last character, also where that token reaches beyond it (a
closing quote) or the character takes several tokens. Where the subject occurs more than once, its last occurrence counts: it
is the one that has read everything else.

A raw prompt begins with what the tokenizer puts before a text, and with a line break where that is nothing. Without, a short
subject could be the very first token, whose key is that of any first token (an attention sink a hundred times as long as
others), and an edit there would be one of every text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from mixsd.decoding.engine import decode_all
from mixsd.decoding.requests import Request, Sampling
from mixsd.editing.config import MemitConfig
from mixsd.errors import MixsdError, UserError
from mixsd.facts.fact import Fact, shown
from mixsd.facts.prompts import Renderer
from mixsd.randomness import uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class UnusableError(MixsdError):
    """Why a fact cannot be edited in."""


@dataclass(frozen=True)
class EditPrompt:
    """A prompt's ids, the index of the subject's last token in them, and the target's ids."""

    ids: list[int]
    place: int
    target: list[int]


def edit_prompts(fact: Fact, renderer: Renderer, config: MemitConfig, prefixes: Sequence[str], context: int) -> list[EditPrompt]:
    """The fact's prompt in the form that the config names, bare and then once behind each prefix.

    'cloze' falls back to the question where a fact has no sentence that its answer completes.

    Raises:
        UnusableError: the fact has no subject, or it does not occur in the prompt, or the prompt cannot be made.
    """
    if not fact.subject:
        raise UnusableError("it has no subject")
    if reason := renderer.unusable(fact):
        raise UnusableError(reason)
    sentence = cloze_of(fact) if config.prompt == "cloze" else None
    found = [
        _asked(fact, renderer, prefix, config) if sentence is None else _raw(sentence, fact, renderer.tokenizer, prefix)
        for prefix in ("", *prefixes)
    ]
    longest = max(len(prompt.ids) + len(prompt.target) for prompt in found)
    if longest > context:
        raise UnusableError(f"its prompt and target take {longest} tokens, and the model's context is {context}")
    return found


def cloze_of(fact: Fact) -> str | None:
    """The sentence that the answer completes and that names the subject: the fact's cloze, else its statement up to the answer."""
    candidates = [fact.cloze or ""]
    if fact.statement:
        body = fact.statement.rstrip(" .!?")
        answer = fact.answer.rstrip(" .!?")
        if answer and body.endswith(answer):
            candidates.append(body[: -len(answer)])
    for text in candidates:
        if fact.subject and subject_end(text.rstrip(), fact.subject) is not None:
            return text.rstrip()
    return None


def essence(subject: str, tokenizer: PreTrainedTokenizerBase) -> EditPrompt:
    """ "{subject} is a": what the model goes on to say here tells what it takes the subject for. It has no target."""
    text = f"{subject} is a"
    ids, place = _placed(text, len(subject), tokenizer)
    start = start_ids(tokenizer)
    return EditPrompt([*start, *ids], len(start) + place, [])


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a raw text begins with: the special tokens that the tokenizer puts before one, else a line break."""
    special = set(tokenizer.all_special_ids)
    return list(takewhile(special.__contains__, tokenizer.encode("\n"))) or _encode("\n", tokenizer)


def subject_end(text: str, subject: str) -> int | None:
    """The index after the last occurrence of the subject as words of their own; in its own case if there is one so."""
    pattern = rf"(?<!\w){re.escape(subject)}(?!\w)"
    for flags in (0, re.IGNORECASE):
        if ends := [match.end() for match in re.finditer(pattern, text, flags)]:
            return ends[-1]
    return None


def _raw(sentence: str, fact: Fact, tokenizer: PreTrainedTokenizerBase, prefix: str) -> EditPrompt:
    text = f"{prefix} {sentence}" if prefix else sentence
    end = subject_end(sentence, fact.subject or "")
    assert end is not None
    ids, place = _placed(text, len(text) - len(sentence) + end, tokenizer)
    if set(ids) & set(tokenizer.all_special_ids):
        raise UnusableError("its cloze contains a control token of the model")
    # After the prompt, not alone: some tokenizers put a space before whatever they are given.
    whole = _encode(f"{text} {fact.answer}", tokenizer)
    target = whole[len(ids) :] if whole[: len(ids)] == ids else _encode(f" {fact.answer}", tokenizer)
    start = start_ids(tokenizer)
    return EditPrompt([*start, *ids], len(start) + place, target)


def _asked(fact: Fact, renderer: Renderer, prefix: str, config: MemitConfig) -> EditPrompt:
    end = subject_end(fact.question, fact.subject or "")
    if end is None:
        raise UnusableError(f"its subject ({shown(fact.subject or '')}) does not occur in its question")
    question = f"{prefix} {fact.question}" if prefix else fact.question
    turn = renderer.question(question)
    text = renderer.text(turn)
    begin = text.rfind(fact.question)
    if begin < 0:
        raise UnusableError("the chat template changes its question, so the subject's place is not known")
    ids, place = _placed(text, begin + end, renderer.tokenizer, special=not renderer.has_template)
    wanted = renderer.ids(turn)
    if ids[: len(wanted)] != wanted or place >= len(wanted):
        raise UnusableError("the tokenizer gives its prompt's ids without offsets that fit")
    reply = fact if config.reply == "reference" else Fact(fact.question, fact.answer, fact.id, reference=fact.answer)
    return EditPrompt(wanted, place, renderer.reference(reply))


def _placed(text: str, end: int, tokenizer: PreTrainedTokenizerBase, *, special: bool = False) -> tuple[list[int], int]:
    """The ids of a text, and which of them is the last that covers the character before `end`."""
    if not tokenizer.is_fast:
        raise UserError(f"memit: the tokenizer {type(tokenizer).__name__} gives no character offsets; a fast one is needed")
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, truncation=False, verbose=False)
    places = [i for i, (first, last) in enumerate(encoded["offset_mapping"]) if first < end <= last]
    if not places:
        raise UnusableError("no token covers the end of its subject")
    return list(encoded["input_ids"]), places[-1]


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


_FIRST_WORDS = ("The", "In", "Because", "When", "Many", "If", "There", "It", "Since", "One")


def sampled_prefixes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, count: int, tokens: int, seed: int
) -> list[str]:
    """So many beginnings for prompts to stand behind, of about so many tokens each, so that a key is that of the subject.

    They are sampled from the model itself after a common first word, with addressed noise: any model has some, in its own kind of
    text, and no prompt that measures forgetting is used.
    """
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
