"""How fast mixing is beside plain decoding: one run, side by side, same model, precision and facts.

    python bench/mixing.py                       # every path, both precisions, five rounds
    python bench/mixing.py --vllm .venv-vllm/bin/python   # also on vLLM, from its own environment; or: make bench-mixing
    python bench/mixing.py --scaling 64 4096     # seconds per fact as facts grow, one round, no retries

Paths: `plain` is transformers' greedy `generate` on the bare questions, forced to 64 new tokens, at the batch size that is best
here, so that no row ends early; `plain-onednn` the same with our linear layers; `ours-64` is our decoder on as many facts, also
forced to 64 tokens: like against like. `ours` is the whole of mixing as it is used: targets of about 17 tokens that end by
themselves, verifying, retries, the journal and the log-probabilities of accepted targets; `reprefill` reads the picked prompt anew for every
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
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from mixing_paths import ON_VLLM, PATHS, serve

LAMBDAS = (0.0, 0.3, 0.5, 0.7)
BATCHES = (32, 64, 128)


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
        requests += [("ours-64", lam, {"lam": lam, "batch": best}) for lam in options.lambdas]
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
            if "ours" in path:
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
