"""`analyze nll`: how far targets are from what the base model would say, and what of the references they keep.

Section 7.2 and appendix E.2 of the paper: mean NLL per token (Eq. 3), tokens above a threshold (Tables 7 and 8), the empirical CDF
(Figure 3), and the share of a reference's high-NLL token ids that a mixed target keeps (Table 9). All of it over the accepted targets of
each source, and over the facts that every source has accepted: at a larger lambda those are fewer and easier, so only the second
compares like with like.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mixsd.analyse import numbers_cell, output_folder, source_paths
from mixsd.analyse.nll_sources import UNNAMED, BaseMeasurer, TargetSource, open_sources
from mixsd.decoding.requests import REFERENCE
from mixsd.errors import UserError
from mixsd.evaluation.scores import score_row
from mixsd.formats import Cell, Column, Row, Table, number, printable
from mixsd.formats import markdown as escaped
from mixsd.progress import Watcher
from mixsd.settings import EXECUTION, build
from mixsd.statistics import Estimate
from mixsd.storage import write_json, write_text
from mixsd.targets.target import (
    HIGH_NLL,
    REFERENCE_LABEL,
    UNCERTAIN_NLL,
    Overlap,
    Target,
    TokenLosses,
    cdf,
    count_above,
    high_ids,
    mean_nll,
    share_above,
    share_difference,
)

Block = Literal["all", "common"]
BLOCKS: tuple[Block, ...] = ("all", "common")
_TITLES = {"all": "All accepted targets of each source", "common": "Facts accepted in every source"}


@dataclass
class _SourceRow:
    """One row of the tables: a source's targets, or the references of all sources, which alone overlap with nothing."""

    label: str
    sources: list[TargetSource]
    losses: TokenLosses = field(default_factory=TokenLosses)
    statuses: Counter[str] = field(default_factory=Counter)
    overlap: Overlap | None = None


def analyze_nll(
    sources: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    thresholds: Sequence[float] = (UNCERTAIN_NLL, HIGH_NLL),
    overlap_threshold: float = HIGH_NLL,
    facts: Literal["all", "common", "both"] = "both",
    check: bool = False,
    model: str | None = None,
    watcher: Watcher | None = None,
    **execution: Any,
) -> dict[str, Any]:
    """Per-token NLL of targets under their base model.

    Args:
        sources: run folders and files of targets, each one configuration; all references together are one row.
        output: the folder for nll.json, nll.md and the figures; by default `analysis` in the run folder where one is all there is.
        thresholds, overlap_threshold: nats; above the latter a reference's token counts as one that the target should keep.
        check: measure what is stored once more; it must agree.
        model: the base model of files, needed where they hold no log-probabilities, and for `check`.
        execution: `device`, `offline`.

    Returns what is in nll.json: `blocks`, each with its `rows`; `sources`, `check`, `notes` and the flat list `scores`.
    Raises `UserError`: bad input; other base models or other prompts; a stored number that is not what is measured.
    """
    paths = source_paths(sources, "nll")
    folder = output_folder(paths, output)
    levels = _levels(thresholds)
    _levels([overlap_threshold], "--overlap-threshold")
    build(execution, "options")
    if unknown := [name for name in execution if name not in EXECUTION]:
        raise UserError(f"options: {unknown[0]} was settled when the runs were made")
    base = BaseMeasurer(model, execution, watcher or Watcher(), check=check)
    notes: list[str] = []
    opened = open_sources(paths)
    if check and model is None and any(source.run is None for source in opened):
        raise UserError(UNNAMED)
    rows = _read(opened, base, overlap_threshold, notes)
    blocks = {name: _block(name, rows, levels) for name in BLOCKS if facts in (name, "both")}
    checked = {"tokens": base.checked, "largest_difference": base.largest, "tolerance": base.precisions}
    result = {
        "thresholds": levels,
        "overlap_threshold": overlap_threshold,
        "sources": [_told(row) for row in rows],
        "blocks": blocks,
        "check": checked if check else None,
        "notes": notes,
        "scores": _scores(blocks),
    }
    write_json(folder / "nll.json", result)
    write_text(folder / "nll.md", markdown(result))
    for name, block in blocks.items():
        if block["rows"]:
            _draw(block["rows"], levels, folder / f"nll-{name}")
    return result


def _levels(thresholds: Sequence[float], option: str = "--threshold") -> list[float]:
    for value in thresholds:
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{option} {value:g}: expected nats, a number that is not below 0, such as 8")
    if not thresholds:
        raise UserError(f"{option}: name at least one")
    return sorted(set(map(float, thresholds)))


