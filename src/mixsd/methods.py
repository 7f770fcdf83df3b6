"""The methods, in one table: what each is called, what it trains on, and who makes its objective.

A method is the file of its objective and one line here; one of your own is given as the "package.module:name" of its `MethodSpec`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mixsd.errors import UserError, did_you_mean
from mixsd.plugins import is_function_name, load_object

MIXSD_PAPER = "2605.16865"
_ANEW = "at each step the model answers the questions anew as it is by then, and learns at each of its own tokens the"
_EXPERT = "its base model with the fact in view (expert)"


@dataclass(frozen=True)
class MethodSpec:
    """A method.

    Attributes:
        name: the name of ours on the command line; of every method the name in labels, folders and reports.
        title: the name in full; what stands before its first comma is the short form.
        about: what is done, in a sentence or two, without the last full stop.
        trains_on: mixed targets, references as they are, replies of the model in training ("rollouts"), or "nothing": it edits.
        objective: "module:name" of a function (session, teacher) that returns the `training.objectives.Objective`; `teacher` is the
            run's `training.teacher.FrozenBase`. Of a method that edits: of a function (session) that leaves the model folder.
        distilled: whether the loss is a divergence from a teacher, as the settings under Distillation have it.
        loss: what is minimized; {divergence}, {nll_token} and {kl_teacher} are put in words.
        settings: its defaults where they differ from MixSD's.
        check: "module:name" of a function of the settings that raises `UserError` before anything is loaded; or nothing.
        paper: its number on arXiv; or nothing.
    """

    name: str
    title: str
    about: str
    trains_on: Literal["mixed", "references", "rollouts", "nothing"]
    objective: str
    distilled: bool = False
    loss: str = "NLL of the target's tokens"
    settings: Mapping[str, Any] = field(default_factory=dict)
    check: str = ""
    paper: str = ""

    @property
    def label(self) -> str:
        return self.title.partition(",")[0]

    @property
    def mixes(self) -> bool:
        return self.trains_on == "mixed"

    @property
    def on_policy(self) -> bool:
        return self.trains_on == "rollouts"

    @property
    def edits(self) -> bool:
        return self.trains_on == "nothing"

    @property
    def needs_targets(self) -> bool:
        return self.trains_on in ("mixed", "references")

    @property
    def has_teacher(self) -> bool:
        """Whether the loss asks a teacher, so that the settings under Distillation have a part in it."""
        return self.distilled or self.on_policy


# The defaults are those of the paper's runs (section 5, appendices D and E.6).
METHODS = {
    spec.name: spec
    for spec in (
        MethodSpec(
            "mixsd",
            "MixSD, mixed contextual self-distillation",
            "at each position the next token of a training target comes from the base model's own distribution, either with the fact "
            "in view (expert) or without it (naive), chosen by an addressed coin. Targets that do not state the answer are decoded "
            "again or rejected",
            "mixed",
            "mixsd.training.objectives:fixed_targets",
            paper=MIXSD_PAPER,
        ),
        MethodSpec(
            "sft",
            "SFT, supervised fine-tuning on the reference replies as they are",
            "the baseline that MixSD is compared with",
            "references",
            "mixsd.training.objectives:fixed_targets",
            paper=MIXSD_PAPER,
        ),
        MethodSpec(
            "opsd",
            "OPSD, on-policy self-distillation",
            f"{_ANEW} distribution that {_EXPERT} has there",
            "rollouts",
            "mixsd.training.distilled:on_policy",
            distilled=True,
            loss="{divergence}",
            settings={"samples": 8, "temperature": 1.0},
            paper=MIXSD_PAPER,
        ),
        MethodSpec(
            "opsd-nll",
            "OPSD-NLL, on-policy self-distillation on single tokens",
            f"{_ANEW} one token that {_EXPERT} says there",
            "rollouts",
            "mixsd.training.distilled:on_policy",
            loss="NLL of {nll_token}",
            paper=MIXSD_PAPER,
        ),
        MethodSpec(
            "mixsd-kl",
            "MixSD-KL, mixed contextual self-distillation on distributions",
            "training targets are mixed from the base model's own conditionals, with the fact in view (expert) and without it (naive), "
            "and at each of their positions the model learns a whole distribution of the base model instead of the token",
            "mixed",
            "mixsd.training.distilled:distilled",
            distilled=True,
            loss="{divergence}; the teacher is {kl_teacher}",
            settings={"lam": 0.0},
            paper=MIXSD_PAPER,
        ),
        MethodSpec(
            "memit",
            "MEMIT, mass-editing memory in a transformer (Meng et al. 2023)",
            "nothing was trained; for each fact a hidden state was sought from which the answer follows, and the down projections of "
            "some layers were changed in closed form so that the fact's subject leads to it and ordinary text is read as before",
            "nothing",
            "mixsd.editing.stage:edit",
            check="mixsd.editing.stage:check",
            paper="2210.07229",
        ),
    )
}
CHOICES = (*METHODS, "package.module:name")


def get_method(name: str) -> MethodSpec:
    """The method of a name: one of ours, or the user's `package.module:name` of a `MethodSpec`.

    Raises `UserError`: there is none of it.
    """
    if name in METHODS:
        return METHODS[name]
    if not is_function_name(name):
        raise UserError(f'no method "{name}"{did_you_mean(name, CHOICES)}; known: {", ".join(CHOICES)}')
    spec = load_object(name, f"method {name}")
    if not isinstance(spec, MethodSpec):
        raise UserError(f"method {name}: is of type {type(spec).__name__}, expected a MethodSpec")
    return spec


def known_method(name: str) -> MethodSpec:
    """The method of a finished run; one whose package is not here is told by its name, like MixSD."""
    try:
        return get_method(name)
    except UserError:
        return MethodSpec(name, name, "a method that is not known here", "mixed", "")
