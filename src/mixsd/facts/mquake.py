"""MQuAKE-CF: edits of known facts, and multi-hop questions whose answers they change (Zhong et al. 2023).

A case is a chain of facts, the edits that change it, and questions about its end. The facts to train on are edits, chosen evenly over
the relation types. Facts of many cases go into one model, so of two edits that give one question two answers only the first stays. An
edit is also left out where the verifier `contains` would find its new answer in any reply that repeats the question or the old answer
("California" in "San Francisco, California"). Whatever is left out has a note with the id of its case.

The tests: other wordings; the multi-hop questions of every case all of whose edits were chosen; and retrieval, where a background of
edits that are not trained on holds the answer.

The paper used MQuAKE-CF-3k-v2. Its authors publish it as a file on GitHub; that a data set of the hub carries it could not be
verified (henryzhongsc/MQuAKE-Remastered is another revision, with other fields), so the file is named by its path and nothing is
fetched. Any file of that shape is read; what comes of another one, MQuAKE-2002 say, is no result on v2.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from mixsd.errors import UserError
from mixsd.facts.answers import contains_answer
from mixsd.facts.bundled import about, framed, with_background
from mixsd.facts.corpus import Corpus, Facts
from mixsd.facts.fact import Fact, normalized, shown
from mixsd.facts.records import read_json
from mixsd.randomness import uniforms
from mixsd.storage import digest, file_digest

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Triple = Annotated[list[Text], Field(min_length=3, max_length=3)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class Entity(_Model):
    """An answer: its label and, in Wikidata, its id."""

    label: Text = Field(alias="str")
    id: str = ""


class Rewrite(_Model):
    """One edit as a case asks for it."""

    subject: Text
    relation_id: Text
    question: Text
    prompt: Text
    target_new: Entity
    target_true: Entity


class Hop(_Model):
    """One step of a chain as a question."""

    question: Text
    answer: Text
    answer_alias: list[str] = []


class Chain(_Model):
    """The steps of a chain after the edits, as Wikidata ids and as labels."""

    new_triples: list[Triple]
    new_triples_labeled: list[Triple]


class Case(_Model):
    """One record of the file."""

    case_id: int | Text
    requested_rewrite: Annotated[list[Rewrite], Field(min_length=1)]
    questions: Annotated[list[Text], Field(min_length=1)]
    answer: Text
    answer_alias: list[str] = []
    new_answer: Text
    new_answer_alias: list[str] = []
    single_hops: list[Hop]
    new_single_hops: list[Hop]
    orig: Chain


def read_cases(path: Path) -> Iterator[Case]:
    """Yield the cases of a file.

    Raises:
        UserError: a record is not a case; it names the file, the case and the field.
    """
    seen = set()
    for place, values in read_json(path):
        number = values.get("case_id")
        where = f"{path}: case {number}" if isinstance(number, int | str) and number != "" else place
        case = _case(values, where)
        if case.case_id in seen:
            raise UserError(f"{where}: is there twice; give each case its own case_id")
        seen.add(case.case_id)
        yield case


def _case(values: dict[str, Any], where: str) -> Case:
    try:
        case = Case.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # Places in a list are counted from 1, as records and lines are.
        place = ", ".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
        message = first["msg"][0].lower() + first["msg"][1:]
        raise UserError(f"{where}: field {place}: {message}; expected a case of MQuAKE-CF") from None
    for number, rewrite in enumerate(case.requested_rewrite, 1):
        if rewrite.prompt.count("{}") != 1:
            raise UserError(f"{where}: field requested_rewrite, {number}, prompt: must hold {{}} once, where the subject stands")
    if len(case.orig.new_triples) != len(case.orig.new_triples_labeled):
        raise UserError(f"{where}: field orig, new_triples_labeled: must have as many steps as new_triples")
    return case


Names = frozenset[tuple[str, ...]]

# An alias that a reply may hold by chance ("it" for Italian, "IN" for India): any of one or two characters, the language codes,
# and country codes that are words.
_CODE = re.compile(r"[A-Za-z0-9]{1,2}\.?|[a-z]{3}|(?i:can|jam|nor|rim|sin|spa|tan)")


@dataclass(frozen=True)
class Edit:
    """A subject and a relation with a new answer.

    `names` are what it is recognized by: (subject, relation) as label and as id. `aliases` and `old_aliases` are as the file has
    them.
    """

    id: str
    subject: str
    relation: str
    question: str
    cloze: str
    answer: str
    old_answer: str
    aliases: tuple[str, ...]
    old_aliases: tuple[str, ...]
    names: Names
    case: int | str

    @property
    def statement(self) -> str:
        """The edit as a sentence."""
        return sentence(f"{self.cloze} {self.answer}")

    @property
    def fact(self) -> Fact:
        """The edit as a fact to train on."""
        return Fact(
            self.question,
            self.answer,
            id=self.id,
            reference=sentence(f"The answer is {self.answer}"),
            statement=self.statement,
            aliases=telling(self.aliases, (self.old_answer, *self.old_aliases, self.question)),
            subject=self.subject,
            old_answer=self.old_answer,
            cloze=self.cloze,
            meta={
                "relation": self.relation,
                "case": self.case,
                "old_aliases": list(telling(self.old_aliases, (self.answer, *self.aliases, self.question))),
            },
        )


@dataclass
class Edits:
    """The edits that can be used, the cases with the ids of theirs, and why others were left out."""

    edits: list[Edit] = field(default_factory=list)
    cases: list[tuple[Case, frozenset[str]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def names_of(subject: str, subject_id: str, relation: str) -> Names:
    """What a subject and a relation are recognized by: two entities with one label are one to whoever reads the question."""
    names = {("label", normalized(subject), relation)}
    return frozenset(names | {("id", subject_id, relation)} if subject_id else names)


def steps(case: Case) -> Iterator[tuple[Names, str]]:
    """Each step of a case's chain after the edits: the names of its subject and relation, and what it leads to."""
    for ids, labels in zip(case.orig.new_triples, case.orig.new_triples_labeled, strict=True):
        yield names_of(labels[0], ids[0], ids[1]), labels[2]


