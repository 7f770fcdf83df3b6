"""MEMIT: many facts written into the weights at once, without training (Meng et al. 2023).

For each subject a value is sought (`values`): what the hidden state at the subject's last token would have to be for the model
to go on with the answer. Then down_proj of a stretch of layers is changed in closed form (`values.spread`) so that the subject's keys
give these values while ordinary keys, known by their second moments (`moments`), give what they did.

Every fact ends as edited, failed or unusable, with the reason. `edited` says that the model with the new weights, decoding
greedily, goes on with the whole target after the very prompt that was edited; whether it answers the question in its own words is
for the evaluation to say. Values are what takes time, and go into a journal, so that a killed edit goes on where it was. The
weights change only at the end, and go back to what they were if what comes out is not finite.

Limits: only facts with a subject, whose edits are one-way (the answer does not come to know its subject).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mixsd.editing.config import MemitConfig, layers_of, weight_of
from mixsd.editing.moments import Moments
from mixsd.editing.parts import Reader, check_path, down_projection
from mixsd.editing.subjects import EditPrompt, UnusableError, edit_prompts, essence, sampled_prefixes
from mixsd.editing.values import Value, optimize, spread
from mixsd.errors import MixsdError, UserError
from mixsd.facts.fact import Fact, normalized
from mixsd.facts.prompts import Renderer
from mixsd.models.compat import text_config
from mixsd.models.loading import context_length
from mixsd.storage import Journal, digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBE_TOKENS = 8


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
    """The facts in their order, and what was changed: by layer, the size of the change beside that of the matrix.

    `weight` is that of the second moments, which are means over `moment_tokens` tokens.
    """

    facts: list[FactEdit]
    changes: dict[int, float]
    weight: float
    moment_tokens: int
    prefixes: list[str]

    def count(self, status: str) -> int:
        """How many facts ended so."""
        return sum(fact.status == status for fact in self.facts)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)


@dataclass
class _Subject:
    """The facts of one subject, by their index, with their prompts."""

    name: str
    facts: list[int]
    prompts: list[list[EditPrompt]]


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
    """Write facts into a model's weights, in place.

    Args:
        model: the base model, in fp32 or fp64 and in evaluation mode.
        facts: what it shall know; those of one subject share a value.
        moments: the second moments of the layers to be edited, of this very model.
        seed: of the prefixes.
        journal: where values are kept; a rerun finds them there.
        on_done: told the number of facts whose value was just found, or which have none.

    Raises:
        UserError: the model is built in a way that MEMIT does not know, or there was too little text for its second moments.
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
    subjects: dict[str, _Subject] = {}
    for index, fact in enumerate(facts):
        try:
            prompts = edit_prompts(fact, renderer, config, prefixes, context_length(model.config))
        except UnusableError as error:
            outcomes[index] = FactEdit(fact.id, "unusable", str(error))
            on_done(1)
            continue
        subject = subjects.setdefault(normalized(fact.subject or "").casefold(), _Subject(fact.subject or "", [], []))
        subject.facts.append(index)
        subject.prompts.append(prompts)
    values = _Values(model, layers[-1], config, moments.model_hash, journal)
    found: list[tuple[int, list[EditPrompt], Value, int]] = []
    for subject in subjects.values():
        value = values.of(subject, renderer)
        for number, (index, prompts) in enumerate(zip(subject.facts, subject.prompts, strict=True)):
            if value.finite:
                found.append((index, prompts, value, number))
            else:
                reason = "its value is not finite, so it was left out of the update; try a smaller v_lr"
                outcomes[index] = FactEdit(facts[index].id, "failed", reason, tokens=len(prompts[0].target), steps=value.steps)
        on_done(len(subject.facts))
    changes: dict[int, float] = {}
    weight = weight_of(config, model.config, down_projection(model, layers[-1]).in_features)
    if found:
        deltas = torch.stack([value.delta for _, _, value, _ in found])
        with _restored_on_error(model, layers):
            changes = spread(model, layers, moments, weight, [prompts for _, prompts, _, _ in found], deltas)
            check_finite(model, layers)
            for index, prompts, value, number in found:
                outcomes[index] = _outcome(model, layers[-1], facts[index], prompts[0], value, number)
    return EditResult([outcomes[index] for index in range(len(facts))], changes, weight, moments.tokens, prefixes)


def check_finite(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Raise `MixsdError` where an edited matrix, or what the model says to a few ids, is not finite."""
    for layer in layers:
        if not down_projection(model, layer).weight.isfinite().all():
            raise _not_finite(f"the edited down_proj of layer {layer} is")
    vocabulary = text_config(model.config).vocab_size
    ids = torch.linspace(0, vocabulary - 1, _PROBE_TOKENS, device=model.device).long()[None]
    with torch.no_grad():
        if not model(input_ids=ids, use_cache=False).logits.isfinite().all():
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

    def of(self, subject: _Subject, renderer: Renderer) -> Value:
        """The value of one subject."""
        kept = essence(subject.name, renderer.tokenizer)
        read = [[[prompt.ids, prompt.place, prompt.target] for prompt in own] for own in subject.prompts]
        address = digest([self.identity, read, kept.ids])
        if self.journal and address in self.places:
            row = self.journal.at(self.places[address])
            delta = torch.tensor(row["delta"], dtype=self.model.dtype, device=self.model.device)
            return Value(delta, row["before"], row["reached"], row["said"], row["steps"])
        value = optimize(self.model, self.layer, subject.prompts, kept, self.config)
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
    before: dict[int, Tensor] = {layer: down_projection(model, layer).weight.detach().to("cpu", copy=True) for layer in layers}
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for layer, weight in before.items():
                down_projection(model, layer).weight.copy_(weight)
        raise
