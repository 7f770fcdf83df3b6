"""Does what `mixsd plan` measures before training rank configurations as a sweep finds them to forget?

    mixsd plan FACTS --model M --output PLAN ...
    python bench/plan_validation.py PLAN/plan.json SWEEP/compare.json

Spearman's rho, with a permutation p-value, between each number of the plan and the mean forgetting over seeds of the sweep's
configurations (SFT as the references), at the end of the training and, where the comparison has a level, at equal memorization. n is
the number of configurations, which is small.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from scipy import stats

PREDICTORS = {
    "mean NLL": lambda item: item["likelihood"]["all"]["mean_nll"],
    "share above 5": lambda item: item["likelihood"]["all"]["share_above_5"],
    "share above 8": lambda item: item["likelihood"]["all"]["share_above_8"],
    "share above 8, common facts": lambda item: item["likelihood"]["common"]["share_above_8"],
    "alignment": lambda item: item["alignment"],
}


def predicted(plan: dict[str, Any]) -> dict[tuple[float, float] | None, dict[str, Any]]:
    """The plan's configurations by (lambda, gate); the references under None."""
    return {**{(item["lambda"], item["gate"]): item for item in plan["configurations"]}, None: plan["reference"]}


def measured(comparison: dict[str, Any], measure: str) -> dict[tuple[float, float] | None, float]:
    """Forgetting of the sweep's configurations that a plan knows of."""
    found = {}
    for item in comparison["configurations"]:
        settings, cell = item["settings"], item["measures"].get(measure)
        if item["method"] not in ("sft", "mixsd") or settings.get("rehearse") or not cell or cell["value"] is None:
            continue
        found[(settings["lam"], settings["gate"]) if item["method"] == "mixsd" else None] = cell["value"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("comparison", type=Path)
    arguments = parser.parse_args()
    plan = predicted(json.loads(arguments.plan.read_text()))
    comparison = json.loads(arguments.comparison.read_text())
    print("| predicted | measured | n | Spearman | p (permutations) |\n|---|---|---|---|---|")
    for measure in ("forgetting", "forgetting_at_level"):
        truth = measured(comparison, measure)
        for name, read in PREDICTORS.items():
            both = []
            for key in truth.keys() & plan.keys():
                value = read(plan[key])
                value = value["value"] if isinstance(value, dict) else value
                if value is not None:
                    both.append((value, truth[key]))
            if len(both) < 3:
                continue
            before, after = zip(*both, strict=True)
            if len(set(before)) == 1 or len(set(after)) == 1:
                print(f"| {name} | {measure} | {len(both)} | – | – |")
                continue
            rho = stats.spearmanr(before, after).statistic
            orders = stats.permutation_test(
                (before,),
                lambda order, truth=after: abs(stats.spearmanr(order, truth).statistic),
                permutation_type="pairings",
                alternative="greater",
                n_resamples=math.factorial(8),  # all orders of up to eight configurations
                rng=0,
            )
            print(f"| {name} | {measure} | {len(both)} | {rho:.2f} | {orders.pvalue:.3f} |")


if __name__ == "__main__":
    main()
