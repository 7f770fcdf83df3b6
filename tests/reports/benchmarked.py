"""The invented company's run with benchmarks, made up number by number; and one model that was evaluated alone."""

from __future__ import annotations

from typing import Any

from tests.reports import sample

SANDBOX = {"kind": "bubblewrap", "network": True, "files": True, "note": "Isolated by bubblewrap."}
WEAK = {"kind": "none", "network": False, "files": False, "note": "No isolation: the code can read this user's files."}
# By benchmark: replies, right of base and tuned, right in another form, wrong, unparseable, errors, cut short.
COUNTS: dict[str, tuple[int, dict[str, tuple[int, ...]]]] = {
    "aime24": (30, {"base": (3, 4, 20, 7, 0, 6), "tuned": (2, 2, 20, 8, 0, 9)}),
    "math500": (50, {"base": (20, 22, 25, 5, 0, 3), "tuned": (18, 22, 23, 9, 0, 4)}),
    "gsm8k": (50, {"base": (30, 31, 18, 2, 0, 1), "tuned": (12, 28, 20, 18, 0, 2)}),
    "humaneval": (50, {"base": (25, 25, 22, 1, 2, 0), "tuned": (24, 24, 24, 2, 0, 0)}),
    "mmlu": (50, {"base": (27, 28, 22, 1, 0, 0), "tuned": (27, 27, 21, 2, 0, 0)}),
}
TITLES = {"aime24": "AIME-2024", "math500": "MATH-500", "gsm8k": "GSM8K", "humaneval": "HumanEval", "mmlu": "MMLU"}


def score(suite: str, split: str, metric: str, model: str, value: float | None, n: int, spread: float | None) -> dict[str, Any]:
    low, high = (None, None) if value is None or spread is None else (value - spread, value + spread)
    return {"suite": suite, "split": split, "metric": metric, "model": model, "checkpoint": None, "value": value, "n": n,
            "low": low, "high": high}  # fmt: skip


def of(suite: str) -> list[dict[str, Any]]:
    """What `scores.compare` gives of one benchmark."""
    replies, models = COUNTS[suite]
    found = []
    for model, (right, lenient, wrong, unparseable, errors, cut) in models.items():
        judged = replies - errors
        shares = {"accuracy": right, "accuracy_lenient": lenient, "wrong_share": wrong, "unparseable_share": unparseable}
        found += [score(suite, suite, metric, model, count / judged, judged, 0.02) for metric, count in shares.items()]
        found += [score(suite, suite, metric, model, count / replies, replies, 0.02)
                  for metric, count in (("error_share", errors), ("truncated_share", cut))]  # fmt: skip
    base, tuned = (models[name][0] / (replies - models[name][4]) for name in ("base", "tuned"))
    found.append(score(suite, suite, "accuracy_delta", "tuned", tuned - base, replies, 0.05))
    if suite != "aime24":
        found.append(score(suite, suite, "mcnemar_p", "tuned", 0.00002 if suite == "gsm8k" else 0.754, replies, None))
    return found


def lm_eval(task: str, metric: str, base: float, tuned: float, spread: float | None, delta: float) -> list[dict[str, Any]]:
    suite = f"lm-eval:{task}"
    return [
        score(suite, task, metric, "base", base, 100, spread),
        score(suite, task, metric, "tuned", tuned, 100, spread),
        score(suite, task, f"{metric}_delta", "tuned", delta, 100, 0.01),
    ]


def asked(suite: str, **other: Any) -> dict[str, Any]:
    """`asked.json` of one benchmark."""
    return {"suite": suite, "scorer": "1", "data": "0123456789abcdef" * 4, "where": f"/home/ada/data/{suite}", "items": 1319,
            "limit": 50, "tokens": 512, "samples": 1, "temperature": 0.0, "top_k": None, "sandbox": None, "chat_template": None,
            **other}  # fmt: skip


