"""The error modes of what one run's models replied, suite by suite: what `analyze errors` shows and a report counts.

Prompts are not kept with the replies, so they are read again from the benchmark's data, whose hash must be the one that `asked.json`
names; where it is not at hand leakage is off. A phrase that the base model says too, in any reply to the same benchmark, is no evidence:
ordinary words may be an answer in somebody's facts ("eleven years"). Invented names are not met there: it is then the paper's rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mixsd import statistics
from mixsd.errors import UserError
from mixsd.evaluation import error_modes, suites
from mixsd.evaluation.asked import MODELS, asked_suites, rows_of
from mixsd.evaluation.benchmarks.benchmark import Means, data_hash, get_benchmark, is_benchmark, sample
from mixsd.evaluation.benchmarks.data import find
from mixsd.evaluation.error_modes import IN_DOMAIN_MODES, MODES, JudgedMode, Phrases, Said
from mixsd.evaluation.grading.code import first_block
from mixsd.evaluation.scores import score_row
from mixsd.facts.answers import without_thinking
from mixsd.facts.corpus import is_corpus, read
from mixsd.facts.fact import Fact, fact_from_mapping
from mixsd.progress import Watcher
from mixsd.run.folder import Run
from mixsd.settings import Settings
from mixsd.storage import read_jsonl

Row = dict[str, Any]
ON = "on"
_INTEGERS = "kgfunc"  # the corpus without any entities


@dataclass
class Tally:
    """The modes of one model's wrong replies to one benchmark, or one split of the facts' own questions.

    rows: the replies that could be judged; `errors` (ours) could not. judged: each wrong one, with its mode. passed_over: phrases that
    were no evidence. old: replies with the answer from before an edit, None where nothing was edited.
    """

    suite: str
    split: str
    model: str
    modes: Sequence[str]
    leakage: str
    rows: list[Row] = field(default_factory=list)
    errors: int = 0
    judged: list[tuple[Row, JudgedMode]] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    old: int | None = None

    def share_of_wrong(self, mode: str) -> statistics.Estimate:
        """The share of the wrong replies that have a mode; the interval is over questions."""
        return _share([(row["group"], judged.mode == mode) for row, judged in self.judged])

    def share_of_asked(self, mode: str) -> statistics.Estimate:
        """The share of the replies that could be judged, right ones too, that have a mode."""
        own = {id(row) for row, judged in self.judged if judged.mode == mode}
        return _share([(row["group"], id(row) in own) for row in self.rows])

    def add(self, row: Row, outcome: str) -> bool:
        """Count a reply; returns whether it is wrong, and has to be judged."""
        if outcome == "error":
            self.errors += 1
        else:
            self.rows.append(row)
        return outcome not in ("error", "correct")

    def brief(self) -> dict[str, Any]:
        """What a report keeps."""
        counts = Counter[str](judged.mode for _, judged in self.judged)
        return {
            "benchmark": self.suite,
            "model": self.model,
            "asked": len(self.rows) + self.errors,
            "wrong": len(self.judged),
            "counts": {mode: counts[mode] for mode in self.modes},
            "truncated": sum(bool(row["truncated"]) for row, _ in self.judged),
            "leakage": self.leakage,
        }

    def scores(self) -> list[dict[str, Any]]:
        """The shares of the wrong replies, as a report lists its scores; n is the number of wrong replies."""
        return [
            score_row(self.suite, self.split, f"error_{mode.replace('-', '_')}", self.model, self.share_of_wrong(mode))
            for mode in self.modes
        ]


def _share(held: Sequence[tuple[str, bool]]) -> statistics.Estimate:
    """The share of replies that something holds for, (question, whether it holds) each; several replies to one are resampled together.

    Where it holds for none or all of them a bootstrap would claim certainty: the interval is that of so many questions.
    """
    n, total = len(held), sum(holds for _, holds in held)
    sizes = Counter(group for group, _ in held)
    if len(sizes) == n:
        return statistics.proportion(total, n)
    if total in (0, n) or len(sizes) < 2:
        bounds = statistics.proportion(len(sizes) * total / n, len(sizes))
    else:
        of_group = Counter(group for group, holds in held if holds)
        bounds = statistics.ratio_of_sums([of_group[group] for group in sizes], [sizes[group] for group in sizes])
    return replace(bounds, value=total / n, n=n, unit="share")


@dataclass
class Examined:
    """A run whose replies are looked at. `data`: a folder of the benchmarks' data; else where the run found it, or $MIXSD_DATA."""

    run: Run
    settings: Settings
    facts: list[Fact]
    data: str | None = None

    @classmethod
    def open(cls, run: Run, data: str | None = None) -> Examined:
        """Read a run's settings and facts; a run that has not been evaluated is a `UserError`."""
        settings = run.settings()
        if not asked_suites(run):
            raise UserError(f"{run.folder}: has not been evaluated; run `mixsd evaluate` on it first")
        rows = read_jsonl(run.facts_file) if run.facts_file.is_file() else ()
        facts = [fact_from_mapping(row, f"{run.facts_file}: line {number}") for number, row in enumerate(rows, 1)]
        return cls(run, settings, facts, data)

    @cached_property
    def alone(self) -> bool:
        """Whether one model was evaluated, without a base beside it."""
        return bool(self.run.manifest().get("identity", {}).get("alone"))

    @cached_property
    def splits(self) -> Mapping[str, Callable[[], Any]]:
        """The tests that came with the facts."""
        return read(self.run.splits).splits if is_corpus(self.run.splits) else {}

    @cached_property
    def has_entities(self) -> bool:
        """Whether the facts are about anything with a name."""
        named = read(self.run.splits).name if is_corpus(self.run.splits) else ""
        return _INTEGERS not in (named, (self.settings.facts or "").partition(":")[0])

    @cached_property
    def injected(self) -> Phrases:
        """The phrases that may leak."""
        return error_modes.injected(_texts(self.facts))

    @cached_property
    def entities(self) -> Phrases | None:
        """The answers and subjects of all facts and tests."""
        texts = _texts(self.facts).union(*(_texts(facts()) for facts in self.splits.values()))
        return error_modes.entities(texts) if self.has_entities else None

    def benchmarks(self) -> list[str]:
        """The benchmarks that were asked, in the order in which they are shown."""
        return [suite for suite in asked_suites(self.run) if is_benchmark(suite)]

    def rows(self, suite: str) -> dict[str, list[Row]]:
        """What each model of the run replied in a suite."""
        return _by_model(rows_of(self.run, suite))

    def of_benchmark(self, suite: str, rows: Mapping[str, list[Row]], *, lenient: bool = False) -> list[Tally]:
        """The modes of each model's wrong replies to a benchmark."""
        asks_code, system = get_benchmark(suite).runs_code, self.settings.system or ""
        made = []
        for model, own in rows.items():
            leakage, prompts = self._leakage(suite, model, rows)
            tally = Tally(suite, suite, model, MODES, leakage)
            phrases = self.injected if leakage == ON else None
            known = _found(phrases, rows[MODELS[0]])
            for row in own:
                outcome: str = row["lenient" if lenient and "lenient" in row else "outcome"]
                if tally.add(row, outcome):
                    code = (first_block(row["reply"]) or "") if asks_code else None
                    said = Said(row["reply"], without_thinking(row["reply"]), outcome == "wrong", code, stated=lenient)
                    prompt = f"{system}\n{prompts.get(row['group'], '')}"
                    tally.judged.append((row, error_modes.classify(said, phrases, prompt, known)))
            if phrases and known:
                tally.passed_over = phrases.spelled(_found(phrases, [row for row, _ in tally.judged]) & known)
            made.append(tally)
        return made

    def of_facts(self, suite: str, rows: Mapping[str, list[Row]]) -> list[Tally]:
        """The modes of each model's wrong replies to questions about the facts, by split."""
        every = suites.wordings(suite, self.facts, self.splits, self.settings)
        asked = {f"{split}/{place}": (fact, wording) for split, place, fact, wording, _ in every}
        leakage = ON if self.entities else "off: the answers have no entities"
        made: dict[str, dict[str, Tally]] = {}
        for model, own in rows.items():
            for row in own:
                if row["key"] not in asked:
                    continue
                (fact, wording), split = asked[row["key"]], row["split"]
                tally = made.setdefault(split, {}).setdefault(model, Tally(suite, split, model, IN_DOMAIN_MODES, leakage))
                if "old" in row:
                    tally.old = (tally.old or 0) + bool(row["old"])
                if tally.add(row, row["outcome"]):
                    said = Said(row["reply"], without_thinking(row["reply"]), row["outcome"] == "wrong")
                    right, old = (fact.answer, *fact.aliases), bool(row.get("old"))
                    tally.judged.append((row, error_modes.classify_in_domain(said, self.entities, wording, right, old=old)))
        return [tally for by_model in made.values() for tally in by_model.values()]

    def _leakage(self, suite: str, model: str, rows: Mapping[str, list[Row]]) -> tuple[str, dict[str, str]]:
        """Whether leakage is looked for in a model's replies ("off: why"), and the user turns by item."""
        if model == MODELS[0]:
            alone = self.alone or len(rows) == 1
            why = "one model alone, without its base" if alone else "the base model has learnt none of the facts"
        elif not self.facts:
            why = "the run has no facts"
        elif not self.has_entities:
            why = "KGFunc's answers are numbers"
        elif not len(self.injected):
            why = "no answer or subject of the facts has two words"
        else:
            try:
                return ON, self._prompts(suite, {row["group"] for row in rows[model]})
            except UserError as error:
                why = f"prompts unknown ({error})"
        return f"off: {why}", {}

    def _prompts(self, suite: str, wanted: Collection[str]) -> dict[str, str]:
        told, benchmark = asked_suites(self.run)[suite], get_benchmark(suite)
        where = Path(told.get("where") or "")
        own = [str(where)] if where.is_absolute() else []
        for place in [self.data] if self.data else [*own, self.settings.data, None]:
            try:
                found = find(benchmark.source, place, offline=True, only_at_hand=True)
                items = sample(benchmark.items(found, Means()), told.get("limit"))
            except UserError as error:
                problem = str(error)
                continue
            if told.get("data") == data_hash(items) and not set(wanted).difference(item.id for item in items):
                return {item.id: item.user for item in items}
            problem = f"{found.where} holds other data than what was asked"
        raise UserError(problem)


def _by_model(rows: tuple[list[Row], list[Row] | None]) -> dict[str, list[Row]]:
    return {model: own for model, own in zip(MODELS, rows, strict=True) if own is not None}


def _found(phrases: Phrases | None, rows: Iterable[Row]) -> frozenset[str]:
    return frozenset[str]().union(*(phrases(row["reply"]) for row in rows if phrases))


def _texts(facts: Any) -> set[str]:
    return {text for fact in facts for text in (fact.answer, *fact.aliases, fact.subject) if text}


def in_report(examined: Examined, rows: Mapping[str, tuple[list[Row], list[Row] | None]], watcher: Watcher) -> list[Tally]:
    """The modes that a report counts; a benchmark of the user's own that is gone does not spoil it: the watcher is told."""
    made: list[Tally] = []
    wanted = [suite for suite in rows if is_benchmark(suite)]
    if not wanted:
        return made
    with watcher.task("sorting wrong replies", len(wanted)) as task:
        for suite in wanted:
            try:
                made += examined.of_benchmark(suite, _by_model(rows[suite]))
            except UserError as error:
                watcher.say(f"{suite}: its wrong replies are not sorted: {error}")
            task.advance()
    return made
