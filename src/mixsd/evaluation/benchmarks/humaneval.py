r"""HumanEval: 164 Python functions to write from their signature and docstring (Chen et al., 2021); pass@1, greedy.

The model replies with a fenced block, which is judged by running the function against the published tests, in a sandbox, and only
where the user has allowed it. Strict takes the first block; lenient takes the first one that defines the function, or bare code.
Published for comparison (arXiv 2605.16865, Table 1, base models): Qwen3-1.7B 60.4, Qwen3-4B-Instruct-2507 86.0, Qwen3-8B 86.6
(percent). The reference reply is the canonical solution in such a block; its corrupted twin is a function that returns None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mixsd import sandbox
from mixsd.evaluation.benchmarks.benchmark import Benchmark, Item, Means, Proof, field
from mixsd.evaluation.benchmarks.data import Found, Source
from mixsd.evaluation.grading import code
from mixsd.facts.answers import Expected, Verdict, Verifier
from mixsd.storage import digest

_ASK = (
    "Write the Python function that this signature and docstring describe. Reply with the whole function, and the imports it needs, "
    "in one fenced code block that begins with ```python.\n\n```python\n{prompt}\n```"
)
_FIELDS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")


def humaneval() -> Benchmark:
    """The benchmark; fields of a record: task_id, prompt, canonical_solution, test, entry_point."""
    return Benchmark(
        name="humaneval",
        title="HumanEval",
        size=164,
        source=Source("humaneval", {"test": "HumanEval"}, "openai/openai_humaneval", columns=_FIELDS),
        read=_items,
        scorer=code.scorer_version,
        corrupt=_returns_none,
        proof=Proof(most_missed=0, least_refused=1.0),
        runs_code=True,
    )


def _items(found: Found, means: Means) -> list[Item]:
    items = []
    for where, record in found.records("test"):
        task, prompt, solution, test, entry = (field(record, name, where) for name in _FIELDS)
        strict, lenient = (_judge(take, prompt, test, entry, means) for take in (code.program, code.lenient_program))
        items.append(
            Item(
                id=task,
                user=_ASK.format(prompt=prompt.strip()),
                expected=Expected(entry),
                reference=f"```python\n{prompt}{solution}\n```",
                strict=strict,
                lenient=lenient,
                content=digest([prompt, test, entry]),
            )
        )
    return items


def _judge(take: Callable[[str, str, str], str | None], prompt: str, test: str, entry: str, means: Means) -> Verifier:
    def judge(reply: str, expected: Expected) -> Verdict:
        program = take(reply, prompt, entry)
        if program is None:
            return Verdict("unparseable")
        judged = sandbox.judge(program, prompt=prompt, test=test, entry_point=entry, allow_weak=means.weak_sandbox)
        if judged.ours:
            return Verdict("error", program, judged.reason)
        return Verdict("correct" if judged.passed else "wrong", program, judged.reason)

    return judge


def _returns_none(items: Sequence[Item], place: int) -> str:
    return f"```python\ndef {items[place].expected.answer}(*arguments, **named):\n    return None\n```"