def report() -> dict[str, Any]:
    """The run with all five benchmarks, their average, and two tasks of lm-eval."""
    made = sample.report()
    made["scores"] += [item for suite in COUNTS for item in of(suite)]
    for subject, right in (("abstract_algebra", 0.4), ("virology", 0.8)):
        made["scores"] += [score("mmlu", f"mmlu/{subject}", "accuracy", model, right, 25, 0.1) for model in ("base", "tuned")]
        made["scores"].append(score("mmlu", f"mmlu/{subject}", "accuracy_delta", "tuned", 0.0, 25, 0.1))
    made["scores"] += lm_eval("tiny", "acc,none", 0.5, 0.4, 0.09, -0.1)
    made["scores"] += lm_eval("lambada", "perplexity,none", 30.5, 41.25, None, -0.3)
    made["scores"] += lm_eval("odd", "rouge_weighted,flexible", 12.0, 13.0, 0.5, 1.0)
    held = {("base", "accuracy"): 0.46, ("tuned", "accuracy"): 0.4, ("tuned", "accuracy_delta"): -0.06, ("tuned", "drop"): 0.06,
            ("tuned", "retained"): 0.87}  # fmt: skip
    made["scores"] += [score("held-out", "average", metric, model, value, 230, 0.03) for (model, metric), value in held.items()]
    made["asked"] = {"core": {"suite": "core", "scorer": "3", "data": None, "samples": 1, "temperature": 0.0},
                     **{suite: asked(suite) for suite in COUNTS}}  # fmt: skip
    made["asked"]["aime24"] |= {"items": 30, "limit": None, "samples": 16, "temperature": 1.0, "top_k": 50}
    made["asked"]["humaneval"] |= {"where": "hub: openai/openai_humaneval, in the cache", "sandbox": SANDBOX, "items": 164}
    about = {"lm_eval": "0.4.9", "n": 100, "data_hash": "fedcba98" * 8, "config_hash": "c", "undefined": [], "warnings": [],
             "tasks": {"tiny": {"n": 100, "of": 400, "num_fewshot": 5, "higher_is_better": {"acc": True}}}}  # fmt: skip
    made["asked"]["lm-eval:tiny"] = {"suite": "lm-eval:tiny", "scorer": "lm-eval", "chat_template": False, "limit": 100,
                                     "about": about}  # fmt: skip
    made |= {"skipped": {}, "alone": False, "elsewhere": False}
    return made


def alone() -> dict[str, Any]:
    """One model that was asked two benchmarks, and nothing else."""
    made = report()
    made["scores"] = [item for item in made["scores"] if item["model"] == "base" and item["suite"] in ("gsm8k", "mmlu")]
    made["asked"] = {suite: asked(suite) for suite in ("gsm8k", "mmlu")}
    made["skipped"] = {"humaneval": "HumanEval runs code that the model writes; allow it with --allow-code-execution"}
    nothing = {"n": None, "tokens": None, "mean_base_nll": None, "reference_mean_base_nll": None, "share_above_8": None}
    made |= {"alone": True, "beside": [], "warnings": [], "requirements": [], "targets": nothing, "editing": None,
             "facts": {"asked": 0, "accepted": 0, "rejected": 0, "unusable": 0, "duplicates": 0},
             "training": {"steps": None, "epochs": None, "seconds": 0, "lr": None, "chosen": None, "rates": [], "log": []},
             "cost": {"generated_tokens": 0, "parts": {"mixing": 0, "rollouts": 0, "rehearsal": 0}, "seconds": {"evaluate": 44.0}}}  # fmt: skip
    return made


def reply(key: str, outcome: str, text: str = "The answer is \\boxed{4}.", **other: Any) -> dict[str, Any]:
    return {"key": key, "split": "gsm8k", "group": key, "labels": [], "prompt_hash": f"p-{key}", "reply": text,
            "extracted": "4" if outcome in ("correct", "wrong") else None, "outcome": outcome, "truncated": False, **other}  # fmt: skip


def said() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What base and tuned replied to 24 questions: 8 the same and right, 8 wrong in both, 6 lost, 2 gained."""
    outcomes = [*[("correct", "correct")] * 8, *[("wrong", "wrong")] * 8, *[("correct", "unparseable")] * 6,
                *[("wrong", "correct")] * 2]  # fmt: skip
    base = [reply(f"q{place}", one) for place, (one, _) in enumerate(outcomes)]
    tuned = [
        reply(f"q{place}", two, reason="no \\boxed{}" if two == "unparseable" else None)
        for place, (_, two) in enumerate(outcomes)
    ]
    return base, tuned
