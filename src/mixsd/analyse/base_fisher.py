"""The diagonal Fisher of a base model (Eq. 7), estimated once and shared: F_i = 1/N sum_n (d log p(y_n | x_n) / d theta_i)^2.

Its N examples are, as in the paper, reference solutions of the held-out benchmarks whose data is at hand; what is longer than the context
or 1,024 tokens is passed over, never cut: log-likelihoods are summed before they are squared, so a few solutions of AIME would be
most of the estimate. Or they are the base model's own replies to the general prompts of Eq. 2, which give the Fisher proper (up to
sampling), not the empirical one on others' text. One at a time, since the square of a sum is not the sum of squares: a hook squares
each gradient into an fp32 accumulator as soon as it is summed (a tied tensor's contributions too) and lets go of it. Examples go in the
order of their keys, and a stopped estimate goes on from saved sums, on CPU with the bits of an undisturbed one.
"""

from __future__ import annotations

import ctypes
import gc
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.evaluation.benchmarks.benchmark import HELD_OUT, Means, get_benchmark
from mixsd.evaluation.benchmarks.data import Found, find
from mixsd.evaluation.questions import answering, journal_of_base
from mixsd.facts.fact import Fact
from mixsd.models import loading
from mixsd.models.compat import recompute_activations, recomputing_layers, text_config
from mixsd.progress import Watcher
from mixsd.randomness import uniforms
from mixsd.run.folder import Run, go_offline
from mixsd.run.session import Session
from mixsd.settings import build
from mixsd.storage import atomic_folder, cache_folder, digest, read_json, sweep_leftovers, write_json
from mixsd.training.examples import UNSUPERVISED, Example, collate, usable
from mixsd.training.losses import chunked_nll, inseparable
from mixsd.training.states import padded_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = ("benchmarks", "general")
EXAMPLES = 64
LONGEST = 1024  # tokens of an example, prompt and target
_SEED = 0  # the Fisher is the base model's and belongs to no run, so neither does its seed
_VERSION = 1  # raised whenever the same examples come to give another estimate
_WEIGHTS, _RECORD = "fisher.safetensors", "fisher.json"
_TORN = (UserError, OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError)  # what reading them may meet
_SECONDS_BETWEEN_SAVES = 60.0
_SHARE_OF_SAVING = 20  # writing takes at most one part in so many of the time
_MMAP_THRESHOLD = -3  # what malloc.h calls M_MMAP_THRESHOLD
_LOGITS = 2**23  # that may exist at once: 32 MB in fp32, little beside the gradient of the head that they are made with


@dataclass(frozen=True)
class References:
    """The examples that were taken: how many from where, how many were too long, and `why` they are of this kind."""

    kind: str
    why: str
    examples: tuple[Example, ...]
    counts: dict[str, int]
    passed_over: int = 0


