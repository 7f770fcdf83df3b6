"""The published benchmarks, where this machine has them: they are not in the repository, whose licence is not theirs."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixsd.evaluation.grading import maths_process
from mixsd.facts import answers

Records = Callable[[str], list[dict[str, Any]]]


def workers() -> list[int]:
    """The ids of the processes that judge for this one."""
    return [child.pid for child in multiprocessing.active_children() if child.name == "pebble_pool_worker" and child.pid]


@pytest.fixture(scope="session")
def records() -> Records:
    """The records of a JSON lines file under $MIXSD_DATA, else ../shared/data beside the repository; skips where it is not."""
    folder = Path(os.environ.get("MIXSD_DATA") or Path(__file__).parents[4] / "shared" / "data")

    def read(name: str) -> list[dict[str, Any]]:
        path = folder / name
        if not path.is_file():
            pytest.skip(f"{path} is not there; set MIXSD_DATA to the folder of the published data sets")
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        return [json.loads(line) for line in text.split("\n") if line.strip()]

    return read


@pytest.fixture(autouse=True)
def _no_other_workers() -> None:
    """Those that search for users' patterns, where other tests have left some, are not `workers`."""
    answers._searchers().close()


@pytest.fixture(scope="package", autouse=True)
def _no_worker_stays() -> Iterator[None]:
    yield
    maths_process.PROCESSES.close()
    answers._searchers().close()
    assert workers() == []
