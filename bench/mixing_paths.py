"""What `bench/mixing.py` times: one path a process, asked over its standard input, one JSON request and answer per line."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from made_facts import made_facts

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
NEW_TOKENS = 64
PATHS = ("plain", "plain-onednn", "ours-64", "ours", "reprefill")
ON_VLLM = ("vllm-plain", "vllm-loop-default", "vllm-loop", "vllm-ours")
LOOP_TOKENS = 24  # about a target's mean length


class Paths:
    """What one process measures: a model in one precision, and the facts."""

    def __init__(self, path: str, dtype: str, facts: int, retries: int, gate: float, retry: str, token_budget: int) -> None:
        import torch
        from transformers import AutoConfig, GenerationConfig

        from mixsd.facts.prompts import Renderer
        from mixsd.models import loading

        folder = loading.locate("smollm2-135m").folder
        if path in ON_VLLM:
            self.engine = start_vllm(folder, dtype, own_blocks=path != "vllm-loop-default")
        else:
            load = loading.load_to_read if path in ("ours", "ours-64", "plain-onednn") else loading.load_model
            self.model = load(folder, dtype=getattr(torch, DTYPES[dtype]), device=torch.device("cpu"))
        config, generation = AutoConfig.from_pretrained(folder), GenerationConfig.from_pretrained(folder)
        self.renderer, self.context = Renderer(loading.load_tokenizer(folder), config, generation), loading.context_length(config)
        self.facts = made_facts(facts)
        self.retries, self.gate, self.retry, self.token_budget = retries, gate, retry, token_budget

    def plain(self, batch: int) -> dict[str, Any]:
        import torch

        prompts = [self.renderer.naive(fact.question) for fact in self.facts]
        ids, mask = padded((prompts * (batch // len(prompts) + 1))[:batch])
        started = time.perf_counter()
        with torch.inference_mode():
            self.model.generate(
                ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
            )
        seconds = time.perf_counter() - started
        return {"target_tokens_per_s": batch * NEW_TOKENS / seconds, "seconds": seconds, "batch": batch}

    def ours(self, lam: float) -> dict[str, Any]:
        from mixsd.decoding import engine

        with counting() as read:
            found = self._mixed(lam, partial(engine.decode, self.model, token_budget=self.token_budget))
        return {**found, "forward_per_target_token": sum(read) / found["decoded"]}

    def ours_64(self, lam: float, batch: int) -> dict[str, Any]:
        from mixsd.decoding.engine import decode_all
        from mixsd.decoding.requests import Request, Sampling
        from mixsd.randomness import coins

        wanted = [
            Request(
                fact.id,
                self.renderer.naive(fact.question),
                NEW_TOKENS,
                self.renderer.expert(fact),
                coins(0, fact.id, lam=lam, n=NEW_TOKENS),
            )
            for fact in made_facts(batch)
        ]
        started = time.perf_counter()
        with counting() as read:
            found = list(decode_all(self.model, wanted, Sampling({}, gate=self.gate), token_budget=self.token_budget))
        seconds = time.perf_counter() - started
        tokens = sum(len(item.ids) for item in found)
        return {"target_tokens_per_s": tokens / seconds, "seconds": seconds, "forward_per_target_token": sum(read) / tokens}

    def vllm_ours(self, lam: float) -> dict[str, Any]:
        from mixsd.decoding import on_vllm

        return self._mixed(lam, partial(on_vllm.decode, self.engine))

    def _mixed(self, lam: float, decode: Callable[..., Any]) -> dict[str, Any]:
        from mixsd.facts.answers import get_verifier
        from mixsd.settings import Settings
        from mixsd.storage import Journal
        from mixsd.targets.stage import Mixer

        settings = Settings(
            facts="demo",
            lam=lam,
            gate=self.gate,
            retry=self.retry,  # type: ignore[arg-type]
            retries=self.retries,
            max_new_tokens=NEW_TOKENS,
        ).resolved
        decoded = 0
        first: list[float] = []

        def watched(*arguments: Any, **options: Any) -> Any:
            nonlocal decoded
            for item in decode(*arguments, **options):
                decoded += len(item.ids)
                yield item

        with tempfile.TemporaryDirectory() as scratch, Journal(Path(scratch) / "attempts.jsonl") as journal:
            started = time.perf_counter()

            def on_done(finished: int, tokens: int) -> None:
                if tokens and not first:
                    first.append(time.perf_counter() - started)

            verifier = get_verifier("contains")
            mixer = Mixer(
                lambda: self.model, self.renderer, settings, verifier, self.context, journal, on_done=on_done, decode=watched
            )
            mixer.fill_journal(self.facts)
            seconds = time.perf_counter() - started
            counts: Counter[str] = Counter()
            for _, row in journal.read():  # one at a time: the peak of memory is to be mixing's, not ours
                length = len(row["target_ids"])
                counts["kept in attempts"] += length
                counts["generated"] += length - row.get("kept", 0)
                if row["accepted"]:
                    counts["accepted"] += 1
                    counts["in accepted"] += length
                    counts["naive"] += row["sources"].count("n")
                    counts["gated"] += row["sources"].count("g")
        return {
            "target_tokens_per_s": counts["generated"] / seconds,
            "seconds": seconds,
            "first_target_s": first[0],
            "generated_per_accepted": counts["generated"] / max(counts["in accepted"], 1),
            "wasted": 1 - counts["kept in attempts"] / decoded,
            "decoded": decoded,
            "accepted": counts["accepted"],
            "naive_kept": counts["naive"] / max(counts["naive"] + counts["gated"], 1),
        }

    def reprefill(self, lam: float, rows: int = 32, tokens: int = 8) -> dict[str, Any]:
        import torch

        def next_tokens(prompts: list[list[int]]) -> list[int]:
            ids, mask = padded(prompts)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            with torch.inference_mode():
                logits = self.model(ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1).logits
            return logits[:, -1].argmax(-1).tolist()  # type: ignore[no-any-return]

        return self._token_by_token(next_tokens, lam, rows, tokens)

    def vllm_loop(self, lam: float) -> dict[str, Any]:
        self.engine.reset_prefix_cache()
        return self._token_by_token(
            lambda prompts: [ids[0] for ids in self._answers(prompts, 1)], lam, len(self.facts), LOOP_TOKENS
        )

    def vllm_plain(self) -> dict[str, Any]:
        self.engine.reset_prefix_cache()
        started = time.perf_counter()
        replies = self._answers([self.renderer.naive(fact.question) for fact in self.facts], NEW_TOKENS)
        seconds = time.perf_counter() - started
        return {"target_tokens_per_s": sum(map(len, replies)) / seconds, "seconds": seconds}

    def _token_by_token(
        self, next_tokens: Callable[[list[list[int]]], list[int]], lam: float, rows: int, tokens: int
    ) -> dict[str, Any]:
        from mixsd.randomness import coins

        facts = self.facts[:rows]
        flips = [coins(0, fact.id, lam=lam, n=tokens) for fact in facts]
        texts: list[list[int]] = [[] for _ in facts]
        started = time.perf_counter()
        for t in range(tokens):
            prompts = [
                (self.renderer.naive(f.question) if flip[t] else self.renderer.expert(f)) + ids
                for f, flip, ids in zip(facts, flips, texts, strict=True)
            ]
            for text, token in zip(texts, next_tokens(prompts), strict=True):
                text.append(token)
        seconds = time.perf_counter() - started
        return {"target_tokens_per_s": len(facts) * tokens / seconds, "seconds": seconds}

    def _answers(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        """vLLM's greedy continuations of exactly `tokens` tokens."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        for i, prompt in enumerate(prompts):
            params = SamplingParams(
                temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
            )
            self.engine.add_request(str(i), TokensPrompt(prompt_token_ids=prompt), params)
        found: dict[int, list[int]] = {}
        while len(found) < len(prompts):
            for output in self.engine.step():
                if output.finished:
                    found[int(output.request_id)] = list(output.outputs[0].token_ids)
        return [found[i] for i in range(len(prompts))]


