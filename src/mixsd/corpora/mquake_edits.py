"""MQuAKE's edits: those of all cases, each one once, and none that contradicts another.

Facts of many cases go into one model, so of two edits that give one question two answers only the first stays. An edit is also
left out where the verifier `contains` would find its new answer in any reply that repeats the question or the old answer
("California" in "San Francisco, California"). Whatever is left out has a note with the id of its case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mixsd.answers import contains_answer
from mixsd.corpora.mquake_cases import Case, Hop, Rewrite
from mixsd.facts import Fact, normalized, shown
from mixsd.storage import digest

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
    reason = untestable(edit.answer, (edit.old_answer, *edit.old_aliases), (edit.question,))
    if reason:
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
