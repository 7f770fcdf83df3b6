"""MEMIT: many facts written into the weights at once, without training (Meng et al. 2023).

For the facts of one subject a value is sought: a single delta that, added to the last edited layer's output at the subject's last
token, makes each fact's target likely behind every prefix:

    mean NLL per target token  +  kl_factor * KL(now || before) after "{subject} is a"  +  v_weight_decay * |delta|^2 / |h|^2

by Adam, delta held to clamp_norm_factor * |h| (h: that hidden state before). Facts of one subject share the delta because their
keys are all but the same, and a matrix gives one key one value: two deltas would be averaged in the update, and neither said.

Then down_proj of a stretch of layers is changed in closed form. For keys k_i (the input of down_proj at the subject's last token)
that shall give r_i more than they do, among ordinary keys with the second moment C that shall give what they did, the change D
of the matrix minimizes

    sum_i |D k_i - r_i|^2  +  weight * mean over ordinary keys |D k|^2,    so  D = R K^T (weight * C + K K^T)^-1

Going up through the layers, each takes an equal part of what is still missing at the last one; what it does not achieve is left to
the next, and the last takes all.

Every fact ends as edited, failed or unusable, with the reason. `edited` says that the model with the new weights, decoding
greedily, goes on with the whole target after the very prompt that was edited. Values are what takes time, and go into a journal,
so that a killed edit goes on where it was. The weights change only at the end, and go back if what comes out is not finite.

Limits: only facts with a subject, whose edits are one-way (the answer does not come to know its subject).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from mixsd.decoding.engine import TOKENS_PER_PASS
from mixsd.decoding.requests import padded_batches
from mixsd.editing.edits import (
    EditPrompt,
    MemitConfig,
    UnusableError,
    edit_prompts,
    essence,
    layers_of,
    sampled_prefixes,
    weight_of,
)
from mixsd.editing.parts import Moments, Reader, before_norm, check_path, down_projection, read, reading
from mixsd.errors import MixsdError, UserError
from mixsd.facts.fact import Fact, normalized
from mixsd.facts.prompts import Renderer
from mixsd.models.folder import probe_ids
from mixsd.models.loading import context_length
from mixsd.storage import Journal, digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class FactEdit:
    """What became of one fact.

    `before`, `value` and `after` are summed log-probabilities (nats) of the target after the bare prompt: under the base model,
    with the value put in by hand, and under the edited weights. `tokens` is the target's length, `steps` the value's.
    """

    id: str
    status: Literal["edited", "failed", "unusable"]
    reason: str | None = None
    before: float | None = None
    value: float | None = None
    after: float | None = None
    tokens: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class EditResult:
    """The facts in their order; by layer, the size of the change beside that of the matrix; the second moments' weight and tokens."""

    facts: list[FactEdit]
    changes: dict[int, float]
    weight: float
    moment_tokens: int
    prefixes: list[str]

    def count(self, status: str) -> int:
        """How many facts ended so."""
        return sum(fact.status == status for fact in self.facts)