@contextmanager
def counting() -> Iterator[list[int]]:
    """How many tokens each of our forward passes reads."""
    from mixsd.decoding import continuous

    read: list[int] = []
    forward = continuous.forward

    def counted(model: Any, pool: Any, pieces: Any, wanted: Any) -> Any:
        read.append(sum(len(piece.tokens) for piece in pieces))
        return forward(model, pool, pieces, wanted)

    continuous.forward = counted  # type: ignore[assignment]
    try:
        yield read
    finally:
        continuous.forward = forward  # type: ignore[assignment]


def padded(prompts: list[list[int]]) -> tuple[Any, Any]:
    """Ids and attention mask, padded on the left."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    return ids, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


def start_vllm(folder: Path, dtype: str, *, own_blocks: bool) -> Any:
    from mixsd.decoding import on_vllm

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB; several engines are there at once
    if not own_blocks:
        on_vllm._BLOCK.clear()
    return on_vllm.load(folder, device="cpu", dtype=DTYPES[dtype])


def serve(options: argparse.Namespace) -> None:
    """A path's process: one JSON request per line in, one JSON answer per line out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines print where the answers go
    path = options.worker
    paths = Paths(path, options.dtype, options.facts, options.retries, options.gate, options.retry, options.token_budget)
    calls: dict[str, Callable[..., dict[str, Any]]] = {
        "plain": paths.plain,
        "plain-onednn": paths.plain,
        "ours-64": paths.ours_64,
        "ours": paths.ours,
        "reprefill": paths.reprefill,
        "vllm-plain": paths.vllm_plain,
        "vllm-loop-default": paths.vllm_loop,
        "vllm-loop": paths.vllm_loop,
        "vllm-ours": paths.vllm_ours,
    }
    for line in sys.stdin:
        found = calls[path](**json.loads(line))
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found), file=answers, flush=True)
