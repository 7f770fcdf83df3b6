"""MEMIT on the built-in model: edits that show in free generation, and what they cost.

    OMP_NUM_THREADS=1 .venv/bin/python bench/memit.py \\
        --facts mquake:MQuAKE-2002.json --edits 10 --text wikitext2_train_5k.txt

Printed: replies to the chat questions that state the new answer, the old one or another (before the edit, after it, and to two
paraphrases each), facts whose edited prompt greedy decoding completes, forgetting (the rise of the NLL of the base model's own
replies), processor time and memory. `--set NAME=VALUE` changes a field of `MemitConfig`.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from mixsd import statistics
from mixsd.editing import MemitConfig, edit, layers_of, paragraphs, second_moments
from mixsd.evaluation import suites
from mixsd.evaluation.questions import Answerer, about, ask
from mixsd.facts.answers import get_verifier
from mixsd.facts.corpus import corpus, open_source
from mixsd.facts.prompts import Renderer
from mixsd.models import loading
from mixsd.settings import Settings
from mixsd.storage import Journal, cache_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", required=True, help="mquake:FILE, kgfact:small or a file of facts with subjects")
    parser.add_argument("--text", type=Path, required=True, help="ordinary text for the second moments")
    parser.add_argument("--edits", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=100_000, help="how much of the text is read")
    parser.add_argument("--prompts", type=int, default=40, help="general prompts that measure forgetting")
    parser.add_argument("--paraphrases", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="fields of MemitConfig")
    parser.add_argument("--journal", type=Path, help="where values are kept from one run to the next")
    parser.add_argument("--replies", action="store_true", help="print every reply")
    options = parser.parse_args()
    config = MemitConfig(**dict(map(_field, options.set)))
    name, _, argument = options.facts.partition(":")
    if name == "mquake":
        facts = list(corpus(name, argument, edits=options.edits, seed=options.seed).facts())
    else:
        opened = open_source(options.facts, seed=options.seed, offline=True)
        facts = list(opened.facts() if hasattr(opened, "splits") else opened.facts)[: options.edits]

    folder = loading.locate("smollm2-135m").folder
    model_hash = loading.model_hash(folder)
    model = loading.load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    renderer = Renderer(loading.load_tokenizer(folder), model.config, model.generation_config)
    settings = Settings(
        facts=options.facts, forgetting_prompts=options.prompts, paraphrases=options.paraphrases, seed=options.seed
    ).resolved

    def measured(answerer: Answerer, references: dict[str, Any]) -> list[dict[str, Any]]:
        asked = [
            about(fact, f"{kind}/{fact.id}/{place}", kind, question, renderer, get_verifier("contains"), 64)
            for fact in facts
            for kind, wordings in (("trained", [fact.question]), ("paraphrase", suites.paraphrases(fact, settings)))
            for place, question in enumerate(wordings)
        ]
        return ask(asked, renderer, answerer) + suites.forgetting(answerer, renderer, references)

    def answerer(journal: Path, hash_: str) -> Answerer:
        return Answerer(lambda: model, model_hash=hash_, precision="cpu/float32", stops=renderer.stops.ids, journal=journal)

    base = answerer(cache_folder() / "bench" / "memit-base.jsonl", model_hash)
    references = suites.sample_references(renderer, settings, base)
    before = measured(base, references)

    started = time.process_time()
    moments = second_moments(
        model,
        renderer.tokenizer,
        paragraphs(options.text),
        layers_of(config, model.config),
        model_hash=model_hash,
        cache=cache_folder() / "moments",
        tokens=options.tokens,
    )
    read = time.process_time()
    result = edit(
        model, renderer, facts, moments, config, seed=options.seed, journal=Journal(options.journal) if options.journal else None
    )
    edited = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        after = measured(answerer(Path(scratch) / "replies.jsonl", "edited"), references)

    for fact, outcome in zip(facts, result.facts, strict=True):
        print(json.dumps({"question": fact.question, "answer": fact.answer, **vars(outcome)}, ensure_ascii=False))
    if options.replies:
        for row in after:
            if row["outcome"] is not None:
                print(f"{row['key']}: {row['outcome']}: {row['reply']!r}")
    print(config)
    print(
        f"second moments: {moments.tokens} tokens, weight {result.weight:g}; processor time: {read - started:.0f} s for them, "
        f"{edited - read:.0f} s for the edit; "
        f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f} GB"
    )
    print("change of each layer: " + ", ".join(f"{layer}: {change:.3f}" for layer, change in result.changes.items()))
    print(f"edited {result.count('edited')}, failed {result.count('failed')}, unusable {result.count('unusable')}")
    for name, rows in (("base", before), ("edited", after)):
        for split in ("trained", "paraphrase"):
            own = [row for row in rows if row["split"] == split]
            new, old = sum(row["outcome"] == "correct" for row in own), sum(bool(row.get("old")) for row in own)
            print(f"{name}, {split}: new {new}, old {old}, other {len(own) - new - old}, of {len(own)}")
    pairs = [
        (one["nll"], two["nll"], one["tokens"])
        for one, two in zip(before, after, strict=True)
        if one["split"] == suites.FORGETTING
    ]
    rise = statistics.paired_ratio_difference(*(list(column) for column in zip(*pairs, strict=True)))
    print(f"forgetting: {rise.value:.4f} nats per token (95% {rise.low:.4f} to {rise.high:.4f}, n = {rise.n})", flush=True)


def _field(text: str) -> tuple[str, Any]:
    """NAME=VALUE as a field of the config; layers as 3-12 or 3,4,5."""
    name, _, value = text.partition("=")
    kinds = {field.name: field.type for field in fields(MemitConfig)}
    if name == "layers":
        first, dash, last = value.partition("-")
        return name, tuple(range(int(first), int(last) + 1)) if dash else tuple(map(int, value.split(",")))
    return name, {"int": int, "float": float, "float | None": float}.get(str(kinds.get(name)), str)(value)


if __name__ == "__main__":
    main()
