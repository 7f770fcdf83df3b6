"""How a run's work is told, the same on the page, in the terminal and in the model card; the words of each method are in its `MethodSpec`.

A method that trains on targets, one that answers anew at each step and one that edits do not have the same words: what became
of a fact, what was trained on, whether anything was trained at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixsd.formats import number, plain
from mixsd.methods import MethodSpec, known_method
from mixsd.reports.schema import Editing, Report
from mixsd.settings import Settings

_STATUSES = {
    "rollouts": {"accepted": "trained on", "unusable": "unusable"},
    "nothing": {"accepted": "edited", "rejected": "failed", "unusable": "unusable"},
}
_MAKING = ("Mixing", "Distillation", "Training", "Editing")  # groups of settings
_IN_WORDS = {
    "nll_token": {"top1": "the teacher's likeliest token", "sampled": "a token drawn from the teacher's distribution"},
    "kl_teacher": {
        "expert": "the expert conditional everywhere",
        "picked": "the conditional that was picked at a position",
    },
}


def method_of(report: Report) -> MethodSpec:
    """The method of a run."""
    return known_method(str(report.settings.get("method", "mixsd")))


def made_here(report: Report) -> bool:
    """Whether the run made a model itself, and does not only evaluate one alone, or one that was made elsewhere."""
    return not (report.alone or report.elsewhere)


def settings_shown(report: Report) -> dict[str, Any]:
    """The settings that had a part in the run: none of making a model where it made none."""
    settings = dict(report.settings)
    if made_here(report):
        return settings
    groups = {name: field.json_schema_extra for name, field in Settings.model_fields.items()}
    making = {name for name, extra in groups.items() if isinstance(extra, dict) and extra.get("group") in _MAKING}
    return {name: value for name, value in settings.items() if name not in {*making, "method"}}


def statuses(report: Report) -> dict[str, str]:
    """What a fact's three ends are called in a run of this method; none is ever rejected where there are no targets."""
    return _STATUSES.get(method_of(report).trains_on) or {name: name for name in ("accepted", "rejected", "unusable")}


def summary(report: Report) -> str:
    """What was done to how many facts, in one sentence without the last full stop."""
    counts, steps, method = report.facts, report.training.steps, method_of(report)
    if report.alone:
        return "One model, evaluated as it is"
    if not made_here(report):
        return "A model that was made elsewhere, evaluated beside its base"
    told = f"{counts.accepted} of {counts.asked} facts"
    if method.edits:
        return f"{told} were edited into the weights, without training"
    if method.on_policy:
        return f"Trained on {told}, answered anew at each of {plain(steps)} optimizer steps"
    return f"{told} became training targets" + ("" if steps is None else f", learnt in {steps} optimizer steps")


def objective(report: Report) -> list[tuple[str, str]]:
    """What was minimized, by name: the loss, and the rehearsal beside it; or what was edited."""
    settings, method = report.settings, method_of(report)
    if method.edits:
        return _edit(report.editing) if report.editing else []
    loss = method.loss
    for name, words in _IN_WORDS.items():
        loss = loss.replace(f"{{{name}}}", words.get(settings.get(name, ""), plain(settings.get(name))))
    if method.distilled:
        by = "sequences' means" if settings.get("kl_reduction") == "sequence" else "tokens of a step"
        loss = loss.replace("{divergence}", f"{_divergence(settings)}; mean over all {by}")
    found = [("loss", loss)]
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


def _divergence(settings: Mapping[str, Any]) -> str:
    from mixsd.training.losses import Divergence

    own = {name: value for name, value in settings.items() if name == "kl" or name.startswith("kl_")}
    return Divergence.of(Settings(**own)).name


def _edit(editing: Editing) -> list[tuple[str, str]]:
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
