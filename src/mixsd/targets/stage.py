"""The stage that makes the targets: decode, verify, retry with new coins, until every fact is accepted, rejected or unusable.

Each finished attempt is one line of the journal, so a killed run goes on where it was; since every coin has an address, the
result is the undisturbed one. Retries go before new facts, so facts finish in about the order they came in. What is kept
in memory per fact is its text and where its last attempt stands in the journal, not its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from mixsd.decoding.engine import decode, score
from mixsd.decoding.requests import REFERENCE, Decoding, Request, Sampling
from mixsd.errors import UserError
from mixsd.facts.answers import Expected, Verifier
from mixsd.facts.fact import Fact
from mixsd.facts.prompts import Renderer
from mixsd.run import engines
from mixsd.run.engines import TRANSFORMERS
from mixsd.run.session import Session, timed
from mixsd.settings import Settings
from mixsd.storage import Journal, Shard, left_beside, merge, write_jsonl
from mixsd.targets.attempts import Attempt, Case, Queue, break_at, is_last, next_attempt, record, reply_limit
from mixsd.targets.target import Target, TargetSummary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIRST_LOOK = 20  # finished facts after which fewer than half accepted is a warning
_SCORED_AT_ONCE = 64  # texts whose log-probabilities are measured together
DIGITS = 5  # decimals kept of a log-probability; they are promised to 1e-4


@dataclass
class Mixer:
    """Makes the targets of one run.

    Args:
        load_model: gives the base model; called when the first token is needed, not where the journal is finished and measured.
        settings: resolved.
        context: the model's context length in tokens.
        journal: `attempts.jsonl` of the run.
        say: gets one-line messages for the user.
        on_done: called as work finishes with (facts x samples finished, tokens decoded in this process).
        decode: decodes requests in the place of the base model on transformers; see `mixsd.run.engines`.
    """

    load_model: Callable[[], PreTrainedModel]
    renderer: Renderer
    settings: Settings
    verifier: Verifier
    context: int
    journal: Journal
    say: Callable[[str], None] = lambda text: None
    on_done: Callable[[int, int], None] = lambda finished, tokens: None
    decode: Callable[..., Iterator[Decoding]] | None = None

    @cached_property
    def sampling(self) -> Sampling:
        return Sampling(self.renderer.stops.ids, self.settings.temperature, self.settings.top_k, self.settings.gate)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The base model, loaded at the first use."""
        return self.load_model()

    def run(self, facts: list[Fact]) -> Iterator[Target]:
        """Yield one target per fact and sample, in the order of the facts.

        Raises `UserError`: no fact is usable, or `on_fail` is 'error' and a fact was not accepted.
        """
        cases, reasons = self._cases(facts)
        if not cases:
            first = facts[0].id
            raise UserError(f"no usable fact among {len(facts)}; the first one, {first}: {reasons[first]}")
        if self.settings.spec.mixes:
            self._decode_all(cases)
            failed = [case.fact.id for case in cases.values() if not case.accepted]
            if failed and self.settings.on_fail == "error":
                more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
                raise UserError(f"{len(failed)} facts were not accepted (--on-fail error): {', '.join(failed[:5])}{more}")
        window: list[Target] = []
        for fact in facts:
            for sample in range(self.settings.samples):
                if case := cases.get((fact.id, sample)):
                    window.append(self._outcome(case))
                else:
                    window.append(Target.unusable(fact.id, sample, reasons[fact.id]))
            if len(window) >= _SCORED_AT_ONCE:
                yield from _scored(window, lambda: self.model)
                window = []
        yield from _scored(window, lambda: self.model)

    def fill_journal(self, facts: list[Fact]) -> None:
        """Only decode and verify, until the journal holds what `run` needs; of references it needs nothing."""
        if self.settings.spec.mixes:
            self._decode_all(self._cases(facts)[0])

    def _cases(self, facts: list[Fact]) -> tuple[dict[tuple[str, int], Case], dict[str, str]]:
        """What is to be decoded, by fact and sample; and why the other facts cannot be."""
        reasons: dict[str, str] = {}
        cases: dict[tuple[str, int], Case] = {}
        for fact in facts:
            limit, reason = reply_limit(fact, self.renderer, self.settings, self.context)
            if reason:
                reasons[fact.id] = reason
            else:
                cases |= {(fact.id, sample): Case(fact, sample, limit) for sample in range(self.settings.samples)}
        return cases, reasons

    def _decode_all(self, cases: dict[tuple[str, int], Case]) -> None:
        for place, row in self.journal.read():
            case = cases.get((row["id"], row["sample"]))
            attempt = next_attempt(case, self.settings) if case else None
            if case and attempt and attempt.number == row["attempt"]:
                record(case, attempt, row, place)
        finished = sum(next_attempt(case, self.settings) is None for case in cases.values())
        tokens, looked = 0, finished >= FIRST_LOOK
        self.on_done(finished, tokens)
        if finished == len(cases):
            return
        queue = Queue(cases.values(), self.settings)
        judged: dict[str, dict[str, Any]] = {}

        def take() -> Request | None:
            if (found := queue.take()) is None:
                return None
            key, case, attempt = found
            naive, expert = self.renderer.naive(case.fact.question), self.renderer.expert(case.fact)
            return Request(key, naive, case.limit, expert, attempt.coins, attempt.noise, attempt.prefix)

        def is_final(decoding: Decoding) -> bool:  # then its log-probabilities are wanted; the verdict is kept
            case, attempt = queue.at(decoding.key)
            row = judged[decoding.key] = self._judged(case, attempt, decoding)
            return row["accepted"] or is_last(case, attempt, length=len(decoding.ids), settings=self.settings)

        decoder = self.decode or partial(decode, self.model, token_budget=self.settings.token_budget)
        from_break = self.settings.retry == "from-break"
        for decoding in decoder(take, self.sampling, wants_logprobs=is_final, with_support=from_break, dropped=queue.dropped):
            ended = judged.pop(decoding.key, None) or self._judged(*queue.at(decoding.key), decoding)
            if len(decoding.base_logprobs) == len(decoding.ids):
                ended["base_logprobs"] = [round(value, DIGITS) for value in decoding.base_logprobs]
            for case, attempt, row in queue.end(decoding.key, ended):  # none if it came ahead of its turn; later ones behind it
                record(case, attempt, row, self.journal.append(row))
                tokens += len(row["target_ids"]) - attempt.kept
                finished += next_attempt(case, self.settings) is None
            self.on_done(finished, tokens)
            if not looked and finished >= min(FIRST_LOOK, len(cases)):
                looked = True
                self._first_look(cases)

    def _judged(self, case: Case, attempt: Attempt, decoding: Decoding) -> dict[str, Any]:
        """The journal's line for a finished attempt. Accepted is a reply that states the answer and has ended by itself."""
        text = self.renderer.reply_text(decoding.ids)
        verdict = self.verifier(text, Expected(case.fact.answer, case.fact.aliases))
        reason = None
        if not decoding.ended:
            reason = f"did not end within {len(decoding.ids)} tokens"
        elif verdict.outcome != "correct":
            failed = f"the verifier failed: {verdict.reason}" if verdict.reason else "the verifier failed"
            reason = {"wrong": "does not state the answer", "unparseable": "holds no answer to check"}.get(
                verdict.outcome, failed
            )
        row = {
            "id": case.fact.id,
            "sample": case.sample,
            "attempt": attempt.number,
            "lambda": attempt.lam,
            "target_ids": decoding.ids,
            "sources": decoding.sources,
            "base_logprobs": [],  # those of a final one follow
            "text": text,
            "accepted": reason is None,
            "reason": reason,
        }
        if self.settings.retry == "from-break":
            row |= {"kept": attempt.kept, "broke_at": break_at(decoding, attempt.kept) if reason else None}
        return row

    def _first_look(self, cases: dict[tuple[str, int], Case]) -> None:
        done = [case for case in cases.values() if case.place is not None and next_attempt(case, self.settings) is None]
        accepted = sum(case.accepted for case in done)
        if accepted * 2 < len(done):
            self.say(
                f"only {accepted} of the first {len(done)} facts were accepted: try --gate 0.1, a smaller --lam, another --guidance or "
                "--verifier; `mixsd inspect` shows the attempts"
            )

    def _outcome(self, case: Case) -> Target:
        if not self.settings.spec.mixes or (not case.accepted and self.settings.on_fail == "canonical"):
            reason = "the reference itself: no attempt was accepted" if self.settings.spec.mixes else None
            counted: dict[str, Any] = {"sample": case.sample, "attempt": case.number, "decoded_tokens": case.decoded_tokens}
            return replace(_reference(case.fact, self.renderer), lam=self.settings.lam, reason=reason, **counted)
        assert case.place is not None
        row = self.journal.at(case.place)
        row["prompt_ids"], row["decoded_tokens"] = self.renderer.naive(case.fact.question), case.decoded_tokens
        return Target.from_json({**row, "canonical": self.renderer.is_canonical(row["target_ids"])})


