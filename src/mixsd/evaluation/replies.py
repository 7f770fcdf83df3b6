"""Replies of one model, generated once: a journal keyed by the hash of (model, prompt, decoding).

What a reply is worth is not stored but judged when it is read, so that a better verifier needs no new generation. The base
model's journal lies in the cache and is shared by all runs; a tuned model's lies in its run folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixsd.decoding.engine import decode_all, score
from mixsd.decoding.engine import path as decoding_path
from mixsd.decoding.requests import Decoding, Request, Sampling
from mixsd.models import cpu
from mixsd.run.engines import TRANSFORMERS
from mixsd.settings import Settings
from mixsd.storage import Journal, cache_folder, digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mixsd.run.session import Session

SCORED_AT_ONCE = 32  # continuations whose scores are written down together


@dataclass(frozen=True)
class Prompt:
    """A prompt to be answered.

    `noise`: float64 (max_new_tokens,) where the reply is sampled, at `temperature` among the `top_k` likeliest tokens (None: all);
    None for greedy. `lines`: a line break does not end the reply, also where the model has no chat template. `group` names prompts
    that begin alike.
    """

    key: str
    ids: list[int]
    max_new_tokens: int
    noise: np.ndarray | None = None
    noise_address: str | None = None
    temperature: float = 1.0
    top_k: int | None = None
    lines: bool = False
    group: str = ""


@dataclass(frozen=True)
class Reply:
    """A reply as ids; `truncated` where it reached its length limit."""

    ids: list[int]
    truncated: bool


class Answerer:
    """Generates and scores with one model, never the same thing twice.

    Args:
        load_model: called when something is missing from the journal, at most once.
        model_hash: identifies the model's folder, see `loading.model_hash`.
        token_budget: tokens of context kept in memory at a time.
        precision: what the numbers depend on besides the model and its path, see `Session.numerics`.
        stops: see `decoding.requests.Sampling`.
        journal: where replies are kept.
        on_done: called with the number of prompts or continuations just finished.
        backend: decodes in the place of the model; see `mixsd.run.engines`. It is part of what `precision` names.
    """

    def __init__(
        self,
        load_model: Callable[[], PreTrainedModel],
        *,
        model_hash: str,
        precision: str,
        stops: dict[int, int],
        journal: Path,
        token_budget: int = Settings.model_fields["token_budget"].default,
        on_done: Callable[[int], None] = lambda count: None,
        backend: Callable[..., Iterator[Decoding]] | None = None,
    ) -> None:
        self._load_model = load_model
        self._model: PreTrainedModel | None = None
        self._identity = [model_hash, precision, sorted(stops.items())]
        self.stops = stops
        self.journal = Journal(journal)
        self.token_budget = token_budget
        self.on_done = on_done
        self._backend = backend
        self._places = {row["at"]: place for place, row in self.journal.read() if "at" in row}
        # The way in which the journal's replies were decoded; None where it has none of this model's.
        self._path_address = digest(["path", self._identity])
        place = self._places.get(self._path_address)
        self.path: str | None = None if place is None else self.journal.at(place)["path"]

    @property
    def model(self) -> PreTrainedModel:
        """The model, loaded at the first use."""
        if self._model is None:
            self._model = self._load_model()
        return self._model

    def replies(self, prompts: list[Prompt]) -> dict[str, Reply]:
        """The reply to each prompt by its key; what the journal lacks is generated, longest prompts first."""
        addresses = {prompt.key: self._address(prompt) for prompt in prompts}
        missing = {addresses[prompt.key]: prompt for prompt in prompts if addresses[prompt.key] not in self._places}
        if missing and self._takes_another_path():
            return self.replies(prompts)
        self.on_done(len(prompts) - len(missing))
        kinds: dict[tuple[float, int | None, bool], list[tuple[str, Prompt]]] = defaultdict(list)
        for address, prompt in missing.items():
            kinds[prompt.temperature if prompt.noise is not None else 0.0, prompt.top_k, prompt.lines].append((address, prompt))
        for (temperature, top_k, lines), asked in sorted(kinds.items(), key=lambda kind: str(kind[0])):
            sampling = Sampling(self._stops_of(lines), temperature=temperature, top_k=top_k)
            requests = [
                Request(address, prompt.ids, prompt.max_new_tokens, noise=prompt.noise)
                for address, prompt in _longest_first(asked)
            ]
            for decoding in self._decode(requests, sampling):
                row = {"at": decoding.key, "ids": decoding.ids, "truncated": not decoding.ended}
                self._places[decoding.key] = self.journal.append(row)
                self.on_done(1)
        return {key: _reply(self.journal.at(self._places[address])) for key, address in addresses.items()}

    def _address(self, prompt: Prompt) -> str:
        """What a reply is found by again: all that it depends on."""
        where = ["reply", self._identity, self.path, prompt.ids, prompt.max_new_tokens, prompt.noise_address]
        if self._stops_of(prompt.lines) != self.stops:
            where.append("lines")
        return digest(where)

    def _takes_another_path(self) -> bool:
        """Whether what is decoded now is decoded otherwise than what the journal holds; it is noted there."""
        path = "its own" if self._backend else f"{decoding_path(self.model)}, {cpu.path(self.model)}"
        if path == self.path:
            return False
        self.path = path
        self._places[self._path_address] = self.journal.append({"at": self._path_address, "path": path})
        return True

    def _stops_of(self, lines: bool) -> dict[int, int]:
        """The stop tokens; with `lines`, without the line breaks that are stored as another token."""
        return {token: stored for token, stored in self.stops.items() if token == stored} if lines else self.stops

    def _decode(self, requests: list[Request], sampling: Sampling) -> Iterator[Decoding]:
        if self._backend is None:
            return decode_all(self.model, requests, sampling, token_budget=self.token_budget)
        stream = iter(requests)
        return self._backend(lambda: next(stream, None), sampling, wants_logprobs=None, with_support=False, dropped=())

    def scores(self, pairs: dict[str, tuple[list[int], list[int]]]) -> dict[str, float]:
        """The summed NLL (nats) of each continuation after its prompt, by key."""
        addresses = {
            key: digest(["score", self._identity, prompt, continuation]) for key, (prompt, continuation) in pairs.items()
        }
        missing = iter([key for key in pairs if addresses[key] not in self._places])
        self.on_done(sum(address in self._places for address in addresses.values()))
        while window := list(islice(missing, SCORED_AT_ONCE)):
            for key, logprobs in zip(window, score(self.model, [pairs[key] for key in window]), strict=True):
                self._places[addresses[key]] = self.journal.append({"at": addresses[key], "nll": -sum(logprobs)})
            self.on_done(len(window))
        return {key: float(self.journal.at(self._places[address])["nll"]) for key, address in addresses.items()}

    def close(self) -> None:
        """Let go of the model and the journal's file."""
        self._model = None
        self.journal.close()


