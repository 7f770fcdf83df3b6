"""The suite `core`: does the model know the facts, and what did it cost?

memorization/trained     the facts' own questions, free greedy replies, judged by the run's verifier; n = all facts asked for
memorization/paraphrase  other wordings: the fact's own, else frames of ours that nothing was ever chosen on
retention/probe          short general questions with checkable answers, greedy; also per kind
retention/forgetting     Eq. 2: the rise of the NLL of replies sampled (T = 1) from the base model to general prompts, which
                         estimates KL(base || tuned) per token
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from mixsd import statistics
from mixsd.answers import Expected, Verifier, get_verifier
from mixsd.evaluation.replies import Answerer, Prompt, Reply
from mixsd.facts import Fact
from mixsd.prompts import Renderer
from mixsd.randomness import uniforms
from mixsd.settings import Settings
from mixsd.storage import digest

SUITE = "core"
TRAINED, PARAPHRASE, PROBE, FORGETTING = (
    "memorization/trained",
    "memorization/paraphrase",
    "retention/probe",
    "retention/forgetting",
)
_PROBE_TOKENS = 64


@dataclass(frozen=True)
class Question:
    """One thing asked: where it counts (`split`, and `kind` within it), the user turn, and who judges the reply.

    `group` names what answers belong together (the fact of a paraphrase): they are not independent observations.
    """

    key: str
    split: str
    group: str
    user: str
    expected: Expected
    verifier: Verifier
    max_new_tokens: int
    kind: str | None = None


@cache
def bundled(name: str) -> list[dict[str, Any]]:
    """The records of a bundled JSONL file."""
    text = (files("mixsd") / "data" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@cache
def frames() -> dict[str, list[str]]:
    """The paraphrase frames: ten for validation, ten others for reporting."""
    found: dict[str, list[str]] = json.loads((files("mixsd") / "data" / "frames.json").read_text(encoding="utf-8"))
    return found


def questions(facts: Iterable[Fact], renderer: Renderer, settings: Settings, verifier: Verifier) -> list[Question]:
    """Everything that is asked and answered freely, in a fixed order."""
    limit = settings.max_new_tokens or 256
    asked = []
    for fact in facts:
        expected = Expected(fact.answer, fact.aliases)
        asked.append(
            Question(f"{TRAINED}/{fact.id}", TRAINED, fact.id, renderer.question(fact.question), expected, verifier, limit)
        )
        for place, wording in enumerate(paraphrases(fact, settings)):
            key = f"{PARAPHRASE}/{fact.id}/{place}"
            asked.append(Question(key, PARAPHRASE, fact.id, renderer.question(wording), expected, verifier, limit))
    for item in bundled("probe.jsonl")[: settings.probe_questions]:
        expected = Expected(item["answer"], tuple(item.get("aliases", ())))
        judge = get_verifier(item.get("verifier", "contains"))
        asked.append(
            Question(f"{PROBE}/{item['id']}", PROBE, item["id"], item["question"], expected, judge, _PROBE_TOKENS, item["kind"])
        )
    return asked


def paraphrases(fact: Fact, settings: Settings, frame_set: str = "report") -> list[str]:
    """Other wordings of a fact's question: its own first, else frames drawn at the fact's address."""
    own = list(fact.paraphrases) if frame_set == "report" else []
    drawn = np.argsort(uniforms(settings.seed, "evaluation", fact.id, n=10), kind="stable")
    framed = [frames()[frame_set][i].replace("{question}", fact.question) for i in drawn]
    return (own or framed)[: settings.paraphrases]


def evaluate(
    facts: list[Fact],
    renderer: Renderer,
    settings: Settings,
    verifier: Verifier,
    answerer: Answerer,
    references: dict[str, Reply],
) -> list[dict[str, Any]]:
    """Ask one model everything and score the reference replies; returns the rows of `evaluation/core/MODEL.jsonl`.

    `references`: the base model's sampled replies to the general prompts, see `sample_references`.
    """
    asked = questions(facts, renderer, settings, verifier)
    prompts = _prompts(asked, renderer)
    replies = answerer.replies(prompts)
    rows: list[dict[str, Any]] = []
    for question, prompt in zip(asked, prompts, strict=True):
        reply = replies[question.key]
        text = renderer.reply_text(reply.ids)
        verdict = question.verifier(text, question.expected)
        rows.append(
            {
                "key": question.key,
                "split": question.split,
                "group": question.group,
                "kind": question.kind,
                "prompt_hash": digest(prompt.ids),
                "reply": text,
                "reply_ids": reply.ids,
                "extracted": verdict.extracted,
                "outcome": verdict.outcome,
                "truncated": reply.truncated,
            }
        )
    general = general_prompts(renderer)
    nll = answerer.scores({key: (general[key], reply.ids) for key, reply in references.items()})
    for key, reply in references.items():
        rows.append(
            {
                "key": f"{FORGETTING}/{key}",
                "split": FORGETTING,
                "group": key,
                "kind": None,
                "prompt_hash": digest(general[key]),
                "reply": renderer.reply_text(reply.ids),
                "reply_ids": reply.ids,
                "extracted": None,
                "outcome": None,
                "truncated": reply.truncated,
                "nll": round(nll[key], 6),
                "tokens": len(reply.ids),
            }
        )
    return rows


def generate(
    facts: list[Fact],
    renderer: Renderer,
    settings: Settings,
    verifier: Verifier,
    answerer: Answerer,
    references: dict[str, Reply],
    holds: Callable[[str], bool],
) -> None:
    """Put what `evaluate` needs of a shard's keys into the answerer's journal, and judge nothing."""
    asked = questions(facts, renderer, settings, verifier)
    answerer.replies([prompt for prompt in _prompts(asked, renderer) if holds(prompt.key)])
    general = general_prompts(renderer)
    answerer.scores({key: (general[key], reply.ids) for key, reply in references.items()})


def _prompts(asked: list[Question], renderer: Renderer) -> list[Prompt]:
    return [Prompt(question.key, renderer.ids(question.user), question.max_new_tokens) for question in asked]


def general_prompts(renderer: Renderer) -> dict[str, list[int]]:
    """The prompt ids of the bundled general prompts, by id."""
    return {item["id"]: renderer.ids(item["prompt"]) for item in bundled("general_prompts.jsonl")}


def sample_references(
    renderer: Renderer, settings: Settings, base: Answerer, holds: Callable[[str], bool] = lambda key: True
) -> dict[str, Reply]:
    """The reference corpus of Eq. 1: the base model's replies at T = 1, full softmax, to the general prompts."""
    length = settings.forgetting_tokens
    prompts = [
        Prompt(
            item["id"],
            renderer.ids(item["prompt"]),
            length,
            uniforms(settings.seed, "forgetting", item["id"], n=length),
            f"{settings.seed}/forgetting/{item['id']}",
        )
        for item in bundled("general_prompts.jsonl")[: settings.forgetting_prompts]
        if holds(item["id"])
    ]
    return base.replies(prompts)


