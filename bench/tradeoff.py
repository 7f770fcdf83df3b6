"""Memorization against forgetting over training, for a grid of settings: what the demo's settings and the README's ratio rest on.

Each configuration trains the built-in model on the bundled facts and measures, every few steps, memorization on the trained
wording and, once that is not far from enough, forgetting (Eq. 2), until it is enough. One JSON line per measurement goes to
--output, outside the work tree; a rerun skips what is there. `bench/tradeoff_table.py` reads it.

    python bench/tradeoff.py --stage grid      # one seed, every learning rate, LoRA and full, both methods
    python bench/tradeoff.py --stage seeds     # the other seeds at each one's best learning rate
    python bench/tradeoff.py --stage variants  # temperature, samples, lambda and gate, one at a time
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

from mixsd.decoding.engine import decode_all, score
from mixsd.decoding.requests import Request, Sampling
from mixsd.evaluation import suites
from mixsd.evaluation.questions import Answerer, Prompt
from mixsd.facts import corpus
from mixsd.facts.answers import Expected, get_verifier
from mixsd.facts.fact import to_json
from mixsd.facts.prompts import Renderer
from mixsd.models import loading
from mixsd.settings import Settings
from mixsd.storage import Journal, cache_folder, digest
from mixsd.targets.stage import Mixer
from mixsd.targets.target import Target
from mixsd.training import Example, train
from tradeoff_table import LEVEL, at_level

# The learning rate is constant after the warm-up, so `epochs` is only a limit: a run ends when memorization is ENOUGH.
METHODS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft", "epochs": 64},
    "mixsd": {"lam": 0.9, "gate": 0.2, "temperature": 1.0, "top_k": 1_000_000, "samples": 48, "epochs": 8},
}
# One thing changed at a time from the method as it is above; the last four from each other.
VARIANTS: dict[str, dict[str, Any]] = {
    "mixsd 24 samples": {**METHODS["mixsd"], "samples": 24},
    "mixsd T=0.8": {**METHODS["mixsd"], "temperature": 0.8},
    "mixsd lambda 0.3": {**METHODS["mixsd"], "lam": 0.3},
    "mixsd gate 0.1": {**METHODS["mixsd"], "gate": 0.1},
    "mixsd top-k 64": {**METHODS["mixsd"], "top_k": 64},
    "mixsd T=0, 1 sample": {"lam": 0.3, "gate": 0.1, "epochs": 12},
    "mixsd T=0, 1 sample, no gate": {"lam": 0.3, "epochs": 12},
    "mixsd T=0, 1 sample, lambda 0": {"lam": 0.0, "epochs": 12},
    "mixsd T=0, 1 sample, lambda 0.5": {"lam": 0.5, "gate": 0.1, "epochs": 12},
}
SHARED = {
    "facts": "demo",
    "batch_size": 8,
    "micro_batch": 8,
    "warmup_steps": 20,
    "max_new_tokens": 48,
    "retries": 20,
}
FULL_RATES = (5e-5, 2.5e-5, 1.25e-5, 1e-4, 2e-4)
LORA_RATES = (5e-4, 2.5e-4, 1.25e-4, 1e-3, 2e-3)
RANK = 16
EVERY = 3  # optimizer steps between measurements, an epoch of 24 references at batch 8; twice that with several samples
FIRST = 12  # nothing is memorized before
LOOKED_AT = 0.5  # memorization from which forgetting is measured
ENOUGH = LEVEL  # memorization at which a configuration needs no more training
SEEDS = (0, 1, 2, 3)


def grid(stage: str, methods: list[str], rates: int, measured: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The configurations of a stage, in the order they are worth having.

    grid: every learning rate at the first seed. seeds: the other seeds at the rate with the least forgetting at 0.9 there.
    variants: one thing changed at a time, full fine-tuning at 5e-5.
    """
    weights = ((0, FULL_RATES[:rates]), (RANK, LORA_RATES[:rates]))
    if stage == "grid":
        yield from (
            (name, {**METHODS[name], "lora": rank, "lr": lr, "seed": SEEDS[0]})
            for rank, own in weights
            for name in methods
            for lr in own
        )
    elif stage == "seeds":
        for seed in SEEDS[1:]:
            for rank, own in weights:
                for name in methods:
                    lr = min(own, key=lambda lr: _forgetting(measured, name, rank, lr))
                    yield name, {**METHODS[name], "lora": rank, "lr": lr, "seed": seed}
    else:
        yield from ((name, {**changed, "lora": 0, "lr": 5e-5, "seed": SEEDS[0]}) for name, changed in VARIANTS.items())


def _forgetting(measured: list[dict[str, Any]], name: str, rank: int, lr: float) -> float:
    rows = [r for r in measured if (r["name"], r["lora"], r["lr"], r["seed"]) == (name, rank, lr, SEEDS[0])]
    reached = at_level(rows, LEVEL)
    return reached[1] if reached else float("inf")


class _EnoughError(Exception):
    """Memorization is as high as it is needed."""


