r"""MATH-500: 500 competition problems of MATH (Hendrycks et al., 2021), the test split of Lightman et al. (2024).

Asked without examples, step by step, the answer in a box; judged by math-verify. Published for comparison (arXiv 2605.16865,
Table 1, base models): Qwen3-1.7B 72.4, Qwen3-4B-Instruct-2507 94.2, Qwen3-8B 83.4 (percent). The reference reply is the
solution that comes with the problem, whose last box holds the answer.
"""

from __future__ import annotations

from mixsd.evaluation.benchmarks.benchmark import Benchmark, Item, Means, Names, Proof, answer_of_another, field
from mixsd.evaluation.benchmarks.data import Found, Source
from mixsd.evaluation.grading import maths
from mixsd.facts.answers import Expected
from mixsd.facts.prompts import BOXED_SUFFIX
from mixsd.storage import digest

MATH_VERIFY = ("math_verify", "pip install 'math-verify[antlr4_13_2]'")


def math500() -> Benchmark:
    """The benchmark; fields of a record: problem, solution, answer; subject, level and unique_id where they are there."""
    return Benchmark(
        name="math500",
        title="MATH-500",
        size=500,
        source=Source("math500", {"test": "test"}, "HuggingFaceH4/MATH-500", columns=("problem", "solution", "answer")),
        read=_items,
        scorer=maths.scorer_version,
        corrupt=answer_of_another,
        proof=Proof(most_missed=3, least_refused=0.97),
        needs=MATH_VERIFY,
    )


def _items(found: Found, means: Means) -> list[Item]:
    items, named = [], Names()
    for where, record in found.records("test"):
        problem, answer = field(record, "problem", where), field(record, "answer", where)
        content = digest([problem.strip(), answer.strip()])
        labels = [f"subject {record['subject']}"] if isinstance(record.get("subject"), str) else []
        labels += [f"level {record['level']}"] if record.get("level") else []
        items.append(
            Item(
                id=str(record.get("unique_id") or named(content)),
                user=problem.strip() + BOXED_SUFFIX,
                expected=Expected(answer),
                reference=field(record, "solution", where),
                strict=maths.strict,
                lenient=maths.lenient,
                content=content,
                labels=tuple(labels),
            )
        )
    return items