def _reference(fact: Fact, renderer: Renderer) -> Target:
    prompt, ids = renderer.naive(fact.question), renderer.reference(fact)
    text, canonical = renderer.reply_text(ids), renderer.is_canonical(ids)
    return Target(
        fact.id, 0.0, 0, 0, prompt, ids, REFERENCE * len(ids), [], 0, text, accepted=True, reason=None, canonical=canonical
    )


def _scored(window: list[Target], model: Callable[[], PreTrainedModel]) -> Iterator[Target]:
    """Fill in the base log-probabilities that no decoding has measured."""
    if unread := [target for target in window if len(target.base_logprobs) < len(target.target_ids)]:
        found = score(model(), [(target.prompt_ids, target.target_ids) for target in unread])
        for target, logprobs in zip(unread, found, strict=True):
            target.base_logprobs[:] = [round(value, DIGITS) for value in logprobs]
    yield from window


def mix(session: Session) -> None:
    """Make `targets.jsonl`, one line per fact and sample, from the journal `attempts.jsonl`."""
    run, settings, facts = session.run, session.settings, session.part
    if run.targets_file.is_file():
        return
    if not facts:
        session.watcher.say(f"shard {settings.shard} holds none of the {len(session.facts)} facts")
        return
    if not settings.spec.needs_targets:
        return
    mixed = settings.spec.mixes
    with timed(session, "mix"), session.watcher.task("mixing" if mixed else "targets", len(facts) * settings.samples) as task:

        def on_done(finished: int, tokens: int) -> None:
            task.reach(finished, f"{tokens} tokens")

        if mixed and settings.backend != TRANSFORMERS:
            engines.fill_journal(session, on_done)  # so that below nothing is left to decode
        with mixing(session, on_done) as mixer:
            if settings.shard:
                mixer.fill_journal(facts)
                return
            write_jsonl(run.targets_file, _mixed_lines(session, mixer))


