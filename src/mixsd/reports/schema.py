"""What is in `report.json`: the one description of it, for those who write it and those who read it.

A field that another version does not have is an error and no guess; `mixsd report RUN` writes a report anew from the run's folder.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mixsd.errors import UserError
from mixsd.storage import read_json


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Score(_Part):
    """One row of the flat list: a number, of what, and of which model; `checkpoint` is None for the model that a run ended with."""

    suite: str
    split: str
    metric: str
    model: str
    checkpoint: int | None = None
    value: float | None
    n: int
    low: float | None
    high: float | None

    @property
    def final(self) -> bool:
        """Whether it is of the base, or of the model that the run ended with."""
        return self.checkpoint is None

    @property
    def key(self) -> tuple[str, str, str, str, int | None]:
        """Suite, split, metric, model and checkpoint: what tells it from all others of a report."""
        return self.suite, self.split, self.metric, self.model, self.checkpoint


class BaseRecord(_Part):
    name: str
    hash: str
    revision: str | None = None
    license: str | None = None
    parameters: int | None = None
    tuned_by_mixsd: str | None = None


class Facts(_Part):
    asked: int
    accepted: int
    rejected: int
    unusable: int
    duplicates: int = 0


class Distribution(_Part):
    """An empirical distribution: the share `y` of tokens with an NLL of at most `x`."""

    x: list[float]
    y: list[float]


class TargetNumbers(_Part):
    """The accepted targets and the references, as the base model finds them; None where a run has none."""

    n: int | None = None
    tokens: int | None = None
    decoded_tokens: int | None = None
    mean_base_nll: float | None = None
    share_above_5: float | None = None
    share_above_8: float | None = None
    sources: dict[str, float | None] = {}
    noncanonical_share: float | None = None
    attempts: dict[str, int] = {}
    reference_mean_base_nll: float | None = None
    reference_tokens: int | None = None
    reference_share_above_5: float | None = None
    reference_share_above_8: float | None = None
    nll_cdf: Distribution | None = None
    reference_nll_cdf: Distribution | None = None


class ChosenCheckpoint(_Part):
    step: int
    why: str


class Training(_Part):
    """How the weights were trained; all None or empty where nothing was. `log` has a row for each step, `rates` for each rate tried."""

    steps: int | None = None
    epochs: int | float | None = None
    seconds: float = 0.0
    lr: float | None = None
    chosen: ChosenCheckpoint | None = None
    rates: list[dict[str, Any]] = []
    log: list[dict[str, int | float]] = []


class Editing(_Part):
    """What MEMIT changed, and how many facts it left out for which reason."""

    layers: list[int]
    changes: dict[str, float]
    weight: float
    moment_tokens: int
    edited: int
    failed: int
    unusable: int
    reasons: list[dict[str, Any]] = []


class Cost(_Part):
    """Tokens generated to learn from, in all and by purpose, and seconds by stage."""

    generated_tokens: int
    parts: dict[str, int] = {}
    seconds: dict[str, float] = {}


class ErrorModes(_Part):
    """How many of a model's wrong replies to a benchmark are of each mode."""

    benchmark: str
    model: str
    asked: int
    wrong: int
    counts: dict[str, int]
    truncated: int = 0
    leakage: str = "on"


class Requirement(_Part):
    text: str
    value: float | None
    passed: bool


class Beside(_Part):
    name: str
    method: str
    scores: list[Score]
    error_modes: list[ErrorModes] = []


class Report(_Part):
    """`report.json`.

    alone: one model was evaluated, without a base. elsewhere: the tuned model was made outside mixsd. asked: by suite, as in
    `asked.json`. skipped: why a suite that was to be asked was not.
    """

    schema_version: Literal[1] = 1
    mixsd: str | None = None
    run: str
    created: str
    method: str
    settings: dict[str, Any]
    environment: dict[str, Any] = {}
    base: BaseRecord
    facts: Facts
    targets: TargetNumbers = TargetNumbers()
    training: Training = Training()
    editing: Editing | None = None
    cost: Cost | None = None
    scores: list[Score]
    error_modes: list[ErrorModes] = []
    error_thresholds: dict[str, int | float] = {}
    asked: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    alone: bool = False
    elsewhere: bool = False
    requirements: list[Requirement] = []
    warnings: list[str] = []
    beside: list[Beside] = []

    @property
    def made_here(self) -> bool:
        """Whether the run made a model itself, and does not only evaluate one alone, or one that was made elsewhere."""
        return not (self.alone or self.elsewhere)


def read_report(file: Path) -> Report:
    """Read a run's `report.json`. Raises `UserError`: it is not there, or another version of mixsd wrote it."""
    run = file.parent
    if not file.is_file():
        raise UserError(f"{run}: has no report.json; finish that run first, or `mixsd report` it")
    values = read_json(file)
    if isinstance(values, dict):
        values.setdefault("schema_version", None)
    try:
        return Report.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{file}: {field}: {first['msg']}; `mixsd report {run}` writes it anew") from None