def gather(session: Session, number: int, kind: str | None) -> References:
    """Take `number` examples, or as many as there are, for the base model of a session.

    Those with the smallest draws at their own addresses are taken, so a larger number contains a smaller one. `kind` is one of
    `KINDS`; None takes the benchmarks where data is at hand, else the general replies.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"--reference {kind}: unknown; use {' or '.join(KINDS)}")
    if number < 1:
        raise UserError(f"--examples {number}: at least one is needed")
    found, problems = {}, []
    for name in HELD_OUT if kind != "general" else ():
        try:
            found[name] = find(get_benchmark(name).source, session.settings.data, offline=True, only_at_hand=True)
        except UserError as error:
            problems.append(f"{name}: {error}")
    if found:
        return _of_benchmarks(session, number, found, "as asked for" if kind else "their data is at hand")
    if kind == "benchmarks":
        raise UserError(f"--reference benchmarks: no benchmark's data is at hand ({problems[0]})")
    why = "as asked for" if kind else "no benchmark's data is at hand; name its folder with --data or $MIXSD_DATA"
    return _general(session, number, why)


def _of_benchmarks(session: Session, number: int, found: dict[str, Found], why: str) -> References:
    """One of each benchmark in turn, until there are enough or none is left."""
    passed_over = 0

    def fitting(name: str) -> Iterator[Example]:
        nonlocal passed_over
        items = get_benchmark(name).items(found[name], Means())
        for item in sorted(items, key=lambda item: (_draw(f"{name}/{item.content}"), item.id)):
            key = f"{name}/{item.id}"
            fact = Fact(id=key, question=item.user, answer=item.expected.answer, reference=item.reference)
            example = Example(key, tuple(session.renderer.naive(item.user)), tuple(session.renderer.reference(fact)))
            if len(example) <= min(LONGEST, session.context):
                yield example
            else:
                passed_over += 1

    streams = {name: fitting(name) for name in found}
    taken: list[Example] = []
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


def _general(session: Session, number: int, why: str) -> References:
    base = session.base_hash
    # As an evaluation makes them, so that those that one has made are found; the run, which may be read only, is left as it is.
    with answering(session, session.located.folder, base, journal_of_base(base), load=session.load_to_read) as answerer:
        prompts = suites.general_prompts(session.renderer)
        replies = suites.sample_references(session.renderer, session.settings, answerer)
    made = [Example(f"general/{key}", tuple(prompts[key]), tuple(reply.ids)) for key, reply in replies.items() if reply.ids]
    taken = tuple(islice(sorted(made, key=lambda example: _draw(example.key)), number))
    return References("general", why, taken, {"general": len(taken)})


def _draw(what: str) -> float:
    return float(uniforms(_SEED, "evaluation", f"fisher/{what}", n=1)[0])


@dataclass(frozen=True)
class Fisher:
    """An estimate as it lies on disk.

    `sums` are the sum of F (in fp64) and the number of weights, by parameter. `aliases` are further names of tied parameters,
    each with the name that F goes by.
    """

    key: str
    folder: Path
    sums: Mapping[str, tuple[float, int]]
    aliases: Mapping[str, str]
    record: Mapping[str, Any]

    @property
    def mean(self) -> float:
        """The mean of F over all weights."""
        return sum(total for total, _ in self.sums.values()) / sum(count for _, count in self.sums.values())

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The estimate's tensors, fp32, as safetensors gives them: `get_tensor(name)`, `get_slice(name)`."""
        with safe_open(self.folder / _WEIGHTS, framework="pt") as tensors:
            yield tensors


