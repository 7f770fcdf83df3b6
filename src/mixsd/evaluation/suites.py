"""Suites by name: what is asked of base and tuned. A new one is one new file and one line in `SUITES`, or in the benchmarks' table.

The suite `core`: does the model know the facts, and what did it cost?

memorization/trained     the facts' own questions, free greedy replies, judged by the run's verifier; n = all facts asked for
memorization/paraphrase  other wordings: the fact's own, else frames of ours that nothing was ever chosen on
retention/probe          short general questions with checkable answers, greedy; also per kind
retention/forgetting     Eq. 2: the rise of the NLL of replies sampled (T = 1) from the base model to general prompts, which
                         estimates KL(base || tuned) per token

The suite `in-domain`: the tests that come with the facts, beside the facts themselves.

train      the facts' own questions
paraphrase and whatever else the corpus brings (retrieval, two_hop, test, unseen, multi_hop, ...), each as its file has it; facts
           that bring no paraphrases of theirs get the frames that are reported
Scores are also told apart by what the corpus labels its questions with: relation, operation, domains. The split `validation` is
not asked: it is what checkpoints are chosen on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from mixsd.errors import UserError, did_you_mean
from mixsd.evaluation.benchmarks.benchmark import BENCHMARKS, get_benchmark, is_benchmark
from mixsd.evaluation.questions import Answerer, Material, Prompt, Question, Reply, about
from mixsd.facts.answers import Expected, Verifier, get_verifier
from mixsd.facts.fact import Fact
from mixsd.facts.prompts import Renderer, frames
from mixsd.facts.records import bundled_records
from mixsd.plugins import load_function
from mixsd.randomness import uniforms
from mixsd.settings import Settings
from mixsd.storage import digest

# Name -> the function that gives its questions; imported when asked for.
SUITES = {"core": "mixsd.evaluation.suites:core_questions", "in-domain": "mixsd.evaluation.suites:in_domain_questions"}
CORE, IN_DOMAIN = "core", "in-domain"

# What stands for several of them.
QUICK, PAPER = "quick", "paper"
PRESETS = (QUICK, PAPER)

# Begins the name of a task that lm-eval asks and scores.
LM_EVAL = "lm-eval:"


def check_suites(names: list[str]) -> None:
    """Refuse a name that is no suite."""
    known = [*SUITES, *BENCHMARKS, *PRESETS]
    for name in names:
        if name.startswith(LM_EVAL):
            from mixsd.evaluation import lm_eval

            lm_eval.check(name.removeprefix(LM_EVAL))
        elif is_benchmark(name):
            get_benchmark(name)
        elif name not in known:
            raise UserError(
                f"--suite {name!r}: no such suite{did_you_mean(name, known)}; known: {', '.join(known)}, {LM_EVAL}TASK, "
                "package.module:function"
            )


def folder_name(suite: str) -> str:
    """The folder in a run where the replies to a suite are: its name, in characters that any file system takes."""
    return re.sub(r"[^\w.-]+", "-", suite).strip("-.")


def in_order(names: Iterable[str]) -> list[str]:
    """The suites in the order in which they are shown: core, in-domain, the benchmarks, others by name."""
    order = [*SUITES, *BENCHMARKS]
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def questions(name: str, material: Material) -> list[Question]:
    """Everything that a suite asks, in a fixed order; for benchmarks see `mixsd.evaluation.asked`."""
    function: Callable[[Material], list[Question]] = load_function(SUITES[name], f"suite {name}")
    asked = function(material)
    known: set[str] = set()
    for question in asked:
        if question.key in known:
            raise UserError(f"suite {name}: two questions are called {question.key}; give each its own id")
        known.add(question.key)
    return asked


TRAINED, PARAPHRASE, PROBE, FORGETTING = (
    "memorization/trained",
    "memorization/paraphrase",
    "retention/probe",
    "retention/forgetting",
)
_PROBE_TOKENS = 64


def core_questions(material: Material) -> list[Question]:
    """The suite's questions, see `questions`."""
    return questions_about(material.facts, material.renderer, material.settings, material.verifier)