class Bench:
    """What all configurations share: base model, facts, reference replies."""

    def __init__(self, prompts: int, tokens: int) -> None:
        self.located = loading.locate("smollm2-135m")
        self.tokenizer = loading.load_tokenizer(self.located.folder)
        self.facts = corpus.load_facts("demo").facts
        self.measure = Settings(forgetting_prompts=prompts, forgetting_tokens=tokens, paraphrases=1).resolved
        base = self.load_to_read()
        self.context = loading.context_length(base.config)
        self.renderer = Renderer(self.tokenizer, base.config, base.generation_config)
        answerer = Answerer(
            lambda: base,
            model_hash=loading.model_hash(self.located.folder),
            precision="cpu/fp32",
            stops=self.renderer.stops.ids,
            journal=cache_folder() / "bench" / f"references-{os.getpid()}.jsonl",
        )
        general = suites.general_prompts(self.renderer)
        sampled = suites.sample_references(self.renderer, self.measure, answerer)
        greedy = answerer.replies([Prompt(key, general[key], tokens) for key in sampled])
        # Forgetting is measured on the sampled replies (Eq. 2); the greedy ones show how much of it is sharpening.
        self.references = [[(general[key], reply.ids) for key, reply in replies.items()] for replies in (sampled, greedy)]
        self.base_nll = self.nll(base)

    def load(self) -> Any:
        return loading.load_model(self.located.folder, dtype=torch.float32, device=torch.device("cpu"))

    def load_to_read(self) -> Any:
        return loading.load_to_read(self.located.folder, dtype=torch.float32, device=torch.device("cpu"))

    def nll(self, model: Any) -> list[float]:
        """Mean NLL per token of the sampled and of the greedy reference replies."""
        scores = [score(model, references) for references in self.references]
        return [-sum(map(sum, found)) / sum(map(len, found)) for found in scores]

    def targets(self, settings: Settings) -> list[Target]:
        names = ("method", "lam", "gate", "seed", "max_new_tokens", "retries", "temperature", "top_k", "samples")
        identity = [[getattr(settings, name) for name in names], self.renderer.guidance, [to_json(fact) for fact in self.facts]]
        journal = Journal(cache_folder() / "bench" / f"attempts-{digest(identity)}.jsonl")
        with journal:
            mixer = Mixer(self.load_to_read, self.renderer, settings, get_verifier("contains"), self.context, journal)
            return list(mixer.run(self.facts))

    def memorization(self, model: Any) -> dict[str, float]:
        verifier, correct = get_verifier("contains"), {"trained": 0}
        wordings = {f"trained/{fact.id}": (fact, fact.question) for fact in self.facts}
        requests = [Request(key, self.renderer.naive(wording), 40) for key, (_, wording) in wordings.items()]
        for item in decode_all(model, requests, Sampling(self.renderer.stops.ids), token_budget=8192):
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
    every = EVERY if settings.samples == 1 else 2 * EVERY

    def measure(step: Any) -> None:
        if (step.step % every == 0 and step.step >= FIRST) or step.step == step.total:
            model.eval()
            memorized = bench.memorization(model)
            row = {"name": name, **config, "step": step.step, "epoch": step.epoch, "loss": round(step.loss, 4), **memorized}
            if memorized["trained"] >= LOOKED_AT or step.step == step.total:
                sampled, greedy = (nll - base for nll, base in zip(bench.nll(model), bench.base_nll, strict=True))
                rows.append({**row, "forgetting": round(sampled, 5), "greedy": round(greedy, 5), "targets": len(examples)})
                row = rows[-1]
            print(json.dumps(row), flush=True)
            if memorized["trained"] >= ENOUGH:
                raise _EnoughError

    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder, contextlib.suppress(_EnoughError):
        train(model, None, examples, settings=settings, folder=Path(folder), on_step=measure)
    print(f"{name} {config} mixed in {mixed_in:.0f} s, all in {time.perf_counter() - started:.0f} s", flush=True)
    yield from rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("grid", "seeds", "variants"), default="grid")
    parser.add_argument("--output", type=Path, default=cache_folder() / "bench" / "tradeoff.jsonl")
    parser.add_argument("--prompts", type=int, default=42, help="general prompts that measure forgetting")
    parser.add_argument("--tokens", type=int, default=32, help="longest reply to them")
    parser.add_argument("--method", choices=tuple(METHODS), action="append", help="only this one (repeatable)")
    parser.add_argument(
        "--variant", choices=tuple(VARIANTS), action="append", help="with --stage variants: only this one (repeatable)"
    )
    parser.add_argument("--weights", choices=("all", "lora"), help="only full fine-tuning, or only LoRA")
    parser.add_argument("--rates", type=int, default=len(FULL_RATES), help="only the first so many learning rates")
    parser.add_argument("--lr", type=float, action="append", help="only this learning rate (repeatable)")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="with --stage grid: this seed instead of the first")
    parser.add_argument("--train-dtype", choices=("fp32", "bf16"), default="bf16")
    options = parser.parse_args()
    with Journal(options.output) as journal:
        measured = [row for _, row in journal.read()]
        only = options.lr or []
        done = {row["config"] for row in measured if row["final"]}
        bench = Bench(options.prompts, options.tokens)
        for name, config in grid(options.stage, options.method or list(METHODS), options.rates, measured):
            if options.weights and (options.weights == "lora") != bool(config["lora"]):
                continue
            if options.seed is not None:
                config["seed"] = options.seed
            if (only and config["lr"] not in only) or (options.variant and name not in options.variant):
                continue
            facts = [to_json(fact) for fact in bench.facts]
            measure = [options.prompts, options.tokens, options.train_dtype, bench.renderer.guidance]
            identity = digest([name, {**config, "epochs": None}, SHARED, facts, measure])
            if identity in done:
                continue
            rows = list(run(bench, name, config, options.train_dtype))
            for row in rows:
                journal.append({**row, "config": identity, "final": row is rows[-1]})


if __name__ == "__main__":
    main()
