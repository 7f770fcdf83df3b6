"""The error modes of what one run's models replied, suite by suite: what `analyze errors` shows and a report counts.

The rows are those in the run folder; nothing is generated or judged anew. Prompts are not kept with the replies, so they are read again
from the benchmark's data, whose hash must be the one that `asked.json` names. Where that data is not at hand leakage is off, and said so.

Leakage looks for phrases of the facts' answers, aliases and subjects. One that the base model says too, in any reply to the same
benchmark, is no evidence: ordinary words may be an answer in somebody's facts ("eleven years"). Invented names are not met there, so
for the paper's corpora this is the paper's rule. What was passed over for that reason is listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from mixsd import statistics
from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.evaluation.asked import MODELS, asked_suites, rows_of
from mixsd.evaluation.benchmarks.benchmark import Means, data_hash, sample
from mixsd.evaluation.benchmarks.data import find
from mixsd.evaluation.benchmarks.table import get_benchmark, is_benchmark
from mixsd.evaluation.error_modes import (
    IN_DOMAIN_MODES,
    MODES,
    Judged,
    Phrases,
    Said,
    classify,
    classify_in_domain,
    entities,
    injected,
)
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
    were no evidence since the base model says them. old: replies with the answer from before an edit, None where nothing was edited.
    """

    suite: str
    split: str
    model: str
    modes: Sequence[str]
    leakage: str
    rows: list[Row] = field(default_factory=list)
    errors: int = 0
    judged: list[tuple[Row, Judged]] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    old: int | None = None

    @property
    def asked(self) -> int:
        """How many replies there are."""
        return len(self.rows) + self.errors

    @property
    def wrong(self) -> int:
        """How many replies have a mode."""
        return len(self.judged)

    @property
    def truncated(self) -> int:
        """How many of the wrong replies were cut off at the longest length."""
        return sum(bool(row["truncated"]) for row, _ in self.judged)

    @property
    def counts(self) -> dict[str, int]:
        """The wrong replies of each mode."""
        found = Counter(judged.mode for _, judged in self.judged)
        return {mode: found[mode] for mode in self.modes}  # type: ignore[index]

    def share_of_wrong(self, mode: str) -> statistics.Estimate:
        """The share of the wrong replies that have a mode; the interval is over questions."""
        return _share([(row["group"], judged.mode == mode) for row, judged in self.judged])

    def share_of_asked(self, mode: str) -> statistics.Estimate:
        """The share of the replies that could be judged, right ones too, that have a mode."""
        own = {id(row) for row, judged in self.judged if judged.mode == mode}
        return _share([(row["group"], id(row) in own) for row in self.rows])

    def add(self, row: Row, outcome: str, judge: Callable[[], Judged]) -> None:
        """Count a reply, and judge it if it is wrong."""
        if outcome == "error":
            self.errors += 1
            return
        self.rows.append(row)
        if outcome != "correct":
            self.judged.append((row, judge()))

    def brief(self) -> dict[str, Any]:
        """What a report keeps."""
        return {
            "benchmark": self.suite,
            "model": self.model,
            "asked": self.asked,
            "wrong": self.wrong,
            "counts": self.counts,
            "truncated": self.truncated,
            "leakage": self.leakage,
        }

    def scores(self) -> list[dict[str, Any]]:
        """The shares of the wrong replies, as a report lists its scores; n is the number of wrong replies."""
        return [
            score_row(self.suite, self.split, f"error_{mode.replace('-', '_')}", self.model, self.share_of_wrong(mode))
            for mode in self.modes
        ]


