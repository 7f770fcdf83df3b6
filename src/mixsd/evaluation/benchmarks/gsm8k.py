r"""GSM8K: 1,319 grade-school word problems (Cobbe et al., 2021), the test split.

Asked without examples, step by step, the answer in a box; judged by math-verify. Published for comparison (arXiv 2605.16865,
Table 1, base models): Qwen3-1.7B 80.4, Qwen3-4B-Instruct-2507 92.6, Qwen3-8B 91.8 (percent). The reference reply is the worked
solution without its calculator marks, and the number behind `####` in a box, as it is written there ("1,450,000").
"""

from __future__ import annotations

import re

from mixsd.errors import UserError
from mixsd.evaluation.benchmarks.benchmark import Benchmark, Item, Means, Names, Proof, answer_of_another, field
from mixsd.evaluation.benchmarks.data import Found, Source
from mixsd.evaluation.benchmarks.math500 import MATH_VERIFY
from mixsd.evaluation.grading import maths
from mixsd.facts.answers import Expected
from mixsd.facts.prompts import BOXED_SUFFIX
from mixsd.storage import digest

_CALCULATOR = re.compile(r"<<[^<>]*>>")


def gsm8k() -> Benchmark:
    """The benchmark; fields of a record: question, answer (the solution, then `#### number`)."""
    return Benchmark(
        name="gsm8k",
        title="GSM8K",
        size=1319,
        source=Source("gsm8k", {"test": "test"}, "openai/gsm8k", config="main", columns=("question", "answer")),
        read=_items,
        scorer=maths.scorer_version,
        corrupt=answer_of_another,
        proof=Proof(most_missed=0, least_refused=0.97),
        needs=MATH_VERIFY,
    )


def _items(found: Found, means: Means) -> list[Item]:
    items, named = [], Names()
    for where, record in found.records("test"):
        question = field(record, "question", where)
        solution, mark, answer = field(record, "answer", where).rpartition("####")
        if not mark or not answer.strip():
            raise UserError(f"{where}: field answer has no number behind ####; this is not a record of GSM8K")
        content = digest([question.strip(), answer.strip()])
        items.append(
            Item(
                id=named(content),
                user=question.strip() + BOXED_SUFFIX,
                expected=Expected(answer.strip()),
                reference=f"{_CALCULATOR.sub('', solution).strip()}\n\n\\boxed{{{answer.strip()}}}",
                strict=maths.strict,
                lenient=maths.lenient,
                content=content,
            )
        )
    return items
