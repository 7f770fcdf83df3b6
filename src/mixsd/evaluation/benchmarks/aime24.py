r"""AIME 2024: the 30 problems of both papers of the American Invitational Mathematics Examination of 2024.

Each problem is answered 16 times at temperature 0.7 among the 20 likeliest tokens (what Qwen3 recommends without thinking, but for
its top-p), and the score is the mean over all replies, of which those to one problem count as one observation in the interval.
The paper states neither; 16 is what its decimals imply. Answers are whole numbers from 0 to 999, in a box. Published for comparison
(arXiv 2605.16865, Table 1, base models): Qwen3-1.7B 11.0, Qwen3-4B-Instruct-2507 62.9, Qwen3-8B 26.0 (percent).

The solutions that come with the problems are several people's, boxed or not; the reference reply is such a solution with the answer
in a box behind it.
"""

from __future__ import annotations

import re

from mixsd.errors import UserError
from mixsd.evaluation.benchmarks.benchmark import Benchmark, Item, Means, Names, Proof, answer_of_another, field
from mixsd.evaluation.benchmarks.data import Found, Source
from mixsd.evaluation.benchmarks.math500 import MATH_VERIFY
from mixsd.evaluation.grading import maths
from mixsd.facts.answers import Expected
from mixsd.facts.fact import shown
from mixsd.facts.prompts import BOXED_SUFFIX
from mixsd.storage import digest


def aime24() -> Benchmark:
    """The benchmark; fields of a record: problem, solution, answer; id where it is there."""
    return Benchmark(
        name="aime24",
        title="AIME-2024",
        size=30,
        source=Source("aime24", {"train": "test"}, "HuggingFaceH4/aime_2024", columns=("problem", "solution", "answer")),
        read=_items,
        scorer=maths.scorer_version,
        corrupt=answer_of_another,
        proof=Proof(most_missed=0, least_refused=0.97),
        samples=16,
        temperature=0.7,
        top_k=20,
        needs=MATH_VERIFY,
    )


def _items(found: Found, means: Means) -> list[Item]:
    items, named = [], Names()
    for where, record in found.records("train"):
        problem, answer = field(record, "problem", where), field(record, "answer", where).strip()
        if re.fullmatch("[0-9]{1,3}", answer) is None:
            raise UserError(f"{where}: field answer is {shown(answer)}, expected a whole number from 0 to 999")
        # Whether it is written "025", as in the examination, or 25.
        content = digest([problem.strip(), str(int(answer))])
        items.append(
            Item(
                id=named(content) if record.get("id") is None else str(record["id"]),
                user=problem.strip() + BOXED_SUFFIX,
                expected=Expected(answer),
                reference=f"{field(record, 'solution', where)}\n\n\\boxed{{{answer}}}",
                strict=maths.strict,
                lenient=maths.lenient,
                content=content,
            )
        )
    return items
