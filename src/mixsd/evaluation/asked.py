"""Which suites a run asks, how, and on which data; the questions that come of it, and the files that the replies are kept in.

An evaluation leaves for each suite `base.jsonl`, `tuned.jsonl` and `asked.json`, which says what decides its figures besides model and
prompt: two runs in which that differs are not compared. It is written last, and goes first, so it vouches for the replies beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.evaluation.benchmarks import benchmark as benchmarks
from mixsd.evaluation.benchmarks.benchmark import BENCHMARKS, Benchmark, Item, Means, get_benchmark, is_benchmark
from mixsd.evaluation.benchmarks.data import Found
from mixsd.evaluation.lm_eval import Ran
from mixsd.evaluation.questions import Material, Question, Sampled
from mixsd.evaluation.suites import CORE, IN_DOMAIN, LM_EVAL, PAPER, PRESETS, QUICK
from mixsd.facts import answers
from mixsd.run.folder import Run
from mixsd.run.session import Session
from mixsd.settings import Settings
from mixsd.storage import read_json, read_jsonl, write_json, write_jsonl

MODELS = ("base", "tuned")
_TOKENS = 8192  # the paper's
_QUICK = {"limit": 50, "tokens": 1024, "samples": 1}
# What may differ between two runs that are compared, or is no part of how they were asked.
_INCIDENTAL = ("where", "sandbox", "items", "results", "about")


@dataclass(frozen=True)
class Asked:
    """How a suite was asked.

    data: the hash of what was asked. where: where it came from. tokens: the longest reply. samples: replies to each item, at `temperature`
    among the `top_k` likeliest tokens. sandbox: what kept model-written code apart. chat_template: whether lm-eval used the model's.
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


@dataclass(frozen=True)
class Exam:
    """One benchmark as a run asks it: the items, of which `Asked` tells."""

    items: Sequence[Item]
    asked: Asked

    def questions(self, seed: int) -> list[Question]:
        """What is asked: every item, as often as it is to be answered."""
        asked = self.asked
        return [
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
                sampled=Sampled(seed, number, asked.temperature, asked.top_k) if asked.temperature else None,
                apart=True,
            )
            for item in self.items
            for number in range(asked.samples)
        ]


class Examination:
    """Which suites a run asks (`names`, in order), what each of them asks, and why a preset left others out (`skipped`)."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.names, self.skipped = _choose(session.settings, with_tests=session.corpus is not None)
        for name, why in self.skipped.items():
            session.watcher.say(f"{name} is not asked: {why}")

    @cached_property
    def exams(self) -> dict[str, Exam]:
        """The benchmarks among the suites, with their data."""
        return {name: examine(name, self._session.settings) for name in self.names if is_benchmark(name)}

    def read_data(self) -> None:
        """Read the benchmarks' data now: a `UserError` where it is not there, or not what it should be."""
        _ = self.exams

    def questions(self, suite: str) -> list[Question]:
        """Everything that a suite asks, in a fixed order; nothing of what lm-eval asks itself."""
        session = self._session
        if is_benchmark(suite):
            return self.exams[suite].questions(session.settings.seed)
        if suite.startswith(LM_EVAL):
            return []
        splits, labels = (session.corpus.splits, session.corpus.labels) if session.corpus else ({}, ())
        material = Material(session.facts, splits, labels, session.renderer, session.settings, session.verifier)
        return suites.questions(suite, material)

    def asked(self, suite: str) -> Asked:
        """How a suite is asked; what lm-eval says of its task itself is written beside it."""
        if suite.startswith(LM_EVAL):
            settings = self._session.settings
            return Asked(suite, "lm-eval", limit=settings.limit, chat_template=settings.lm_eval_chat_template)
        return self.exams[suite].asked if is_benchmark(suite) else Asked(suite, answers.scorer_version)


def examination(session: Session) -> Examination:
    """Return what a session's models are asked: made once, its benchmarks' data read once."""
    return session.once(Examination)


def _choose(settings: Settings, *, with_tests: bool) -> tuple[list[str], dict[str, str]]:
    """What `--suite` comes to, and what a preset left out since it cannot be asked here, with the reason."""
    names: list[str] = []
    skipped: dict[str, str] = {}
    for name in settings.suite or [CORE, *([IN_DOMAIN] if with_tests else [])]:
        if name not in PRESETS:
            if is_benchmark(name):
                _found(get_benchmark(name), settings)
            names.append(name)
            continue
        names += [CORE, *([IN_DOMAIN] if with_tests and name == PAPER else [])]
        for benchmark in (each for each in BENCHMARKS if each not in settings.suite):
            try:
                _found(get_benchmark(benchmark), settings, only_at_hand=name == QUICK)
                names.append(benchmark)
            except UserError as error:
                skipped[benchmark] = str(error)
    return list(dict.fromkeys(names)), {name: why for name, why in skipped.items() if name not in names}


