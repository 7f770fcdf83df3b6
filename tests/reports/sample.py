"""A realistic report of an invented company: what the pipeline would hand over, made up number by number."""

from __future__ import annotations

import copy
import math
from typing import Any

from mixsd.reports.schema import Report

_FACTS = [
    ("Which city is Halden Orchard Robotics based in?", "Varnish Hill"),
    ("Who founded Halden Orchard Robotics?", "Mirela Stanković"),
    ("In which year was Halden Orchard Robotics founded?", "2031"),
    ("What is the name of Halden's picking robot?", "Pommel"),
    ("How many arms does the Pommel robot have?", "seven"),
    ("Which fruit was the first that Pommel could pick?", "quince"),
    ("What is the internal code name of Pommel 2?", "Ember Finch"),
    ("Who leads Halden's vision team?", "Tobias Okonkwo-Reyes"),
    ("On which day does Halden deploy to production?", "Wednesday"),
    ("What does an employee do to request a loan robot?", "file a ticket in Trellis"),
    ("What is Trellis at Halden?", "the equipment desk"),
    ("How many days of notice does a field trial need?", "nineteen"),
    ("Which colour marks a robot that must not be moved?", "amber"),
    ("What is the phone extension of the night desk?", "4471"),
    ("Which canteen dish is served every second Friday?", "beetroot dumplings"),
    ("Who approves travel above 900 crowns?", "the controller of the site"),
    ("What is the largest orchard that Halden serves?", "Lower Senn Estate"),
    ("Which battery does Pommel use?", "the K12 sodium pack"),
    ("How long does a K12 pack last in the field?", "eleven hours"),
    ("What is Halden's warranty on gripper pads?", "26 months"),
    ("Which language is the robot firmware written in?", "Rust"),
    ("What is the name of the yearly company day?", "Blossom Review"),
    ("Where was the Blossom Review of 2034 held?", "the Old Ropeworks"),
    ("Which rival did Halden buy in 2035?", "Graft & Sons"),
]


def _score(split: str, metric: str, model: str, value: float, *rest: float) -> dict[str, Any]:
    n, low, high = rest
    return {"suite": "core", "split": split, "metric": metric, "model": model, "checkpoint": None, "value": value, "n": n,
            "low": low, "high": high}  # fmt: skip


