"""Benchmarks as suites: which are asked in a run, how, with which data, and the questions that come of it.

`Asked` is what decides a benchmark's figures besides model and prompt; it is written beside the replies, and two runs in which it
differs are not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mixsd import answers
from mixsd.errors import UserError
from mixsd.evaluation.benchmarks.benchmark import (
    BENCHMARKS,
    Benchmark,
    Item,
    Means,
    data_hash,
    get_benchmark,
    is_benchmark,
    sample,
)
from mixsd.evaluation.benchmarks.data import Found
from mixsd.evaluation.questions import Question, Sampled
from mixsd.evaluation.suites import CORE, IN_DOMAIN, LM_EVAL, PAPER, PRESETS, QUICK
from mixsd.settings import Settings

_TOKENS = 8192  # the paper's
_QUICK = {"limit": 50, "tokens": 1024, "samples": 1}


@dataclass(frozen=True)
class Asked:
    """How a suite was asked.

    `data` is the hash of what was asked, `where` where it came from; `tokens` the longest reply; `samples` replies to each item at
    `temperature` among the `top_k` likeliest tokens. `sandbox` is what kept model-written code apart, None where none was run.
    `chat_template`: whether lm-eval used the model's; None where it did not ask.
    """

    suite: str
    scorer: str
    data: str | None = None
    where: str | None = None
    items: int | None = None
    limit: int | None = None
    tokens: int | None = None
    samples: int = 1
    temperature: float = 0.0
    top_k: int | None = None
    sandbox: dict[str, object] | None = None
    chat_template: bool | None = None

    def to_json(self) -> dict[str, object]:
        """As it is written beside the replies."""
        return asdict(self)


# What may differ between two runs that are compared.
INCIDENTAL = ("where", "sandbox")


@dataclass(frozen=True)
class Exam:
    """One benchmark as a run asks it: the items, of which `Asked` tells."""

    benchmark: Benchmark
    items: Sequence[Item]
    asked: Asked

    def questions(self, seed: int) -> list[Question]:
        """What is asked: every item, as often as it is to be answered."""
        made = []
        name, asked = self.benchmark.name, self.asked
        for item in self.items:
            for number in range(asked.samples):
                sampled = Sampled(seed, number, asked.temperature, asked.top_k) if asked.temperature else None
                made.append(
                    Question(
                        key=f"{item.id}/{number}" if asked.samples > 1 else item.id,
                        split=name,
                        group=item.id,
                        user=item.user,
                        expected=item.expected,
                        verifier=item.strict,
                        max_new_tokens=asked.tokens or _TOKENS,
                        labels=item.labels,
                        lenient=item.lenient,
                        sampled=sampled,
                        apart=True,
                    )
                )
        return made


@dataclass(frozen=True)
class Chosen:
    """The suites that a run asks, by name, and those that a preset left out, with the reason."""

    names: tuple[str, ...]
    skipped: dict[str, str]


def asked_plainly(suite: str) -> Asked:
    """How a suite without data of its own is asked."""
    return Asked(suite, answers.scorer_version)


def asked_by_lm_eval(suite: str, settings: Settings) -> Asked:
    """How a task of lm-eval is asked; what it says of the task itself is written beside it."""
    return Asked(suite, "lm-eval", limit=settings.limit, chat_template=settings.lm_eval_chat_template)


def choose(settings: Settings, *, with_tests: bool) -> Chosen:
    """What `--suite` comes to; a preset leaves out what cannot be asked here and says why.

    Args:
        with_tests: whether the facts come with tests.

    Raises:
        UserError: a benchmark that was named itself cannot be asked.
    """
    names: list[str] = []
    skipped: dict[str, str] = {}
    for name in settings.suite or [CORE, *([IN_DOMAIN] if with_tests else [])]:
        if name not in PRESETS:
            if is_benchmark(name):
                _found(get_benchmark(name), settings)
            names.append(name)
            continue
        names += [CORE, *([IN_DOMAIN] if with_tests and name == PAPER else [])]
        for benchmark in BENCHMARKS:
            if benchmark in settings.suite:
                continue
            try:
                _found(get_benchmark(benchmark), settings, only_at_hand=name == QUICK)
                names.append(benchmark)
            except UserError as error:
                skipped[benchmark] = str(error)
    return Chosen(tuple(dict.fromkeys(names)), {name: why for name, why in skipped.items() if name not in names})


def examine(name: str, settings: Settings) -> Exam:
    """Read a benchmark's data and take the sample that is asked.

    Raises:
        UserError: the data is not there, not the benchmark's, or not all of it and no `limit` asks for a part.
    """
    benchmark, weak = get_benchmark(name), settings.allow_weak_sandbox
    found, sandbox = _found(benchmark, settings)
    every = benchmark.items(found, Means(weak_sandbox=weak))
    quick = QUICK in settings.suite and PAPER not in settings.suite
    limit = settings.limit or (_QUICK["limit"] if quick else None)
    benchmark.require_size(every, found, limit)
    items = sample(every, limit)
    samples = benchmark.samples
    if benchmark.temperature:
        samples = settings.aime_samples or (_QUICK["samples"] if quick else samples)
    asked = Asked(
        suite=name,
        scorer=benchmark.scorer,
        data=data_hash(items),
        where=found.where,
        items=len(every),
        limit=None if len(items) == len(every) else limit,
        tokens=settings.benchmark_tokens or (_QUICK["tokens"] if quick else _TOKENS),
        samples=samples,
        temperature=benchmark.temperature,
        top_k=benchmark.top_k,
        sandbox=sandbox,
    )
    return Exam(benchmark, items, asked)


def is_asked_by_lm_eval(suite: str) -> bool:
    """Whether a suite is a task of lm-eval."""
    return suite.startswith(LM_EVAL)


def _found(benchmark: Benchmark, settings: Settings, *, only_at_hand: bool = False) -> tuple[Found, dict[str, object] | None]:
    """A benchmark's data and the sandbox of its judge, where it can be asked on this machine and with these settings."""
    isolation = benchmark.require_means(allow_code=settings.allow_code_execution, allow_weak=settings.allow_weak_sandbox)
    found = benchmark.find(settings.data, offline=settings.offline, only_at_hand=only_at_hand)
    return found, asdict(isolation) if isolation else None
