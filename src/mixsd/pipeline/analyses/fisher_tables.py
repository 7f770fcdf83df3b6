"""The tables of `mixsd analyze fisher`: the paper's Tables 5 and 6, for a terminal and as Markdown, and each checkpoint's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mixsd.reporting.formats import known, printable

_NAMES = {"displacement": "raw displacement", "alignment": "alignment ratio", "fisher_weighted": "Fisher-weighted displacement"}
_AGAINST = {"forgetting": "forgetting (Eq. 2)", "drop": "drop over the held-out benchmarks"}
_HEAD = ("method", "runs", "‖Δ‖²", "‖Δ‖", "Σ F Δ²", "alignment", "drop (points)", "forgetting (nats/token)")
_CHECKPOINTS = ("run", "checkpoint", "‖Δ‖²", "‖Δ‖", "Σ F Δ²", "alignment", "forgetting [95%] (n)")
_GROUPS = ("method", "group", "weights", "share of ‖Δ‖²", "share of Σ F Δ²", "alignment")


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What the terminal shows: the tables as plain text, aligned, then the notes."""
    fisher = result["fisher"]
    yield f"Fisher of {printable(str(result['base']['name']))}: {_estimated(fisher)}"
    yield ""
    yield from _plain([_HEAD, *_methods(result)])
    yield ""
    yield from _plain([("Pearson's r over checkpoints", "r [95%]", "n", "interval"), *_correlated(result)])
    for note in result["notes"]:
        yield f"note: {printable(note)}"


def markdown(result: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    parts = [
        f"# Displacement and Fisher alignment\n\nFisher of `{_cell(result['base']['name'])}`: {_estimated(result['fisher'])}.",
        "Final models; a mean over several runs of one method, with Student's 95% interval. Displacements of one model are sums over all "
        "its weights and have no interval.",
        _table(_HEAD, _methods(result)),
        "Correlation over checkpoints. Those of one run are not independent, so the 95% interval is a bootstrap over whole runs; below "
        "five there is none.",
        _table(("with", "r [95%]", "n", "interval"), _correlated(result)),
        "## Where the final models moved",
        _table(_GROUPS, _grouped(result)),
        "## Checkpoints",
        _table(_CHECKPOINTS, [_checkpoint(row) for row in result["checkpoints"]]),
        *(f"- {_cell(note)}" for note in result["notes"]),
    ]
    return "\n\n".join(parts) + "\n"


def _estimated(fisher: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in (fisher.get("counts") or {}).items() if count)
    return f"{fisher['examples']} examples of {fisher['reference']} ({counts}), {fisher['tokens']:,} target tokens, {fisher['precision']}"


def _methods(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            str(item["configuration"]),
            str(item["runs"]),
            *(_estimate(item[name]) for name in ("displacement_squared", "displacement", "fisher_weighted", "alignment")),
            _estimate(item["drop"], 100.0),
            _estimate(item["forgetting"]),
        )
        for item in result["table"]
    ]


def _correlated(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            f"{_NAMES[item['metric']]} and {_AGAINST[item['with']]}",
            _with_ends(item["r"], item["low"], item["high"]),
            f"{item['n']} of {item['runs']} runs",
            item["interval"],
        )
        for item in result["correlations"]
    ]


def _grouped(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    found = []
    for row in result["checkpoints"]:
        if row["final"]:
            for name, part in row["groups"].items():
                shares = [
                    f"{part[key] / row[key]:.1%}" if row[key] else "–" for key in ("displacement_squared", "fisher_weighted")
                ]
                found.append((str(row["run"]), name, f"{part['count']:,}", *shares, _number(part["alignment"])))
    return found


def _checkpoint(row: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = [_number(row[name]) for name in ("displacement_squared", "displacement", "fisher_weighted", "alignment")]
    forgetting = row["forgetting"]
    told = f"{_with_ends(forgetting['value'], forgetting['low'], forgetting['high'])} ({forgetting['n']})" if forgetting else "–"
    return (str(row["run"]), str(row["checkpoint"]) + (" (final)" if row["final"] else ""), *numbers, told)


def _estimate(item: Mapping[str, Any], scale: float = 1.0) -> str:
    return _with_ends(*(item[name] * scale if known(item[name]) else None for name in ("value", "low", "high")))


def _with_ends(value: Any, low: Any, high: Any) -> str:
    ends = f" [{_number(low)}, {_number(high)}]" if known(low) and known(high) else ""
    return _number(value) + ends


def _number(value: Any) -> str:
    return "–" if not known(value) else f"{value:.3g}" if value and abs(value) < 100 else f"{value:,.1f}"


def _cell(text: Any) -> str:
    """Foreign text as one cell of a Markdown table."""
    plain = printable(" ".join(str(text).split()), keep="")
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    made = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in made)


def _plain(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    shown = [[printable(cell, keep="") for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in shown) for place in range(len(shown[0]))]
    for row in shown:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