def edit(
    model: PreTrainedModel,
    renderer: Renderer,
    facts: Sequence[Fact],
    moments: Moments,
    config: MemitConfig,
    *,
    seed: int = 0,
    journal: Journal | None = None,
    on_done: Callable[[int], None] = lambda count: None,
) -> EditResult:
    """Write facts into a model's weights (fp32 or fp64, in evaluation mode), in place. Those of one subject share a value.

    `moments` are those of the layers to be edited, of this very model; `seed` is of the prefixes; `journal` keeps values for a rerun;
    `on_done` is told the number of facts whose value was just found, or which have none.

    Raises:
        UserError: MEMIT does not know how the model is built, or there was too little text for its second moments.
        MixsdError: the edited model is not finite; its weights are what they were.
    """
    layers = layers_of(config, model.config)
    for layer in layers:
        check_path(model, layer)
        if moments.tokens < (inputs := down_projection(model, layer).in_features):
            raise UserError(
                f"memit: the second moments of layer {layer} were taken over {moments.tokens} tokens, fewer than its {inputs} "
                "inputs; give more text"
            )
    prefixes = sampled_prefixes(model, renderer.tokenizer, count=config.prefixes, tokens=config.prefix_tokens, seed=seed)
    outcomes: dict[int, FactEdit] = {}
    subjects: dict[str, tuple[str, dict[int, list[EditPrompt]]]] = {}  # its name, and its facts' prompts by their index
    for index, fact in enumerate(facts):
        try:
            prompts = edit_prompts(fact, renderer, config, prefixes, context_length(model.config))
        except UnusableError as error:
            outcomes[index] = FactEdit(fact.id, "unusable", str(error))
            on_done(1)
            continue
        name = fact.subject or ""
        subjects.setdefault(normalized(name).casefold(), (name, {}))[1][index] = prompts
    values = _Values(model, layers[-1], config, moments.model_hash, journal)
    found: list[tuple[int, list[EditPrompt], Value, int]] = []
    for name, own in subjects.values():
        value = values.of(list(own.values()), essence(name, renderer.tokenizer))
        for number, (index, prompts) in enumerate(own.items()):
            if value.finite:
                found.append((index, prompts, value, number))
            else:
                reason = "its value is not finite, so it was left out of the update; try a smaller v_lr"
                outcomes[index] = FactEdit(facts[index].id, "failed", reason, tokens=len(prompts[0].target), steps=value.steps)
        on_done(len(own))
    changes: dict[int, float] = {}
    weight = weight_of(config, model.config, down_projection(model, layers[-1]).in_features)
    if found:
        deltas = torch.stack([value.delta for _, _, value, _ in found])
        with _restored_on_error(model, layers):
            changes = spread(model, layers, moments, weight, [prompts for _, prompts, _, _ in found], deltas)
            _check_finite(model, layers)
            for index, prompts, value, number in found:
                outcomes[index] = _outcome(model, layers[-1], facts[index], prompts[0], value, number)
    return EditResult([outcomes[index] for index in range(len(facts))], changes, weight, moments.tokens, prefixes)


