"""The suite `in-domain`: the tests that come with the facts, beside the facts themselves.

train      the facts' own questions
paraphrase and whatever else the corpus brings (retrieval, two_hop, test, unseen, multi_hop, ...), each as its file has it; facts
           that bring no paraphrases of theirs get the frames that are reported
Scores are also told apart by what the corpus labels its questions with: relation, operation, domains. The split `validation` is
not asked: it is what checkpoints are chosen on.
"""

from __future__ import annotations

from collections.abc import Iterator

from mixsd.evaluation.core import paraphrases
from mixsd.evaluation.questions import Material, Question, about
from mixsd.facts import Fact

SUITE = "in-domain"
TRAIN = "train"
_UNASKED = ("validation",)


def questions(material: Material) -> list[Question]:
    """Everything that is asked, in a fixed order."""
    limit = material.settings.max_new_tokens or 256
    return [
        about(fact, f"{split}/{place}", split, question, material.renderer, material.verifier, limit, _labels(fact, material))
        for split, place, fact, question in _asked(material)
    ]


def _asked(material: Material) -> Iterator[tuple[str, str, Fact, str]]:
    """Split, place in it, fact and the wording of its question."""
    for fact in material.facts:
        yield TRAIN, fact.id, fact, fact.question
    if "paraphrase" not in material.splits:
        for fact in material.facts:
            for number, wording in enumerate(paraphrases(fact, material.settings)):
                yield "paraphrase", f"{fact.id}/{number}", fact, wording
    for split, facts in material.splits.items():
        if split not in _UNASKED:
            for fact in facts():
                yield split, fact.id, fact, fact.question


def _labels(fact: Fact, material: Material) -> tuple[str, ...]:
    return tuple(f"{name} {fact.meta[name]}" for name in material.labels if name in fact.meta)
