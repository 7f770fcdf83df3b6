"""Continuous decoding: whoever ends makes room at once, and only the conditional that a coin picks is evaluated.

Every request in flight takes one step per forward pass. The coins are known beforehand, so a step feeds only the conditional
that decides: the other one catches up on the tokens it has missed when its turn comes, in the same pass that makes its pick.
So each target token is read once by each conditional that is needed. A request's texts (its naive prompt and its expert prompt, each
followed by the same target) have a slot each in a pool of keys and values; a text that begins like one in the pool copies that beginning.

The log-probabilities of the target under the naive conditional (Eq. 3) fall out where that conditional is read; what is
missing at the end is read only for decodings that the caller wants it for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from mixsd.decoding.packed import Piece, Pool, forward
from mixsd.decoding.requests import EXPERT, GATED, NAIVE, Decoding, Request, Sampling, begin, pick, support, trim_support

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A beginning of so many tokens that another request is about to read is worth a step's wait.
_WORTH_WAITING = 16
_SHORT = 16  # tokens: a row that has no more to read takes its step in any case
_SCORED_AT_ONCE = 32  # rows of logits
_FIRST_ROOM = 64  # tokens of target for which a slot has room at first


class _Text:
    """One conditional's view of a request: its prompt and the target so far. `slot` is where its keys and values are."""

    def __init__(self, prompt: list[int], target: list[int]) -> None:
        self.prompt = prompt
        self.target = target
        self.slot: int | None = None

    def tokens(self, start: int, end: int) -> list[int]:
        """The tokens from position `start` to `end`."""
        n = len(self.prompt)
        if start >= n:
            return self.target[start - n : end - n]
        return self.prompt[start:end] + self.target[: max(0, end - n)]


class _Row:
    """One request in flight. `closing`: decoded, and only log-probabilities are missing."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.decoding = begin(request)
        self.naive = _Text(request.naive_ids, self.decoding.ids)
        self.expert = None if request.expert_ids is None else _Text(request.expert_ids, self.decoding.ids)
        self.closing = False

    @property
    def slots_needed(self) -> int:
        return 2 if self.expert is not None and self.request.naive_coins is not None and self.request.naive_coins.any() else 1

    @property
    def longest(self) -> int:
        """How many tokens the longer of its texts has; also one that is not being read may have its slot."""
        return max(self.length(text) for text in (self.naive, self.expert) if text)

    @property
    def placed(self) -> list[tuple[_Text, int]]:
        """The texts that have a slot, with it."""
        return [(text, text.slot) for text in (self.naive, self.expert) if text and text.slot is not None]

    def readers(self, gate: bool) -> list[_Text]:
        """The texts whose next-token logits the next step needs."""
        if self.closing or self.expert is None:
            return [self.naive]
        assert self.request.naive_coins is not None
        if not self.request.naive_coins[len(self.decoding.ids)]:
            return [self.expert]
        return [self.naive, self.expert] if gate else [self.naive]

    def length(self, text: _Text) -> int:
        """How many of the text's tokens have to be read: all that precede the logits that are needed."""
        return len(text.prompt) + len(self.decoding.ids) - self.closing


@dataclass
class _Reading:
    """What a step reads for one row: the pieces of its texts, and whether they reach the logits that decide."""

    row: _Row
    pieces: list[tuple[_Text, Piece]]
    complete: bool


def tokens_per_pass(*, on_cpu: bool) -> int:
    """Tokens read in one forward pass: as many as the device likes; a CPU gains nothing from more at once."""
    return 512 if on_cpu else 4096


