"""What each of the paper's tables would take, as `mixsd sweep recipes/paper-table-NN.yaml --dry-run` estimates it, without the models.

The models stand in a temporary hub cache in their true shapes, with the built-in model's tokenizer: memory, disk and arithmetic are theirs,
lengths in tokens are not quite. MQuAKE and WikiText are the small files at hand. Prints a Markdown table, and with `--json FILE` writes
what it is made of.

    python bench/paper_costs.py --data ../shared/data --json costs.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
TABLES = (1, 2, 3, 4, 10, 11, 12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=int, default=TABLES)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HF_HOME": folder, "HF_HUB_OFFLINE": "1", "MIXSD_DATA": str(options.data)}
        found = {number: price(number, Path(folder), options.data) for number in options.tables}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("| table | runs | decoded to train on | trained on | largest memory | disk |")
    print("|---|---|---|---|---|---|")
    for number, (runs, total) in found.items():
        print(
            f"| {number} | {runs} | {total['decoded_tokens'] / 1e6:,.1f} M | {total['trained_tokens'] / 1e6:,.1f} M "
            f"| {total['memory'] / 1e9:,.0f} GB | {total['disk'] / 1e12:,.1f} TB |"
        )


def price(number: int, home: Path, data: Path) -> tuple[int, dict[str, float]]:
    """The runs of a table's recipe, and what they take together."""
    from tests.stand_ins import fill_cache, recipe

    from mixsd.commands import dry_run
    from mixsd.commands.sweep import State, read_sweep
    from mixsd.models import loading

    if not (home / "hub").exists():
        fill_cache(home / "hub", loading.locate("smollm2-135m").folder)
    values = recipe(ROOT / "recipes" / f"paper-table-{number:02}.yaml", data)
    planned = read_sweep(values, output=home / "runs", offline=True)
    states: dict[str, State] = dict.fromkeys((run.name for run in planned.runs), "to do")
    print(f"table {number}: {len(states)} runs", file=sys.stderr)
    return len(states), dry_run.price(planned, states)["total"]


if __name__ == "__main__":
    main()
