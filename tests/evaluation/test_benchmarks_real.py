"""Benchmarks on the built-in model and the published data, with a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mixsd.storage import read_json, read_jsonl

MOST_MINUTES = 15


def published() -> Path:
    folder = Path(os.environ.get("MIXSD_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not (folder / "gsm8k").is_dir():
        pytest.skip(f"{folder}/gsm8k is not there; set MIXSD_DATA to the folder of the published data sets")
    return folder


def finished(journal: Path) -> list[str]:
    """The addresses of the replies in a journal; a torn last line is none."""
    lines = journal.read_text().splitlines() if journal.is_file() else []
    found = []
    for line in lines:
        try:
            found += [row["at"] for row in (json.loads(line),) if "ids" in row]
        except ValueError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(MOST_MINUTES * 60 + 300)
def test_fifty_of_gsm8k_and_mmlu_killed_once(tmp_path, monkeypatch):
    """100 questions, at most 512 new tokens each, in under a quarter of an hour on two cores; no reply is made twice."""
    data = published()
    monkeypatch.setenv("MIXSD_CACHE", os.environ.get("MIXSD_CACHE") or str(Path.home() / ".cache" / "mixsd"))
    from mixsd.models import loading
    from mixsd.progress import Watcher

    base = loading.locate("smollm2-135m", offline=True, say=Watcher().say).folder
    copy = tmp_path / "model"
    copy.symlink_to(base)
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))  # no reply that was made before
    command = [sys.executable, "-m", "mixsd", "evaluate", str(copy), "--output", str(tmp_path / "run"), "--data", str(data)]
    command += ["--suite", "gsm8k", "--suite", "mmlu", "--limit", "50", "--benchmark-tokens", "512"]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    journal = None
    while process.poll() is None and time.monotonic() - began < MOST_MINUTES * 60:
        journal = next(iter((tmp_path / "cache" / "replies").glob("*.jsonl")), None)
        if journal and len(finished(journal)) >= 40:
            break
        time.sleep(0.1)
    assert process.poll() is None, "it ended before it was killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert journal is not None
    before = finished(journal)
    subprocess.run(command, check=True, timeout=MOST_MINUTES * 60)
    minutes = (time.monotonic() - began) / 60
    after = finished(journal)
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 100, "each reply was made once"
    for suite in ("gsm8k", "mmlu"):
        rows = list(read_jsonl(tmp_path / "run" / "evaluation" / suite / "base.jsonl"))
        assert len(rows) == 50
        assert max(len(row["reply_ids"]) for row in rows) <= 512
        assert all(row["outcome"] != "error" for row in rows)
        assert read_json(tmp_path / "run" / "evaluation" / suite / "asked.json")["limit"] == 50
    print(f"{minutes:.1f} minutes")
    assert minutes < MOST_MINUTES