def decode(
    model: PreTrainedModel,
    take: Callable[[], Request | None],
    sampling: Sampling,
    *,
    token_budget: int,
    step_tokens: int | None = None,
    wants_logprobs: Callable[[Decoding], bool] | None = None,
    with_support: bool = False,
    dropped: Collection[str] = (),
) -> Iterator[Decoding]:
    """Decode all requests; yields each one as it ends, and asks for new ones as soon as there is room.

    Args:
        model: in evaluation mode; its attention goes through transformers' attention interface.
        take: the next request, or None if there is none now; asked again after each decoding that was yielded.
        token_budget: tokens of context (keys and values) kept in memory at a time; one request is always served.
        step_tokens: tokens read in one forward pass at most, except that every row may take a step of a few tokens.
        wants_logprobs: asked when a decoding has ended, whether its `base_logprobs` are to be completed. None: none are computed.
        with_support: whether decodings carry `support`.
        dropped: keys of requests in flight that are no longer wanted; looked into before each pass. They end unfinished.
    """
    step_tokens = step_tokens or tokens_per_pass(on_cpu=model.device.type == "cpu")
    return _Decoder(model, take, sampling, token_budget, step_tokens, wants_logprobs, with_support, dropped).run()


@dataclass
class _Decoder:
    """The state of `decode`, whose arguments come first. `rows`: in flight, those that came first in front."""

    model: PreTrainedModel
    take: Callable[[], Request | None]
    sampling: Sampling
    token_budget: int
    step_tokens: int
    wants_logprobs: Callable[[Decoding], bool] | None
    with_support: bool
    dropped: Collection[str]
    pool: Pool = field(init=False)
    rows: list[_Row] = field(default_factory=list)
    waiting: list[_Row] = field(default_factory=list)  # to be let in before new ones

    @torch.inference_mode()
    def run(self) -> Iterator[Decoding]:
        first = self._next()
        if first is None:
            return
        self.pool = Pool(self.token_budget, first.longest + min(_FIRST_ROOM, first.request.max_new_tokens))
        self.waiting = [first]
        while self._admit():
            done = [row for row in self.rows if row.request.key in self.dropped] if self.dropped else []
            if not done:
                readings = self._plan()
                done = self._step(readings) if readings else []
            gone = {id(row) for row in done}
            self.rows = [row for row in self.rows if id(row) not in gone]
            for row in done:
                self._release(row)
            for row in done:
                trim_support(row.decoding)
                yield row.decoding

    # Who is in flight

    def _admit(self) -> bool:
        """Let requests in while there is room beside those in flight; False when nothing is left to do."""
        used = sum(row.slots_needed for row in self.rows)
        longest = max((row.longest for row in self.rows), default=0)
        while (row := self._next()) is not None:
            used, longest = used + row.slots_needed, max(longest, row.longest)
            if self.rows and used > self.pool.slots_at(self.pool.fitting(longest)):
                self.waiting.insert(0, row)
                return True
            self.rows.append(row)
        return bool(self.rows)

    def _next(self) -> _Row | None:
        if self.waiting:
            return self.waiting.pop(0)
        request = self.take()
        return None if request is None else _Row(request)

    def _release(self, row: _Row) -> None:
        for text, slot in row.placed:
            self.pool.release(slot)
            text.slot = None

    def _make_room(self) -> None:
        """Make the slots as long as the texts in flight need; the rows that came last wait where that leaves too few."""
        while True:
            capacity = self.pool.fitting(max(row.longest for row in self.rows))
            if len(self.rows) == 1 or sum(row.slots_needed for row in self.rows) <= self.pool.slots_at(capacity):
                break
            row = self.rows.pop()
            self._release(row)
            self.waiting.insert(0, row)
        if capacity == self.pool.capacity:
            return
        moved = self.pool.resize(capacity)
        for text, slot in [placed for row in self.rows for placed in row.placed]:
            text.slot = moved[slot]

    # What a step reads

    def _plan(self) -> list[_Reading]:
        """The pieces of the next pass: short ones of all rows, then long ones as far as `step_tokens` goes."""
        self._make_room()
        ready: list[tuple[int, _Row, list[_Text]]] = []
        about_to_be_read: set[int] = set()
        for row in self.rows:
            texts = row.readers(self.sampling.gate > 0)
            if all(self._place(row, text, about_to_be_read) for text in texts):
                ready.append((sum(row.length(text) - self._filled(text) for text in texts), row, texts))
                about_to_be_read.update(text.slot for text in texts if text.slot is not None)
        ready.sort(key=lambda item: item[0] > _SHORT)  # stable: long ones behind, else the oldest first
        left, readings = self.step_tokens, []
        for pending, row, texts in ready:
            if pending <= max(left, _SHORT):
                pieces = [(text, self._piece(text, row.length(text))) for text in texts]
                readings.append(_Reading(row, pieces, complete=True))
            elif left > 0:
                readings.append(_Reading(row, self._parts(row, texts, left), complete=False))
            left -= min(pending, left)
        return readings

    def _filled(self, text: _Text) -> int:
        assert text.slot is not None
        return int(self.pool.filled[text.slot])

    def _place(self, row: _Row, text: _Text, about_to_be_read: set[int]) -> bool:
        """Give a text its slot, with the longest beginning that is in the pool; False where a step's wait brings a longer one."""
        if text.slot is not None:
            return True
        tokens = np.array(text.tokens(0, row.length(text)))
        # The last token is read in any case, for its logits; and so is the target, where something is to be said about it.
        reusable = len(tokens) - 1
        if text is row.naive and self.wants_logprobs:
            reusable = len(text.prompt) - 1
        elif text is row.expert and self.with_support:
            reusable = len(text.prompt) - 1 + row.request.kept
        source, shared, expected = self.pool.longest_prefix(tokens[:reusable], about_to_be_read)
        if expected - shared >= _WORTH_WAITING:
            return False
        if row.closing and row.expert is not None and row.expert.slot is not None:
            self.pool.release(row.expert.slot)
            row.expert.slot = None
        text.slot = self.pool.take(source, tokens, shared)
        return True

    def _piece(self, text: _Text, end: int) -> Piece:
        start = self._filled(text)
        assert text.slot is not None
        return Piece(text.slot, start, text.tokens(start, end))

    def _parts(self, row: _Row, texts: list[_Text], room: int) -> list[tuple[_Text, Piece]]:
        """As much as there is room for, and never the last token of a text: its logits count when all texts are there."""
        pieces = []
        for text in texts:
            end = min(row.length(text) - 1, self._filled(text) + room)
            if end > self._filled(text):
                pieces.append((text, self._piece(text, end)))
                room -= len(pieces[-1][1].tokens)
        return pieces

    # What comes of it

    def _step(self, readings: list[_Reading]) -> list[_Row]:
        """One forward pass: every row whose texts were read to the end gets its next token. Returns the rows that are done."""
        pieces: list[Piece] = []
        by_expert: dict[int, tuple[int, int]] = {}
        by_naive: dict[int, tuple[int, int]] = {}
        scored: list[tuple[tuple[int, int], _Row, int]] = []
        judged: list[tuple[tuple[int, int], _Row, int]] = []
        for reading in readings:
            row = reading.row
            for text, piece in reading.pieces:
                place = len(pieces)
                pieces.append(piece)
                if reading.complete and not row.closing:
                    (by_naive if text is row.naive else by_expert)[id(row)] = (place, len(piece.tokens) - 1)
                first = len(text.prompt) - 1 - piece.start  # the token after which the target begins
                last = min(len(piece.tokens), len(row.decoding.ids) + first)
                if text is row.naive and self.wants_logprobs:
                    known = range(max(0, len(row.decoding.base_logprobs) + first), last)
                    scored += [((place, offset), row, row.decoding.ids[offset - first]) for offset in known]
                if text is row.expert and self.with_support:
                    known = range(max(0, row.request.kept + first), last)
                    judged += [((place, at), row, at - first) for at in known if row.decoding.sources[at - first] == NAIVE]
        wanted = [*by_expert.values(), *by_naive.values(), *(spot for spot, _, _ in scored), *(spot for spot, _, _ in judged)]
        logits = forward(self.model, self.pool, pieces, wanted)
        deciding = [reading.row for reading in readings if reading.complete and not reading.row.closing]
        self._choose(
            deciding, logits[: len(by_expert)], list(by_expert), logits[len(by_expert) :][: len(by_naive)], list(by_naive)
        )
        if judged:
            tokens = torch.tensor([row.decoding.ids[t] for _, row, t in judged], device=logits.device)
            for (_, row, t), value in zip(judged, support(logits[-len(judged) :], tokens).tolist(), strict=True):
                row.decoding.support[t] = value
        if self.wants_logprobs:
            rows = {id(row): row for row in deciding}
            # What was missed before what was just chosen: each row's log-probabilities are appended in the order of its ids.
            spots = [(len(by_expert) + len(by_naive) + i, row, token) for i, (_, row, token) in enumerate(scored)]
            spots += [(len(by_expert) + i, rows[key], rows[key].decoding.ids[-1]) for i, key in enumerate(by_naive)]
            for (_, row, _), logprob in zip(spots, _logprobs(logits, [(at, token) for at, _, token in spots]), strict=True):
                row.decoding.base_logprobs.append(logprob)
        return [reading.row for reading in readings if reading.complete and self._is_done(reading.row)]

    def _is_done(self, row: _Row) -> bool:
        decoding = row.decoding
        if not row.closing and not decoding.ended and len(decoding.ids) < row.request.max_new_tokens:
            return False
        if self.wants_logprobs and len(decoding.base_logprobs) < len(decoding.ids):
            row.closing = row.closing or self.wants_logprobs(decoding)
            return not row.closing
        return True

    def _choose(
        self, rows: list[_Row], expert_EV: torch.Tensor, experts: list[int], naive_NV: torch.Tensor, naives: list[int]
    ) -> None:
        """Give each row its next token: the picked conditional alone decides (Eq. 4), but for the gate."""
        sampling = self.sampling
        noise = {}
        if sampling.temperature > 0:
            noise = {id(row): row.request.noise[len(row.decoding.ids)] for row in rows if row.request.noise is not None}
        picked = []
        for logits, keys in ((expert_EV, experts), (naive_NV, naives)):
            values = torch.tensor([noise[key] for key in keys], dtype=torch.float64, device=logits.device) if noise else None
            picked.append(dict(zip(keys, pick(logits, values, sampling).tolist(), strict=True)) if keys else {})
        expert_token, naive_token = picked
        supports: dict[int, float] = {}
        if both := [key for key in naives if key in expert_token]:
            tokens = torch.tensor([naive_token[key] for key in both], device=expert_EV.device)
            at = {key: place for place, key in enumerate(experts)}
            supports = dict(zip(both, support(expert_EV[[at[key] for key in both]], tokens).tolist(), strict=True))
        for row in rows:
            key, decoding = id(row), row.decoding
            gated = key in supports and sampling.is_implausible(supports[key])
            by_naive = key in naive_token and not gated
            token = naive_token[key] if by_naive else expert_token[key]
            decoding.sources += NAIVE if by_naive else GATED if gated else EXPERT
            if self.with_support and by_naive and key in supports:
                decoding.support[len(decoding.ids)] = supports[key]
            decoding.ended = token in sampling.stops
            decoding.ids.append(sampling.stops.get(token, token))


def _logprobs(logits: torch.Tensor, spots: list[tuple[int, int]]) -> list[float]:
    """Natural-log probabilities of (row, token) spots, full softmax at T = 1, a few rows at a time."""
    found: list[float] = []
    for start in range(0, len(spots), _SCORED_AT_ONCE):
        rows, tokens = (
            torch.tensor(column, device=logits.device) for column in zip(*spots[start : start + _SCORED_AT_ONCE], strict=True)
        )
        chunk = logits[rows]
        if chunk.dtype in (torch.bfloat16, torch.float16):
            chunk = chunk.float()
        found += (chunk.gather(-1, tokens[:, None]).squeeze(-1) - chunk.logsumexp(dim=-1)).tolist()
    return found
