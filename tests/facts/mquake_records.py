"""Made-up records of MQuAKE's file, and the corpus of such records.

Chains are written as steps (subject, relation, new object) or, edited, (subject, relation, new object, old object).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mixsd.facts.corpus import Corpus
from mixsd.facts.fact import Fact
from mixsd.facts.published import mquake


def hop(subject: str, relation: str, answer: str, aliases: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "question": f"What is the {relation} of {subject}?",
        "cloze": f"The {relation} of {subject} is",
        "answer": answer,
        "answer_alias": aliases.get(answer, []),
    }


def case(number: int, *steps: tuple[str, ...], aliases: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """A record of the file; entity X has the id QX."""
    aliases = aliases or {}
    labelled = [list(step[:3]) for step in steps]
    old_end = steps[-1][3] if len(steps[-1]) == 4 else "Earlier"
    return {
        "case_id": number,
        "requested_rewrite": [
            {
                "prompt": f"The {relation} of {{}} is",
                "relation_id": relation,
                "target_new": {"str": new, "id": f"Q{new}"},
                "target_true": {"str": old[0], "id": f"Q{old[0]}"},
                "subject": subject,
                "question": f"What is the {relation} of {subject}?",
            }
            for subject, relation, new, *old in steps
            if old
        ],
        "questions": [f"Wording {n}: where does chain {number} end?" for n in (1, 2, 3)],
        "answer": old_end,
        "answer_alias": aliases.get(old_end, []),
        "new_answer": steps[-1][2],
        "new_answer_alias": aliases.get(steps[-1][2], []),
        "single_hops": [hop(step[0], step[1], step[3], aliases) for step in steps if len(step) == 4],
        "new_single_hops": [hop(step[0], step[1], step[2], aliases) for step in steps],
        "orig": {
            "new_triples": [[f"Q{subject}", relation, f"Q{end}"] for subject, relation, end in labelled],
            "new_triples_labeled": labelled,
        },
    }


def many(number: int) -> list[dict[str, Any]]:
    """So many cases of one edit each, over six relation types of different sizes; every third has a second, unedited step."""
    sizes = [("P1", 1), ("P10", 2), ("P2", 3)]
    relations = [relation for relation, size in sizes for _ in range(size)] + ["P3", "P4", "P5"] * number
    cases = []
    for n in range(number):
        relation = relations[n]
        steps: list[tuple[str, ...]] = [(f"Person {n}x", relation, f"New {relation} {n % 7}x", f"Old {relation}")]
        if n % 3 == 0:
            steps.append((steps[0][2], "P9", "Somewhere"))
        cases.append(case(n, *steps))
    return cases


def load(folder: Path, cases: Any, **options: Any) -> Corpus:
    path = folder / "m.json"
    path.write_text(json.dumps(cases))
    return mquake(str(path), **options)


def answers(corpus: Corpus) -> list[tuple[str | None, str]]:
    return [(fact.subject, fact.answer) for fact in corpus.facts()]


def background(test: Fact) -> list[str]:
    return [line[2:] for line in test.question.splitlines() if line.startswith("- ")]
