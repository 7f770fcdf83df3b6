"""The suite `in-domain`: the tests that come with the facts, beside the facts themselves.

train      the facts' own questions
paraphrase and whatever else the corpus brings (retrieval, two_hop, test, unseen, multi_hop, ...), each as its file has it; facts
           that bring no paraphrases of theirs get the frames that are reported
Scores are also told apart by what the corpus labels its questions with: relation, operation, domains. The split `validation` is
not asked: it is what checkpoints are chosen on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mixsd.evaluation.core import paraphrases
from mixsd.evaluation.questions import Material, Question, about
from mixsd.facts import Fact

SUITE = "in-domain"
TRAIN = "train"
_UNASKED = ("validation",)


def questions(material: Material) -> list[Question]:
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
