"""Suites by name, and the questions of the two that ask about the facts; benchmarks are asked by `mixsd.evaluation.asked`.

core: does the model know the facts, and what did it cost?
  memorization/trained     the facts' own questions, free greedy replies, judged by the run's verifier; n = all facts asked for
  memorization/paraphrase  other wordings: the fact's own, else frames of ours that nothing was ever chosen on
  retention/probe          short general questions with checkable answers, greedy; also per kind
  retention/forgetting     Eq. 2: the rise of the NLL of replies sampled (T = 1) from the base model to general prompts, which
                           estimates KL(base || tuned) per token

in-domain: the facts' own questions (`train`), other wordings (`paraphrase`), and whatever tests the corpus brings, but for `validation`, on
  which checkpoints are chosen; scores are also told apart by what the corpus labels its questions with.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mixsd.errors import UserError, did_you_mean
from mixsd.evaluation import lm_eval
from mixsd.evaluation.benchmarks.benchmark import BENCHMARKS, LM_EVAL, get_benchmark, is_benchmark
from mixsd.evaluation.questions import Answerer, Material, Prompt, Question, Reply, about, reply_row
from mixsd.facts.answers import Expected, get_verifier
from mixsd.facts.fact import Fact
from mixsd.facts.prompts import Renderer, frames
from mixsd.facts.records import bundled_records
from mixsd.randomness import uniforms
from mixsd.settings import Settings

SUITES = CORE, IN_DOMAIN = "core", "in-domain"
PRESETS = QUICK, PAPER = "quick", "paper"  # each stands for several suites

TRAINED, PARAPHRASE = "memorization/trained", "memorization/paraphrase"
PROBE, FORGETTING = "retention/probe", "retention/forgetting"
TRAIN = "train"
_UNASKED = ("validation",)
_PROBE_TOKENS = 64


def check_suites(names: list[str]) -> None:
    """Refuse a name that is no suite."""
    known = [*SUITES, *BENCHMARKS, *PRESETS]
    for name in names:
        if name.startswith(LM_EVAL):
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
    """Everything that `core` or `in-domain` asks and that is answered freely, in a fixed order."""
    settings, verifier, limit = material.settings, material.verifier, material.settings.max_new_tokens or 256
    asked = []
    for split, place, fact, wording, group in wordings(name, material.facts, material.splits, settings):
        question = about(fact, f"{split}/{place}", split, wording, material.renderer, verifier, limit)
        values = [(label, fact.meta.get(label)) for label in material.labels if name == IN_DOMAIN]
        labels = tuple(f"{label} {value}" for label, value in values if isinstance(value, str | int | float))
        asked.append(replace(question, labels=labels, group=group))
    for item in bundled_records("probe.jsonl")[: settings.probe_questions] if name == CORE else ():
        expected, judge = Expected(item["answer"], tuple(item.get("aliases", ()))), get_verifier(item.get("verifier", "contains"))
        key, labels = item["id"], (item["kind"],)
        asked.append(Question(f"{PROBE}/{key}", PROBE, key, item["question"], expected, judge, _PROBE_TOKENS, labels))
    for key, count in Counter(question.key for question in asked).items():
        if count > 1:
            raise UserError(f"suite {name}: two questions are called {key}; give each its own id")
    return asked


def wordings(
    suite: str, facts: list[Fact], splits: Mapping[str, Callable[[], Iterable[Fact]]], settings: Settings
) -> Iterator[tuple[str, str, Fact, str, str]]:
    """What a suite asks about the facts: split, place in it, fact, the wording of its question and the fact that it is about."""
    if suite == CORE:
        for fact in facts:
            yield TRAINED, fact.id, fact, fact.question, fact.id
            for number, wording in enumerate(paraphrases(fact, settings)):
                yield PARAPHRASE, f"{fact.id}/{number}", fact, wording, fact.id
    elif suite == IN_DOMAIN:
        for fact in facts:
            yield TRAIN, fact.id, fact, fact.question, fact.id
        for fact in facts if "paraphrase" not in splits else ():
            for number, wording in enumerate(paraphrases(fact, settings)):
                yield "paraphrase", f"{fact.id}/{number}", fact, wording, fact.id
        for split in [name for name in splits if name not in _UNASKED]:
            for fact in splits[split]():
                # Tests of one trained fact are no independent observations. `meta` may hold anything.
                named = fact.meta.get("fact")
                group = str(named) if type(named) in (str, int) else ""
                yield split, fact.id, fact, fact.question, group or fact.id


def asked_splits(tests: Iterable[str]) -> list[str]:
    """The splits that `in-domain` asks where these tests come with the facts."""
    return list(dict.fromkeys((TRAIN, "paraphrase", *(split for split in tests if split not in _UNASKED))))


def paraphrases(fact: Fact, settings: Settings) -> list[str]:
    """Other wordings of a fact's question: its own first, else frames drawn at the fact's address."""
    return (list(fact.paraphrases) or framed(fact, settings.seed, "report"))[: settings.paraphrases]


def framed(fact: Fact, seed: int, frame_set: str) -> list[str]:
    """A fact's question in each frame of a bundled set, in an order drawn at the fact's address."""
    drawn = np.argsort(uniforms(seed, "evaluation", fact.id, n=10), kind="stable")
    return [frames()[frame_set][i].replace("{question}", fact.question) for i in drawn]


def forgetting(answerer: Answerer, renderer: Renderer, references: dict[str, Reply]) -> list[dict[str, Any]]:
    """The rows of the reference replies (see `sample_references`): how likely one model finds what the base model said (Eq. 1)."""
    general = general_prompts(renderer)
    nll = answerer.scores({key: (general[key], reply.ids) for key, reply in references.items()})
    rows = []
    for key, reply in references.items():
        row = reply_row(f"{FORGETTING}/{key}", FORGETTING, key, (), general[key], reply, renderer.reply_text(reply.ids))
        rows.append(row | {"nll": round(nll[key], 6), "tokens": len(reply.ids)})
    return rows


def general_prompts(renderer: Renderer) -> dict[str, list[int]]:
    """The prompt ids of the bundled general prompts, by id."""
    return {item["id"]: renderer.ids(item["prompt"]) for item in bundled_records("general_prompts.jsonl")}


def sample_references(
    renderer: Renderer, settings: Settings, base: Answerer, holds: Callable[[str], bool] = lambda key: True
) -> dict[str, Reply]:
    """The reference corpus of Eq. 1: the base model's replies at T = 1, full softmax, to the general prompts."""
    length, seed = settings.forgetting_tokens, settings.seed
    prompts = []
    for key, ids in list(general_prompts(renderer).items())[: settings.forgetting_prompts]:
        if holds(key):
            noise = uniforms(seed, "forgetting", key, n=length)
            prompts.append(Prompt(key, ids, length, noise, f"{seed}/forgetting/{key}"))
    return base.replies(prompts)