def base_fisher(
    model: str,
    *,
    reference: str | None = None,
    examples: int = EXAMPLES,
    data: str | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> tuple[Fisher, Session]:
    """The Fisher of a base model, from the cache where it has been estimated, and the session that its model was opened in.

    Args:
        reference: one of `KINDS`; None takes the benchmarks where their data is at hand.
        examples: how many reference examples.
        data: the folder of the benchmarks' data; else $MIXSD_DATA.
        options: settings of where and how the model is loaded: `device`, `dtype`, `offline`, `trust_remote_code`.
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
    return stored_fisher(cache_folder() / "fisher", key) or _estimated(session, found, key), session


def _estimated(session: Session, found: References, key: str) -> Fisher:
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
    # glibc, told so, gives large blocks back at once; else 0.3 GB of pieces stay with the built-in model.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**20)
    trusted = session.settings.trust_remote_code
    model = loading.load_model(session.located.folder, dtype=session.dtype, device=session.device, trust_remote_code=trusted)
    try:
        with session.watcher.task("Fisher", len(found.examples)) as task:
            nll, cache = target_nll(model, min(found.examples, key=len)), cache_folder() / "fisher"
            return diagonal_fisher(model, found.examples, nll, key=key, cache=cache, record=record, on_done=task.advance)
    finally:
        del model
        gc.collect()


def target_nll(model: PreTrainedModel, probe: Example) -> Callable[[Example], Tensor]:
    """A function that gives the summed NLL (nats) of an example's target with little memory for its backward pass.

    Activations are kept at the borders of the layers only, logits exist at supervised places, a chunk at a time. `probe` shows what
    the model can do.
    """
    chunk = max(1, _LOGITS // text_config(model.config).vocab_size)
    short = Example(probe.key, probe.prompt_ids[-16:], probe.target_ids[:16])
    dense = inseparable(model, collate([short]).to(model.device)) is not None

    def nll(example: Example) -> Tensor:
        batch = collate([example]).to(model.device)
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
    try:
        recompute_activations(model)
    except ValueError:
        return  # the family cannot
    # Not `train()`, which would switch on the dropout inside them.
    model.eval()
    for layer in recomputing_layers(model):
        layer.training = True


def fisher_key(references: Sequence[Example], *, model_hash: str, precision: str) -> str:
    """The name of the estimate that these references give: hash of model, examples, precision and code version."""
    examples = [[item.prompt_ids, item.target_ids] for item in sorted(references, key=lambda item: item.key)]
    return digest([_VERSION, model_hash, precision, len(references), digest(examples)])


def stored_fisher(cache: Path, key: str) -> Fisher | None:
    """A finished estimate from the cache, or None where there is no whole one."""
    folder = cache / key[:20]
    try:
        record = read_json(folder / _RECORD)
        with safe_open(folder / _WEIGHTS, framework="pt"):
            sums = {name: (total, count) for name, (total, count) in record["sums"].items()}
        return Fisher(key, folder, sums, record["aliases"], record)
    except _TORN:
        return None


def diagonal_fisher(
    model: PreTrainedModel,
    references: Sequence[Example],
    nll: Callable[[Example], Tensor],
    *,
    key: str,
    cache: Path,
    record: Mapping[str, Any] | None = None,
    on_done: Callable[[int], None] = lambda count: None,
    seconds_between_saves: float = _SECONDS_BETWEEN_SAVES,
) -> Fisher:
    """Estimate the Fisher of all of a model's weights, going on from where an earlier try was stopped: one fp32 tensor per parameter.

    `nll` gives the negative log-likelihood of an example's target, in nats, summed: a scalar to differentiate. `record` is written
    beside the numbers. A log-likelihood or gradient that is not finite is a `UserError`.
    """
    if not references:
        raise UserError("there is no reference example to estimate the Fisher on")
    usable(references, None)
    cache.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(cache, shared=True)
    parameters = dict(model.named_parameters())
    folder = cache / key[:20]
    partial = folder.with_name(f"{folder.name}-partial")
    done, sums = _resumed(partial, parameters)
    on_done(done)
    saved, cost = time.monotonic(), 0.0
    with _squaring(parameters, sums):
        for item in sorted(references, key=lambda item: item.key)[done:]:
            loss = nll(item)
            if not torch.isfinite(loss):
                raise UserError(f"the model's log-likelihood of {item.key} is not finite; its weights or --dtype may be at fault")
            loss.backward()  # type: ignore[no-untyped-call]
            done += 1
            on_done(1)
            began = time.monotonic()
            if done < len(references) and began - saved >= max(seconds_between_saves, _SHARE_OF_SAVING * cost):
                _save(partial, sums, {"done": done})
                saved = time.monotonic()
                cost = saved - began
    totals: dict[str, tuple[float, int]] = {}
    for name, tensor in sums.items():
        tensor.div_(done)
        total = float(tensor.sum(dtype=torch.float64 if tensor.device.type != "mps" else None))
        if not total < float("inf"):
            raise UserError(f"the squared gradient of {name} is not finite; its weights or --dtype may be at fault")
        totals[name] = (total, tensor.numel())
    known = {id(parameter): name for name, parameter in parameters.items()}
    everywhere = model.named_parameters(remove_duplicate=False)
    aliases = {name: known[id(parameter)] for name, parameter in everywhere if name not in parameters}
    whole = {"key": key, "version": _VERSION, "examples": done, **(record or {}), "aliases": aliases, "sums": totals}
    _save(folder, sums, whole)
    if partial.exists():
        # By renaming: half a removed folder must not look like a state to go on from.
        partial.rename(doomed := partial.with_name(f".{partial.name}.0.tmp"))
        shutil.rmtree(doomed)
    return Fisher(key, folder, totals, aliases, whole)


@contextmanager
def _squaring(parameters: Mapping[str, torch.nn.Parameter], sums: Mapping[str, Tensor]) -> Iterator[None]:
    """While it lasts, a backward pass adds the square of each gradient to `sums` and keeps none of them."""

    def hook(name: str) -> Callable[[Tensor], None]:
        def square(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            parameter.grad = None
            gradient = gradient.float()
            sums[name].addcmul_(gradient, gradient)

        return square

    handles = []
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(hook(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _resumed(partial: Path, parameters: Mapping[str, torch.nn.Parameter]) -> tuple[int, dict[str, Tensor]]:
    """How many examples an earlier try did, and its sums; zeros where there was none, or a torn one."""
    try:
        done = int(read_json(partial / _RECORD)["done"])
        sums = load_file(partial / _WEIGHTS)
        return done, {name: sums[name].to(parameter.device) for name, parameter in parameters.items()}
    except _TORN:
        return 0, {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}


def _save(folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    with atomic_folder(folder) as building:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, building / _WEIGHTS)
        write_json(building / _RECORD, dict(record))
