"""How a run's work is told, the same on the page, in the terminal and in the model card; the words of each method are in its `MethodSpec`.

A method that trains on targets, one that answers anew at each step and one that edits do not have the same words: what became
of a fact, what was trained on, whether anything was trained at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixsd.formats import known, number, plain
from mixsd.methods import MethodSpec, known_method
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


def method_of(report: Mapping[str, Any]) -> MethodSpec:
    """The method of a run."""
    return known_method(str((report.get("settings") or {}).get("method", "mixsd")))


def made_here(report: Mapping[str, Any]) -> bool:
    """Whether the run made a model itself, and does not only evaluate one alone, or one that was made elsewhere."""
    return not (report.get("alone") or report.get("elsewhere"))


def settings_shown(report: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that had a part in the run: none of making a model where it made none."""
    settings = dict(report.get("settings") or {})
    if made_here(report):
        return settings
    groups = {name: field.json_schema_extra for name, field in Settings.model_fields.items()}
    making = {name for name, extra in groups.items() if isinstance(extra, dict) and extra.get("group") in _MAKING}
    return {name: value for name, value in settings.items() if name not in {*making, "method"}}


def statuses(report: Mapping[str, Any]) -> dict[str, str]:
    """What a fact's three ends are called in a run of this method; none is ever rejected where there are no targets."""
    return _STATUSES.get(method_of(report).trains_on) or {name: name for name in ("accepted", "rejected", "unusable")}


def summary(report: Mapping[str, Any]) -> str:
    """What was done to how many facts, in one sentence without the last full stop."""
    counts, training, method = report.get("facts") or {}, report.get("training") or {}, method_of(report)
    if report.get("alone"):
        return "One model, evaluated as it is"
    if not made_here(report):
        return "A model that was made elsewhere, evaluated beside its base"
    told = f"{plain(counts.get('accepted'))} of {plain(counts.get('asked'))} facts"
    steps = training.get("steps")
    if method.edits:
        return f"{told} were edited into the weights, without training"
    if method.on_policy:
        return f"Trained on {told}, answered anew at each of {plain(steps)} optimizer steps"
    return f"{told} became training targets" + (f", learnt in {steps} optimizer steps" if known(steps) else "")


def objective(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was minimized, by name: the loss, and the rehearsal beside it; or what was edited."""
    settings, method = report.get("settings") or {}, method_of(report)
    if method.edits:
        return _edit(report)
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


def chosen_line(report: Mapping[str, Any]) -> str | None:
    """The checkpoint and the learning rate that were chosen, in one line; None where nothing was."""
    told = [f"{name} {text}" for name, text in choices(report)]
    return "; ".join(told) or None


def cost_line(report: Mapping[str, Any]) -> str | None:
    """Generated tokens and seconds, in one line; None where they were not counted."""
    cost = report.get("cost") or {}
    if not known(cost.get("generated_tokens")):
        return None
    parts = [f"{name} {number(count, 0)}" for name, count in (cost.get("parts") or {}).items() if count]
    seconds = [f"{name} {number(value, 0)} s" for name, value in (cost.get("seconds") or {}).items()]
    tokens = f"{number(cost['generated_tokens'], 0)} tokens generated to learn from" + (
        f" ({', '.join(parts)})" if len(parts) > 1 else ""
    )
    return "; ".join([tokens, *([", ".join(seconds)] if seconds else [])])


def choices(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The learning rate and the checkpoint, by name, where one of several was taken."""
    settings, training = report.get("settings") or {}, report.get("training") or {}
    found = []
    chosen, rates = training.get("chosen") or {}, training.get("rates") or []
    if rates and known(training.get("lr")):
        failed = sum("failed" in row for row in rates)
        found.append(
            ("learning rate", f"{plain(training['lr'])}, the best of {len(rates)}" + (f", {failed} not finite" if failed else ""))
        )
    # What is last was not chosen by anything but the number of steps.
    if chosen and settings.get("choose", "last") != "last":
        found.append(("checkpoint", f"step {plain(chosen.get('step'))}, {plain(chosen.get('why'))}"))
    return found


def _divergence(settings: Mapping[str, Any]) -> str:
    from mixsd.training.losses import Divergence

    own = {name: value for name, value in settings.items() if name == "kl" or name.startswith("kl_")}
    return Divergence.of(Settings(**own)).name


def _edit(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    editing = report.get("editing") or {}
    layers = editing.get("layers") or []
    return [
        ("layers", layers_text(layers)),
        ("weight of the second moments", plain(editing.get("weight"))),
        ("tokens that they are taken over", number(editing.get("moment_tokens"), 0)),
        ("facts", ", ".join(f"{plain(editing.get(name))} {name}" for name in ("edited", "failed", "unusable"))),
    ]


def layers_text(layers: list[int]) -> str:
    """Layers as they would be typed: 3-11 where none is left out."""
    if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return plain(layers)