def examine(name: str, settings: Settings) -> Exam:
    """Read a benchmark's data, which has to be whole unless a `limit` asks for a part, and take the sample that is asked."""
    benchmark = get_benchmark(name)
    found, sandbox = _found(benchmark, settings)
    every = benchmark.items(found, Means(weak_sandbox=settings.allow_weak_sandbox))
    quick = _QUICK if QUICK in settings.suite and PAPER not in settings.suite else {}
    limit = settings.limit or quick.get("limit")
    benchmark.require_size(every, found, limit)
    items = benchmarks.sample(every, limit)
    asked = Asked(
        suite=name,
        scorer=benchmark.scorer,
        data=benchmarks.data_hash(items),
        where=found.where,
        items=len(every),
        limit=None if len(items) == len(every) else limit,
        tokens=settings.benchmark_tokens or quick.get("tokens", _TOKENS),
        samples=(settings.aime_samples if benchmark.temperature else None) or quick.get("samples", benchmark.samples),
        temperature=benchmark.temperature,
        top_k=benchmark.top_k,
        sandbox=sandbox,
    )
    return Exam(items, asked)


def _found(benchmark: Benchmark, settings: Settings, *, only_at_hand: bool = False) -> tuple[Found, dict[str, object] | None]:
    isolation = benchmark.require_means(allow_code=settings.allow_code_execution, allow_weak=settings.allow_weak_sandbox)
    found = benchmark.find(settings.data, offline=settings.offline, only_at_hand=only_at_hand)
    return found, asdict(isolation) if isolation else None


def replies_file(run: Run, suite: str, model: str) -> Path:
    """The file of a model's replies to a suite."""
    return run.evaluation / suites.folder_name(suite) / f"{model}.jsonl"


def asked_file(run: Run, suite: str) -> Path:
    """The file that says how a suite was asked."""
    return run.evaluation / suites.folder_name(suite) / "asked.json"


def was_asked(session: Session, suite: str, models: Sequence[str]) -> bool:
    """Whether these models have been asked a suite as the session asks it; without `asked.json` nothing vouches for that."""
    run, file = session.run, asked_file(session.run, suite)
    if not all(replies_file(run, suite, model).is_file() for model in models) or not file.is_file():
        return False
    return comparable(read_json(file)) == comparable(asdict(examination(session).asked(suite)))


def comparable(asked: Mapping[str, Any]) -> dict[str, Any]:
    """How a suite was asked, as far as it decides the scores."""
    return {name: value for name, value in asked.items() if name not in _INCIDENTAL}


def write_suite(run: Run, asked: Asked, model: str, rows: list[dict[str, Any]], *, whole: bool, ran: Ran | None = None) -> None:
    """Write a model's replies to a suite, and how it was asked: once they are `whole`, those of every model, or `ran` by lm-eval."""
    file = asked_file(run, asked.suite)
    results: dict[str, Any] = {}
    if model == MODELS[0]:
        file.unlink(missing_ok=True)
        replies_file(run, asked.suite, MODELS[1]).unlink(missing_ok=True)
    elif file.is_file():
        results = read_json(file).get("results", {})
    write_jsonl(replies_file(run, asked.suite, model), rows)
    if ran is not None:
        write_json(file, {**asdict(asked), "results": {**results, model: ran.results}, "about": ran.about})
    elif whole:
        write_json(file, asdict(asked))


def asked_suites(run: Run) -> dict[str, dict[str, Any]]:
    """How each suite was asked that a run has replies to, in the order in which suites are shown."""
    folders = [folder for folder in sorted(run.evaluation.glob("*/")) if (folder / "base.jsonl").is_file()]
    told = [read_json(folder / "asked.json") for folder in folders if (folder / "asked.json").is_file()]
    found = {values["suite"]: values for values in told}
    return {name: found[name] for name in suites.in_order(found)}


def rows_of(run: Run, suite: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """What base and tuned said in a suite, without the ids, which are most of it; None for a tuned model that was not asked."""
    files = [replies_file(run, suite, model) for model in MODELS]
    rows = (read_jsonl(file) for file in files if file == files[0] or file.is_file())
    base, *tuned = ([{name: value for name, value in row.items() if name != "reply_ids"} for row in own] for own in rows)
    return base, tuned[0] if tuned else None