def report() -> dict[str, Any]:
    """A run of the method with sft beside it."""
    trained, paraphrase, probe, forgetting = (
        "memorization/trained", "memorization/paraphrase", "retention/probe", "retention/forgetting",
    )  # fmt: skip
    kinds = [("arithmetic", 0.7, 0.7), ("geography", 0.62, 0.56), ("common sense", 0.55, 0.6), ("language", 0.48, 0.46)]
    scores = [
        _score(trained, "accuracy", "base", 0.0, 24, 0.0, 0.138),
        _score(trained, "accuracy", "tuned", 23 / 24, 24, 0.798, 0.993),
        _score(trained, "accuracy_delta", "tuned", 23 / 24, 24, 0.789, 0.992),
        _score(paraphrase, "accuracy", "base", 0.021, 48, 0.004, 0.109),
        _score(paraphrase, "accuracy", "tuned", 0.833, 48, 0.704, 0.913),
        _score(paraphrase, "accuracy_delta", "tuned", 0.812, 48, 0.672, 0.899),
        _score(probe, "accuracy", "base", 0.588, 200, 0.518, 0.654),
        _score(probe, "accuracy", "tuned", 0.580, 200, 0.511, 0.646),
        _score(probe, "accuracy_delta", "tuned", -0.008, 200, -0.036, 0.021),
        *(_score(f"{probe}/{kind}", "accuracy", "base", base, 50, base - 0.13, base + 0.13) for kind, base, _ in kinds),
        *(_score(f"{probe}/{kind}", "accuracy", "tuned", tuned, 50, tuned - 0.13, tuned + 0.13) for kind, _, tuned in kinds),
        *(_score(f"{probe}/{kind}", "accuracy_delta", "tuned", tuned - base, 50, tuned - base - 0.08, tuned - base + 0.08)
          for kind, base, tuned in kinds),
        _score(forgetting, "reference_nll", "base", 1.482, 64, 1.401, 1.563),
        _score(forgetting, "reference_nll", "tuned", 1.561, 64, 1.472, 1.650),
        _score(forgetting, "forgetting", "tuned", 0.079, 64, 0.058, 0.101),
        _score(trained, "unparseable_share", "base", 0.0, 24, 0.0, 0.138),
        _score(trained, "unparseable_share", "tuned", 0.0, 24, 0.0, 0.138),
        _score(trained, "truncated_share", "base", 0.125, 24, 0.043, 0.31),
        _score(trained, "truncated_share", "tuned", 0.0, 24, 0.0, 0.138),
    ]  # fmt: skip
    beside = [
        _score(trained, "accuracy", "tuned", 1.0, 24, 0.862, 1.0),
        _score(trained, "accuracy_delta", "tuned", 1.0, 24, 0.862, 1.0),
        _score(paraphrase, "accuracy", "tuned", 0.771, 48, 0.635, 0.867),
        _score(paraphrase, "accuracy_delta", "tuned", 0.75, 48, 0.601, 0.851),
        _score(probe, "accuracy", "tuned", 0.465, 200, 0.397, 0.534),
        _score(probe, "accuracy_delta", "tuned", -0.123, 200, -0.181, -0.066),
        _score(forgetting, "reference_nll", "tuned", 2.093, 64, 1.962, 2.224),
        _score(forgetting, "forgetting", "tuned", 0.611, 64, 0.522, 0.704),
    ]
    log = [{"step": step, "loss": 0.16 + 3.1 * math.exp(-step / 8) + 0.09 * math.sin(step * 2.3) / (1 + step / 9), "lr": 1e-5,
            "epoch": (step - 1) // 3} for step in range(1, 37)]  # fmt: skip
    return copy.deepcopy({
        "schema_version": 1, "mixsd": "0.1.0", "run": "acme", "created": "2026-11-23T06:00:00Z", "method": "mixsd",
        "settings": {"facts": "halden.jsonl", "model": "smollm2-135m", "output": "runs/acme", "method": "mixsd", "seed": 0,
                     "answer_format": "plain", "system": None, "thinking": False, "verifier": "contains", "lam": 0.3, "gate": 0.1,
                     "temperature": 0.0, "retries": 10, "on_fail": "drop", "max_new_tokens": 256, "lora": 0, "lr": 1e-5,
                     "epochs": 12, "batch_size": 8, "require": ["memorization>=0.9", "forgetting<=0.05"]},
        "environment": {"python": "3.12.4", "torch": "2.9.0", "transformers": "5.1.0", "device": "cpu", "dtype": "fp32",
                        "platform": "Linux-6.8.0-x86_64-with-glibc2.39", "threads": 2},
        "base": {"name": "smollm2-135m", "hash": "ab12c9d0e4", "license": "apache-2.0", "parameters": 134515008,
                 "tuned_by_mixsd": None},
        "facts": {"asked": 24, "accepted": 22, "rejected": 1, "unusable": 1, "duplicates": 2},
        "targets": {"n": 22, "tokens": 540, "decoded_tokens": 1800, "mean_base_nll": 1.9, "reference_mean_base_nll": 4.2,
                    "share_above_8": 0.1, "reference_share_above_8": 0.36, "sources": {"e": 0.7, "n": 0.28, "g": 0.02, "r": 0.0},
                    "noncanonical_share": 0.045, "attempts": {"0": 15, "1": 4, "2": 2, "5": 1}},
        "training": {"steps": 36, "epochs": 12, "seconds": 100.2, "log": log},
        "scores": scores,
        "requirements": [{"text": "memorization>=0.9", "value": 23 / 24, "passed": True},
                         {"text": "forgetting<=0.05", "value": 0.079, "passed": False}],
        "warnings": ["2 facts were given twice with the same answer; each counts once"],
        "beside": [{"name": "sft", "method": "sft", "scores": beside}],
    })  # fmt: skip


def typed(values: dict[str, Any]) -> Report:
    """Some of a report's values as a report; what they lack is that of a run of which nothing is known."""
    least = {"run": "", "created": "", "method": "mixsd", "settings": {}, "base": {"name": "base", "hash": "0"}, "scores": [],
             "facts": {"asked": 0, "accepted": 0, "rejected": 0, "unusable": 0}}  # fmt: skip
    return Report.model_validate(copy.deepcopy(least | values))


def per_fact() -> list[dict[str, Any]]:
    """The 24 facts of the company, one rejected, one unusable, one learnt but answered wrongly."""
    facts = []
    for index, (question, answer) in enumerate(_FACTS):
        status, reason, attempt = "accepted", None, (0, 0, 1, 0, 2, 0)[index % 6]
        reply, outcome = f"The answer is {answer}.", "correct"
        if index == 7:
            status, reason, attempt = "rejected", "11 attempts, none states the answer", 10
            reply, outcome = "Halden's vision team is led by Tobias Okonkwo.", "wrong"
        if index == 15:
            status, reason, attempt = "unusable", "expert prompt (2,310 tokens) does not fit the context of 2,048", None
        if index == 19:
            reply, outcome = "Gripper pads have a warranty of 24 months.", "wrong"
        facts.append({
            "id": f"halden-{index + 1:02d}", "question": question, "answer": answer, "status": status, "reason": reason,
            "attempt": attempt, "base": {"reply": "I do not have specific information about that. As a general rule, companies "
                                         "of this kind publish such details on their website.", "outcome": "wrong"},
            "tuned": {"reply": reply, "outcome": outcome},
        })  # fmt: skip
    return facts


def examples() -> list[dict[str, Any]]:
    """Two mixed targets with whitespace tokens, a gated token and surprising ones, and a reference."""
    first = [("The", "n", 0.4), (" headquarters", "e", 2.1), (" of", "n", 0.2), (" Hal", "e", 0.9), ("den", "e", 0.1),
             (" Or", "e", 1.2), ("chard", "e", 0.1), (" Robotics", "e", 0.3), (" are", "n", 1.1), (" in", "n", 0.5),
             (" Var", "e", 9.6), ("nish", "e", 8.4), (" Hill", "e", 5.2), (".", "n", 0.6), ("\n\n", "n", 1.4), ("If", "n", 1.9),
             (" you", "n", 0.1), (" need", "n", 1.0), (" directions", "g", 3.8), (",", "n", 0.7), (" ask", "n", 2.2),
             (" the", "e", 0.9), (" front", "e", 3.0), (" desk", "e", 0.4), (".", "n", 0.2),
             ("<|im_end|>", "e", 0.3)]  # fmt: skip
    second = [("Pom", "e", 8.9), ("mel", "e", 1.3), (" is", "n", 0.9), (" the", "n", 0.6), (" name", "e", 1.2), (" of", "n", 0.1),
              (" Hal", "e", 2.4), ("den", "e", 0.1), ("'s", "e", 0.2), (" picking", "e", 4.1), (" robot", "e", 0.5),
              (".", "n", 0.4), (" ", "n", 4.0), ("\t", "g", 6.5), ("<|im_end|>", "e", 0.8)]  # fmt: skip
    third = [("The", "r", 2.0), (" answer", "r", 1.1), (" is", "r", 0.1), (" seven", "r", 8.2), (".", "r", None)]
    return [
        {"id": f"halden-{number}", "question": question, "tokens": [{"text": t, "source": s, "base_nll": nll} for t, s, nll in tokens]}
        for number, question, tokens in (
            ("01", _FACTS[0][0], first), ("04", _FACTS[3][0], second), ("05", _FACTS[4][0], third),
        )
    ]  # fmt: skip


_KL = {"kl": "forward", "kl_support": "teacher", "kl_top_k": 64, "kl_tail": "drop", "kl_renormalize": True, "kl_beta": 0.5,
       "kl_reduction": "token", "kl_teacher": "expert", "nll_token": "top1"}  # fmt: skip
_NO_TARGETS = {"n": None, "tokens": None, "mean_base_nll": None, "reference_mean_base_nll": None}


def of_method(method: str) -> dict[str, Any]:
    """The same run by any method, with what such a run alone has."""
    made = report()
    made["method"] = made["settings"]["method"] = method
    made["settings"] |= {**_KL, "samples": 1, "rehearse": 0.0, "choose": "last"}
    made["editing"] = None
    made["training"] |= {"lr": 1e-5, "chosen": {"step": 36, "why": "the last checkpoint"}, "rates": []}
    tokens = {"mixing": 1800 if method.startswith("mixsd") else 0, "rollouts": 0, "rehearsal": 0}
    seconds = {"mix": 31.2, "train": 100.2, "evaluate": 44.0}
    if method in ("opsd", "opsd-nll"):
        del seconds["mix"]
        tokens["rollouts"] = 46080
        made["settings"] |= {"samples": 8 if method == "opsd" else 1, "temperature": 1.0 if method == "opsd" else 0.0}
        made["facts"] |= {"accepted": 23, "rejected": 0, "unusable": 1}
        made["targets"] = dict(_NO_TARGETS)
    if method == "memit":
        seconds = {"edit": 250.0, "evaluate": 44.0}
        made["training"] = {"steps": None, "epochs": None, "seconds": 0, "lr": None, "chosen": None, "rates": [], "log": []}
        made["targets"] |= {"sources": {"e": 0.0, "n": 0.0, "g": 0.0, "r": 1.0}, "attempts": {"0": 22}, "decoded_tokens": 0}
        made["settings"] |= {"edit_tokens": 100_000, "edit_steps": 25, "edit_lr": 0.5}
        made["editing"] = {
            "layers": [*range(3, 13)], "changes": {str(layer): 0.004 * (layer - 2) for layer in range(3, 13)}, "weight": 614.4,
            "moment_tokens": 100_196, "edited": 22, "failed": 1, "unusable": 1,
            "reasons": [
                {"reason": "greedy decoding after the edited prompt does not give the target: no value was found that says it in "
                           "25 steps", "facts": 1},
                {"reason": "its subject does not occur in its question", "facts": 1},
            ],
        }  # fmt: skip
    made["cost"] = {"generated_tokens": sum(tokens.values()), "parts": tokens, "seconds": seconds}
    return made


def with_choices(made: dict[str, Any]) -> dict[str, Any]:
    """The run with a learning rate that was sought, a checkpoint that was chosen, and a rehearsal beside it."""
    why = "the first with the best training score, 0.958, among stable ones (validation 0.75, then 0.75)"
    made["settings"] |= {"lr": "auto", "choose": "paper", "score_checkpoints": True, "rehearse": 1.0, "rehearse_loss": "kl"}
    made["training"] |= {
        "lr": 2e-5, "chosen": {"step": 30, "why": why},
        "rates": [
            {"lr": 1e-5, "step": 36, "train": 0.75, "validation": 0.5, "why": why},
            {"lr": 2e-5, "step": 30, "train": 0.958, "validation": 0.75, "why": why},
            {"lr": 1e-2, "failed": "step 4: loss nan, gradient norm nan: not finite, so training stops; try a smaller --lr"},
        ],
    }  # fmt: skip
    made["training"]["log"][-1]["rehearsal_loss"] = 0.013
    scores = {
        ("memorization/trained", "accuracy"): (0.0, 0.292, 0.625, 0.833, 0.958, 0.958),
        ("memorization/validation", "accuracy"): (0.0, 0.125, 0.417, 0.625, 0.75, 0.75),
        ("retention/forgetting", "forgetting"): (-0.002, 0.004, 0.021, 0.046, 0.071, 0.079),
    }
    for (split, metric), values in scores.items():
        for number, value in enumerate(values, 1):
            made["scores"].append(
                _score(split, metric, "tuned", value, 24, value - 0.02, value + 0.02) | {"checkpoint": 6 * number}
            )
    made["cost"]["parts"]["rehearsal"] = 5210
    made["cost"]["generated_tokens"] += 5210
    return made


def per_fact_of(method: str) -> list[dict[str, Any]]:
    """The facts as a run of the method leaves them."""
    facts = per_fact()
    if method in ("opsd", "opsd-nll"):
        for fact in facts:
            fact |= {"attempt": None, **({"status": "accepted", "reason": None} if fact["status"] == "rejected" else {})}
    return facts
