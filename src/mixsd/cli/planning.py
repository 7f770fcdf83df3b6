"""`mixsd plan`: lambda and gate on a sample of the facts, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from mixsd.cli import show
from mixsd.cli.commands import Config, Facts, Json, command
from mixsd.cli.options import gather
from mixsd.cli.progress import duration, watcher
from mixsd.errors import UserError
from mixsd.reporting.formats import printable

_FLAGS = (
    *("facts", "corpus_seed", "model", "output", "seed", "answer_format", "system", "thinking", "guidance", "verifier"),
    *("temperature", "top_k", "samples", "retries", "retry", "max_new_tokens"),
    *("data", "device", "token_budget", "backend", "dtype", "trust_remote_code", "offline"),
)


@command(flags=_FLAGS, resumes=True)
def plan(
    typed: dict[str, Any],
    source: Facts = None,
    *,
    lam: Annotated[
        list[float] | None,
        typer.Option(
            "--lam", metavar="NUMBER", show_default=False, help="A lambda to try. Repeatable. [default: 0, 0.3, 0.5, 0.7]"
        ),
    ] = None,
    gate: Annotated[
        list[float] | None,
        typer.Option(
            "--gate", metavar="NUMBER", show_default=False, help="A gate to try with each. Repeatable. [default: 0, 0.1]"
        ),
    ] = None,
    sample: Annotated[int, typer.Option("--sample", metavar="N", help="How many of the facts are tried.")] = 24,
    examples: Annotated[
        int,
        typer.Option(
            "--examples",
            metavar="N",
            help="Reference replies that the base's Fisher information is measured on; 0 leaves it out.",
        ),
    ] = 64,
    reference: Annotated[
        Literal["benchmarks", "general"] | None,
        typer.Option(
            "--reference",
            show_default=False,
            help="Where they come from. [default: the benchmarks whose data is at hand, else the bundled general prompts]",
        ),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Try each lambda and gate on a sample of the facts: acceptance, cost, how likely the base finds the targets, where a step would go.

    Nothing is trained. The targets stay in the plan's folder, to be looked at with `mixsd inspect`.
    """
    values = gather(typed if source is None else {**typed, "facts": source}, config)
    if config is None and not values.get("facts"):
        raise UserError("no facts: name a file of facts (or 'demo' for the bundled ones)")
    from mixsd.pipeline import prediction

    found = prediction.predict(
        lams=tuple(lam or prediction.LAMBDAS),
        gates=tuple(gate or prediction.GATES),
        sample=sample,
        examples=examples,
        reference=reference,
        watcher=watcher(),
        **values,
    )
    if as_json:
        show.as_json(found)
        return
    show.console().print(_table(found))
    facts = found["facts"]
    print(
        f"measured on {facts['sampled']} of {facts['of']} facts; common are {facts['common']}, which every configuration accepts that accepts "
        "half of them"
    )
    print(
        "cost: decoded tokens for all facts, and the time of this machine; mean NLL in nats per token; 95% intervals over facts"
    )
    print(f"targets: {printable(found['folder'])}")


def _table(found: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    aligned = any(item["alignment"] is not None for item in found["configurations"])
    for name in ("", "accepted", "cost of all", "mean NLL", "NLL above 8", "on common facts"):
        table.add_column(name, justify="left" if not name else "right")
    if aligned:
        table.add_column("alignment", justify="right")
    rows = [*found["configurations"], {**found["reference"], "acceptance": None, "cost": None}]
    for item in rows:
        likelihood = item["likelihood"]["all"]
        cells = [
            item["label"],
            _share(item["acceptance"]),
            _cost(item["cost"]),
            _number(likelihood["mean_nll"]),
            _share(likelihood["share_above_8"]),
            _share(item["likelihood"]["common"]["share_above_8"]),
        ]
        if aligned:
            cells.append("–" if item["alignment"] is None else _ratio(item["alignment"]))
        table.add_row(*cells)
    return table


def _share(score: Mapping[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return "–"
    return f"{100 * score['value']:.1f}%" + _range(score, 100, 1)


def _number(score: Mapping[str, Any] | None) -> str:
    return "–" if score is None or score["value"] is None else f"{score['value']:.2f}" + _range(score, 1, 2)


def _range(score: Mapping[str, Any], scale: float, digits: int) -> str:
    if score["low"] is None or score["high"] is None:
        return ""
    return f" ({scale * score['low']:.{digits}f} to {scale * score['high']:.{digits}f})"


def _cost(cost: Mapping[str, Any] | None) -> str:
    if cost is None:
        return "–"
    seconds = cost["seconds_of_all_facts"]
    return f"{cost['decoded_tokens_of_all_facts']:,} tokens" + ("" if seconds is None else f", {duration(seconds)}")


def _ratio(value: float) -> str:
    """A gradient lies on few weights, so its ratio runs into the hundred thousands."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