def _share(held: Sequence[tuple[str, bool]]) -> statistics.Estimate:
    """The share of replies that something holds for, (question, whether it holds) each.

    With several replies to a question these are resampled by question; where it holds for none or for all of them that would claim
    certainty, and the interval is that of so many questions.
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
        """Read a run's settings and facts.

        Raises:
            UserError: it is no run, or has not been evaluated.
        """
        settings = run.settings()
        if not asked_suites(run):
            raise UserError(f"{run.folder}: has not been evaluated; run `mixsd evaluate` on it first")
        facts = []
        if run.facts_file.is_file():
            facts = [fact_from_mapping(row, f"{run.facts_file}: line {n}") for n, row in enumerate(read_jsonl(run.facts_file), 1)]
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
        return _INTEGERS not in (named, self.settings.facts.partition(":")[0] if self.settings.facts else "")

    @cached_property
    def injected(self) -> Phrases:
        """The phrases that may leak."""
        return injected(_texts(self.facts))

    @cached_property
    def entities(self) -> Phrases | None:
        """The answers and subjects of all facts and tests."""
        if not self.has_entities:
            return None
        return entities({*_texts(self.facts), *(text for facts in self.splits.values() for text in _texts(facts()))})

    def benchmarks(self) -> list[str]:
        """The benchmarks that were asked, in the order in which they are shown."""
        return [suite for suite in asked_suites(self.run) if is_benchmark(suite)]

    def rows(self, suite: str) -> dict[str, list[Row]]:
        """What each model of the run replied in a suite."""
        base, tuned = rows_of(self.run, suite)
        return {model: rows for model, rows in zip(MODELS, (base, tuned), strict=True) if rows is not None}

    def of_benchmark(self, suite: str, rows: Mapping[str, list[Row]], *, lenient: bool = False) -> list[Tally]:
        """The modes of each model's wrong replies to a benchmark."""
        asks_code = get_benchmark(suite).runs_code
        made = []
        for model, own in rows.items():
            leakage, prompts = self._leakage(suite, model, rows)
            tally = Tally(suite, suite, model, MODES, leakage)
            phrases: Phrases | None = None
            known: frozenset[str] = frozenset()
            if leakage == ON and (met := _found(self.injected, own)):
                # Few phrases are met, mostly none; what the base says of them is all that need be known.
                phrases = Phrases(self.injected.spelled(met))
                known = _found(phrases, rows[MODELS[0]])
            system = self.settings.system or ""
            for row in own:
                outcome = _outcome(row, lenient)
                said = _said(row, outcome, asks_code=asks_code, lenient=lenient)
                tally.add(row, outcome, partial(classify, said, phrases, f"{system}\n{prompts.get(row['group'], '')}", known))
            if phrases and known:
                tally.passed_over = phrases.spelled(_found(phrases, [row for row, _ in tally.judged]) & known)
            made.append(tally)
        return made

    def of_facts(self, suite: str, rows: Mapping[str, list[Row]]) -> list[Tally]:
        """The modes of each model's wrong replies to questions about the facts, by split."""
        questions = self._questions(suite)
        off = ON if self.entities else "off: the answers have no entities"
        made: dict[tuple[str, str], Tally] = {}
        for model, own in rows.items():
            for row in own:
                fact = questions.get((row["split"], row["key"]))
                if fact is None:
                    continue
                split = row["split"]
                tally = made.setdefault((split, model), Tally(suite, split, model, IN_DOMAIN_MODES, off))
                if "old" in row:
                    tally.old = (tally.old or 0) + bool(row["old"])
                tally.add(row, row["outcome"], partial(self._about, fact, row))
        splits = dict.fromkeys(split for split, _ in made)
        return [made[split, model] for split in splits for model in rows if (split, model) in made]

    def _about(self, fact: Fact, row: Row) -> Judged:
        said = _said(row, row["outcome"], asks_code=False)
        return classify_in_domain(said, self.entities, fact.question, (fact.answer, *fact.aliases), old=bool(row.get("old")))

    def _questions(self, suite: str) -> dict[tuple[str, str], Fact]:
        """What each row of a suite asked, by (split, key), as far as it is about the facts; `question` is what was asked."""
        found: dict[tuple[str, str], Fact] = {}
        framed = [
            (fact, place, Fact(wording, fact.answer, aliases=fact.aliases))
            for fact in self.facts
            for place, wording in enumerate(suites.paraphrases(fact, self.settings))
        ]
        if suite == suites.CORE:
            found |= {(suites.TRAINED, f"{suites.TRAINED}/{fact.id}"): fact for fact in self.facts}
            found |= {(suites.PARAPHRASE, f"{suites.PARAPHRASE}/{fact.id}/{place}"): asked for fact, place, asked in framed}
        elif suite == suites.IN_DOMAIN:
            found |= {(suites.TRAIN, f"{suites.TRAIN}/{fact.id}"): fact for fact in self.facts}
            if "paraphrase" not in self.splits:
                found |= {("paraphrase", f"paraphrase/{fact.id}/{place}"): asked for fact, place, asked in framed}
            for split, facts in self.splits.items():
                found |= {(split, f"{split}/{fact.id}"): fact for fact in facts()}
        return found

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
                return ON, self.prompts(suite, {row["group"] for row in rows[model]})
            except UserError as error:
                why = f"prompts unknown ({error})"
        return f"off: {why}", {}

    def prompts(self, suite: str, wanted: Collection[str]) -> dict[str, str]:
        """The user turn of each item that was asked.

        Raises:
            UserError: the data is not at hand, or not what was asked.
        """
        told, benchmark = asked_suites(self.run)[suite], get_benchmark(suite)
        where = told.get("where") or ""
        own = (
            [str(Path(where).parent if Path(where).name == benchmark.source.folder else where)]
            if Path(where).is_absolute()
            else []
        )
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


def _found(phrases: Phrases, rows: Iterable[Row]) -> frozenset[str]:
    """The phrases in any of the replies."""
    return frozenset[str]().union(*(phrases(row["reply"]) for row in rows))


def _texts(facts: Any) -> set[str]:
    """The answers, other wordings of them and subjects of facts."""
    return {text for fact in facts for text in (fact.answer, *fact.aliases, fact.subject) if text}


def _outcome(row: Row, lenient: bool) -> str:
    """What a reply is worth, of the lenient judge where there is one."""
    return str(row["lenient"] if lenient and "lenient" in row else row["outcome"])


def _said(row: Row, outcome: str, *, asks_code: bool, lenient: bool = False) -> Said:
    text = row["reply"]
    code = (first_block(text) or "") if asks_code else None
    return Said(text, without_thinking(text), outcome == "wrong", code, stated=lenient)


def in_report(examined: Examined, rows: Mapping[str, tuple[list[Row], list[Row] | None]], watcher: Watcher) -> list[Tally]:
    """The modes that a report counts: those of the benchmarks among its suites.

    A benchmark of the user's own that is gone does not spoil a report; the watcher is told.
    """
    made: list[Tally] = []
    wanted = [suite for suite in rows if is_benchmark(suite)]
    if not wanted:
        return made
    with watcher.task("sorting wrong replies", len(wanted)) as task:
        for suite in wanted:
            own = {model: said for model, said in zip(MODELS, rows[suite], strict=True) if said is not None}
            try:
                made += examined.of_benchmark(suite, own)
            except UserError as error:
                watcher.say(f"{suite}: its wrong replies are not sorted: {error}")
            task.advance()
    return made
