r"""AIME 2024, MATH-500 and GSM8K: problems to solve step by step, without examples, the answer in a box; judged by math-verify.

- AIME 2024: the 30 problems of both papers of the American Invitational Mathematics Examination. Each is answered 16 times at temperature
  0.7 among the 20 likeliest tokens (what Qwen3 recommends without thinking, but for its top-p), and the score is the mean over all replies,
  of which those to one problem count as one observation in the interval. The paper states neither; 16 is what its decimals imply.
- MATH-500: 500 competition problems of MATH (Hendrycks et al., 2021), the test split of Lightman et al. (2024).
- GSM8K: 1,319 grade-school word problems (Cobbe et al., 2021), the test split.

Published for comparison (arXiv 2605.16865, Table 1, base models Qwen3-1.7B, Qwen3-4B-Instruct-2507, Qwen3-8B, percent): AIME 11.0, 62.9,
26.0; MATH-500 72.4, 94.2, 83.4; GSM8K 80.4, 92.6, 91.8.
"""

from __future__ import annotations

import re
from typing import Any

from mixsd.errors import UserError
from mixsd.evaluation.benchmarks.benchmark import Benchmark, Item, Means, Names, Proof, answer_of_another, field
from mixsd.evaluation.benchmarks.data import Found, Source
from mixsd.evaluation.grading import maths
from mixsd.facts.answers import Expected
from mixsd.facts.fact import shown
from mixsd.facts.prompts import BOXED_SUFFIX
from mixsd.storage import digest

_CALCULATOR = re.compile(r"<<[^<>]*>>")


def aime24() -> Benchmark:
    """The benchmark; fields of a record: problem, solution, answer (a whole number from 0 to 999); id where it is there."""
    return _benchmark(
        name="aime24",
        title="AIME-2024",
        size=30,
        source=Source("aime24", {"train": "test"}, "HuggingFaceH4/aime_2024", columns=("problem", "solution", "answer")),
        read=_aime24_items,
        proof=Proof(most_missed=0, least_refused=0.97),
        samples=16,
        temperature=0.7,
        top_k=20,
    )


def math500() -> Benchmark:
    """The benchmark; fields of a record: problem, solution, answer; subject, level and unique_id where they are there."""
    return _benchmark(
        name="math500",
        title="MATH-500",
        size=500,
        source=Source("math500", {"test": "test"}, "HuggingFaceH4/MATH-500", columns=("problem", "solution", "answer")),
        read=_math500_items,
        proof=Proof(most_missed=3, least_refused=0.97),
    )


def gsm8k() -> Benchmark:
    """The benchmark; fields of a record: question, answer (the solution, then `#### number`)."""
    return _benchmark(
        name="gsm8k",
        title="GSM8K",
        size=1319,
        source=Source("gsm8k", {"test": "test"}, "openai/gsm8k", config="main", columns=("question", "answer")),
        read=_gsm8k_items,
        proof=Proof(most_missed=0, least_refused=0.97),
    )


def _benchmark(**own: Any) -> Benchmark:
    needs = ("math_verify", "pip install 'math-verify[antlr4_13_2]'")
    return Benchmark(scorer=maths.scorer_version, corrupt=answer_of_another, needs=needs, **own)


def _item(key: str, problem: str, answer: str, reference: str, content: str, labels: tuple[str, ...] = ()) -> Item:
    asked = problem.strip() + BOXED_SUFFIX
    return Item(key, asked, Expected(answer), reference, maths.strict, maths.lenient, content, labels)


def _aime24_items(found: Found, means: Means) -> list[Item]:
    """The solutions are several people's, boxed or not; the reference reply is such a solution with the answer in a box behind it."""
    items, named = [], Names()
    for where, record in found.records("train"):
        problem, answer = field(record, "problem", where), field(record, "answer", where).strip()
        if re.fullmatch("[0-9]{1,3}", answer) is None:
            raise UserError(f"{where}: field answer is {shown(answer)}, expected a whole number from 0 to 999")
        # Whether it is written "025", as in the examination, or 25.
        content = digest([problem.strip(), str(int(answer))])
        key = named(content) if record.get("id") is None else str(record["id"])
        items.append(_item(key, problem, answer, f"{field(record, 'solution', where)}\n\n\\boxed{{{answer}}}", content))
    return items


def _math500_items(found: Found, means: Means) -> list[Item]:
    """The reference reply is the solution that comes with the problem, whose last box holds the answer."""
    items, named = [], Names()
    for where, record in found.records("test"):
        problem, answer = field(record, "problem", where), field(record, "answer", where)
        content = digest([problem.strip(), answer.strip()])
        labels = [f"subject {record['subject']}"] if isinstance(record.get("subject"), str) else []
        labels += [f"level {record['level']}"] if record.get("level") else []
        key = str(record.get("unique_id") or named(content))
        items.append(_item(key, problem, answer, field(record, "solution", where), content, tuple(labels)))
    return items


def _gsm8k_items(found: Found, means: Means) -> list[Item]:
    """The reference reply is the worked solution without its calculator marks, and the number as it is written ("1,450,000") in a box."""
    items, named = [], Names()
    for where, record in found.records("test"):
        question = field(record, "question", where)
        solution, mark, answer = field(record, "answer", where).rpartition("####")
        answer = answer.strip()
        if not mark or not answer:
            raise UserError(f"{where}: field answer has no number behind ####; this is not a record of GSM8K")
        content = digest([question.strip(), answer])
        reference = f"{_CALCULATOR.sub('', solution).strip()}\n\n\\boxed{{{answer}}}"
        items.append(_item(named(content), question, answer, reference, content))
    return items
