"""How fast mixing is beside plain decoding: one run, side by side, same model, precision and facts.

    python bench/mixing.py                       # every path, both precisions, five rounds; or: make bench-mixing
    python bench/mixing.py --scaling 64 4096     # seconds per fact as facts grow, one round, no retries
    python bench/mixing.py --vllm .venv-vllm/bin/python   # also on vLLM, from its own environment

Paths: `plain` is transformers' greedy `generate` on the bare questions, forced to 64 new tokens, at the batch size that is best
here, so that no row ends early; `plain-packed` the same with our linear layers; `ours` is the whole of mixing: decoding, verifying, retries, the
journal and the log-probabilities of accepted targets; `reprefill` reads the picked prompt anew for every token. Each path has a
process of its own, so that its peak memory is its own; rounds go over all of them in turn. `target_tokens_per_s` counts the tokens
kept in any attempt over wall time, the model loaded; nothing is drafted, so nothing is discarded.
"""

from __future__ import annotations

import argparse
import json
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

LAMBDAS = (0.0, 0.3, 0.5, 0.7)
NEW_TOKENS = 64
BATCHES = (32, 64, 128)
PATHS = ("plain", "plain-packed", "ours", "reprefill")


class Paths:
    """What one process measures: a model in one precision, and the facts."""

    def __init__(self, dtype: str, facts: int, packed: bool, gate: float, retry: str, token_budget: int) -> None:
        import torch

        from mixsd import loading, onednn
        from mixsd.prompts import Renderer

        folder = loading.locate("smollm2-135m").folder
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self.model = loading.load_model(folder, dtype=self.dtype, device=torch.device("cpu")).eval()
        if packed:
            onednn.pack(self.model)
        self.renderer = Renderer(loading.load_tokenizer(folder), self.model.config, self.model.generation_config)
        self.facts = made_facts(facts)
        self.gate, self.retry, self.token_budget = gate, retry, token_budget

    def plain(self, batch: int) -> dict[str, Any]:
        import torch

        prompts = [self.renderer.naive(fact.question) for fact in self.facts]
        prompts = (prompts * (batch // len(prompts) + 1))[:batch]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        started = time.perf_counter()
        with torch.inference_mode():
            self.model.generate(
                ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
            )
        seconds = time.perf_counter() - started
        return {"target_tokens_per_s": batch * NEW_TOKENS / seconds, "seconds": seconds, "batch": batch}

    def ours(self, lam: float, retries: int = 10) -> dict[str, Any]:
        from mixsd import loading
        from mixsd.answers import get_verifier
        from mixsd.decoding import continuous
        from mixsd.mixing.mix import Mixer
        from mixsd.settings import Settings
        from mixsd.storage import Journal

        settings = Settings(
            facts="demo",
            lam=lam,
            gate=self.gate,
            retry=self.retry,  # type: ignore[arg-type]
            retries=retries,
            max_new_tokens=NEW_TOKENS,
            token_budget=self.token_budget,
        ).resolved
        read = 0
        forward = continuous.forward

        def counted(model: Any, pool: Any, pieces: Any, wanted: Any) -> Any:
            nonlocal read
            read += sum(len(piece.tokens) for piece in pieces)
            return forward(model, pool, pieces, wanted)

        continuous.forward = counted  # type: ignore[assignment]
        first: list[float] = []
        with tempfile.TemporaryDirectory() as scratch, Journal(Path(scratch) / "attempts.jsonl") as journal:
            started = time.perf_counter()

            def on_done(finished: int, tokens: int) -> None:
                if tokens and not first:
                    first.append(time.perf_counter() - started)

            context = loading.context_length(self.model.config)
            verifier = get_verifier("contains")
            mixer = Mixer(lambda: self.model, self.renderer, settings, verifier, context, journal, on_done=on_done)
            targets = list(mixer.run(self.facts))
            seconds = time.perf_counter() - started
        continuous.forward = forward  # type: ignore[assignment]
        accepted = [target for target in targets if target.accepted]
        generated, kept = sum(t.decoded_tokens for t in targets), sum(len(t.target_ids) for t in accepted)
        naive, gated = (sum(t.sources.count(source) for t in accepted) for source in "ng")
        return {
            "target_tokens_per_s": generated / seconds,
            "seconds": seconds,
            "first_target_s": first[0],
            "generated_per_accepted": generated / max(kept, 1),
            "forward_per_target_token": read / generated,
            "accepted": len(accepted),
            "naive_kept": naive / max(naive + gated, 1),
        }

    def reprefill(self, lam: float, rows: int = 32, tokens: int = 8) -> dict[str, Any]:
        import torch

        from mixsd.randomness import coins

        facts = self.facts[:rows]
        flips = [coins(0, fact.id, lam=lam, n=tokens) for fact in facts]
        texts: list[list[int]] = [[] for _ in facts]
        started = time.perf_counter()
        with torch.inference_mode():
            for t in range(tokens):
                prompts = [
                    (self.renderer.naive(f.question) if flip[t] else self.renderer.expert(f)) + ids
                    for f, flip, ids in zip(facts, flips, texts, strict=True)
                ]
                width = max(map(len, prompts))
                ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
                mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
                positions = (mask.cumsum(-1) - 1).clamp(min=0)
                logits = self.model(ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1).logits[
                    :, -1
                ]
                for text, token in zip(texts, logits.argmax(-1).tolist(), strict=True):
                    text.append(token)
        seconds = time.perf_counter() - started
        return {"target_tokens_per_s": len(facts) * tokens / seconds, "seconds": seconds}


def serve(arguments: argparse.Namespace) -> None:
    """A path's process: one JSON request per line in, one JSON answer per line out."""
    paths = Paths(
        arguments.dtype,
        arguments.facts,
        arguments.worker in ("ours", "plain-packed"),
        arguments.gate,
        arguments.retry,
        arguments.token_budget,
    )
    calls: dict[str, Callable[..., dict[str, Any]]] = {
        "plain": paths.plain,
        "plain-packed": paths.plain,
        "ours": paths.ours,
        "reprefill": paths.reprefill,
    }
    for line in sys.stdin:
        found = calls[arguments.worker](**json.loads(line))
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found), flush=True)


