"""Which suites a run asks, how, and on which data; the questions that come of it, and the files that the replies are kept in.

`Asked` is what decides a benchmark's figures besides model and prompt; it is written beside the replies, and two runs in which it
differs are not compared.

An evaluation leaves in the run folder, for each suite, `base.jsonl`, `tuned.jsonl` and `asked.json`, which says how it was asked. That
is written last, and goes first when a suite is asked anew: so it vouches for the replies beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mixsd.errors import UserError
from mixsd.evaluation import suites
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
from mixsd.evaluation.questions import Material, Question, Sampled
from mixsd.evaluation.suites import CORE, IN_DOMAIN, LM_EVAL, PAPER, PRESETS, QUICK
from mixsd.facts import answers
from mixsd.run.folder import Run
from mixsd.run.session import Session
from mixsd.settings import Settings
from mixsd.storage import read_json, read_jsonl, write_json, write_jsonl

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
        asked = self.asked
        for item in self.items:
            for number in range(asked.samples):
                sampled = Sampled(seed, number, asked.temperature, asked.top_k) if asked.temperature else None
                made.append(
                    Question(
                        key=f"{item.id}/{number}" if asked.samples > 1 else item.id,
                        split=asked.suite,
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


class Examination:
    """Which suites a run asks, and what each of them asks; see `examination`.

    `names` are the suites in order; `skipped` says of each that a preset left out why.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        chosen = choose(session.settings, with_tests=session.corpus is not None)
        self.names = list(chosen.names)
        self.skipped = chosen.skipped
        for name, why in chosen.skipped.items():
            session.watcher.say(f"{name} is not asked: {why}")

    @cached_property
    def exams(self) -> dict[str, Exam]:
        """The benchmarks among the suites, with their data."""
        return {name: examine(name, self._session.settings) for name in self.names if is_benchmark(name)}

    def read_data(self) -> None:
        """Read the benchmarks' data now; else it is read when the first of them is asked.

        Raises:
            UserError: a file is not there, or not what it should be.
        """
        _ = self.exams

    def questions(self, suite: str) -> list[Question]:
        """Everything that a suite asks, in a fixed order; nothing of what lm-eval asks itself."""
        if is_benchmark(suite):
            return self.exams[suite].questions(self._session.settings.seed)
        return [] if is_asked_by_lm_eval(suite) else suites.questions(suite, self._material)

    def asked(self, suite: str) -> Asked:
        """How a suite is asked."""
        if is_asked_by_lm_eval(suite):
            return asked_by_lm_eval(suite, self._session.settings)
        return self.exams[suite].asked if is_benchmark(suite) else asked_plainly(suite)

    @property
    def _material(self) -> Material:
        """What a suite may ask about."""
        session = self._session
        splits, labels = (session.corpus.splits, session.corpus.labels) if session.corpus else ({}, ())
        return Material(session.facts, splits, labels, session.renderer, session.settings, session.verifier)


def examination(session: Session) -> Examination:
    """Return what a session's models are asked: made once, its benchmarks' data read once."""
    return session.once(Examination)


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


MODELS = ("base", "tuned")


def replies_file(run: Run, suite: str, model: str) -> Path:
    """The file of a model's replies to a suite."""
    return run.evaluation / suites.folder_name(suite) / f"{model}.jsonl"


def asked_file(run: Run, suite: str) -> Path:
    """The file that says how a suite was asked."""
    return run.evaluation / suites.folder_name(suite) / "asked.json"


def is_done(session: Session, suite: str) -> bool:
    """Whether a suite has been asked of every model of the run, in the way in which the session asks it."""
    run = session.run
    if not all(replies_file(run, suite, model).is_file() for model in (MODELS[:1] if session.alone else MODELS)):
        return False
    return _asked_so(session, suite)


def is_half_done(session: Session, suite: str) -> bool:
    """Whether the base has been asked by lm-eval, in the way in which the session asks, and the tuned model has not."""
    return replies_file(session.run, suite, MODELS[0]).is_file() and _asked_so(session, suite)


def _asked_so(session: Session, suite: str) -> bool:
    """Whether what lies in the run was asked as the session asks; without `asked.json` nothing vouches for it."""
    file = asked_file(session.run, suite)
    return file.is_file() and comparable(read_json(file)) == comparable(examination(session).asked(suite).to_json())


def comparable(asked: Mapping[str, Any]) -> dict[str, Any]:
    """How a suite was asked, as far as it decides the scores."""
    left_out = (*INCIDENTAL, "items", "results", "about")
    return {name: value for name, value in asked.items() if name not in left_out}


def write_suite(
    run: Run,
    asked: Asked,
    model: str,
    rows: list[dict[str, Any]],
    *,
    whole: bool,
    results: Mapping[str, float] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a model's replies to a suite, and how it was asked once they are `whole`, those of every model.

    `results` and `about` are what lm-eval says of them.
    """
    file = asked_file(run, asked.suite)
    told: dict[str, Any] = {}
    if model == MODELS[0]:
        file.unlink(missing_ok=True)
        replies_file(run, asked.suite, MODELS[1]).unlink(missing_ok=True)
    elif results is not None and file.is_file():
        told = read_json(file).get("results", {})
    write_jsonl(replies_file(run, asked.suite, model), rows)
    if results is not None:
        write_json(file, {**asked.to_json(), "results": {**told, model: dict(results)}, "about": dict(about or {})})
    elif whole:
        write_json(file, asked.to_json())


def asked_suites(run: Run) -> dict[str, dict[str, Any]]:
    """How each suite was asked that a run has replies to, in the order in which suites are shown."""
    found: dict[str, dict[str, Any]] = {}
    for folder in sorted(run.evaluation.glob("*/")):
        if (folder / "base.jsonl").is_file() and (folder / "asked.json").is_file():
            values = read_json(folder / "asked.json")
            found[values["suite"]] = values
    return {name: found[name] for name in suites.in_order(found)}


def rows_of(run: Run, suite: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """What base and tuned said in a suite, without the ids, which are most of it; None for a tuned model that was not asked."""
    base, tuned = (replies_file(run, suite, model) for model in MODELS)
    return _rows(base), _rows(tuned) if tuned.is_file() else None


def _rows(file: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "reply_ids"} for row in read_jsonl(file)]