def _read(sources: Sequence[TargetSource], base: BaseMeasurer, overlap_threshold: float, notes: list[str]) -> list[_SourceRow]:
    """The reference's row first, where there are references, then one for each other source."""
    prompts: dict[str, tuple[int, str]] = {}
    reference = _SourceRow(REFERENCE_LABEL, [source for source in sources if source.reference])
    known: dict[str, int] = {}
    left: dict[str, str] = {}
    wanted: dict[str, frozenset[int]] = {}

    def check_prompt(where: str, target: Target) -> None:
        """One fact, one prompt: NLL after different prompts, or of different facts of one id, is not to be compared."""
        own = hash(tuple(target.prompt_ids))
        first, place = prompts.setdefault(target.id, (own, where))
        if own != first:
            raise UserError(f'{where}: fact "{target.id}" has other prompt_ids than in {place}; NLL of both cannot be compared')

    def add_reference(where: str, target: Target) -> None:
        check_prompt(where, target)
        own = hash(tuple(target.target_ids))
        if known.setdefault(target.id, own) != own:
            raise UserError(f'{where}: fact "{target.id}" has another reference than in a source before')
        if target.id not in wanted:
            nll = [-value for value in target.base_logprobs]
            wanted[target.id] = high_ids(target.target_ids, nll, overlap_threshold)
            reference.losses.add(target.id, nll)

    for source in reference.sources:
        for where, target in base.complete(source.file, source.run, source.name):
            if target.accepted:
                add_reference(where, target)
            else:
                left[target.id] = target.status
    mixed = [source for source in sources if not source.reference]
    for run, name in ((source.run, source.name) for source in mixed if source.run and source.run.facts_file.is_file()):
        if not run.references_file.is_file():
            notes.append(f"{name}: its references were not kept")
            continue
        for where, target in base.complete(run.references_file, run, f"the references of {name}"):
            add_reference(where, target)
    reference.statuses = Counter({**left, **dict.fromkeys(known, "accepted")}.values())
    rows = [reference] if known else []
    for source in mixed:
        row = _SourceRow(source.label, [source], overlap=Overlap(wanted) if known else None)
        for where, target in base.complete(source.file, source.run, source.name):
            row.statuses[target.status] += 1
            if target.accepted:
                # A reference that stands in for a rejected target is counted as that too.
                row.statuses["canonical"] += set(target.sources) == {REFERENCE}
                check_prompt(where, target)
                row.losses.add(target.id, [-value for value in target.base_logprobs])
                if row.overlap:
                    row.overlap.add(target.id, target.target_ids)
        if not row.losses.facts:
            raise UserError(f"{source.path}: holds no accepted target")
        rows.append(row)
    return rows


def _block(name: Block, rows: Sequence[_SourceRow], levels: Sequence[float]) -> dict[str, Any]:
    everything = [set(row.losses.facts) for row in rows]
    chosen = set.intersection(*everything) if name == "common" else set.union(*everything)
    if not chosen:
        return {"facts": 0, "rows": []}
    reference = rows[0].losses.of(chosen) if rows[0].overlap is None else None
    told = [_measured(row, chosen, levels, reference if row.overlap else None) for row in rows]
    return {"facts": len(chosen), "rows": told}


def _measured(row: _SourceRow, facts: Collection[str], levels: Sequence[float], reference: TokenLosses | None) -> dict[str, Any]:
    """The numbers of a row over some facts; `reference` is what its shares are compared with."""
    losses = row.losses.of(facts)
    x, y = cdf(losses)
    above = []
    for level in levels:
        share = share_above(losses, level).to_json()
        item: dict[str, Any] = {"threshold": level, "count": count_above(losses, level), "share": share}
        if reference is not None:
            item["difference"] = share_difference(losses, reference, level).to_json()
        above.append(item)
    overlap = row.overlap and {
        "mean": row.overlap.mean(facts).to_json(),
        "pooled": row.overlap.pooled(facts).to_json(),
        "without_high": row.overlap.without(facts),
    }
    return {
        "label": row.label,
        "facts": len(set(losses.facts)),
        "targets": len(losses.facts),
        "tokens": len(losses.nll),
        "mean": mean_nll(losses).to_json(),
        "above": above,
        "overlap": overlap,
        "cdf": {"x": x, "y": y},
    }


def _told(row: _SourceRow) -> dict[str, Any]:
    only = row.sources[0] if len(row.sources) == 1 else None
    return {
        "label": row.label,
        "paths": [str(source.path) for source in row.sources],
        "lambda": only.lam if only else None,
        "gate": only.gate if only else None,
        **{status: row.statuses[status] for status in ("accepted", "rejected", "unusable", "canonical")},
    }


