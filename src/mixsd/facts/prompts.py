"""How a fact is asked: the wordings of its tests, and the one renderer of mixing, training, evaluation and `ask`.

A prompt is what the tokenizer's own chat template makes of one user turn, the generation prompt included; whatever that emits
(an empty think block, say) is prompt and never a label. A model without a template gets a plain format, documented at
`PLAIN_FORMAT`. The expert prompt is the naive one with guidance and reference inside the same user turn; nothing is
ever cut off it. The stop tokens are resolved here, once, from the three places that name them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mixsd.errors import UserError, first_line
from mixsd.facts.answers import last_boxed
from mixsd.facts.fact import Fact, kind
from mixsd.facts.records import bundled_text
from mixsd.formats import fill
from mixsd.randomness import uniforms
from mixsd.storage import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@cache
def frames() -> dict[str, list[str]]:
    """The paraphrase frames: ten for `validation`, ten others for `report`."""
    found: dict[str, list[str]] = json.loads(bundled_text("frames.json"))
    return found


_SPLITS = {"report": "paraphrase", "validation": "validation"}  # the split that each set of frames makes


def in_other_words(facts: Callable[[], Iterable[Fact]], seed: int) -> dict[str, Callable[[], Iterator[Fact]]]:
    """The tests of any corpus that only word its questions otherwise, by split; a fact's frame is drawn at its address."""

    def framed(frame_set: str, split: str) -> Iterator[Fact]:
        among = frames()[frame_set]
        for fact in facts():
            drawn = uniforms(seed, "evaluation", f"{frame_set} frame of {fact.id}", n=1)[0]
            yield about(fact, among[int(drawn * len(among))].replace("{question}", fact.question), split)

    return {split: partial(framed, frame_set, split) for frame_set, split in _SPLITS.items()}


def about(fact: Fact, question: str, split: str) -> Fact:
    """A test of a fact: the same answer, asked for by another user turn."""
    return replace(fact, question=question, id=f"{split}-{fact.id}", paraphrases=(), meta={**fact.meta, "fact": fact.id})


def with_background(question: str, statements: Sequence[str], address: str, seed: int) -> str:
    """A user turn that gives statements in an order drawn at an address, one per line, before it asks."""
    order = np.argsort(uniforms(seed, "evaluation", address, n=len(statements)), kind="stable")
    lines = "\n- ".join([statements[i] for i in order.tolist()])
    return f"Background information:\n- {lines}\n\nUse the background information to answer this question: {question}"


# For a base model without a chat template. Such a reply is one line: a token with a line break in it ends it and is stored as the
# end-of-text token.
PLAIN_FORMAT = "{system}Question: {question}\nAnswer:"

BOXED_SUFFIX = "\n\nThink it through step by step, then give the final answer alone inside \\boxed{}."

# The expert's guidance by kind and answer format: our wording of the paper's two kinds; the question stands before it, in the same turn.
GUIDANCE = {tuple(key.split()): wording for key, wording in json.loads(bundled_text("guidance.json")).items()}


@dataclass(frozen=True)
class Stops:
    """The tokens that end a reply.

    `ids` maps each to the token that is stored for it: itself, but for the line breaks of the plain format, which are stored as `end`,
    the token that a reference target ends with. `warnings` tells where the sources disagree.
    """

    ids: dict[int, int]
    end: int
    warnings: tuple[str, ...]

    @property
    def own(self) -> list[int]:
        """The stop tokens proper, as a model folder's generation config should name them."""
        return sorted(set(self.ids.values()))


