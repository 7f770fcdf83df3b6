"""The tables of the paper (arXiv 2605.16865 v1, Liu et al. 2026, CC BY 4.0) as numbers, to hold ours against.

`data/published/table-NN.tsv` was made from the paper's text by `bench/published.py`. The text lost its formulas and lambda with them:
a row says whether its lambda is known (from the drops that Table 5 prints) or inferred. Rows of one method that differ in what was lost,
such as the number of rollouts, are variants.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from mixsd.errors import UserError

TITLES = {
    1: "KGFact-Small",
    2: "KGFunc",
    3: "KGFact-Large",
    4: "SimpleQA",
    5: "Parameter displacement and Fisher alignment",
    6: "Correlation of displacement and of alignment with forgetting",
    7: "Tokens with an NLL above 5",
    8: "Tokens with an NLL above 8",
    9: "High-NLL tokens of the references that mixed targets keep",
    10: "KGFact-Small, Llama",
    11: "MQuAKE",
    12: "Divergences in place of NLL, KGFact-Small",
}
BENCHMARKS = ("aime24", "math500", "gsm8k", "humaneval", "mmlu")
_HEAD = ("corpus", "model", "method", "lambda", "lambda_known", "variant")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    model: a name on the hub. method: as in `Settings.method`, or "base". lam: None where there is none; `inferred` says that it was
    concluded, not told. variant: 2, 3, ... (of MixSD-KL from 1) where a method stands several times. values: by column, in percent but for
    Tables 5 to 8; `digits` after the point, as printed.
    """

    corpus: str
    model: str
    method: str
    lam: float | None
    inferred: bool
    variant: int | None
    values: dict[str, float]
    digits: dict[str, int]


@cache
def table(number: int) -> tuple[Row, ...]:
    """The rows of one table of the paper, in their order.

    Raises:
        UserError: there is no such table.
    """
    if number not in TITLES:
        raise UserError(f"table {number}: the paper has tables 1 to {max(TITLES)}")
    text = files("mixsd").joinpath(f"data/published/table-{number:02}.tsv").read_text(encoding="utf-8")
    return tuple(_row(values) for values in csv.DictReader(text.splitlines(), delimiter="\t"))


def _row(values: dict[str, str]) -> Row:
    numbers = {name: text for name, text in values.items() if name not in _HEAD}
    return Row(
        corpus=values.get("corpus", ""),
        model=values["model"],
        method=values.get("method", ""),
        lam=float(values["lambda"]) if values.get("lambda") else None,
        inferred=values.get("lambda_known") == "inferred",
        variant=int(values["variant"]) if values.get("variant") else None,
        values={name: float(text) for name, text in numbers.items()},
        digits={name: len(text.partition(".")[2]) for name, text in numbers.items()},
    )