@contextmanager
def mixing(
    session: Session, on_done: Callable[[int, int], None], decode: Callable[..., Iterator[Decoding]] | None = None
) -> Iterator[Mixer]:
    """A mixer on the session's journal of attempts, which holds what shards have left."""
    file = session.run.attempts_file
    shard = Shard.of(session.settings.shard)
    if not shard:
        merge(left_beside(file), file, lambda row: (row["id"], row["sample"], row["attempt"]))
    with Journal(shard.beside(file) if shard else file) as journal:
        mixer = Mixer(session.load_to_decode, session.renderer, session.settings, session.verifier, session.context, journal)
        mixer.say, mixer.on_done, mixer.decode = session.watcher.say, on_done, decode
        yield mixer


def _mixed_lines(session: Session, mixer: Mixer) -> Iterator[dict[str, Any]]:
    """The lines of `targets.jsonl`; after the last one the references are scored and all is logged. None accepted is an error."""
    summary = TargetSummary()
    yield from _lines(mixer.run(session.facts), summary)
    if not summary.statuses["accepted"]:
        raise UserError(
            f"none of {len(session.facts)} facts was accepted; see the reasons in {session.run.attempts_file}, and try "
            "--gate 0.1, --lam 0, another --verifier or --on-fail canonical"
        )
    session.run.log("mixed", targets=summary.to_json(), reference=reference_statistics(session, mixer.model))


def reference_statistics(session: Session, model: PreTrainedModel) -> dict[str, Any]:
    """What training on the references as they are would have cost: their NLL under the base model (Eq. 3), always reported.

    Token by token it is in `references.jsonl`, in lines like those of `targets.jsonl`.
    """
    summary = TargetSummary()
    write_jsonl(session.run.references_file, _lines(measured_references(session, model), summary))
    return summary.to_json()


def _lines(targets: Iterable[Target], summary: TargetSummary) -> Iterator[dict[str, Any]]:
    for target in targets:
        summary.add(target)
        yield target.to_json()


def measured_references(session: Session, model: PreTrainedModel) -> Iterator[Target]:
    """The reference of every fact that can be asked, as a target, with its log-probabilities under the base model."""
    asked = [fact for fact in session.facts if not session.renderer.unusable(fact)]
    for start in range(0, len(asked), _SCORED_AT_ONCE):
        window = [_reference(fact, session.renderer) for fact in asked[start : start + _SCORED_AT_ONCE]]
        fitting = [target for target in window if len(target.prompt_ids) + len(target.target_ids) <= session.context]
        yield from _scored(fitting, lambda: model)
