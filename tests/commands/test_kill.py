"""Invariant 7: SIGKILL anywhere, the same command again, and the result is the undisturbed run's, bit for bit on CPU."""

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mixsd.commands import inject
from mixsd.storage import read_json, read_jsonl
from tests import fresh
from tests.tiny import save_tiny

SETTINGS: dict[str, Any] = {
    "facts": "demo", "verifier": "regex:[aeiou]", "temperature": 1.0, "max_new_tokens": 40, "retries": 3, "on_fail": "canonical",
    "token_budget": 640, "epochs": 3, "batch_size": 5, "micro_batch": 2, "checkpoint_every": 2, "warmup_steps": 2, "lr": 1e-3,
    "forgetting_prompts": 12, "forgetting_tokens": 12, "probe_questions": 16,
}  # fmt: skip


def work(kill_after: float, options: dict[str, Any]) -> None:
    """In a process of its own, which kills itself, without a warning to anyone, some time after its work began."""
    if kill_after >= 0:
        threading.Timer(kill_after, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    inject.inject(**options)


def run_child(model: Path, output: Path, cache: Path, changes: dict[str, Any], *, kill_after: float = -1) -> tuple[int, float]:
    started = time.monotonic()
    printed = cache.with_suffix(".txt")
    options = {**SETTINGS, "model": str(model), "output": str(output), **changes}
    child = fresh.start(work, kill_after, options, output=printed, environment={**os.environ, "MIXSD_CACHE": str(cache)})
    child.join(300)
    if child.exitcode not in (0, -9):
        raise AssertionError(printed.read_text()[-3000:])
    return child.exitcode, time.monotonic() - started


def essence(output: Path) -> dict[str, object]:
    keys = ("key", "prompt_hash", "reply_ids", "outcome", "truncated")
    rows = {
        name: [[row.get(key) for key in keys] for row in read_jsonl(output / "evaluation" / "core" / f"{name}.jsonl")]
        for name in ("base", "tuned")
    }
    steps = [row for row in read_jsonl(output / "log.jsonl") if row["event"] == "step"]
    targets = list(read_jsonl(output / "targets.jsonl")) if (output / "targets.jsonl").is_file() else []
    report = read_json(output / "report.json")
    return {
        # A batch put together differently may change the last bits of a log-probability (invariant 2: to 1e-4), nothing else.
        "targets": [{name: value for name, value in row.items() if name != "base_logprobs"} for row in targets],
        "logprobs": pytest.approx([value for row in targets for value in row["base_logprobs"]], abs=1e-4),
        "weights": (output / "model" / "model.safetensors").read_bytes(),
        "chosen": [report["training"][name] for name in ("lr", "chosen", "rates")],
        "checkpoints": [
            (score["split"], score["checkpoint"], score["value"]) for score in report["scores"] if score["checkpoint"]
        ],
        "cost": report["cost"]["parts"],
        "losses": [(row["step"], row["loss"]) for row in steps],
        **rows,
    }


def check(tmp_path: Path, kills: int, seed: int, **changes: Any) -> None:
    model = save_tiny(tmp_path / "model", stops=[2, *range(8, 262, 12)])
    code, seconds = run_child(model, tmp_path / "calm", tmp_path / "calm-cache", changes)
    assert code == 0
    wanted = essence(tmp_path / "calm")
    if changes.get("method", "mixsd").startswith("mixsd"):
        assert any(row["accepted"] and "e" in row["sources"] for row in read_jsonl(tmp_path / "calm" / "targets.jsonl"))

    draw = random.Random(seed)
    killed = 0
    for trial in range(100):
        output, cache = tmp_path / f"run-{trial}", tmp_path / f"cache-{trial}"
        while True:
            # Short lives, so that one run is killed in several stages; from the second on, it must make progress to end.
            code, _ = (
                run_child(model, output, cache, changes, kill_after=draw.uniform(0.05, seconds / 3)) if killed < kills else (1, 0)
            )
            killed += code == -9
            if code != -9:
                break
        if code == 1:
            assert run_child(model, output, cache, changes)[0] == 0
        got = essence(output)
        got["logprobs"] = got["logprobs"].expected
        for name, value in wanted.items():
            assert got[name] == value, f"{name} differs after {killed} kills"
        if killed >= kills:
            return


def test_three_kills(tmp_path):
    check(tmp_path, kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [0, 2])
def test_twenty_kills(tmp_path, lora):
    check(tmp_path, kills=20, seed=lora, lora=lora)


METHODS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft", "rehearse": 1.0},
    "mixsd": {"rehearse": 0.5, "rehearse_loss": "kl", "lora": 2, "score_checkpoints": True},
    "mixsd-kl": {"method": "mixsd-kl", "lam": 0.3, "kl_teacher": "picked", "choose": "paper"},
    "opsd": {"method": "opsd", "samples": 2, "kl": "jsd", "rehearse": 0.5},
    "opsd, LoRA": {"method": "opsd", "samples": 2, "kl": "reverse", "kl_support": "student", "lora": 2},
    "opsd-nll": {"method": "opsd-nll", "temperature": 0.0},
    "rates": {"method": "sft", "lr": "auto", "lr_grid": [1e-4, 1e-3]},
    "rates, cut short": {"method": "opsd", "samples": 1, "lr": "auto", "lr_grid": [1e-4, 1e-3], "lr_steps": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_kills_of_every_method(tmp_path, method):
    check(tmp_path, kills=4, seed=1, **METHODS[method])