def _check_finite(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Raise `MixsdError` where an edited matrix, or what the model says to a few ids, is not finite."""
    for layer in layers:
        if not down_projection(model, layer).weight.isfinite().all():
            raise _not_finite(f"the edited down_proj of layer {layer} is")
    with torch.no_grad():
        if not model(input_ids=probe_ids(model), use_cache=False).logits.isfinite().all():
            raise _not_finite("the edited model's logits are")


def _not_finite(what: str) -> MixsdError:
    return MixsdError(f"memit: {what} not finite; the weights were put back; try other layers or a larger second_moment_weight")


class _Values:
    """The values of subjects: found now, or in the journal by what decides them."""

    def __init__(self, model: PreTrainedModel, layer: int, config: MemitConfig, model_hash: str, journal: Journal | None) -> None:
        self.model, self.layer, self.config, self.journal = model, layer, config, journal
        # What comes after a value does not decide it.
        settings = {name: value for name, value in asdict(config).items() if name not in ("layers", "second_moment_weight")}
        self.identity = ["memit value", model_hash, str(model.dtype), layer, settings]
        self.places = {row["at"]: place for place, row in journal.read() if "at" in row} if journal else {}

    def of(self, prompts: list[list[EditPrompt]], kept: EditPrompt) -> Value:
        """The value of one subject, whose facts have these prompts; see `optimize`."""
        read = [[[prompt.ids, prompt.place, prompt.target] for prompt in own] for own in prompts]
        address = digest([self.identity, read, kept.ids])
        if self.journal and address in self.places:
            row = self.journal.at(self.places[address])
            delta = torch.tensor(row["delta"], dtype=self.model.dtype, device=self.model.device)
            return Value(delta, row["before"], row["reached"], row["said"], row["steps"])
        value = optimize(self.model, self.layer, prompts, kept, self.config)
        if self.journal and value.finite:
            # A number of either precision is read back as it was from its shortest decimal.
            row = {"before": value.before, "reached": value.reached, "said": value.said, "steps": value.steps}
            self.places[address] = self.journal.append({"at": address, **row, "delta": value.delta.tolist()})
        return value


def _outcome(model: PreTrainedModel, layer: int, fact: Fact, prompt: EditPrompt, value: Value, number: int) -> FactEdit:
    """What the edited model makes of one fact, `number` among those of its subject."""
    after, says = Reader(model, layer, [prompt]).bare(None)
    if not math.isfinite(after):
        raise _not_finite(f"what the edited model says of fact {fact.id} is")
    reason = None
    if not says:
        said = value.said[number]
        why = "the update fell short of its value" if said else f"no value was found that says it in {value.steps} steps"
        reason = f"greedy decoding after the edited prompt does not give the target: {why}"
    status: Literal["edited", "failed"] = "edited" if says else "failed"
    return FactEdit(fact.id, status, reason, value.before[number], value.reached[number], after, len(prompt.target), value.steps)


@contextmanager
def _restored_on_error(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[None]:
    """Put the layers' matrices back if the block fails: half an edit is none."""
    weights = [down_projection(model, layer).weight for layer in layers]
    before = [weight.detach().to("cpu", copy=True) for weight in weights]
    try:
        yield
    except BaseException:
        for weight, saved in zip(weights, before, strict=True):
            weight.detach().copy_(saved)
        raise


@dataclass(frozen=True)
class Value:
    """What the optimization found for the facts of one subject.

    `delta` (H,) is what is added to the hidden state. `before` and `reached`: each fact's summed log-probability (nats) of its
    target after its bare prompt, without and with delta; `said`: whether each target is what greedy decoding gives with delta.
    """

    delta: Tensor
    before: list[float]
    reached: list[float]
    said: list[bool]
    steps: int

    @property
    def finite(self) -> bool:
        """Whether everything in it is a number."""
        return bool(self.delta.isfinite().all() and torch.tensor([*self.before, *self.reached]).isfinite().all())


def optimize(
    model: PreTrainedModel, layer: int, prompts: Sequence[Sequence[EditPrompt]], essence: EditPrompt, config: MemitConfig
) -> Value:
    """Find the delta for the facts of one subject, added to the output of `layer`, the last one to be edited.

    `prompts`: for each fact its prompts, the bare one first. `essence`: the prompt of `edits.essence`.
    """
    with _held(model):
        # The last row of the first reader is the essence: one pass more would read all the weights again for a few tokens.
        readers = [Reader(model, layer, [*own, essence] if not number else own) for number, own in enumerate(prompts)]
        with torch.no_grad():
            before = [reader.bare(None)[0] for reader in readers]
            base = torch.log_softmax(readers[0].logits(None)[-1, -1], dim=-1)
        norm = torch.stack([reader.hidden[0].norm() for reader in readers]).mean()
        delta = torch.zeros_like(readers[0].hidden[0], requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=config.v_lr)
        steps = 0
        while steps < config.steps:
            optimizer.zero_grad()
            if _backward(readers, base, delta, norm, config) < config.stop_loss:
                break
            optimizer.step()
            steps += 1
            with torch.no_grad():
                delta.mul_((config.clamp_norm_factor * norm / delta.norm()).clamp(max=1.0))
        with torch.no_grad():
            reached, said = zip(*(reader.bare(delta) for reader in readers), strict=True)
    return Value(delta.detach(), before, list(reached), list(said), steps)


def _backward(readers: list[Reader], base: Tensor, delta: Tensor, norm: Tensor, config: MemitConfig) -> float:
    """Add the loss's gradient to delta's, one fact at a time; return the largest NLL among the facts."""
    worst = 0.0
    for number, reader in enumerate(readers):
        logits = reader.logits(delta)
        nll = -torch.stack([logprobs.mean() for logprobs in reader.target_logprobs(logits) if len(logprobs)]).mean()
        loss = nll / len(readers)
        if not number:
            now = torch.log_softmax(logits[-1, -1], dim=-1)
            drift = functional.kl_div(base, now, log_target=True, reduction="sum")
            loss = loss + config.kl_factor * drift + config.v_weight_decay * delta.square().sum() / norm.square()
        loss.backward()  # type: ignore[no-untyped-call]
        # What is no number must not pass for a small one.
        worst = max(worst, nll.item()) if nll.isfinite() else float("inf")
    return worst


@contextmanager
def _held(model: PreTrainedModel) -> Iterator[None]:
    """No gradient for the weights."""
    wanting = [parameter.requires_grad_(False) for parameter in model.parameters() if parameter.requires_grad]
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)


