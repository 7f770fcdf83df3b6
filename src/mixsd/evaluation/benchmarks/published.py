r"""The paper's five benchmarks.

- AIME 2024: the 30 problems of both papers of the American Invitational Mathematics Examination. Each is answered 16 times at temperature
  0.7 among the 20 likeliest tokens (what Qwen3 recommends without thinking, but for its top-p); the score is the mean over all replies,
  those to one problem are one observation in the interval. The paper states neither; 16 is what its decimals imply.
- MATH-500: 500 competition problems of MATH (Hendrycks et al., 2021), the test split of Lightman et al. (2024).
- GSM8K: 1,319 grade-school word problems (Cobbe et al., 2021), the test split.
- HumanEval: 164 Python functions to write from their signature and docstring (Chen et al., 2021), judged by running them against the
  published tests, in a sandbox, and only where the user has allowed it; pass@1, greedy.
- MMLU: 14,042 multiple-choice questions on 57 subjects (Hendrycks et al., 2020), generative, after five examples of the subject.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mixsd import sandbox
from mixsd.errors import UserError
from mixsd.evaluation.benchmarks.benchmark import Benchmark, Item, Means, Names, Proof, answer_of_another, field, text_of
from mixsd.evaluation.benchmarks.data import Found, Source, part_of
from mixsd.evaluation.grading import code, letters, maths
from mixsd.facts.answers import Expected, Verdict, Verifier
from mixsd.facts.fact import shown
from mixsd.facts.prompts import BOXED_SUFFIX
from mixsd.storage import digest

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_ItemOf = Callable[[dict[str, Any], str, Names], Item]  # of a record, its place, and the names of those before

# Problems to solve step by step, without examples, the answer in a box; judged by math-verify.


def aime24() -> Benchmark:
    """The benchmark; fields of a record: problem, solution, answer (a whole number from 0 to 999); id where it is there."""
    source = Source("aime24", {"train": "test"}, "HuggingFaceH4/aime_2024", columns=("problem", "solution", "answer"))
    return _solved("aime24", "AIME-2024", 30, source, _aime24_item, samples=16, temperature=0.7, top_k=20)


def math500() -> Benchmark:
    """The benchmark; fields of a record: problem, solution, answer; subject, level and unique_id where they are there."""
    source = Source("math500", {"test": "test"}, "HuggingFaceH4/MATH-500", columns=("problem", "solution", "answer"))
    return _solved("math500", "MATH-500", 500, source, _math500_item, most_missed=3)


def gsm8k() -> Benchmark:
    """The benchmark; fields of a record: question, answer (the solution, then `#### number`)."""
    source = Source("gsm8k", {"test": "test"}, "openai/gsm8k", config="main", columns=("question", "answer"))
    return _solved("gsm8k", "GSM8K", 1319, source, _gsm8k_item)


def _solved(
    name: str, title: str, size: int, source: Source, item: _ItemOf, *, most_missed: int = 0, **sampling: Any
) -> Benchmark:
    (split,) = source.files

    def read(found: Found, means: Means) -> list[Item]:
        named = Names()
        return [item(record, where, named) for where, record in found.records(split)]

    needs, proof = ("math_verify", "pip install 'math-verify[antlr4_13_2]'"), Proof(most_missed, least_refused=0.97)
    return Benchmark(name, title, size, source, read, maths.scorer_version, answer_of_another, proof, needs=needs, **sampling)


def _problem(key: str, problem: str, answer: str, reference: str, content: str, labels: tuple[str, ...] = ()) -> Item:
    asked = problem.strip() + BOXED_SUFFIX
    return Item(key, asked, Expected(answer), reference, maths.strict, maths.lenient, content, labels)


def _aime24_item(record: dict[str, Any], where: str, named: Names) -> Item:
    """The solutions are several people's, boxed or not; the reference reply is such a solution with the answer in a box behind it."""
    problem, answer = field(record, "problem", where), field(record, "answer", where).strip()
    if re.fullmatch("[0-9]{1,3}", answer) is None:
        raise UserError(f"{where}: field answer is {shown(answer)}, expected a whole number from 0 to 999")
    content = digest([problem.strip(), str(int(answer))])  # whether it is written "025", as in the examination, or 25
    key = named(content) if record.get("id") is None else str(record["id"])
    return _problem(key, problem, answer, f"{field(record, 'solution', where)}\n\n\\boxed{{{answer}}}", content)


def _math500_item(record: dict[str, Any], where: str, named: Names) -> Item:
    """The reference reply is the solution that comes with the problem, whose last box holds the answer."""
    problem, answer = field(record, "problem", where), field(record, "answer", where)
    content = digest([problem.strip(), answer.strip()])
    labels = [f"subject {record['subject']}"] if isinstance(record.get("subject"), str) else []
    labels += [f"level {record['level']}"] if record.get("level") else []
    key = str(record.get("unique_id") or named(content))
    return _problem(key, problem, answer, field(record, "solution", where), content, tuple(labels))


def _gsm8k_item(record: dict[str, Any], where: str, named: Names) -> Item:
    """The reference reply is the worked solution without its calculator marks, and the number as it is written ("1,450,000") in a box."""
    question = field(record, "question", where)
    solution, mark, answer = field(record, "answer", where).rpartition("####")
    answer = answer.strip()
    if not mark or not answer:
        raise UserError(f"{where}: field answer has no number behind ####; this is not a record of GSM8K")
    content = digest([question.strip(), answer])
    reference = f"{_CALCULATOR.sub('', solution).strip()}\n\n\\boxed{{{answer}}}"
    return _problem(named(content), question, answer, reference, content)


