"""Memorization against forgetting over training, for a grid of settings: what the demo's settings and the README's ratio rest on.

Each configuration trains the built-in model on the bundled facts and measures, after every epoch, memorization on the trained
wording and forgetting (Eq. 2), until memorization is enough. One JSON line per measurement goes to --output, outside the work
tree; a rerun skips what is there. `bench/tradeoff_table.py` reads it.

    python bench/tradeoff.py --stage grid     # one seed, the grid of learning rates, LoRA and full, each method
    python bench/tradeoff.py --stage seeds    # three seeds of the best of each
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mixsd import corpora, loading
from mixsd.answers import Expected, get_verifier
from mixsd.decoding.lockstep import decode
from mixsd.decoding.requests import Request, Sampling
from mixsd.decoding.scoring import score
from mixsd.evaluation import core
from mixsd.evaluation.replies import Answerer
from mixsd.mixing.mix import Mixer
from mixsd.mixing.targets import Target
from mixsd.prompts import Renderer
from mixsd.settings import Settings
from mixsd.storage import Journal, cache_folder, digest
from mixsd.training import Example, train

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "mixsd-0": {"lam": 0.0},
    "mixsd-0.3": {"lam": 0.3},
    "mixsd-0.3-gate": {"lam": 0.3, "gate": 0.1},
    "mixsd-0.5-gate": {"lam": 0.5, "gate": 0.1},
}
SHARED = {"facts": "demo", "batch_size": 8, "micro_batch": 8, "warmup_steps": 20, "max_new_tokens": 64, "epochs": 12}
FULL_RATES = (5e-5, 1e-4, 2e-4)
LORA_RATES = (5e-4, 1e-3, 2e-3)
RANK = 16
EVERY = 3  # optimizer steps between measurements: one epoch of 24 facts
ENOUGH = 0.95  # memorization at which a configuration needs no more training


def grid(stage: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The configurations of a stage, in the order they are worth having."""
    if stage == "grid":
        for name in ("sft", "mixsd-0.3-gate"):
            yield from ((name, {**METHODS[name], "lora": 0, "lr": lr, "seed": 0}) for lr in FULL_RATES)
            yield from ((name, {**METHODS[name], "lora": RANK, "lr": lr, "seed": 0}) for lr in LORA_RATES)
    elif stage == "lambda":
        for name in ("mixsd-0", "mixsd-0.3", "mixsd-0.5-gate"):
            yield from ((name, {**METHODS[name], "lora": rank, "lr": lr, "seed": 0}) for rank, lr in ((0, 1e-4), (RANK, 1e-3)))
    else:
        for seed in (1, 2):
            for rank, rates in ((0, FULL_RATES), (RANK, LORA_RATES)):
                for name in ("sft", "mixsd-0.3-gate"):
                    yield from ((name, {**METHODS[name], "lora": rank, "lr": lr, "seed": seed}) for lr in rates)


class _EnoughError(Exception):
    """Memorization is as high as it is needed."""


