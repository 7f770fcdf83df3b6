"""What an edit is: MEMIT's settings, and for each fact a prompt, the place of its subject's last token, and the ids that shall follow.

The paper edits layers 3-11 of Qwen3-1.7B, 4-14 of 4B and 5-14 of 8B. A model of another shape gets the same stretch of its depth:
from 0.11 to 0.39 of its layers, rounded, which is 3-11 of 28, 4-14 of 36 and 3-12 of 30.

The weight of the second moments is 15,000 in the paper. Of what a layer shall do for a key that is alone, a weight w leaves about
d / (d + w), d being the width of the keys: 29% to 45% in the paper's models, but 9% at the 1,536 of the built-in one. So another model
than the paper's gets w = 0.4 d. Measured there with 10 edits of MQuAKE (bench/memit.py), how many the chat question brings out in free
generation: none with 15,000, nine with 0.4 d = 614 and with 100; read in the question nine, in the cloze three.

A prompt is the raw cloze ("The director of Polyphony Digital is") with the answer behind it, as MEMIT has it, or the chat-rendered
question, the very prompt that the model is asked with later, with a reply behind it. The place is found by the tokenizer's
own character offsets: the last token that covers the subject's last character. Of several occurrences the last counts: it
is the one that has read everything else.

A raw prompt begins with what the tokenizer puts before a text, and with a line break where that is nothing: the key of a first
token is that of any first token (an attention sink a hundred times as long as others), and an edit there would be one of every text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, get_args

from mixsd.decoding.engine import decode_all
from mixsd.decoding.requests import Request, Sampling
from mixsd.errors import MixsdError, UserError
from mixsd.facts.fact import Fact, shown
from mixsd.facts.prompts import Renderer
from mixsd.models.compat import text_config
from mixsd.randomness import uniforms
from mixsd.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PromptForm = Literal["question", "cloze"]
Reply = Literal["answer", "reference"]

# (layers, hidden size) of the models whose layers the paper names.
_PUBLISHED = {(28, 2048): range(3, 12), (36, 2560): range(4, 15), (36, 4096): range(5, 15)}
_PUBLISHED_WEIGHT = 15_000.0
_FIRST, _LAST = 0.11, 0.39
_WEIGHT_PER_WIDTH = 0.4
_FIRST_WORDS = ("The", "In", "Because", "When", "Many", "If", "There", "It", "Since", "One")


@dataclass(frozen=True)
class MemitConfig:
    """How facts are edited in; the numbers are the paper's where it has them.

    Attributes:
        layers: whose down_proj is changed; None goes by depth.
        steps, v_lr, v_weight_decay, kl_factor, clamp_norm_factor: of the value optimization, see `mixsd.editing.memit`.
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
        positive = ("steps", "prefix_tokens", "v_lr", "clamp_norm_factor", "second_moment_weight")
        for name in (*positive, "prefixes", "v_weight_decay", "kl_factor", "stop_loss"):
            value = getattr(self, name)
            if value is not None and not (value > 0 if name in positive else value >= 0):
                raise UserError(f"memit: {name} must {'be above' if name in positive else 'not be below'} 0, got {value}")
        for name, kind in (("prompt", PromptForm), ("reply", Reply)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"memit: {name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")


def of_settings(settings: Settings) -> MemitConfig:
    """The settings of a run as MEMIT's; layers that cannot be read are a `UserError`."""
    layers = settings.edit_layers
    return MemitConfig(
        layers=None if layers is None else parse_layers(layers),
        steps=settings.edit_steps,
        v_lr=settings.edit_lr,
        v_weight_decay=settings.edit_decay,
        kl_factor=settings.edit_kl,
        clamp_norm_factor=settings.edit_clamp,
        second_moment_weight=settings.edit_weight,
    )


def parse_layers(text: str) -> tuple[int, ...]:
    """Read "3-11", "3,5,7" or "3-5, 9" as the layers that it names, ascending; another form is a `UserError`."""
    layers: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part.strip())
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise UserError(f"--edit-layers {text}: expected layers such as 3-11 or 3,5,7")
        layers.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return tuple(sorted(layers))


def layers_of(config: MemitConfig, model_config: Any) -> list[int]:
    """The layers to edit in a model, ascending; one that it does not have is a `UserError`."""
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
    text = text_config(model_config)
    return int(text.num_hidden_layers), int(text.hidden_size)


class UnusableError(MixsdError):
    """Why a fact cannot be edited in."""


@dataclass(frozen=True)
class EditPrompt:
    """A prompt's ids, the index of the subject's last token in them, and the target's ids."""

    ids: list[int]
    place: int
    target: list[int]


def edit_prompts(fact: Fact, renderer: Renderer, config: MemitConfig, prefixes: Sequence[str], context: int) -> list[EditPrompt]:
    """The fact's prompt in the form that the config names, bare and then once behind each prefix; raises `UnusableError`.

    'cloze' falls back to the question where a fact has no sentence that its answer completes.
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
    answer, body = fact.answer.rstrip(" .!?"), (fact.statement or "").rstrip(" .!?")
    stem = body[: -len(answer)] if answer and body.endswith(answer) else ""
    for text in ((fact.cloze or "").rstrip(), stem.rstrip()):
        if fact.subject and subject_end(text, fact.subject) is not None:
            return text
    return None


def essence(subject: str, tokenizer: PreTrainedTokenizerBase) -> EditPrompt:
    """ "{subject} is a": what the model goes on to say here tells what it takes the subject for. It has no target."""
    ids, place = _placed(f"{subject} is a", len(subject), tokenizer)
    return _behind_start(ids, place, [], tokenizer)


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
    return _behind_start(ids, place, target, tokenizer)


def _behind_start(ids: list[int], place: int, target: list[int], tokenizer: PreTrainedTokenizerBase) -> EditPrompt:
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


def sampled_prefixes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, count: int, tokens: int, seed: int
) -> list[str]:
    """So many beginnings for prompts to stand behind, of about so many tokens each, so that a key is that of the subject.

    They are sampled from the model itself after a common first word, with addressed noise, so any model has some.
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
