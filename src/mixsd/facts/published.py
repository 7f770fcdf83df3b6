"""Corpora that are read from published files: MQuAKE-CF (Zhong et al. 2023) and SimpleQA (OpenAI, 2024).

MQuAKE-CF: edits of known facts, and multi-hop questions whose answers they change. A case is a chain of facts, the edits that change
it, and questions about its end. The facts to train on are edits, chosen evenly over the relation types. They go into one model, so of
two edits that give one question two answers only the first stays; and one is left out where the verifier `contains` would find its new
answer in any reply that repeats the question or the old answer ("California" in "San Francisco, California"). Whatever is left out has a
note. The tests: other wordings; the questions of every case all of whose edits were chosen; and retrieval, where a background of other
edits holds the answer. The paper used MQuAKE-CF-3k-v2 of the authors' GitHub; what comes of another file of that shape is no result on v2.

SimpleQA: 4,326 short questions about the world, each with one answer, taught as new facts. The tests are other wordings.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from mixsd.errors import UserError
from mixsd.facts.answers import contains_answer
from mixsd.facts.corpus import Corpus, Facts
from mixsd.facts.fact import Fact, fact_from_mapping, normalized, shown, to_json, unique
from mixsd.facts.prompts import about, in_other_words, with_background
from mixsd.facts.records import Form, Records, in_form, read_csv, read_hub, read_json, read_jsonl, read_parquet
from mixsd.randomness import uniforms
from mixsd.storage import digest, file_digest

# MQuAKE-CF


def _with_one_place(prompt: str) -> str:
    if prompt.count("{}") != 1:
        raise ValueError("must hold {} once, where the subject stands")
    return prompt


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Texts = Annotated[list[str], Field(default_factory=list)]
Triple = Annotated[list[Text], Field(min_length=3, max_length=3)]


class Answer(Form):
    label: Text = Field(alias="str")


class Rewrite(Form):
    subject: Text
    relation_id: Text
    question: Text
    prompt: Annotated[Text, AfterValidator(_with_one_place)]
    target_new: Answer
    target_true: Answer


class Hop(Form):
    question: Text
    answer: Text
    answer_alias: Texts


class Chain(Form):
    new_triples: list[Triple]
    new_triples_labeled: list[Triple]

    @model_validator(mode="after")
    def _of_one_length(self) -> Chain:
        if len(self.new_triples) != len(self.new_triples_labeled):
            raise ValueError("new_triples_labeled must have as many steps as new_triples")
        return self

    def steps(self) -> Iterator[tuple[list[str], list[str]]]:
        """Each step after the edits, as Wikidata ids and as labels: subject, relation, what it leads to."""
        return zip(self.new_triples, self.new_triples_labeled, strict=True)


class MquakeCase(Form):
    """One record of the file."""

    case_id: int | Text
    requested_rewrite: Annotated[list[Rewrite], Field(min_length=1)]
    questions: Annotated[list[Text], Field(min_length=1)]
    answer: Text
    answer_alias: Texts
    new_answer: Text
    new_answer_alias: Texts
    single_hops: list[Hop]
    new_single_hops: list[Hop]
    orig: Chain


def read_cases(path: Path) -> Iterator[MquakeCase]:
    """Yield the cases of a file; a record that is none is a `UserError` that names the file, the case and the field."""
    seen = set()
    for place, values in read_json(path):
        number = values.get("case_id", "")
        where = f"{path}: case {number}" if isinstance(number, int | str) and number != "" else place
        case = in_form(MquakeCase, values, where, "; expected a case of MQuAKE-CF")
        if case.case_id in seen:
            raise UserError(f"{where}: is there twice; give each case its own case_id")
        seen.add(case.case_id)
        yield case


# An alias that a reply may hold by chance ("it" for Italian, "IN" for India): any of one or two characters, the language codes,
# and country codes that are words.
_CODE = re.compile(r"[A-Za-z0-9]{1,2}\.?|[a-z]{3}|(?i:can|jam|nor|rim|sin|spa|tan)")


@dataclass(frozen=True)
class ChangedFact:
    """A subject and a relation with a new answer: the fact to train on, its `names_of`, and the answers' aliases as the file has them."""

    fact: Fact
    names: frozenset[tuple[str, ...]]
    aliases: tuple[str, ...] = ()
    old_aliases: tuple[str, ...] = ()

    @property
    def relation(self) -> str:
        """Its relation's id."""
        return str(self.fact.meta["relation"])


