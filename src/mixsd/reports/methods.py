"""What the methods are called and how their work is told, the same on the page, in the terminal and in the model card.

A method that trains on targets, one that answers anew at each step and one that edits do not have the same words: what became
of a fact, what was trained on, whether anything was trained at all. A method that is not known here is told like MixSD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mixsd.formats import number, plain
from mixsd.reports.schema import Report

Kind = Literal["mixed", "copied", "anew", "edited"]

_STATUSES = ("accepted", "rejected", "unusable")
_OWN_WORDS = {"anew": {"accepted": "trained on"}, "edited": {"accepted": "edited", "rejected": "failed"}}
_MAKING = ("Mixing", "Distillation", "Training", "Editing")  # groups of settings
_FROM_THE_EXPERT = "its base model with the fact in view (expert)"


@dataclass(frozen=True)
class Method:
    """How a method is told.

    `name` is in full; `about` is a sentence or two without the last full stop; `kind` says where the tokens that it learns come from:
    mixed targets, references as they are, replies of the model in training, or nowhere, since it edits.
    """

    name: str
    about: str
    kind: Kind = "mixed"


METHODS = {
    "mixsd": Method(
        "MixSD, mixed contextual self-distillation",
        "at each position the next token of a training target comes from the base model's own distribution, either with the fact "
        "in view (expert) or without it (naive), chosen by an addressed coin. Targets that do not state the answer are decoded "
        "again or rejected",
    ),
    "mixsd-kl": Method(
        "MixSD-KL, mixed contextual self-distillation on distributions",
        "training targets are mixed from the base model's own conditionals, with the fact in view (expert) and without it (naive), "
        "and at each of their positions the model learns a whole distribution of the base model instead of the token",
    ),
    "sft": Method(
        "Supervised fine-tuning on the reference replies as they are", "the baseline that MixSD is compared with", "copied"
    ),
    "opsd": Method(
        "OPSD, on-policy self-distillation",
        "at each step the model answers the questions anew as it is by then, and learns at each of its own tokens the distribution "
        f"that {_FROM_THE_EXPERT} has there",
        "anew",
    ),
    "opsd-nll": Method(
        "OPSD-NLL, on-policy self-distillation on single tokens",
        "at each step the model answers the questions anew as it is by then, and learns at each of its own tokens the one token "
        f"that {_FROM_THE_EXPERT} says there",
        "anew",
    ),
    "memit": Method(
        "MEMIT, mass-editing memory in a transformer (Meng et al. 2023)",
        "nothing was trained; for each fact a hidden state was sought from which the answer follows, and the down projections of "
        "a stretch of layers were changed in closed form so that the fact's subject leads to it and ordinary text is read as before",
        "edited",
    ),
}


def method_of(report: Report) -> Method:
    """The method of a run."""
    return METHODS.get(report.method, METHODS["mixsd"])


def made_here(report: Report) -> bool:
    """Whether the run made a model itself, and does not only evaluate one alone, or one that was made elsewhere."""
    return not (report.alone or report.elsewhere)


def settings_shown(report: Report) -> dict[str, Any]:
    """The settings that had a part in the run: none of making a model where it made none."""
    from mixsd.settings import Settings

    settings = dict(report.settings)
    if made_here(report):
        return settings
    groups = {name: field.json_schema_extra for name, field in Settings.model_fields.items()}
    making = {name for name, extra in groups.items() if isinstance(extra, dict) and extra.get("group") in _MAKING}
    return {name: value for name, value in settings.items() if name not in {*making, "method"}}


def statuses(report: Report) -> dict[str, str]:
    """What a fact's three ends are called in a run of this method; none is ever rejected where there are no targets."""
    kind = method_of(report).kind
    own = _OWN_WORDS.get(kind, {})
    return {name: own.get(name, name) for name in _STATUSES if (kind, name) != ("anew", "rejected")}