class Renderer:
    """Renders prompts for one tokenizer and one way of asking.

    The configs are the model's, read for its stop tokens; `thinking` is the template's `enable_thinking`; `answer_format` is 'plain' (the
    bare question) or 'boxed' (with the paper's kind of suffix); `guidance` is what the expert sees after the question, by default ours
    for the format. A template that refuses the system message, and a model that names no end token, are a `UserError`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: Any,
        generation_config: Any = None,
        *,
        system: str | None = None,
        thinking: bool = False,
        answer_format: str = "plain",
        guidance: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.system = system or None
        self.thinking = thinking
        self.boxed = answer_format == "boxed"
        self.suffix = BOXED_SUFFIX if self.boxed else ""
        self.guidance = guidance or GUIDANCE["knowledge", answer_format]
        self.has_template = bool(tokenizer.chat_template)
        self.stops = self._resolve_stops(config, generation_config)
        self._control = self._control_tokens()

    def text(self, user: str) -> str:
        """The prompt, as text, for one user turn; messages, which would enter it in Python's notation, are a `TypeError`."""
        if not isinstance(user, str):
            raise TypeError(f"a user turn is text, got {kind(user)}")
        if not self.has_template:
            system = f"{self.system}\n\n" if self.system else ""
            return PLAIN_FORMAT.format(system=system, question=user)
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": user})
        return self._template(messages, add_generation_prompt=True)

    def ids(self, user: str) -> list[int]:
        """The prompt's token ids for one user turn (general prompts and probe questions are asked so)."""
        return self._encode_prompt(self.text(user))

    def question(self, question: str) -> str:
        """The user turn of the naive prompt for a question."""
        return question + self.suffix

    def naive(self, question: str) -> list[int]:
        """Token ids of the naive prompt."""
        return self.ids(self.question(question))

    def expert_turn(self, fact: Fact) -> str:
        """The user turn of the expert prompt: question, then guidance with the reference in it."""
        values = {"reference": self.reply(fact), "answer": fact.answer, "statement": fact.statement or fact.reference}
        return f"{self.question(fact.question)}\n\n{fill(self.guidance, values)}"

    def expert(self, fact: Fact) -> list[int]:
        """Token ids of the expert prompt, whole."""
        return self.ids(self.expert_turn(fact))

    def reply(self, fact: Fact) -> str:
        """The reference reply as text; where a box is asked for, it ends with the answer in one unless it has its own."""
        if not self.boxed or last_boxed(fact.reference) is not None:
            return fact.reference
        return f"{fact.reference}\n\n\\boxed{{{fact.answer}}}"

    def reference(self, fact: Fact) -> list[int]:
        """Token ids of the reference reply as a target: its text, then the end-of-turn token."""
        reply = self.reply(fact)
        if self.has_template:
            return [*self.tokenizer.encode(reply, add_special_tokens=False), self.stops.end]
        # After the prompt, not alone: some tokenizers put a space before whatever they are given.
        turn = self.question(fact.question)
        prompt, whole = self.ids(turn), self._encode_prompt(f"{self.text(turn)} {reply}")
        if whole[: len(prompt)] != prompt:
            whole = [*prompt, *self.tokenizer.encode(" " + reply, add_special_tokens=False)]
        return [*whole[len(prompt) :], self.stops.end]

    def reply_text(self, ids: list[int]) -> str:
        """A reply as text: a view of the ids, without special tokens and outer white space."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()

    def is_canonical(self, ids: list[int]) -> bool:
        """Whether re-encoding the text of a target gives back its ids (the stop token aside)."""
        body = ids[:-1] if ids and ids[-1] in self.stops.ids else ids
        text = self.tokenizer.decode(body, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return list(self.tokenizer.encode(text, add_special_tokens=False)) == list(body)

    def unusable(self, fact: Fact) -> str | None:
        """Why a fact cannot be rendered safely, or None: a control token in its text would end or forge a turn."""
        texts = [(name, getattr(fact, name) or "") for name in ("question", "answer", "reference", "statement")]
        texts += [("paraphrase", text) for text in fact.paraphrases]
        for name, text in texts:
            for token in self._control:
                if token in text:
                    return f"its {name} contains the model's control token {token}"
        return None

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides how a question is rendered."""
        template = self.tokenizer.chat_template if self.has_template else PLAIN_FORMAT
        return digest([str(template), self.system, self.thinking, self.suffix, sorted(self.stops.ids.items())])

    def _template(self, messages: list[dict[str, str]], **options: Any) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=self.thinking, **options))
        except Exception as error:
            hint = "; leave --system out" if messages[0]["role"] == "system" else ""
            raise UserError(f"the model's chat template refuses the prompt ({first_line(error)}){hint}") from error

    def _conversation(self, reply: str) -> str:
        return self._template([{"role": "user", "content": "q"}, {"role": "assistant", "content": reply}])

    def _control_tokens(self) -> list[str]:
        """The tokens marked special, and those that the template writes: some tokenizers leave their turn marks unmarked."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        written = self._conversation("r") + self.text("q") if self.has_template else ""
        tokens = {str(token) for token in added if token.special or str(token) in written}
        return sorted(token for token in tokens | set(self.tokenizer.all_special_tokens) if token.strip())

    def _encode_prompt(self, text: str) -> list[int]:
        # A template writes its own beginning-of-text token; the plain format needs the tokenizer's.
        ids = list(self.tokenizer.encode(text, add_special_tokens=not self.has_template))
        if not self.has_template and ids and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()
        return ids

    def _resolve_stops(self, config: Any, generation_config: Any) -> Stops:
        named = {
            "tokenizer": _as_list(self.tokenizer.eos_token_id),
            "generation config": _as_list(getattr(generation_config, "eos_token_id", None)),
            "config": _as_list(getattr(config, "eos_token_id", None)),
            "template's end of turn": self._end_of_turn(),
        }
        ids = {token: token for tokens in named.values() for token in tokens}
        if not ids:
            raise UserError("the model names no end token: set eos_token in its tokenizer_config.json or generation_config.json")
        end = (named["template's end of turn"] or named["tokenizer"] or sorted(ids))[0]
        warnings: tuple[str, ...] = ()
        if any(end not in tokens for tokens in named.values() if tokens):
            values = ", ".join(f"{source} {tokens}" for source, tokens in named.items() if tokens)
            warnings = (f"stop tokens disagree: {values}; replies end at any of them, targets end with {end}",)
        if not self.has_template:
            # Every token with a line break in its text; many vocabularies join it to a full stop or a space before it.
            for token in range(len(self.tokenizer)):
                if "\n" in self.tokenizer.decode([token], clean_up_tokenization_spaces=False):
                    ids.setdefault(token, end)
        return Stops(ids, end, warnings)

    def _end_of_turn(self) -> list[int]:
        """The special token that the template writes right after an assistant's words, if it writes one."""
        if not self.has_template:
            return []
        mark = "Qx7mark"
        _, found, rest = self._conversation(mark).rpartition(mark)
        after = self.tokenizer.encode(rest.lstrip(), add_special_tokens=False) if found else []
        special = set(self.tokenizer.all_special_ids) | set(getattr(self.tokenizer, "added_tokens_decoder", {}))
        return [int(after[0])] if after and after[0] in special else []


def _as_list(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(item) for item in value] if isinstance(value, (list, tuple)) else [int(value)]
