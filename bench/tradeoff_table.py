"""Reads what `bench/tradeoff.py` measured: a table per configuration, and the ratio of the forgettings at equal memorization.

Equal memorization: each configuration's forgetting is interpolated linearly between the two measurements around the level at which
memorization first reaches it (where it was above the level when first looked at, it counts as it was then). For each of LoRA and
full fine-tuning, each method gets the learning rate with the least forgetting there (mean over seeds), so that both are tuned
over the same grid; then the ratio MixSD / SFT is the geometric mean over seeds, with a Student-t interval on its logarithm.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from mixsd.statistics import log_ratio_interval
from mixsd.storage import Journal, cache_folder

LEVEL = 0.9


def at_level(rows: list[dict[str, Any]], level: float) -> tuple[float, float, float] | None:
    """(steps, forgetting, the same on greedy replies) where memorization first reaches `level`, or None if it never does."""
    before: dict[str, Any] | None = None
    for row in sorted(rows, key=lambda row: row["step"]):
        if row["trained"] >= level:
            if before is None:
                return row["step"], row["forgetting"], row["greedy"]
            share = (level - before["trained"]) / (row["trained"] - before["trained"])
            step, sampled, greedy = (
                before[name] + share * (row[name] - before[name]) for name in ("step", "forgetting", "greedy")
            )
            return step, sampled, greedy
        before = row
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=cache_folder() / "bench" / "tradeoff.jsonl")
    parser.add_argument("--level", type=float, default=LEVEL)
    options = parser.parse_args()
    measured: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _, row in Journal(options.input).read():
        measured[row["config"]].append(row)
    # What was measured again after the bench had changed replaces the older measurement.
    runs = {(rows[0]["lora"], rows[0]["name"], rows[0]["lr"], rows[0]["seed"]): rows for rows in measured.values()}
    found: dict[tuple[int, str, float], dict[int, float]] = defaultdict(dict)
    print(f"level {options.level}: forgetting (nats per token) where memorization first reaches it\n")
    print(
        "| weights | method | lr | seed | targets | best memorization | steps to level | forgetting at level | on greedy replies |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for _, rows in sorted(runs.items()):
        first = rows[0]
        reached = at_level(rows, options.level)
        best = max(row["trained"] for row in rows)
        shown = f"{reached[0]:.0f} | {reached[1]:.3f} | {reached[2]:.3f}" if reached else "- | - | -"
        kind = f"LoRA {first['lora']}" if first["lora"] else "all"
        print(f"| {kind} | {first['name']} | {first['lr']:g} | {first['seed']} | {first['targets']} | {best:.2f} | {shown} |")
        if reached:
            found[first["lora"], first["name"], first["lr"]][first["seed"]] = reached[1]
    print()
    for lora in sorted({key[0] for key in found}):
        seeds = max((len(values) for key, values in found.items() if key[0] == lora), default=0)
        best_of = {}
        for name in sorted({key[1] for key in found if key[0] == lora}):
            complete = {key[2]: values for key, values in found.items() if key[:2] == (lora, name) and len(values) == seeds}
            if complete:
                lr = min(complete, key=lambda lr: float(np.mean(list(complete[lr].values()))))
                best_of[name] = (lr, complete[lr])
        for name, (lr, values) in best_of.items():
            if name == "sft" or "sft" not in best_of:
                continue
            sft_lr, sft = best_of["sft"]
            shared = sorted(set(values) & set(sft))
            interval = log_ratio_interval([values[seed] for seed in shared], [sft[seed] for seed in shared])
            bounds = f"[{interval.low:.3f}, {interval.high:.3f}]" if interval.low is not None else "(one seed: no interval)"
            print(
                f"{'LoRA ' + str(lora) if lora else 'all weights'}: {name} (lr {lr:g}) / sft (lr {sft_lr:g}) = "
                f"{interval.value:.3f} {bounds}, {len(shared)} seeds, n = 24 facts"
            )


if __name__ == "__main__":
    main()
