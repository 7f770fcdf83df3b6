"""The examples that the base model's Fisher is estimated on: what is asked, and the reply whose log-likelihood counts.

`benchmarks`, as in the paper: the held-out benchmarks whose data is at hand, as evenly as their sizes allow; the prompt is the one that
a model is asked with, the target the benchmark's own reference solution (the reply that its judge is proved on), rendered as a
reply by the one renderer, stop token included. Of the 14,042 questions of MMLU, say, those with the smallest draws at their own
addresses are taken, so a larger number contains a smaller one. What is longer than the model's context, or than 1,024 tokens with its
prompt, is passed over and counted, never cut: some solutions of AIME are 3,000 tokens long, and since log-likelihoods are summed over
tokens before they are squared, a few of them would be most of the estimate and of its cost.

`general`: the base model's own sampled replies to the bundled general prompts, which forgetting (Eq. 2) is measured with. It needs no
data. Since it is drawn from the model itself, this is the Fisher proper (up to sampling), not the empirical one on others' text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

from mixsd.analysis.fisher import Reference
from mixsd.errors import UserError
from mixsd.evaluation import core
from mixsd.evaluation.benchmarks.benchmark import HELD_OUT, Item, Means, get_benchmark
from mixsd.evaluation.benchmarks.data import Found, find
from mixsd.evaluation.replies import Answerer
from mixsd.facts import Fact
from mixsd.pipeline.session import Session
from mixsd.prompts import Renderer
from mixsd.randomness import uniforms
from mixsd.storage import cache_folder

Kind = Literal["benchmarks", "general"]
KINDS: tuple[str, ...] = get_args(Kind)
LONGEST = 1024  # tokens of an example, prompt and target
_SEED = 0  # the Fisher is the base model's and belongs to no run, so neither does its seed


@dataclass(frozen=True)
class References:
    """The examples that were taken. `counts` says how many from where, `passed_over` how many were too long, `why` how the kind came about."""

    kind: Kind
    why: str
    examples: tuple[Reference, ...]
    counts: dict[str, int]
    passed_over: int = 0


def gather(session: Session, number: int, kind: str | None) -> References:
    """Take `number` examples, or as many as there are.

    Args:
        session: the base model's; its `settings.data` is the folder of the benchmarks' data.
        kind: one of `KINDS`; None takes the benchmarks where data is at hand, else the general replies.

    Raises:
        UserError: an unknown kind, a bad number, or benchmarks that were asked for and are not at hand.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"--reference {kind}: unknown; use {' or '.join(KINDS)}")
    if number < 1:
        raise UserError(f"--examples {number}: at least one is needed")
    if kind == "general":
        return _general(session, number, "as asked for")
    found, problems = _at_hand(session)
    if not found:
        if kind == "benchmarks":
            raise UserError(f"--reference benchmarks: no benchmark's data is at hand ({problems[0]})")
        return _general(session, number, "no benchmark's data is at hand; name its folder with --data or $MIXSD_DATA")
    return _of_benchmarks(session, number, found, "as asked for" if kind else "their data is at hand")


def _at_hand(session: Session) -> tuple[dict[str, Found], list[str]]:
    found, problems = {}, []
    for name in HELD_OUT:
        try:
            found[name] = find(get_benchmark(name).source, session.settings.data, offline=True, only_at_hand=True)
        except UserError as error:
            problems.append(f"{name}: {error}")
    return found, problems


def _of_benchmarks(session: Session, number: int, found: dict[str, Found], why: str) -> References:
    """One of each benchmark in turn, until there are enough or none is left."""
    passed_over = 0

    def fitting(name: str) -> Iterator[Reference]:
        nonlocal passed_over
        items = get_benchmark(name).items(found[name], Means())
        for item in sorted(items, key=lambda item: (_draw(name, item), item.id)):
            example = _rendered(session.renderer, f"{name}/{item.id}", item)
            if len(example.prompt_ids) + len(example.target_ids) <= min(LONGEST, session.context):
                yield example
            else:
                passed_over += 1

    streams = {name: fitting(name) for name in found}
    taken: list[Reference] = []
    counts = dict.fromkeys(found, 0)
    while streams and len(taken) < number:
        for name in list(streams)[: number - len(taken)]:
            if (example := next(streams[name], None)) is None:
                del streams[name]
                continue
            taken.append(example)
            counts[name] += 1
    if not taken:
        raise UserError("none of the benchmarks' examples fits into the model's context; use --reference general")
    return References("benchmarks", why, tuple(taken), counts, passed_over)


def _draw(name: str, item: Item) -> float:
    return float(uniforms(_SEED, "evaluation", f"fisher/{name}/{item.content}", n=1)[0])


def _rendered(renderer: Renderer, key: str, item: Item) -> Reference:
    fact = Fact(id=key, question=item.user, answer=item.expected.answer, reference=item.reference)
    return Reference(key, tuple(renderer.naive(item.user)), tuple(renderer.reference(fact)))


def _general(session: Session, number: int, why: str) -> References:
    journal = cache_folder() / "replies" / f"{session.base_hash}.jsonl"
    # As an evaluation makes them, so that those that one has made are found.
    answerer = Answerer(
        session.load_to_read,
        model_hash=session.base_hash,
        precision=session.precision,
        stops=session.renderer.stops.ids,
        journal=journal,
        token_budget=session.settings.token_budget,
    )
    try:
        prompts = core.general_prompts(session.renderer)
        replies = core.sample_references(session.renderer, session.settings, answerer)
    finally:
        answerer.close()
    made = [Reference(f"general/{key}", tuple(prompts[key]), tuple(reply.ids)) for key, reply in replies.items() if reply.ids]
    made.sort(key=lambda example: float(uniforms(_SEED, "evaluation", f"fisher/{example.key}", n=1)[0]))
    taken = tuple(islice(made, number))
    return References("general", why, taken, {"general": len(taken)})