def summary(report: Report) -> str:
    """What was done to how many facts, in one sentence without the last full stop."""
    counts, steps, kind = report.facts, report.training.steps, method_of(report).kind
    if report.alone:
        return "One model, evaluated as it is"
    if report.elsewhere:
        return "A model that was made elsewhere, evaluated beside its base"
    told = f"{counts.accepted} of {counts.asked} facts"
    if kind == "edited":
        return f"{told} were edited into the weights, without training"
    if kind == "anew":
        return f"Trained on {told}, answered anew at each of {plain(steps)} optimizer steps"
    return f"{told} became training targets" + ("" if steps is None else f", learnt in {steps} optimizer steps")


def objective(report: Report) -> list[tuple[str, str]]:
    """What was minimized, by name: the loss, and the rehearsal beside it; or what was edited."""
    if method_of(report).kind == "edited":
        return _edit(report)
    settings = report.settings
    found = [("loss", _loss(report))]
    if report.method == "mixsd-kl":
        picked = settings.get("kl_teacher") == "picked"
        found.append(
            ("teacher", "the conditional that was picked at a position" if picked else "the expert conditional everywhere")
        )
    if settings.get("rehearse"):
        by = f"the base's distributions ({_divergence(settings)})" if settings.get("rehearse_loss") == "kl" else "their NLL"
        share = f"{plain(settings['rehearse'])} of their tokens for each supervised one"
        found.append(("rehearsal", f"the base model's own replies to general prompts, {share}, by {by}"))
    return found


def chosen_line(report: Report) -> str | None:
    """The checkpoint and the learning rate that were chosen, in one line; None where nothing was."""
    told = [f"{name} {text}" for name, text in choices(report)]
    return "; ".join(told) or None


def cost_line(report: Report) -> str | None:
    """Generated tokens and seconds, in one line; None where they were not counted."""
    cost = report.cost
    if cost is None:
        return None
    parts = [f"{name} {number(count, 0)}" for name, count in cost.parts.items() if count]
    seconds = ", ".join(f"{name} {number(value, 0)} s" for name, value in cost.seconds.items())
    tokens = f"{number(cost.generated_tokens, 0)} tokens generated to learn from"
    return "; ".join(filter(None, (tokens + (f" ({', '.join(parts)})" if len(parts) > 1 else ""), seconds)))


def choices(report: Report) -> list[tuple[str, str]]:
    """The learning rate and the checkpoint, by name, where one of several was taken."""
    training, found = report.training, []
    if training.rates and training.lr is not None:
        failed = sum("failed" in row for row in training.rates)
        text = f"{plain(training.lr)}, the best of {len(training.rates)}" + (f", {failed} not finite" if failed else "")
        found.append(("learning rate", text))
    # What is last was not chosen by anything but the number of steps.
    if training.chosen and report.settings.get("choose", "last") != "last":
        found.append(("checkpoint", f"step {training.chosen.step}, {plain(training.chosen.why)}"))
    return found


def _loss(report: Report) -> str:
    settings, method = report.settings, report.method
    if method in ("opsd", "mixsd-kl"):
        by = "sequences' means" if settings.get("kl_reduction") == "sequence" else "tokens of a step"
        return f"{_divergence(settings)}; mean over all {by}"
    if method == "opsd-nll":
        drawn = settings.get("nll_token") == "sampled"
        return "NLL of a token drawn from the teacher's distribution" if drawn else "NLL of the teacher's likeliest token"
    return "NLL of the target's tokens"


def _divergence(settings: Mapping[str, Any]) -> str:
    from mixsd.settings import Settings
    from mixsd.training.losses import Divergence

    return Divergence.of(
        Settings(**{name: value for name, value in settings.items() if name == "kl" or name.startswith("kl_")})
    ).name


def _edit(report: Report) -> list[tuple[str, str]]:
    editing = report.editing
    if editing is None:
        return []
    return [
        ("layers", layers_text(editing.layers)),
        ("weight of the second moments", plain(editing.weight)),
        ("tokens that they are taken over", number(editing.moment_tokens, 0)),
        ("facts", f"{editing.edited} edited, {editing.failed} failed, {editing.unusable} unusable"),
    ]


def layers_text(layers: list[int]) -> str:
    """Layers as they would be typed: 3-11 where none is left out."""
    if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return plain(layers)