_ASK_FUNCTION = (
    "Write the Python function that this signature and docstring describe. Reply with the whole function, and the imports it needs, "
    "in one fenced code block that begins with ```python.\n\n```python\n{prompt}\n```"
)
_FUNCTION_FIELDS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")


def humaneval() -> Benchmark:
    """The benchmark; fields of a record: task_id, prompt, canonical_solution, test, entry_point."""
    source = Source("humaneval", {"test": "HumanEval"}, "openai/openai_humaneval", columns=_FUNCTION_FIELDS)
    proof = Proof(most_missed=0, least_refused=1.0)
    return Benchmark("humaneval", "HumanEval", 164, source, _functions, code.scorer_version, _returns_none, proof, runs_code=True)


def _functions(found: Found, means: Means) -> list[Item]:
    """Strict takes the first block of the reply; lenient the first one that defines the function, or bare code."""
    items = []
    for where, record in found.records("test"):
        task, prompt, solution, test, entry = (field(record, name, where) for name in _FUNCTION_FIELDS)
        strict, lenient = (_running(take, prompt, test, entry, means) for take in (code.program, code.lenient_program))
        asked, reference = _ASK_FUNCTION.format(prompt=prompt.strip()), f"```python\n{prompt}{solution}\n```"
        items.append(Item(task, asked, Expected(entry), reference, strict, lenient, digest([prompt, test, entry])))
    return items


def _running(take: Callable[[str, str, str], str | None], prompt: str, test: str, entry: str, means: Means) -> Verifier:
    def judge(reply: str, expected: Expected) -> Verdict:
        program = take(reply, prompt, entry)
        if program is None:
            return Verdict("unparseable")
        judged = sandbox.judge(program, prompt=prompt, test=test, entry_point=entry, allow_weak=means.weak_sandbox)
        return Verdict("error" if judged.ours else "correct" if judged.passed else "wrong", program, judged.reason)

    return judge


def _returns_none(items: Sequence[Item], place: int) -> str:
    return f"```python\ndef {items[place].expected.answer}(*arguments, **named):\n    return None\n```"


_LETTERS = "ABCD"
_SHOTS = 5
_CHOICES = [f"choice{place}" for place in range(len(_LETTERS))]


def mmlu() -> Benchmark:
    """The benchmark; fields of a record: question, choices (or choice0 to choice3), answer (0 to 3 or a letter), subject.

    In a folder of files, one per subject, the subject is the file's name without "_test" or "_dev".
    """
    columns = ("question", *_CHOICES, "answer")
    source = Source("mmlu", {"test": "test", "dev": "dev"}, "cais/mmlu", config="all", columns=columns, per_part=True)
    proof = Proof(most_missed=0, least_refused=1.0)
    return Benchmark("mmlu", "MMLU", 14042, source, _choices, letters.scorer_version, _another_letter, proof)


def _choices(found: Found, means: Means) -> list[Item]:
    shots: dict[str, list[str]] = defaultdict(list)
    for _, subject, text, letter, _ in _questions(found, "dev"):
        shots[subject].append(f"{text}\nAnswer: \\boxed{{{letter}}}")
    items, named = [], Names()
    for where, subject, text, letter, content in _questions(found, "test"):
        examples = shots[subject][:_SHOTS]
        if len(examples) < _SHOTS:
            raise UserError(f"{where}: {subject} has {len(examples)} examples in the split dev, expected {_SHOTS}")
        about = f"Multiple-choice questions about {subject.replace('_', ' ')}, the first {_SHOTS} with their answers."
        ask = "Think it through if that helps, then give the letter of the right answer alone inside \\boxed{}."
        asked, reference = "\n\n".join([about, *examples, text, ask]), f"The answer is \\boxed{{{letter}}}."
        key, judges = named(content, f"{subject}/"), (letters.strict, letters.lenient)
        items.append(Item(key, asked, Expected(letter), reference, *judges, content, (subject,)))
    return items


def _questions(found: Found, split: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Of each question: its place, subject, text with the choices, the right letter, and the hash of its content."""
    for file, where, record in found.records_by_file(split):
        choices = record.get("choices")
        if not isinstance(choices, list):  # an empty cell is an absent field, and "None" may well be a choice
            choices = [record.get(name) for name in _CHOICES]
        if len(choices) != len(_LETTERS) or any(choice is None for choice in choices):
            raise UserError(f"{where}: expected {len(_LETTERS)} choices, in `choices` or in {_CHOICES[0]} to {_CHOICES[-1]}")
        texts = [text_of(choices[n], f"{where}: choice {letter}").strip() for n, letter in enumerate(_LETTERS)]
        question = field(record, "question", where).strip()
        part = part_of(file) if file else ""
        subject = part.removesuffix(f"_{split}") if part.endswith(f"_{split}") else field(record, "subject", where)
        answer = field(record, "answer", where).strip()
        right = dict(zip("0123" + _LETTERS, 2 * _LETTERS, strict=True)).get(answer)
        if right is None:
            raise UserError(f"{where}: field answer is {answer!r}, expected 0 to {len(_LETTERS) - 1} or a letter")
        lines = [f"Question: {question}", *(f"{letter}. {text}" for letter, text in zip(_LETTERS, texts, strict=True))]
        yield where, subject, "\n".join(lines), right, digest([subject, question, *texts, right])


def _another_letter(items: Sequence[Item], place: int) -> str:
    return f"The answer is \\boxed{{{'BCDA'[_LETTERS.index(items[place].expected.answer)]}}}."