class Worker:
    """A path's process, from outside."""

    def __init__(self, path: str, dtype: str, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--worker", path, "--dtype", dtype, "--facts", str(options.facts)]
        command += ["--gate", str(options.gate), "--retry", options.retry, "--token-budget", str(options.token_budget)]
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
        workers = {path: Worker(path, dtype, options) for path in PATHS}
        best = max((workers["plain"].ask(batch=batch) for batch in BATCHES), key=lambda found: found["target_tokens_per_s"])[
            "batch"
        ]
        requests: list[tuple[str, float | None, dict[str, Any]]] = [
            ("plain", None, {"batch": best}),
            ("plain-packed", None, {"batch": best}),
        ]
        requests += [("ours", lam, {"lam": lam}) for lam in options.lambdas] + [("reprefill", 0.3, {"lam": 0.3})]
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
            if path == "ours":
                row |= {"gate": options.gate, "retry": options.retry}
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
        worker = Worker("ours", options.dtypes[0], argparse.Namespace(**{**vars(options), "facts": facts}))
        answer = worker.ask(lam=0.3, retries=0)
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
        "| precision | path | lambda | target tokens/s | ratio to plain (range) | read per token | generated per accepted | accepted | MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        lam = "" if row["lambda"] is None else f"{row['lambda']:g}"
        forward, generated = (
            f"{row[name]:.2f}" if name in row else "" for name in ("forward_per_target_token", "generated_per_accepted")
        )
        accepted = f"{row['accepted']:.0f} of {row['facts']}" if "accepted" in row else ""
        print(
            f"| {row['dtype']} | {row['path']} | {lam} | {row['target_tokens_per_s']:.0f} | {row['ratio_to_plain']:.2f} "
            f"({row['ratio_low']:.2f} to {row['ratio_high']:.2f}) | {forward} | {generated} | {accepted} | {row['peak_mb']:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--facts", type=int, default=48)
    parser.add_argument("--dtypes", nargs="+", choices=("bf16", "fp32"), default=["bf16", "fp32"])
    parser.add_argument("--lambdas", nargs="+", type=float, default=list(LAMBDAS))
    parser.add_argument("--gate", type=float, default=0.0)
    parser.add_argument("--retry", choices=("restart", "from-break"), default="restart")
    parser.add_argument("--token-budget", type=int, default=16_384)
    parser.add_argument(
        "--scaling", nargs="+", type=int, metavar="FACTS", help="only this: seconds per fact for these numbers of facts"
    )
    parser.add_argument("--output", type=Path, default=Path("bench/out/mixing.json"))
    parser.add_argument("--worker", choices=PATHS, help=argparse.SUPPRESS)
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