@dataclass
class Edits:
    """The edits that can be used, the cases with the ids of theirs, and why others were left out."""

    edits: list[ChangedFact] = field(default_factory=list)
    cases: list[tuple[MquakeCase, frozenset[str]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def names_of(subject: str, subject_id: str, relation: str) -> frozenset[tuple[str, ...]]:
    """What a subject (its id may be empty) and a relation are recognized by; two with one label are one to whoever reads a question."""
    return frozenset([("label", normalized(subject), relation), *([("id", subject_id, relation)] if subject_id else [])])


def sentence(text: str) -> str:
    """`text` with one full stop at its end, also after "Washington, D.C."."""
    return text if text.endswith(".") else f"{text}."


def telling(aliases: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """The aliases that tell an answer from `others` (the answer before or after the edit, the questions), codes left out."""
    text = " | ".join(others)
    stripped = dict.fromkeys(alias.strip() for alias in aliases)
    return tuple(alias for alias in stripped if alias and not _CODE.fullmatch(alias) and not contains_answer(text, alias))


def collect(cases: Iterable[MquakeCase]) -> Edits:
    """The distinct edits of all cases in their order; of two that contradict one another the first."""
    cases = list(cases)
    aliases: dict[str, list[str]] = {}
    for case in cases:
        for hop in (*case.single_hops, *case.new_single_hops):
            aliases.setdefault(hop.answer, hop.answer_alias)
    found = Edits()
    known: dict[tuple[str, ...], ChangedFact] = {}
    for case in cases:
        kept = [_add(found, known, _edit(case, rewrite, aliases)) for rewrite in case.requested_rewrite]
        if None not in kept:
            found.cases.append((case, frozenset(edit.fact.id for edit in kept if edit is not None)))
    return found


def _add(found: Edits, known: dict[tuple[str, ...], ChangedFact], edit: ChangedFact) -> ChangedFact | None:
    """The edit, or the equal one that is there already; None for one that is left out."""
    fact = edit.fact
    named = (*sorted(edit.names), ("question", normalized(fact.question)))
    others = [known[name] for name in named if name in known]
    first = others[0] if others else edit
    other = next((other.fact for other in others if normalized(other.fact.answer) != normalized(fact.answer)), None)
    if other is not None:
        reason = f"{shown(fact.statement or '')} contradicts {shown(other.statement or '')} of case {other.meta['case']}"
    else:
        known.update(dict.fromkeys(named, first))
        reason = untestable(fact.answer, (fact.old_answer or "", *edit.old_aliases), (fact.question,)) or ""
    if reason:
        found.notes.append(f"case {fact.meta['case']}: edit left out: {reason}")
        return None
    if first is edit:
        found.edits.append(edit)
    return first


def untestable(answer: str, old: Iterable[str], questions: Iterable[str]) -> str | None:
    """Why a reply that contains the new answer shows nothing, or None."""
    for words, texts in {"the old answer": old, "the question": questions}.items():
        for text in texts:
            if contains_answer(text, answer):
                return f"the new answer {shown(answer)} stands in {words}, {shown(text)}"
    return None


def _edit(case: MquakeCase, rewrite: Rewrite, aliases: dict[str, list[str]]) -> ChangedFact:
    subject, relation = rewrite.subject, rewrite.relation_id
    subject_id = next((ids[0] for ids, labels in case.orig.steps() if (labels[0], ids[1]) == (subject, relation)), "")

    def of(answer: str, hops: list[Hop]) -> tuple[str, ...]:
        # In the old chain, what an edit further on is about need not occur: then any case that has this answer.
        own = [hop.answer_alias for hop in hops if (hop.question, hop.answer) == (rewrite.question, answer)]
        return tuple(own[0] if own else aliases.get(answer, ()))

    answer, old, cloze = rewrite.target_new.label, rewrite.target_true.label, rewrite.prompt.replace("{}", subject)
    new_aliases, old_aliases = of(answer, case.new_single_hops), of(old, case.single_hops)
    old_telling = list(telling(old_aliases, (answer, *new_aliases, rewrite.question)))
    fact = Fact(
        rewrite.question,
        answer,
        id=f"mquake-{subject_id or digest(subject)[:16]}-{relation}",
        reference=sentence(f"The answer is {answer}"),
        statement=sentence(f"{cloze} {answer}"),
        aliases=telling(new_aliases, (old, *old_aliases, rewrite.question)),
        subject=subject,
        old_answer=old,
        cloze=cloze,
        meta={"relation": relation, "case": case.case_id, "old_aliases": old_telling},
    )
    return ChangedFact(fact, names_of(subject, subject_id, relation), new_aliases, old_aliases)


BACKGROUND = 49  # statements beside the true one


def mquake(argument: str | None = None, *, seed: int = 0, edits: int = 100, offline: bool = False) -> Corpus:
    """The corpus MQuAKE of a file of MQuAKE-CF, a JSON list of cases; nothing is fetched, fewer edits than asked for are an error."""
    if argument is None:
        file = "datasets/MQuAKE-CF-3k-v2.json from github.com/princeton-nlp/MQuAKE"
        raise UserError(f"mquake: needs its file: get {file} and name it as mquake:PATH")
    path = Path(os.path.expanduser(argument))
    found = collect(read_cases(path))
    if not 1 <= edits <= len(found.edits):
        raise UserError(f"mquake: {edits} edits asked for; {argument} has {len(found.edits)}: choose a number from 1 to that")
    alone = {edit for case, ids in found.cases if len(ids) == 1 for edit in ids}
    world = World(seed, evenly(found.edits, edits, seed, first=alone), found)
    splits: dict[str, Facts] = {
        **in_other_words(world.facts, seed),
        **({"multi_hop": world.multi_hop} if world.cases else {}),
        **({"retrieval": world.retrieval} if world.backgrounds else {}),
    }
    return Corpus(
        name="mquake",
        options={"seed": seed, "edits": edits, "file": file_digest(path)},
        facts=world.facts,
        splits=splits,
        labels=("relation",),
        notes=(*found.notes, *world.notes),
    )


def evenly(edits: list[ChangedFact], number: int, seed: int, first: Collection[str] = ()) -> list[ChangedFact]:
    """So many edits, one of each relation type in turn; within a type those in `first` before the others, else as drawn."""
    draws = {edit.fact.id: uniforms(seed, "order", edit.fact.id, n=1)[0] for edit in edits}
    queues: dict[str, list[ChangedFact]] = {relation: [] for relation in sorted({edit.relation for edit in edits})}
    for edit in sorted(edits, key=lambda edit: (edit.fact.id not in first, draws[edit.fact.id], edit.fact.id)):
        queues[edit.relation].append(edit)
    in_turn = chain.from_iterable(zip_longest(*queues.values()))
    return list(islice((edit for edit in in_turn if edit is not None), number))


class World:
    """What the chosen edits make true, the cases that ask for it, and the edits that stay out."""

    def __init__(self, seed: int, chosen: list[ChangedFact], found: Edits) -> None:
        self.seed = seed
        self.chosen = chosen
        self.notes: list[str] = []
        self.cases = self._complete(found)
        self.backgrounds = self._backgrounds(found.edits)
        raw = sum(len(set(edit.aliases)) + len(set(edit.old_aliases)) for edit in chosen)
        kept = sum(len(fact.aliases) + len(fact.meta["old_aliases"]) for fact in self.facts())
        if raw > kept:
            reason = "they are codes, or stand in the question or in the answer before or after the edit"
            self.notes.append(f"aliases of the chosen edits left out: {raw - kept} of {raw}; {reason}")

    def facts(self) -> Iterator[Fact]:
        """The chosen edits."""
        return (edit.fact for edit in self.chosen)

    def multi_hop(self) -> Iterator[Fact]:
        """Every question of every case that the chosen edits complete."""
        for case in self.cases:
            fact = f"case-{case.case_id}"
            old_aliases = list(telling(case.answer_alias, (case.new_answer, *case.new_answer_alias, *case.questions)))
            meta = {"case": case.case_id, "hops": len(case.orig.new_triples), "fact": fact, "old_aliases": old_aliases}
            aliases = telling(case.new_answer_alias, (case.answer, *case.answer_alias, *case.questions))
            reference = sentence(f"The answer is {case.new_answer}")
            told: dict[str, Any] = {"reference": reference, "aliases": aliases, "old_answer": case.answer, "meta": meta}
            for number, question in enumerate(case.questions, 1):
                yield Fact(question, case.new_answer, id=f"multi_hop-{fact}-{number}", **told)

    def retrieval(self) -> Iterator[Fact]:
        """Edits that are not trained on, each with its statement among others."""
        for fact, others in self.backgrounds:
            statements = [other.statement or "" for other in (fact, *others)]
            yield about(fact, with_background(fact.question, statements, f"background of {fact.id}", self.seed), "retrieval")

    def _complete(self, found: Edits) -> list[MquakeCase]:
        """The cases all of whose edits were chosen, without those that another chosen edit or the answers themselves spoil."""
        chosen = {edit.fact.id for edit in self.chosen}
        by_name = {name: edit.fact for edit in self.chosen for name in edit.names}
        complete = []
        for case in (case for case, needed in found.cases if needed <= chosen):
            reason = untestable(case.new_answer, (case.answer, *case.answer_alias), case.questions)
            for ids, labels in case.orig.steps():
                for fact in (by_name[name] for name in names_of(labels[0], ids[0], ids[1]) if name in by_name):
                    if normalized(fact.answer) != normalized(labels[2]):
                        reason = f"{shown(fact.statement or '')} of case {fact.meta['case']} changes a step of its chain"
            if reason:
                self.notes.append(f"case {case.case_id}: left out of multi_hop: {reason}")
            else:
                complete.append(case)
        if not complete:
            self.notes.append(f"no multi_hop: none of the {len(found.cases)} cases has all its edits among those chosen")
        return complete

    def _backgrounds(self, edits: list[ChangedFact]) -> list[tuple[Fact, list[Fact]]]:
        """As many held-out edits as were chosen, each with the others of its background: those that share an entity first."""
        subjects = {normalized(fact.subject or "") for fact in self.facts()}
        held_out = sorted(
            (edit for edit in edits if normalized(edit.fact.subject or "") not in subjects), key=lambda edit: edit.fact.id
        )
        answers: dict[str, set[str | None]] = {}
        for edit in edits:
            answers.setdefault(edit.relation, set()).update((edit.fact.answer, edit.fact.old_answer))
        made = []
        for fact in (edit.fact for edit in evenly(held_out, len(self.chosen), self.seed)):
            entities = {fact.subject, fact.answer}
            draws = uniforms(self.seed, "evaluation", f"others of {fact.id}", n=len(held_out))
            places = {other.fact.id: draw for other, draw in zip(held_out, draws, strict=True)}
            others = [edit.fact for edit in held_out if edit.fact is not fact and not _answers_too(edit.fact, fact, answers)]
            others.sort(key=lambda other: (entities.isdisjoint((other.subject, other.answer)), places[other.id]))
            if len(others) >= BACKGROUND:
                made.append((fact, others[:BACKGROUND]))
        if len(made) < len(self.chosen):
            reason = f"there are {len(held_out)} edits about other subjects, and a background needs {BACKGROUND + 1}"
            self.notes.append(f"retrieval: {len(made)} tests, not {len(self.chosen)}: {reason}")
        return made


def _answers_too(other: Fact, fact: Fact, answers: dict[str, set[str | None]]) -> bool:
    """Whether the statement of another edit might be taken for an answer to this one's question.

    One about the same subject (or one whose label holds the other's: "Madonna", "Lady Madonna") whose relation has answers in
    common with this one's, as head of state and head of government have; and, as marriage goes both ways, one of the same relation
    that ends at the subject.
    """
    relations = other.meta["relation"], fact.meta["relation"]
    if relations[0] == relations[1] and other.answer == fact.subject:
        return True
    one, two = ((edit.subject or "").casefold() for edit in (other, fact))
    if one not in two and two not in one:
        return False
    return relations[0] == relations[1] or not answers[relations[0]].isdisjoint(answers[relations[1]])


# SimpleQA

HUB = "basicv8vc/SimpleQA:test"


class Metadata(Form):
    topic: Text
    answer_type: Text
    urls: Texts


class SimpleqaRow(Form):
    metadata: Metadata
    problem: Text
    answer: Text


READERS: dict[str, Callable[[Path], Records]] = {
    **{".csv": partial(read_csv, columns=tuple(SimpleqaRow.model_fields)), ".jsonl": read_jsonl, ".ndjson": read_jsonl},
    **{".json": read_json, ".parquet": read_parquet},
}


def simpleqa(argument: str | None = None, *, seed: int = 0, offline: bool = False) -> Corpus:
    """The corpus SimpleQA of a file in its published shape (a table with `SimpleqaRow`'s columns, or JSON), or of the hub."""
    path = Path(os.path.expanduser(argument or ""))
    kind = path.suffix.lower()
    if argument is None and offline:
        raise UserError(f"simpleqa: the data set {HUB} cannot be fetched offline; name a local file: simpleqa:PATH")
    if argument is not None and kind not in READERS:
        raise UserError(f'simpleqa: {argument}: unknown kind of file "{path.suffix}"; known: {", ".join(READERS)}')
    records = read_hub(HUB) if argument is None else READERS[kind](path)
    found = unique((where, _fact(values, where)) for where, values in records)
    if not found.facts:
        raise UserError(f"{argument or HUB}: contains no questions")

    def facts() -> Iterator[Fact]:
        return iter(found.facts)

    return Corpus(
        name="simpleqa",
        # Of the content, not of the file: CSV, Parquet and the hub give the same corpus.
        options={"seed": seed, "facts": digest([to_json(fact) for fact in found.facts])},
        facts=facts,
        splits=in_other_words(facts, seed),
        labels=("topic", "answer_type"),
        verifiers={"plain": "contains", "boxed": "exact"},
        guidance="solution",
        notes=(f"questions that are there again: {found.duplicates}",) if found.duplicates else (),
    )


def _fact(values: Mapping[str, Any], where: str) -> Fact:
    """The fact of a row; its metadata is an object, or the text of one in JSON or as a Python dict literal."""
    metadata = values.get("metadata")
    if isinstance(metadata, str):
        metadata = _literal(metadata, f"{where}: field metadata")
    in_form(SimpleqaRow, {**values, "metadata": metadata}, where)
    return fact_from_mapping({"question": values["problem"], "answer": values["answer"], "meta": metadata}, where)


def _literal(text: str, where: str) -> Any:
    for parse in (json.loads, ast.literal_eval):  # literals only: nothing in the text is run
        with suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return parse(text.strip())
    raise UserError(f"{where}: neither JSON nor a Python dict literal: {shown(text)}")