def least_squares(moment: Tensor, weight: float, keys_ND: Tensor, residuals_NH: Tensor) -> Tensor:
    """The change (H, D) of a matrix that gives the residuals for the keys and little else; fp64 on the CPU.

    A second moment that does not hold every direction is a `UserError`.
    """
    keys, residuals = keys_ND.double().cpu(), residuals_NH.double().cpu()
    system = weight * moment + keys.T @ keys
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed.item():
        raise UserError("memit: too little text for the second moments: they do not span the layer's inputs; give more of it")
    return residuals.T @ torch.cholesky_solve(keys.T, factor).T


def spread(
    model: PreTrainedModel,
    layers: Sequence[int],
    moments: Moments,
    weight: float,
    prompts: Sequence[Sequence[EditPrompt]],
    deltas_NH: Tensor,
    on_layer: Callable[[int], None] = lambda layer: None,
) -> dict[int, float]:
    """Change the layers' down_proj, in place, so that each fact's hidden state at the last one moves by its delta.

    A fact's key, and how far its hidden state has moved, are means over its prompts. Returns the size of each layer's change
    beside that of its matrix (Frobenius norms).
    """
    last = layers[-1]
    before_NH: Tensor | None = None
    changes = {}
    for number, layer in enumerate(layers):
        keys_ND, outputs_NH, now_NH = keys_of(model, layer, prompts, last)
        before_NH = now_NH if before_NH is None else before_NH
        share_NH = (deltas_NH - (now_NH - before_NH)) / (len(layers) - number)
        weights = down_projection(model, layer).weight
        wanted = before_norm(model, layer, outputs_NH, share_NH)
        change = least_squares(moments.matrix(layer), weight, keys_ND, wanted)
        changes[layer] = (change.norm() / weights.detach().double().norm().cpu()).item()
        with torch.no_grad():
            weights.add_(change.to(weights))
        on_layer(layer)
    return changes


def keys_of(
    model: PreTrainedModel, layer: int, prompts: Sequence[Sequence[EditPrompt]], last: int
) -> tuple[Tensor, Tensor, Tensor]:
    """For each fact, at its subject's last token, means over its prompts: the key (N, D) and the output (N, H) of the layer's
    down_proj, and the hidden state (N, H) that layer `last` gives."""
    projection = down_projection(model, layer)
    rows = [prompt.ids[: prompt.place + 1] for own in prompts for prompt in own]
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for batch in padded_batches(list(map(len, rows)), TOKENS_PER_PASS):
        with reading(model, [layer], last) as seen:
            read(model, [rows[i] for i in batch])
        with torch.no_grad():
            keys = seen[layer][:, -1]
            for i, key, output, hidden in zip(batch, keys, projection(keys), seen["hidden"][:, -1], strict=True):
                found[i] = key, output, hidden
    means, at = [], iter(range(len(rows)))
    for own in prompts:
        of_fact = [found[next(at)] for _ in own]
        means.append([torch.stack(parts).mean(dim=0) for parts in zip(*of_fact, strict=True)])
    keys_ND, outputs_NH, hidden_NH = (torch.stack(parts) for parts in zip(*means, strict=True))
    return keys_ND, outputs_NH, hidden_NH