class Bench:
    """What all configurations share: base model, facts, reference replies."""

    def __init__(self, prompts: int, tokens: int) -> None:
        self.located = loading.locate("smollm2-135m")
        self.tokenizer = loading.load_tokenizer(self.located.folder)
        self.facts = corpora.load_facts("demo").facts
        self.measure = Settings(forgetting_prompts=prompts, forgetting_tokens=tokens, paraphrases=1).resolved
        base = self.load()
        self.context = loading.context_length(base.config)
        self.renderer = Renderer(self.tokenizer, base.config, base.generation_config)
        answerer = Answerer(
            lambda: base,
            model_hash=loading.model_hash(self.located.folder),
            precision="cpu/fp32",
            stops=self.renderer.stops.ids,
            journal=cache_folder() / "bench" / f"references-{os.getpid()}.jsonl",
        )
        replies = core.sample_references(self.renderer, self.measure, answerer)
        general = {item["id"]: self.renderer.ids(item["prompt"]) for item in core.bundled("general_prompts.jsonl")}
        self.references = [(general[key], reply.ids) for key, reply in replies.items()]
        self.base_nll = self.nll(base)

    def load(self) -> Any:
        return loading.load_model(self.located.folder, dtype=torch.float32, device=torch.device("cpu"))

    def nll(self, model: Any) -> float:
        scores = score(model, self.references)
        return -sum(map(sum, scores)) / sum(map(len, scores))

    def targets(self, settings: Settings) -> list[Target]:
        mixing = {name: getattr(settings, name) for name in ("method", "lam", "gate", "seed", "max_new_tokens", "retries")}
        journal = Journal(cache_folder() / "bench" / f"attempts-{digest([mixing, self.renderer.guidance])}.jsonl")
        with journal:
            mixer = Mixer(self.load, self.renderer, settings, get_verifier("contains"), self.context, journal)
            return list(mixer.run(self.facts))

    def memorization(self, model: Any) -> dict[str, float]:
        verifier, correct = get_verifier("contains"), {"trained": 0}
        wordings = {f"trained/{fact.id}": (fact, fact.question) for fact in self.facts}
        requests = [Request(key, self.renderer.naive(wording), 40) for key, (_, wording) in wordings.items()]
        for item in decode(model, requests, Sampling(self.renderer.stops.ids), batch_size=24):
            fact = wordings[item.key][0]
            verdict = verifier(self.renderer.reply_text(item.ids), Expected(fact.answer, fact.aliases))
            correct[item.key.split("/")[0]] += verdict.outcome == "correct"
        return {split: count / len(self.facts) for split, count in correct.items()}


def run(bench: Bench, name: str, config: dict[str, Any], train_dtype: str) -> Iterator[dict[str, Any]]:
    settings = Settings(**{**SHARED, **config, "train_dtype": train_dtype, "checkpoint_every": 100_000}).resolved
    started = time.perf_counter()
    targets = [target for target in bench.targets(settings) if target.accepted]
    mixed_in = time.perf_counter() - started
    examples = [Example(f"{t.id}/{t.sample}", tuple(t.prompt_ids), tuple(t.target_ids)) for t in targets]
    model = bench.load()
    rows: list[dict[str, Any]] = []

    def measure(step: Any) -> None:
        if (step.step % EVERY == 0 and step.epoch > 2) or step.step == step.total:
            model.eval()
            memorized = bench.memorization(model)
            row = {"name": name, **config, "step": step.step, "epoch": step.epoch, "loss": round(step.loss, 4), **memorized}
            rows.append({**row, "forgetting": round(bench.nll(model) - bench.base_nll, 5), "targets": len(examples)})
            if memorized["trained"] >= ENOUGH:
                raise _EnoughError

    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder, contextlib.suppress(_EnoughError):
        train(model, None, examples, settings=settings, folder=Path(folder), on_step=measure)
    print(f"{name} {config} mixed in {mixed_in:.0f} s, all in {time.perf_counter() - started:.0f} s", flush=True)
    yield from rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("grid", "lambda", "seeds"), default="grid")
    parser.add_argument("--output", type=Path, default=cache_folder() / "bench" / "tradeoff.jsonl")
    parser.add_argument("--prompts", type=int, default=42, help="general prompts that measure forgetting")
    parser.add_argument("--tokens", type=int, default=32, help="longest reply to them")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th configuration, from the I-th")
    parser.add_argument("--train-dtype", choices=("fp32", "bf16"), default="bf16")
    options = parser.parse_args()
    with Journal(options.output) as journal:
        done = {row["config"] for _, row in journal.read() if row.get("final")}
        bench = Bench(options.prompts, options.tokens)
        part, parts = map(int, options.part.split("/"))
        for name, config in list(grid(options.stage))[part::parts]:
            identity = digest(
                [name, config, SHARED, options.prompts, options.tokens, options.train_dtype, bench.renderer.guidance]
            )
            if identity in done:
                continue
            rows = list(run(bench, name, config, options.train_dtype))
            for row in rows:
                journal.append({**row, "config": identity, "final": row is rows[-1]})
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
