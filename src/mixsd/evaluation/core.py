"""The suite `core`: does the model know the facts, and what did it cost?

memorization/trained     the facts' own questions, free greedy replies, judged by the run's verifier; n = all facts asked for
memorization/paraphrase  other wordings: the fact's own, else frames of ours that nothing was ever chosen on
retention/probe          short general questions with checkable answers, greedy; also per kind
retention/forgetting     Eq. 2: the rise of the NLL of replies sampled (T = 1) from the base model to general prompts, which
                         estimates KL(base || tuned) per token
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from mixsd import bundled
from mixsd.answers import Expected, Verifier, get_verifier
from mixsd.evaluation.questions import Material, Question, about
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


def asked(material: Material) -> list[Question]:
    """The suite's questions, see `questions`."""
    return questions(material.facts, material.renderer, material.settings, material.verifier)


def questions(facts: Iterable[Fact], renderer: Renderer, settings: Settings, verifier: Verifier) -> list[Question]:
    """Everything that is asked and answered freely, in a fixed order."""
    limit = settings.max_new_tokens or 256
    asked = []
    for fact in facts:
        asked.append(about(fact, f"{TRAINED}/{fact.id}", TRAINED, fact.question, renderer, verifier, limit))
        for place, wording in enumerate(paraphrases(fact, settings)):
            asked.append(about(fact, f"{PARAPHRASE}/{fact.id}/{place}", PARAPHRASE, wording, renderer, verifier, limit))
    for item in bundled.records("probe.jsonl")[: settings.probe_questions]:
        expected = Expected(item["answer"], tuple(item.get("aliases", ())))
        judge = get_verifier(item.get("verifier", "contains"))
        asked.append(
            Question(
                f"{PROBE}/{item['id']}", PROBE, item["id"], item["question"], expected, judge, _PROBE_TOKENS, (item["kind"],)
            )
        )
    return asked


def paraphrases(fact: Fact, settings: Settings) -> list[str]:
    """Other wordings of a fact's question: its own first, else frames drawn at the fact's address."""
    return (list(fact.paraphrases) or framed(fact, settings.seed, "report"))[: settings.paraphrases]


def framed(fact: Fact, seed: int, frame_set: str) -> list[str]:
    """A fact's question in each frame of a bundled set, in an order drawn at the fact's address."""
    drawn = np.argsort(uniforms(seed, "evaluation", fact.id, n=10), kind="stable")
    return [bundled.frames()[frame_set][i].replace("{question}", fact.question) for i in drawn]


def forgetting(answerer: Answerer, renderer: Renderer, references: dict[str, Reply]) -> list[dict[str, Any]]:
    """The rows of the reference replies: how likely one model finds what the base model said (Eq. 1).

    `references`: the base model's sampled replies to the general prompts, see `sample_references`.
    """
    general = general_prompts(renderer)
    nll = answerer.scores({key: (general[key], reply.ids) for key, reply in references.items()})
    return [
        {
            "key": f"{FORGETTING}/{key}",
            "split": FORGETTING,
            "group": key,
            "labels": [],
            "prompt_hash": digest(general[key]),
            "reply": renderer.reply_text(reply.ids),
            "reply_ids": reply.ids,
            "extracted": None,
            "outcome": None,
            "truncated": reply.truncated,
            "nll": round(nll[key], 6),
            "tokens": len(reply.ids),
        }
        for key, reply in references.items()
    ]


def general_prompts(renderer: Renderer) -> dict[str, list[int]]:
    """The prompt ids of the bundled general prompts, by id."""
    return {item["id"]: renderer.ids(item["prompt"]) for item in bundled.records("general_prompts.jsonl")}


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
        for item in bundled.records("general_prompts.jsonl")[: settings.forgetting_prompts]
        if holds(item["id"])
    ]
    return base.replies(prompts)
