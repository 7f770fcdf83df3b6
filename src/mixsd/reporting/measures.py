"""What a metric's numbers mean: their unit, which way is better, which other metric is their change.

A metric that is not ours, of a task of lm-eval say, is told by its name where that is known, and else is a number of which no
direction is better.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mixsd.statistics import Unit

Better = Literal["higher", "lower", ""]
DELTA = "_delta"


@dataclass(frozen=True)
class Measure:
    """What a metric's numbers mean.

    `signed`: they are changes, written with their sign. `change` is the metric that holds theirs. `of_base` is what the base has by
    definition, where it is not measured; the numbers are then the change themselves.
    """

    unit: Unit = "number"
    signed: bool = False
    better: Better = ""
    change: str | None = None
    of_base: str = ""

    @property
    def way(self) -> str:
        """Which way is better, in words; nothing where neither is."""
        return f"{self.better} is better" if self.better else ""


MEASURES: dict[str, Measure] = {
    "accuracy": Measure("share", better="higher", change="accuracy_delta"),
    "accuracy_delta": Measure("share", signed=True, better="higher"),
    "accuracy_lenient": Measure("share", better="higher"),
    "drop": Measure("share", signed=True, better="lower", of_base="0"),
    "retained": Measure("share", better="higher", of_base="100%"),
    "mcnemar_p": Measure("number"),
    "forgetting": Measure("nats", signed=True, better="lower", of_base="0"),
    "reference_nll": Measure("nats", better="lower", change="forgetting"),
    **dict.fromkeys(
        ("wrong_share", "unparseable_share", "truncated_share", "error_share", "old_answer_share", "other_answer_share"),
        Measure("share", better="lower"),
    ),
}

# Metrics of lm-eval, whose names end in the filter that they were taken with ("acc,none").
_RIGHT = re.compile(r"(acc|exact_match)(_.*)?|accuracy|em")
_LESS_IS_BETTER = re.compile(r"(word_|byte_)?perplexity|bits_per_byte")


def measure_of(metric: str, higher_is_better: bool | None = None) -> Measure:
    """What a metric's numbers mean.

    Args:
        metric: its name in the scores.
        higher_is_better: what its task says of a metric that is not ours.
    """
    if metric in MEASURES:
        return MEASURES[metric]
    name = metric.removesuffix(DELTA)
    signed, bare = name != metric, name.partition(",")[0]
    right = _RIGHT.fullmatch(bare) is not None
    if higher_is_better is None and (right or _LESS_IS_BETTER.fullmatch(bare)):
        higher_is_better = right
    better: Better = "" if higher_is_better is None else "higher" if higher_is_better else "lower"
    return Measure("share" if right else "number", signed, better, None if signed else metric + DELTA)
