"""Letters: how many letters has a word?"""

from __future__ import annotations

from mixsd.evaluation.benchmarks.benchmark import Benchmark, Item, Means, Names, Proof, answer_of_another, field
from mixsd.evaluation.benchmarks.data import Found, Source
from mixsd.facts.answers import Expected, get_verifier, scorer_version
from mixsd.storage import digest


def letters() -> Benchmark:
    return Benchmark(
        name="letters",
        title="Letters of Words",
        size=4,
        source=Source("letters", {"test": "test"}, "nobody/letters"),
        read=_items,
        scorer=scorer_version,
        corrupt=answer_of_another,
        proof=Proof(most_missed=0, least_refused=1.0),
    )


def _items(found: Found, means: Means) -> list[Item]:
    named = Names()
    items = []
    for where, record in found.records("test"):
        word = field(record, "word", where)
        answer, content = str(len(word)), digest(word)
        asked = f"How many letters has '{word}'?"
        exact, contains = get_verifier("exact"), get_verifier("contains")
        items.append(Item(named(content), asked, Expected(answer), answer, exact, contains, content))
    return items
