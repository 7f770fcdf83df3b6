"""How fast mixing is beside plain decoding: one run, side by side, same model, precision and facts.

    python bench/mixing.py                       # every path, both precisions, five rounds
    python bench/mixing.py --vllm .venv-vllm/bin/python   # also on vLLM, from its own environment; or: make bench-mixing
    python bench/mixing.py --scaling 64 4096     # seconds per fact as facts grow, one round, no retries

Paths: `plain` is transformers' greedy `generate` on the bare questions, forced to 64 new tokens, at the batch size that is best
here, so that no row ends early; `plain-onednn` the same with our linear layers; `ours` is the whole of mixing: decoding,
verifying, retries, the journal and the log-probabilities of accepted targets; `reprefill` reads the picked prompt anew for every
token (8 tokens of 32 facts: short texts favour it). On vLLM: `vllm-plain` the same 64 tokens; `vllm-loop` one request per token with the whole
batch waiting at each token, as `vllm-loop-default` too, which leaves vLLM its own block size; `vllm-ours` mixing without the
log-probabilities. Each path has a process of its own, so that its peak memory is its own; rounds go over all of them in turn.

`target_tokens_per_s` counts the tokens of all attempts that counted over wall time, the model loaded; `generated_per_accepted` is those
tokens over the tokens of accepted targets; `wasted` is the share of decoded tokens that belonged to attempts which were decoded
ahead of need and did not count.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from made_facts import made_facts

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
LAMBDAS = (0.0, 0.3, 0.5, 0.7)
NEW_TOKENS = 64
BATCHES = (32, 64, 128)
PATHS = ("plain", "plain-onednn", "ours", "reprefill")
ON_VLLM = ("vllm-plain", "vllm-loop-default", "vllm-loop", "vllm-ours")
LOOP_TOKENS = 24  # about a target's mean length


class Paths:
    """What one process measures: a model in one precision, and the facts."""

    def __init__(self, path: str, dtype: str, facts: int, retries: int, gate: float, retry: str, token_budget: int) -> None:
        import torch
        from transformers import AutoConfig, GenerationConfig

        from mixsd import loading
        from mixsd.prompts import Renderer

        folder = loading.locate("smollm2-135m").folder
        if path in ON_VLLM:
            self.engine = start_vllm(folder, dtype, own_blocks=path != "vllm-loop-default")
        else:
            load = loading.load_to_read if path in ("ours", "plain-onednn") else loading.load_model
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
        from functools import partial

        from mixsd.decoding import continuous, engine

        read = 0
        forward = continuous.forward

        def counted(model: Any, pool: Any, pieces: Any, wanted: Any) -> Any:
            nonlocal read
            read += sum(len(piece.tokens) for piece in pieces)
            return forward(model, pool, pieces, wanted)

        continuous.forward = counted  # type: ignore[assignment]
        found = self._mixed(lam, partial(engine.decode, self.model, token_budget=self.token_budget))
        continuous.forward = forward  # type: ignore[assignment]
        return {**found, "forward_per_target_token": read / found["decoded"]}

    def vllm_ours(self, lam: float) -> dict[str, Any]:
        from functools import partial

        from mixsd.decoding import on_vllm

        return self._mixed(lam, partial(on_vllm.decode, self.engine))

    def _mixed(self, lam: float, decode: Callable[..., Any]) -> dict[str, Any]:
        from mixsd.answers import get_verifier
        from mixsd.mixing.mix import Mixer
        from mixsd.settings import Settings
        from mixsd.storage import Journal

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
            mixer.attempt(self.facts)
            seconds = time.perf_counter() - started
            rows = [row for _, row in journal.read()]
        accepted = [row for row in rows if row["accepted"]]
        generated = sum(len(row["target_ids"]) - row.get("kept", 0) for row in rows)
        naive, gated = (sum(row["sources"].count(source) for row in accepted) for source in "ng")
        return {
            "target_tokens_per_s": generated / seconds,
            "seconds": seconds,
            "first_target_s": first[0],
            "generated_per_accepted": generated / max(sum(len(row["target_ids"]) for row in accepted), 1),
            "wasted": 1 - sum(len(row["target_ids"]) for row in rows) / decoded,
            "decoded": decoded,
            "accepted": len(accepted),
            "naive_kept": naive / max(naive + gated, 1),
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


class Worker:
    """A path's process, from outside."""

    def __init__(self, path: str, dtype: str, options: argparse.Namespace) -> None:
        python = options.vllm if path in ON_VLLM else sys.executable
        command = [python, __file__, "--worker", path, "--dtype", dtype, "--facts", str(options.facts)]
        command += ["--gate", str(options.gate), "--retry", options.retry, "--retries", str(options.retries)]
        command += ["--token-budget", str(options.token_budget)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended: {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rounds over all paths of one precision after another."""
    rows = []
    for dtype in options.dtypes:
        workers = {path: Worker(path, dtype, options) for path in (*PATHS, *(ON_VLLM if options.vllm else ()))}
        best = max((workers["plain"].ask(batch=batch) for batch in BATCHES), key=lambda found: found["target_tokens_per_s"])[
            "batch"
        ]
        requests: list[tuple[str, float | None, dict[str, Any]]] = [
            ("plain", None, {"batch": best}),
            ("plain-onednn", None, {"batch": best}),
        ]
        requests += [("ours", lam, {"lam": lam}) for lam in options.lambdas] + [("reprefill", 0.3, {"lam": 0.3})]
        if options.vllm:
            requests += [("vllm-plain", None, {})]
            requests += [(path, 0.3, {"lam": 0.3}) for path in ("vllm-loop-default", "vllm-loop")]
            requests += [("vllm-ours", lam, {"lam": lam}) for lam in options.lambdas]
        found: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
        for number in range(options.rounds + 1):
            for path, lam, request in requests:
                answer = workers[path].ask(**request)
                if number:  # the first round warms up
                    found.setdefault((path, lam), []).append(answer)
            print(f"{dtype}: round {number} of {options.rounds}", file=sys.stderr, flush=True)
        for worker in workers.values():
            worker.close()
        plain = [answer["target_tokens_per_s"] for answer in found["plain", None]]
        for (path, lam), answers in found.items():
            ratios = [answer["target_tokens_per_s"] / base for answer, base in zip(answers, plain, strict=True)]
            row: dict[str, Any] = {"path": path, "dtype": dtype, "lambda": lam, "rounds": len(answers), "facts": options.facts}
            if path.endswith("ours"):
                row |= {"gate": options.gate, "retry": options.retry, "retries": options.retries}
            if path.startswith("plain"):
                row["batch"] = best
            for name in answers[0]:
                if name != "batch":
                    row[name] = round(statistics.median(answer[name] for answer in answers), 3)
            row |= {"ratio_to_plain": round(statistics.median(ratios), 3)}
            row |= {"ratio_low": round(min(ratios), 3), "ratio_high": round(max(ratios), 3)}
            rows.append(row)
    return rows


def scale(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds per fact and peak memory for several numbers of facts; a process each, no retries."""
    rows = []
    for facts in options.scaling:
        worker = Worker("ours", options.dtypes[0], argparse.Namespace(**{**vars(options), "facts": facts, "retries": 0}))
        answer = worker.ask(lam=0.3)
        worker.close()
        rows.append(
            {
                "facts": facts,
                "dtype": options.dtypes[0],
                "seconds_per_fact": answer["seconds"] / facts,
                "peak_mb": answer["peak_mb"],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> None:
    print(
        "| precision | path | lambda | target tokens/s | ratio to plain (range) | read per token | wasted | generated per accepted "
        "| accepted | MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        lam = "" if row["lambda"] is None else f"{row['lambda']:g}"
        forward, wasted, generated = (
            f"{row[name]:.2f}" if name in row else "" for name in ("forward_per_target_token", "wasted", "generated_per_accepted")
        )
        accepted = f"{row['accepted']:.0f} of {row['facts']}" if "accepted" in row else ""
        print(
            f"| {row['dtype']} | {row['path']} | {lam} | {row['target_tokens_per_s']:.0f} | {row['ratio_to_plain']:.2f} "
            f"({row['ratio_low']:.2f} to {row['ratio_high']:.2f}) | {forward} | {wasted} | {generated} | {accepted} | {row['peak_mb']:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--facts", type=int, default=48)
    parser.add_argument("--dtypes", nargs="+", choices=("bf16", "fp32"), default=["bf16", "fp32"])
    parser.add_argument("--lambdas", nargs="+", type=float, default=list(LAMBDAS))
    parser.add_argument(
        "--retries", type=int, default=2, help="few, so that a round at a high lambda ends; see bench/acceptance.py"
    )
    parser.add_argument("--vllm", metavar="PYTHON", help="the python of an environment with vLLM: its paths too")
    parser.add_argument("--gate", type=float, default=0.0)
    parser.add_argument("--retry", choices=("restart", "from-break"), default="restart")
    parser.add_argument("--token-budget", type=int, default=16_384)
    parser.add_argument(
        "--scaling", nargs="+", type=int, metavar="FACTS", help="only this: seconds per fact for these numbers of facts"
    )
    parser.add_argument("--output", type=Path, default=Path("bench/out/mixing.json"))
    parser.add_argument("--worker", choices=(*PATHS, *ON_VLLM), help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(options)
        return
    rows = scale(options) if options.scaling else compare(options)
    if not options.scaling:
        table(rows)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
