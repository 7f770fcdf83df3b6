"""What the base model makes of the targets: 48 KGFact facts, SFT beside MixSD at several lambdas, one command for the table.

The paper's Tables 7, 8 and 9 and its Figure 3 for the built-in model (section 7.2, appendix E.2). Only the targets are made: nothing
is trained. What was mixed before is not mixed again.

    python bench/nll.py                    # some three minutes on one core
    python bench/nll.py --output FOLDER --check
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import mixsd
from mixsd.analyse.nll import markdown
from mixsd.cli.show import watcher
from mixsd.storage import cache_folder

SHARED: dict[str, Any] = {"facts": "kgfact:4x8", "model": "smollm2-135m", "max_new_tokens": 48, "temperature": 0.0, "retries": 10}
RUNS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "lambda-0": {"lam": 0.0},
    "lambda-0.3": {"lam": 0.3},
    "lambda-0.5": {"lam": 0.5},
    "lambda-0.5-gate-0.1": {"lam": 0.5, "gate": 0.1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=cache_folder() / "nll48")
    parser.add_argument("--check", action="store_true", help="measure what is stored once more")
    options = parser.parse_args()
    folder = options.output.expanduser()
    for name, own in RUNS.items():
        started = time.perf_counter()
        mixsd.mix(**SHARED, **own, output=str(folder / name), watcher=watcher())
        print(f"{name}: mixed, {time.perf_counter() - started:.0f} s", flush=True)
    started = time.perf_counter()
    found = mixsd.analyze_nll(
        [folder / name for name in RUNS], output=folder / "analysis", check=options.check, watcher=watcher()
    )
    print(f"analysed, {time.perf_counter() - started:.0f} s; figures: {folder / 'analysis'}\n")
    print(markdown(found))


if __name__ == "__main__":
    main()
