"""Where the published data sets lie: not in the repository, whose licence is not theirs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def published() -> Callable[[str], str]:
    """The path of a published file under $MIXSD_DATA, else ../shared/data beside the repository; skips where it is not."""
    folder = Path(os.environ.get("MIXSD_DATA") or Path(__file__).parents[3] / "shared" / "data")

    def find(name: str) -> str:
        path = folder / name
        if not path.is_file():
            pytest.skip(f"{path} is not there; set MIXSD_DATA to the folder of the published data sets")
        return str(path)

    return find