def _scores(blocks: Mapping[Block, dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for split, block in blocks.items():
        for row in block["rows"]:
            named: dict[str, dict[str, Any]] = {"mean_base_nll": row["mean"]}
            named |= {f"share_above_{item['threshold']:g}": item["share"] for item in row["above"]}
            if row["overlap"]:
                named["overlap"] = row["overlap"]["mean"]
            found += [score_row("nll", split, metric, row["label"], Estimate(**value)) for metric, value in named.items()]
    return found


def _draw(rows: Sequence[Mapping[str, Any]], levels: Sequence[float], stem: Path) -> None:
    from mixsd.figures import charts, style

    curves = [{"label": row["label"], "n": row["tokens"], **row["cdf"]} for row in rows]
    style.save(charts.nll_cdf(curves, levels), stem)


def markdown(result: Mapping[str, Any]) -> str:
    """The tables and their notes, as a Markdown page."""
    parts = ["# NLL of targets under the base model"]
    for table in tables(result):
        parts += [f"## {table.title}", *([table.markdown()] if table.rows else [])]
    return "\n\n".join([*parts, "\n".join(f"- {escaped(line)}" for line in notes(result))]) + "\n"


def tables(result: Mapping[str, Any]) -> list[Table]:
    """A table for each block; a terminal has no room for the differences."""
    heads = [Column("targets", width=24), *(Column(head, numeric=True) for head in ("facts", "tokens", "mean NLL"))]
    for level in result["thresholds"]:
        heads += [Column(f"NLL > {level:g}", numeric=True), Column("against reference", numeric=True, page_only=True)]
    heads += [Column("overlap", numeric=True), Column("overlap, pooled", numeric=True, page_only=True)]
    found = []
    for name, block in result["blocks"].items():
        counted = f"{block['facts']:,} fact{'' if block['facts'] == 1 else 's'}"
        title = f"{_TITLES[name]} ({counted})" if block["facts"] else f"{_TITLES[name]}: there is none"
        found.append(Table(heads, [Row(_cells(row)) for row in block["rows"]], title))
    return found


def _cells(row: Mapping[str, Any]) -> list[Cell | str]:
    facts = f"{row['facts']:,}" + (f" ({row['targets']:,} targets)" if row["targets"] != row["facts"] else "")
    cells: list[Cell | str] = [row["label"], facts, f"{row['tokens']:,}", numbers_cell(row["mean"], "number")]
    for item in row["above"]:
        share = numbers_cell(item["share"])
        cells.append(replace(share, value=f"{number(item['count'], 0)} ({share.value})"))
        cells.append(numbers_cell(item.get("difference"), signed=True))
    return cells + [numbers_cell(row["overlap"] and row["overlap"][name]) for name in ("mean", "pooled")]


def notes(result: Mapping[str, Any]) -> list[str]:
    """What the numbers are, what was left out, and what a check came to."""
    told = [
        "NLL in nats per token under the base model; count (share) of the tokens above a threshold; 95% intervals over facts. A "
        "difference is over the facts that both have, paired by fact.",
    ]
    if any(row["overlap"] for block in result["blocks"].values() for row in block["rows"]):
        told.append(
            f"Overlap: of the distinct token ids of a fact's reference with an NLL above {result['overlap_threshold']:g}, the share that "
            "occurs anywhere in its target; mean over facts, and pooled over all ids."
        )
    for name, block in result["blocks"].items():
        without = sum(row["overlap"]["without_high"] for row in block["rows"][-1:] if row["overlap"])
        if without:
            told.append(f"{_TITLES[name]}: {without:,} facts have no such id in the reference and are not in the last overlap.")
    for source in result["sources"]:
        label = printable(source["label"])
        left = [f"{source[status]:,} {status}" for status in ("rejected", "unusable") if source[status]]
        told += [f"{label}: {', '.join(left)}; not counted above."] if left else []
        if source["canonical"]:
            told.append(f"{label}: {source['canonical']:,} accepted targets are the reference itself.")
    if check := result["check"]:
        allowed = ", ".join(f"{value:g} allowed in {name}" for name, value in check["tolerance"].items()) or "nothing was stored"
        measured = f"{check['tokens']:,} stored numbers were measured once more; the largest difference is"
        told.append(f"Checked: {measured} {check['largest_difference']:.1e} nats ({allowed}).")
    return [*told, *map(printable, result["notes"])]
