"""MQuAKE-CF: edits of known facts, and multi-hop questions whose answers they change (Zhong et al. 2023).

The facts are edits, chosen evenly over the relation types. The tests: other wordings; the multi-hop questions of every case all of
whose edits were chosen; and retrieval, where a background of edits that are not trained on holds the answer.

The paper used MQuAKE-CF-3k-v2. Its authors publish it as a file on GitHub; that a data set of the hub carries it could not be
verified (henryzhongsc/MQuAKE-Remastered is another revision, with other fields), so the file is named by its path and nothing is
fetched. Any file of that shape is read; what comes of another one, MQuAKE-2002 say, is no result on v2.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path

from mixsd.corpora.corpus import Corpus, Facts
from mixsd.corpora.mquake_cases import Case, read_cases
from mixsd.corpora.mquake_edits import Edit, Edits, collect, sentence, steps, telling, untestable
from mixsd.corpora.splits import about, framed, with_background
from mixsd.errors import UserError
from mixsd.facts import Fact, normalized, shown
from mixsd.randomness import uniforms
from mixsd.storage import file_digest

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
        "multi_hop": world.multi_hop,
        "retrieval": world.retrieval,
    }
    if not world.cases:
        del splits["multi_hop"]
    if not world.backgrounds:
        del splits["retrieval"]
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
            meta = {
                "case": case.case_id,
                "hops": len(case.orig.new_triples),
                "fact": fact,
                "old_aliases": list(telling(case.answer_alias, (*new, *case.questions))),
            }
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
