"""Finished run folders made by hand: what `compare` reads, with numbers that a test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mixsd.evaluation.benchmarks.table import HELD_OUT as HELD_OUT_SUITES
from mixsd.evaluation.scores import HELD_OUT, compare, held_out
from mixsd.evaluation.suites import folder_name
from mixsd.settings import Settings
from mixsd.storage import write_json, write_jsonl

TRAINED, PARAPHRASE, PROBE, FORGETTING = (
    "memorization/trained", "memorization/paraphrase", "retention/probe", "retention/forgetting",
)  # fmt: skip
FACTS = 20


def score(split: str, metric: str, value: float | None, n: int = FACTS, **other: Any) -> dict[str, Any]:
    low, high = (None, None) if value is None else (value - 0.1, value + 0.1)
    return {"suite": "core", "split": split, "metric": metric, "model": "tuned", "checkpoint": None, "value": value, "n": n,
            "low": low, "high": high, **other}  # fmt: skip


def row(key: str, split: str, **other: Any) -> dict[str, Any]:
    return {"key": key, "split": split, "group": key, "labels": [], "prompt_hash": f"p-{key}", "reply": "a reply",
            "reply_ids": [1, 2], "extracted": None, "outcome": "wrong", "truncated": False, **other}  # fmt: skip


def rows(seed: int, right: int = 0, nll: float = 10.0) -> list[dict[str, Any]]:
    """Replies to 4 facts, their framed paraphrases, 4 probe questions and 2 reference replies; the first `right` are correct."""
    found = [row(f"t{i}", TRAINED) for i in range(4)] + [row(f"q{i}", PROBE) for i in range(4)]
    for item in found:
        item["outcome"] = "correct" if int(item["key"][1]) < right else "wrong"
        item["reply"] = f"{item['outcome']} reply"
    found += [row(f"p{i}", PARAPHRASE, prompt_hash=f"frame-{seed}-{i}") for i in range(2)]
    return found + [row(f"g{i}", FORGETTING, reply_ids=[seed, i, 7], outcome=None, nll=nll + i, tokens=10 + i) for i in range(2)]


def make(
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    trained: float = 1.0,
    forgetting: float = 0.5,
    paraphrase: float | None = 0.5,
    probe: float = 0.4,
    path: Sequence[tuple[int, float, float]] = (),
    probes: Mapping[int, float] | None = None,
    steps: int | None = 100,
    cost: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    extra: Sequence[Mapping[str, Any]] = (),
    base_rows: Sequence[Mapping[str, Any]] | None = None,
    tuned_rows: Sequence[Mapping[str, Any]] | None = None,
    said: Mapping[str, tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]] | None = None,
    asked: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """One run. `path` has (step, memorization, forgetting) of the scored checkpoints, `probes` their probe accuracy.

    `said` has the rows of base and tuned in other suites, whose scores are made of them; `asked` how suites were asked.
    """
    resolved = Settings(**{"facts": "facts.jsonl", "output": str(folder), "seed": seed, **(settings or {})}).resolved.dump()
    folder.mkdir(parents=True)
    manifest = {
        "settings": resolved,
        "identity": {"model_hash": "model", "facts_hash": "facts", "prompts": "prompts", **(identity or {})},
        "versions": {"mixsd": "0.1.0", "torch": "2.9", "transformers": "5.1"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
    scores = [
        score(TRAINED, "accuracy", 0.0, model="base"),
        score(PROBE, "accuracy", 0.8, 50, model="base"),
        score(TRAINED, "accuracy", trained),
        score(PARAPHRASE, "accuracy", paraphrase, 40),
        score(PROBE, "accuracy", probe, 50),
        score(PROBE, "accuracy_delta", probe - 0.8, 50),
        score(FORGETTING, "forgetting", forgetting, 168),
        score(TRAINED, "unparseable_share", 0.0),
        score(TRAINED, "truncated_share", 0.05),
        *extra,
    ]
    for step, memorization, forgot in path:
        scores += [
            score(TRAINED, "accuracy", memorization, checkpoint=step),
            score(FORGETTING, "forgetting", forgot, checkpoint=step),
        ]
    scores += [score(PROBE, "accuracy", value, 50, checkpoint=step) for step, value in (probes or {}).items()]
    told = {
        suite: ([dict(item) for item in base], [dict(item) for item in tuned]) for suite, (base, tuned) in (said or {}).items()
    }
    scores += [item for suite, (base, tuned) in told.items() for item in compare(suite, base, tuned)]
    scores += held_out({suite: (base, tuned) for suite, (base, tuned) in told.items()}, HELD_OUT_SUITES)
    report = {
        "run": folder.name,
        "method": resolved["method"],
        "settings": resolved,
        "environment": {"device": "cpu", "dtype": "float32", "platform": "Linux", "threads": 2, **(environment or {})},
        "base": {"name": "tiny", "hash": "model"},
        "training": {"steps": steps, **(training or {})},
        "scores": scores,
        **({"asked": asked} if asked else {}),
        **({"cost": cost} if cost else {}),
    }
    write_json(folder / "report.json", report)
    for suite in dict.fromkeys(str(item["suite"]) for item in scores if item["suite"] != HELD_OUT):
        own = told.get(suite, (base_rows, tuned_rows))
        for model, found in zip(("base", "tuned"), own, strict=True):
            write_jsonl(_folder(folder, suite) / f"{model}.jsonl", map(dict, found if found is not None else rows(seed)))
        write_json(_folder(folder, suite) / "asked.json", {"suite": suite, **(asked or {}).get(suite, {})})
    for suite, values in (asked or {}).items():
        write_json(_folder(folder, suite) / "asked.json", values)
    return folder


def _folder(run: Path, suite: str) -> Path:
    return run / "evaluation" / folder_name(suite)


def cost(tokens: int, **seconds: float) -> dict[str, Any]:
    return {"generated_tokens": tokens, "parts": {"mixing": tokens, "rollouts": 0, "rehearsal": 0}, "seconds": seconds}


def two_methods(where: Path) -> list[Path]:
    """sft and mixsd, two seeds each, with scored checkpoints; worked out by hand in the tests."""
    return [
        make(where / "sft-0", {"method": "sft"}, path=[(10, 0.5, 0.2), (20, 1.0, 0.6)], forgetting=0.8, seed=0,
             cost=cost(0, mix=1.0, train=10.0, evaluate=99.0)),
        make(where / "sft-1", {"method": "sft"}, path=[(10, 0.4, 0.2), (20, 0.9, 0.7)], forgetting=0.9, seed=1, trained=0.9,
             cost=cost(0, mix=1.0, train=12.0, evaluate=99.0)),
        make(where / "mix-0", path=[(10, 0.6, 0.1), (20, 1.0, 0.2)], forgetting=0.3, seed=0, cost=cost(1000, mix=5.0, train=10.0)),
        make(where / "mix-1", path=[(10, 0.6, 0.1), (20, 1.0, 0.3)], forgetting=0.5, seed=1, cost=cost(1400, mix=7.0, train=10.0)),
    ]  # fmt: skip
