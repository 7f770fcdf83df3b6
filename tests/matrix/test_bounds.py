"""`make test-matrix` runs on the versions that pyproject.toml declares as the lowest."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_lowest_versions_are_those_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lowest = [line for line in (ROOT / "tests/matrix/lowest.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lowest) == 3
    assert {re.sub(r"==([0-9.]+?)(\.0)*$", r">=\1", line) for line in lowest} <= {
        re.sub(r"(\.0)+$", "", line) for line in declared
    }
