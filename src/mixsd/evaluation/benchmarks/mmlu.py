r"""MMLU: 14,042 multiple-choice questions on 57 subjects (Hendrycks et al., 2020), with five examples, generative.

The examples are the subject's own (the split dev), each with its letter in a box; the model may think before it answers. Scored per
subject and overall (over questions, not over subjects). Published for comparison (arXiv 2605.16865, Table 1, base models):
Qwen3-1.7B 58.5, Qwen3-4B-Instruct-2507 77.6, Qwen3-8B 73.1 (percent).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixsd.errors import UserError
from mixsd.evaluation.benchmarks.benchmark import Benchmark, Item, Means, Names, Proof, field, text_of
from mixsd.evaluation.benchmarks.data import Found, Source, part_of
from mixsd.evaluation.grading import letters
from mixsd.facts.answers import Expected
from mixsd.storage import digest

LETTERS = "ABCD"
SHOTS = 5
_COLUMNS = ("question", *(f"choice{place}" for place in range(len(LETTERS))), "answer")


@dataclass(frozen=True)
class _Record:
    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int

    @property
    def text(self) -> str:
        lines = [f"Question: {self.question}", *(f"{letter}. {text}" for letter, text in zip(LETTERS, self.choices, strict=True))]
        return "\n".join(lines)


def mmlu() -> Benchmark:
    """The benchmark; fields of a record: question, choices (or choice0 to choice3), answer (0 to 3 or a letter), subject.

    In a folder of files, one per subject, the subject is the file's name without "_test" or "_dev".
    """
    return Benchmark(
        name="mmlu",
        title="MMLU",
        size=14042,
        source=Source("mmlu", {"test": "test", "dev": "dev"}, "cais/mmlu", config="all", columns=_COLUMNS, per_part=True),
        read=_items,
        scorer=letters.scorer_version,
        corrupt=_another_letter,
        proof=Proof(most_missed=0, least_refused=1.0),
    )


def _items(found: Found, means: Means) -> list[Item]:
    shots: dict[str, list[_Record]] = defaultdict(list)
    for _, record in _records(found, "dev"):
        shots[record.subject].append(record)
    items, named = [], Names()
    for where, record in _records(found, "test"):
        examples = shots[record.subject][:SHOTS]
        if len(examples) < SHOTS:
            raise UserError(f"{where}: {record.subject} has {len(examples)} examples in the split dev, expected {SHOTS}")
        letter = LETTERS[record.answer]
        content = digest([record.subject, record.question, *record.choices, letter])
        items.append(
            Item(
                id=named(content, f"{record.subject}/"),
                user=_ask(record, examples),
                expected=Expected(letter),
                reference=f"The answer is \\boxed{{{letter}}}.",
                strict=letters.strict,
                lenient=letters.lenient,
                content=content,
                labels=(record.subject,),
            )
        )
    return items


def _ask(record: _Record, examples: Sequence[_Record]) -> str:
    subject = record.subject.replace("_", " ")
    parts = [f"Multiple-choice questions about {subject}, the first {SHOTS} with their answers."]
    parts += [f"{example.text}\nAnswer: \\boxed{{{LETTERS[example.answer]}}}" for example in examples]
    parts.append(
        f"{record.text}\n\nThink it through if that helps, then give the letter of the right answer alone inside \\boxed{{}}."
    )
    return "\n\n".join(parts)


def _records(found: Found, split: str) -> Iterator[tuple[str, _Record]]:
    for file, where, record in found.records_by_file(split):
        choices = record.get("choices")
        if not isinstance(choices, list):
            # An empty cell is an absent field, and "None" may well be a choice.
            choices = [record.get(f"choice{place}") for place in range(len(LETTERS))]
        if len(choices) != len(LETTERS) or any(choice is None for choice in choices):
            raise UserError(f"{where}: expected {len(LETTERS)} choices, in `choices` or in choice0 to choice{len(LETTERS) - 1}")
        texts = tuple(
            text_of(choice, f"{where}: choice {letter}").strip() for letter, choice in zip(LETTERS, choices, strict=True)
        )
        question = field(record, "question", where).strip()
        yield where, _Record(_subject(file, split, record, where), question, texts, _answer(record, where))


def _subject(file: Path | None, split: str, record: dict[str, Any], where: str) -> str:
    part = part_of(file) if file else ""
    if part.endswith(f"_{split}"):
        return part.removesuffix(f"_{split}")
    return field(record, "subject", where)


def _answer(record: dict[str, Any], where: str) -> int:
    text = field(record, "answer", where).strip()
    place = LETTERS.find(text) if text.isalpha() else int(text) if text.isdecimal() else -1
    if len(text) != 1 or not 0 <= place < len(LETTERS):
        raise UserError(f"{where}: field answer is {text!r}, expected 0 to {len(LETTERS) - 1} or a letter")
    return place


def _another_letter(items: Sequence[Item], place: int) -> str:
    own = LETTERS.index(items[place].expected.answer)
    return f"The answer is \\boxed{{{LETTERS[(own + 1) % len(LETTERS)]}}}."