def questions_about(facts: Iterable[Fact], renderer: Renderer, settings: Settings, verifier: Verifier) -> list[Question]:
    """Everything that is asked and answered freely, in a fixed order."""
    limit = settings.max_new_tokens or 256
    core_questions = []
    for fact in facts:
        core_questions.append(about(fact, f"{TRAINED}/{fact.id}", TRAINED, fact.question, renderer, verifier, limit))
        for place, wording in enumerate(paraphrases(fact, settings)):
            core_questions.append(about(fact, f"{PARAPHRASE}/{fact.id}/{place}", PARAPHRASE, wording, renderer, verifier, limit))
    for item in bundled_records("probe.jsonl")[: settings.probe_questions]:
        expected = Expected(item["answer"], tuple(item.get("aliases", ())))
        judge = get_verifier(item.get("verifier", "contains"))
        core_questions.append(
            Question(
                f"{PROBE}/{item['id']}", PROBE, item["id"], item["question"], expected, judge, _PROBE_TOKENS, (item["kind"],)
            )
        )
    return core_questions


def paraphrases(fact: Fact, settings: Settings) -> list[str]:
    """Other wordings of a fact's question: its own first, else frames drawn at the fact's address."""
    return (list(fact.paraphrases) or framed(fact, settings.seed, "report"))[: settings.paraphrases]


def framed(fact: Fact, seed: int, frame_set: str) -> list[str]:
    """A fact's question in each frame of a bundled set, in an order drawn at the fact's address."""
    drawn = np.argsort(uniforms(seed, "evaluation", fact.id, n=10), kind="stable")
    return [frames()[frame_set][i].replace("{question}", fact.question) for i in drawn]


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
    return {item["id"]: renderer.ids(item["prompt"]) for item in bundled_records("general_prompts.jsonl")}


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
        for item in bundled_records("general_prompts.jsonl")[: settings.forgetting_prompts]
        if holds(item["id"])
    ]
    return base.replies(prompts)


TRAIN = "train"
_UNASKED = ("validation",)


def in_domain_questions(material: Material) -> list[Question]:
    """Everything that is asked, in a fixed order."""
    renderer, verifier, limit = material.renderer, material.verifier, material.settings.max_new_tokens or 256
    return [
        about(fact, f"{split}/{place}", split, question, renderer, verifier, limit, _labels(fact, material), group)
        for split, place, fact, question, group in _asked(material)
    ]


def asked_splits(tests: Iterable[str]) -> list[str]:
    """The splits that are asked where these tests come with the facts."""
    return list(dict.fromkeys((TRAIN, "paraphrase", *(split for split in tests if split not in _UNASKED))))


def _asked(material: Material) -> Iterator[tuple[str, str, Fact, str, str]]:
    """Split, place in it, fact, the wording of its question and the fact that it is about."""
    for fact in material.facts:
        yield TRAIN, fact.id, fact, fact.question, fact.id
    if "paraphrase" not in material.splits:
        for fact in material.facts:
            for number, wording in enumerate(paraphrases(fact, material.settings)):
                yield "paraphrase", f"{fact.id}/{number}", fact, wording, fact.id
    for split, facts in material.splits.items():
        if split not in _UNASKED:
            for fact in facts():
                # Tests of one trained fact are no independent observations. `meta` may hold anything.
                named = fact.meta.get("fact")
                yield split, fact.id, fact, fact.question, str(named) if type(named) in (str, int) else fact.id


def _labels(fact: Fact, material: Material) -> tuple[str, ...]:
    values = ((name, fact.meta.get(name)) for name in material.labels)
    return tuple(f"{name} {value}" for name, value in values if isinstance(value, str | int | float))