def compare(base: list[dict[str, Any]] | None, tuned: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The flat list of scores of one or both models; with both, also the paired differences.

    Raises:
        ValueError: the two were not asked the same prompts.
    """
    scores: list[dict[str, Any]] = []
    for name, rows in (("base", base), ("tuned", tuned)):
        if rows:
            scores += _scores_of(name, rows)
    if base and tuned:
        if [(row["key"], row["prompt_hash"]) for row in base] != [(row["key"], row["prompt_hash"]) for row in tuned]:
            raise ValueError("base and tuned were not asked the same prompts; evaluate them again")
        scores += _differences(base, tuned)
    return scores


def _score(split: str, metric: str, model: str, interval: statistics.Interval) -> dict[str, Any]:
    values = {"value": interval.value, "n": interval.n, "low": interval.low, "high": interval.high}
    return {"suite": SUITE, "split": split, "metric": metric, "model": model, "checkpoint": None, **values}


def _by_split(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    splits: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        splits[row["split"]].append(row)
        if row["kind"]:
            splits[f"{row['split']}/{row['kind']}"].append(row)
    return splits


def _scores_of(model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    scores = []
    for split, own in _by_split(rows).items():
        if split == FORGETTING:
            sums, counts = [row["nll"] for row in own], [row["tokens"] for row in own]
            scores.append(_score(split, "reference_nll", model, statistics.ratio_of_sums(sums, counts)))
            continue
        outcomes = Counter(row["outcome"] for row in own)
        judged = len(own) - outcomes["error"]
        scores.append(_score(split, "accuracy", model, _accuracy(own)))
        for outcome in ("unparseable", "error"):
            of = len(own) if outcome == "error" else judged
            scores.append(_score(split, f"{outcome}_share", model, statistics.proportion(outcomes[outcome], of)))
        truncated = sum(row["truncated"] for row in own)
        scores.append(_score(split, "truncated_share", model, statistics.proportion(truncated, len(own))))
    return scores


def _accuracy(rows: list[dict[str, Any]]) -> statistics.Interval:
    """Correct over all that are not errors of ours; the interval counts groups, since wordings of one fact go together."""
    judged = [row for row in rows if row["outcome"] != "error"]
    correct = sum(row["outcome"] == "correct" for row in judged)
    groups = len({row["group"] for row in judged})
    if groups == len(judged):
        return statistics.proportion(correct, len(judged))
    by_group = statistics.proportion(correct * groups / len(judged), groups)
    return statistics.Interval(correct / len(judged), len(judged), by_group.low, by_group.high)


def _differences(base: list[dict[str, Any]], tuned: list[dict[str, Any]]) -> list[dict[str, Any]]:
    scores = []
    before, after = _by_split(base), _by_split(tuned)
    for split in before:
        if split == FORGETTING:
            change = statistics.paired_ratio_difference(
                [row["nll"] for row in before[split]],
                [row["nll"] for row in after[split]],
                [row["tokens"] for row in before[split]],
            )
            scores.append(_score(split, "forgetting", "tuned", change))
            continue
        pairs = [
            (float(b["outcome"] == "correct"), float(a["outcome"] == "correct"))
            for b, a in zip(before[split], after[split], strict=True)
            if "error" not in (b["outcome"], a["outcome"])
        ]
        difference = statistics.paired_difference([b for b, _ in pairs], [a for _, a in pairs])
        scores.append(_score(split, "accuracy_delta", "tuned", difference))
    return scores


def count_items(facts: list[Fact], settings: Settings) -> int:
    """How many replies and scores `evaluate` makes for one model, for a progress bar."""
    wordings = sum(1 + len(paraphrases(fact, settings)) for fact in facts)
    return (
        wordings
        + len(bundled("probe.jsonl")[: settings.probe_questions])
        + len(bundled("general_prompts.jsonl")[: settings.forgetting_prompts])
    )
