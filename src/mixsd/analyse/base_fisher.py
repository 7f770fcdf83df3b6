"""The Fisher of a base model, estimated once and shared by every analysis and run.

It is estimated on examples, of what is asked and the reply whose log-likelihood counts, of one of two kinds.

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

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mixsd.analyse.estimate import Fisher, Reference, diagonal_fisher, fisher_key, stored_fisher
from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.evaluation.benchmarks.benchmark import HELD_OUT, Item, Means, get_benchmark
from mixsd.evaluation.benchmarks.data import Found, find
from mixsd.evaluation.questions import answering, journal_of_base
from mixsd.facts.fact import Fact
from mixsd.facts.prompts import Renderer
from mixsd.models import loading
from mixsd.progress import Watcher
from mixsd.randomness import uniforms
from mixsd.run.folder import Run, go_offline
from mixsd.run.session import Session
from mixsd.settings import build
from mixsd.storage import cache_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

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
    base = session.base_hash
    # As an evaluation makes them, so that those that one has made are found; the run, which may be read only, is left as it is.
    with answering(session, session.located.folder, base, journal_of_base(base), load=session.load_to_read) as answerer:
        prompts = suites.general_prompts(session.renderer)
        replies = suites.sample_references(session.renderer, session.settings, answerer)
    made = [Reference(f"general/{key}", tuple(prompts[key]), tuple(reply.ids)) for key, reply in replies.items() if reply.ids]
    made.sort(key=lambda example: float(uniforms(_SEED, "evaluation", f"fisher/{example.key}", n=1)[0]))
    taken = tuple(islice(made, number))
    return References("general", why, taken, {"general": len(taken)})


EXAMPLES = 64
_MMAP_THRESHOLD = -3  # what malloc.h calls M_MMAP_THRESHOLD
_LOGITS = 2**23  # that may exist at once: 32 MB in fp32, little beside the gradient of the head that they are made with


def base_fisher(
    model: str,
    *,
    reference: str | None = None,
    examples: int = EXAMPLES,
    data: str | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> tuple[Fisher, Session]:
    """The diagonal Fisher of a base model (Eq. 7), from the cache where it has been estimated.

    Args:
        model: the base model, as for --model.
        reference: 'benchmarks' or 'general'; None takes the benchmarks where their data is at hand.
        examples: how many reference examples.
        data: the folder of the benchmarks' data; else $MIXSD_DATA.
        options: settings of where and how the model is loaded: `device`, `dtype`, `offline`, `trust_remote_code`.

    Returns:
        the estimate, and the session that its model was opened in.

    Raises:
        UserError: any bad input.
    """
    watcher = watcher or Watcher()
    settings = build({"model": model, "data": data, **options}, "options").resolved
    if settings.offline:
        go_offline()
    located = loading.locate(settings.model, revision=settings.revision, offline=settings.offline, say=watcher.say)
    session = Session(Run(Path(".")), settings, located, loading.model_hash(located.folder), [], 0, watcher)
    found = gather(session, examples, reference)
    parts = ", ".join(f"{name} {count}" for name, count in found.counts.items() if count)
    watcher.say(f"Fisher of {model} on {len(found.examples)} examples of {found.kind} ({found.why}): {parts}")
    key = fisher_key(found.examples, model_hash=session.base_hash, precision=session.numerics)
    cache = cache_folder() / "fisher"
    return stored_fisher(cache, key) or _estimated(session, found, key, cache), session


def _estimated(session: Session, found: References, key: str, cache: Path) -> Fisher:
    record = {
        "model": session.settings.model,
        "model_hash": session.base_hash,
        "precision": session.precision,
        "reference": found.kind,
        "counts": found.counts,
        "passed_over": found.passed_over,
        "tokens": sum(len(example.target_ids) for example in found.examples),
        "keys": sorted(example.key for example in found.examples),
    }
    _blocks_apart()
    model = loading.load_model(
        session.located.folder,
        dtype=session.dtype,
        device=session.device,
        trust_remote_code=session.settings.trust_remote_code,
    )
    try:
        with session.watcher.task("Fisher", len(found.examples)) as task:
            nll = target_nll(model, min(found.examples, key=lambda example: len(example.prompt_ids) + len(example.target_ids)))
            return diagonal_fisher(model, found.examples, nll, key=key, cache=cache, record=record, on_done=task.advance)
    finally:
        del model
        gc.collect()


def _blocks_apart() -> None:
    """Have the C library take large blocks from the system one by one, and give each back at once.

    Else what every layer needed for a moment stays behind in pieces that do not fit together: with the built-in model 0.3 GB of it.
    """
    with suppress(OSError, AttributeError):  # glibc has it, others do not
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**20)


def target_nll(model: PreTrainedModel, probe: Reference) -> Callable[[Reference], torch.Tensor]:
    """A function that gives the summed NLL (nats) of an example's target, made so that its backward pass needs little memory.

    Activations are kept at the borders of the layers only, and logits exist at the supervised places, a chunk at a time.

    Args:
        probe: an example to try on what the model can do.
    """
    import torch

    from mixsd.models.compat import text_config
    from mixsd.training.examples import UNSUPERVISED, Example, collate
    from mixsd.training.losses import chunked_nll, inseparable
    from mixsd.training.states import padded_states

    chunk = max(1, _LOGITS // text_config(model.config).vocab_size)
    short = Example(probe.key, probe.prompt_ids[-16:], probe.target_ids[:16])
    dense = inseparable(model, collate([short]).to(model.device)) is not None

    def nll(example: Reference) -> torch.Tensor:
        batch = collate([Example(example.key, example.prompt_ids, example.target_ids)]).to(model.device)
        labels = batch.labels[:, 1:]
        states = padded_states(model, batch, chunk=chunk, dense=dense)
        return chunked_nll(states.rows, states.head, labels[labels != UNSUPERVISED], states.chunk).sum()

    with torch.no_grad():
        expected = nll(probe)
        _recompute_layers(model)
        same = torch.equal(nll(probe), expected)
    if not same:
        model.eval()  # a layer that does something else when it trains: its activations are kept
    return nll


def _recompute_layers(model: PreTrainedModel) -> None:
    """Make the layers compute their activations again in the backward pass, and nothing but them behave as in training."""
    from mixsd.models.compat import recompute_activations, recomputing_layers

    try:
        recompute_activations(model)
    except ValueError:
        return  # the family cannot
    # Not `train()`, which would switch on the dropout inside them.
    model.eval()
    for layer in recomputing_layers(model):
        layer.training = True
