"""KGFact's time is linear in the number of facts, and no file is held in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from mixsd.facts import corpus as facts_corpus
from mixsd.facts.kgfact import kgfact


def cpu_seconds(size: str, folder: Path) -> float:
    """Of making and writing a corpus; other work on the machine does not count."""
    before = time.process_time()
    facts_corpus.write(kgfact(size), folder)
    return time.process_time() - before


def test_the_large_corpus_takes_less_than_two_seconds(tmp_path: Path) -> None:
    assert cpu_seconds("large", tmp_path / "kg") < 2


def test_time_is_linear_in_the_number_of_facts(tmp_path: Path) -> None:
    small, large = (min(cpu_seconds(size, tmp_path / "kg") for _ in range(3)) for size in ("7x20", "7x80"))
    assert large / small < 8


def test_no_file_is_held_in_memory(tmp_path: Path) -> None:
    corpus = kgfact("7x40")
    next(corpus.splits["retrieval"]())  # both graphs are made by now
    tracemalloc.start()
    try:
        facts_corpus.write(corpus, tmp_path / "kg")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (tmp_path / "kg" / "retrieval.jsonl").stat().st_size / 3


@pytest.mark.slow
def test_a_hundred_thousand_facts_are_streamed_to_disk(tmp_path: Path) -> None:
    code = """
import resource, sys, time
from pathlib import Path
from mixsd.facts import corpus, kgfact
before = time.process_time()
counts = corpus.write(kgfact.kgfact(sys.argv[1]), Path(sys.argv[2]))
print(sum(counts.values()), time.process_time() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

    def measured(size: str) -> tuple[float, ...]:
        command = [sys.executable, "-c", code, size, str(tmp_path / size)]
        return tuple(map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()))

    records, seconds, peak = measured("7x4762")
    fewer, faster, _ = measured("7x1190")
    print(f"{records:.0f} records in {seconds:.1f} s, at most {peak:.0f} MiB; {fewer:.0f} in {faster:.1f} s")
    assert records == 6 * 100_002
    # Where more runs than there are cores, caches and memory are shared and seconds are longer.
    assert seconds < 30 * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert seconds / faster < 8
    assert peak < 300