def sentence(text: str) -> str:
    """`text` with one full stop at its end, also after "Washington, D.C."."""
    return text if text.endswith(".") else f"{text}."


def telling(aliases: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """The aliases that tell an answer from `others` (the answer before or after the edit, the questions), codes left out."""
    text = " | ".join(others)
    stripped = dict.fromkeys(alias.strip() for alias in aliases)
    return tuple(alias for alias in stripped if alias and not _CODE.fullmatch(alias) and not contains_answer(text, alias))


def collect(cases: Iterable[Case]) -> Edits:
    """The distinct edits of all cases in their order; of two that contradict one another the first."""
    cases = list(cases)
    aliases: dict[str, list[str]] = {}
    for case in cases:
        for hop in (*case.single_hops, *case.new_single_hops):
            aliases.setdefault(hop.answer, hop.answer_alias)
    found = Edits()
    known: dict[tuple[str, ...], Edit] = {}
    for case in cases:
        kept = [_add(found, known, _edit(case, rewrite, aliases)) for rewrite in case.requested_rewrite]
        ids = frozenset(edit.id for edit in kept if edit is not None)
        if None not in kept:
            found.cases.append((case, ids))
    return found


def _add(found: Edits, known: dict[tuple[str, ...], Edit], edit: Edit) -> Edit | None:
    """The edit, or the equal one that is there already; None for one that is left out."""
    named = (*sorted(edit.names), ("question", normalized(edit.question)))
    others = [known[name] for name in named if name in known]
    for other in others:
        if normalized(other.answer) != normalized(edit.answer):
            found.notes.append(
                f"case {edit.case}: edit left out: {shown(edit.statement)} contradicts {shown(other.statement)} of case {other.case}"
            )
            return None
    first = others[0] if others else edit
    known.update(dict.fromkeys(named, first))
    if reason := untestable(edit.answer, (edit.old_answer, *edit.old_aliases), (edit.question,)):
        found.notes.append(f"case {edit.case}: edit left out: {reason}")
        return None
    if not others:
        found.edits.append(edit)
    return first


def untestable(answer: str, old: Iterable[str], questions: Iterable[str]) -> str | None:
    """Why a reply that contains the new answer shows nothing, or None."""
    for words, texts in {"the old answer": old, "the question": questions}.items():
        for text in texts:
            if contains_answer(text, answer):
                return f"the new answer {shown(answer)} stands in {words}, {shown(text)}"
    return None


def _edit(case: Case, rewrite: Rewrite, aliases: dict[str, list[str]]) -> Edit:
    subject, relation = rewrite.subject, rewrite.relation_id
    chain = zip(case.orig.new_triples, case.orig.new_triples_labeled, strict=True)
    subject_id = next((ids[0] for ids, labels in chain if (labels[0], ids[1]) == (subject, relation)), "")

    def of(answer: str, hops: list[Hop]) -> tuple[str, ...]:
        # In the old chain, what an edit further on is about need not occur: then any case that has this answer.
        own = [hop.answer_alias for hop in hops if (hop.question, hop.answer) == (rewrite.question, answer)]
        return tuple(own[0] if own else aliases.get(answer, ()))

    return Edit(
        id=f"mquake-{subject_id or digest(subject)[:16]}-{relation}",
        subject=subject,
        relation=relation,
        question=rewrite.question,
        cloze=rewrite.prompt.replace("{}", subject),
        answer=rewrite.target_new.label,
        old_answer=rewrite.target_true.label,
        aliases=of(rewrite.target_new.label, case.new_single_hops),
        old_aliases=of(rewrite.target_true.label, case.single_hops),
        names=names_of(subject, subject_id, relation),
        case=case.case_id,
    )


BACKGROUND = 49  # statements beside the true one


def mquake(argument: str | None = None, *, seed: int = 0, edits: int = 100, offline: bool = False) -> Corpus:
    """The corpus MQuAKE.

    Args:
        argument: the path of a file of MQuAKE-CF, a JSON list of cases.
        seed: of the choice of edits, the wordings and the backgrounds.
        edits: how many edits are trained on.
        offline: is of no matter here; nothing is fetched.

    Raises:
        UserError: no file is named, a record of it is not a case, or it has fewer edits.
    """
    if argument is None:
        raise UserError(
            "mquake: needs its file: get datasets/MQuAKE-CF-3k-v2.json from github.com/princeton-nlp/MQuAKE and name it as "
            "mquake:PATH"
        )
    path = Path(os.path.expanduser(argument))
    found = collect(read_cases(path))
    if not 1 <= edits <= len(found.edits):
        raise UserError(f"mquake: {edits} edits asked for; {argument} has {len(found.edits)}: choose a number from 1 to that")
    alone = {edit for case, ids in found.cases if len(ids) == 1 for edit in ids}
    chosen = evenly(found.edits, edits, seed, first=alone)
    world = World(seed, chosen, found)
    splits: dict[str, Facts] = {
        "paraphrase": partial(framed, world.facts, "report", seed),
        "validation": partial(framed, world.facts, "validation", seed),
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


def evenly(edits: list[Edit], number: int, seed: int, first: Collection[str] = ()) -> list[Edit]:
    """So many edits, one of each relation type in turn; within a type those in `first` before the others, else as drawn."""
    by_relation: dict[str, list[Edit]] = {}
    for edit in edits:
        by_relation.setdefault(edit.relation, []).append(edit)
    draws = {edit.id: uniforms(seed, "order", edit.id, n=1)[0] for edit in edits}
    queues = [
        sorted(by_relation[relation], key=lambda edit: (edit.id not in first, draws[edit.id], edit.id))
        for relation in sorted(by_relation)
    ]
    in_turn = chain.from_iterable(zip_longest(*queues))
    return list(islice((edit for edit in in_turn if edit is not None), number))


class World:
    """What the chosen edits make true, the cases that ask for it, and the edits that stay out."""

    def __init__(self, seed: int, chosen: list[Edit], found: Edits) -> None:
        self.seed = seed
        self.chosen = chosen
        self.notes: list[str] = []
        self.cases = self._complete(found)
        self.backgrounds = self._backgrounds(found.edits)
        raw = sum(len(set(edit.aliases)) + len(set(edit.old_aliases)) for edit in chosen)
        kept = sum(len(fact.aliases) + len(fact.meta["old_aliases"]) for fact in self.facts())
        if raw > kept:
            self.notes.append(
                f"aliases of the chosen edits left out: {raw - kept} of {raw}; they are codes, or stand in the question or in "
                "the answer before or after the edit"
            )

    def facts(self) -> Iterator[Fact]:
        """The chosen edits."""
        return (edit.fact for edit in self.chosen)

    def multi_hop(self) -> Iterator[Fact]:
        """Every question of every case that the chosen edits complete."""
        for case in self.cases:
            old = (case.answer, *case.answer_alias)
            new = (case.new_answer, *case.new_answer_alias)
            fact = f"case-{case.case_id}"
            old_aliases = list(telling(case.answer_alias, (*new, *case.questions)))
            meta = {"case": case.case_id, "hops": len(case.orig.new_triples), "fact": fact, "old_aliases": old_aliases}
            for number, question in enumerate(case.questions, 1):
                yield Fact(
                    question,
                    case.new_answer,
                    id=f"multi_hop-{fact}-{number}",
                    reference=sentence(f"The answer is {case.new_answer}"),
                    aliases=telling(case.new_answer_alias, (*old, *case.questions)),
                    old_answer=case.answer,
                    meta=meta,
                )

    def retrieval(self) -> Iterator[Fact]:
        """Edits that are not trained on, each with its statement among others."""
        for edit, others in self.backgrounds:
            statements = [edit.statement, *(other.statement for other in others)]
            fact = edit.fact
            yield about(fact, with_background(fact.question, statements, f"background of {fact.id}", self.seed), "retrieval")

    def _complete(self, found: Edits) -> list[Case]:
        """The cases all of whose edits were chosen, without those that another chosen edit or the answers themselves spoil."""
        ids = {edit.id for edit in self.chosen}
        by_name = {name: edit for edit in self.chosen for name in edit.names}
        complete = []
        for case, needed in found.cases:
            if not needed <= ids:
                continue
            reason = untestable(case.new_answer, (case.answer, *case.answer_alias), case.questions)
            for names, end in steps(case):
                for edit in (by_name[name] for name in names if name in by_name):
                    if normalized(edit.answer) != normalized(end):
                        reason = f"{shown(edit.statement)} of case {edit.case} changes a step of its chain"
            if reason:
                self.notes.append(f"case {case.case_id}: left out of multi_hop: {reason}")
            else:
                complete.append(case)
        if not complete:
            self.notes.append(f"no multi_hop: none of the {len(found.cases)} cases has all its edits among those chosen")
        return complete

    def _backgrounds(self, edits: list[Edit]) -> list[tuple[Edit, list[Edit]]]:
        """As many held-out edits as were chosen, each with the others of its background: those that share an entity first."""
        subjects = {normalized(edit.subject) for edit in self.chosen}
        held_out = sorted((edit for edit in edits if normalized(edit.subject) not in subjects), key=lambda edit: edit.id)
        answers: dict[str, set[str]] = {}
        for edit in edits:
            answers.setdefault(edit.relation, set()).update((edit.answer, edit.old_answer))
        made = []
        for edit in evenly(held_out, len(self.chosen), self.seed):
            entities = {edit.subject, edit.answer}
            draws = uniforms(self.seed, "evaluation", f"others of {edit.id}", n=len(held_out))
            others = [
                (entities.isdisjoint((other.subject, other.answer)), draw, other)
                for draw, other in zip(draws, held_out, strict=True)
                if other is not edit and not _answers_too(other, edit, answers)
            ]
            others.sort(key=lambda item: item[:2])
            if len(others) >= BACKGROUND:
                made.append((edit, [other for _, _, other in others[:BACKGROUND]]))
        if len(made) < len(self.chosen):
            self.notes.append(
                f"retrieval: {len(made)} tests, not {len(self.chosen)}: there are {len(held_out)} edits about other subjects, "
                f"and a background needs {BACKGROUND + 1}"
            )
        return made


def _answers_too(other: Edit, edit: Edit, answers: dict[str, set[str]]) -> bool:
    """Whether the statement of another edit might be taken for an answer to this one's question.

    One about the same subject (or one whose label holds the other's: "Madonna", "Lady Madonna") whose relation has answers in
    common with this one's, as head of state and head of government have; and, as marriage goes both ways, one of the same relation
    that ends at the subject.
    """
    if other.relation == edit.relation and other.answer == edit.subject:
        return True
    one, two = other.subject.casefold(), edit.subject.casefold()
    if one not in two and two not in one:
        return False
    return other.relation == edit.relation or not answers[other.relation].isdisjoint(answers[edit.relation])