@contextmanager
def answering(
    session: Session,
    folder: Path,
    model_hash: str,
    journal: Path,
    *,
    load: Callable[[Path], PreTrainedModel] | None = None,
    engine: str = TRANSFORMERS,
    **options: Any,
) -> Iterator[Answerer]:
    """A model folder that answers as the session has it; `options` are those of `Answerer`, `load` is `load_to_decode` by default."""
    answerer = Answerer(
        lambda: (load or session.load_to_decode)(folder),
        model_hash=model_hash,
        precision=session.numerics if engine == TRANSFORMERS else f"{engine}/{session.numerics}",
        stops=session.renderer.stops.ids,
        journal=journal,
        token_budget=session.settings.token_budget,
        **options,
    )
    try:
        yield answerer
    finally:
        answerer.close()


def journal_of_base(model_hash: str) -> Path:
    """Where the replies of a base model are kept, for all runs."""
    return cache_folder() / "replies" / f"{model_hash}.jsonl"


def _longest_first(asked: list[tuple[str, Prompt]]) -> list[tuple[str, Prompt]]:
    """The longest prompts first, so that what does not fit shows at once; but those of one group side by side."""
    longest: dict[str, int] = {}
    for _, prompt in asked:
        longest[prompt.group] = max(longest.get(prompt.group, 0), len(prompt.ids))
    return sorted(asked, key=lambda item: (-longest[item[1].group], item[1].group, -len(item[1].ids)))


def _reply(row: dict[str, Any]) -> Reply:
    return Reply(row["ids"], row["truncated"])
