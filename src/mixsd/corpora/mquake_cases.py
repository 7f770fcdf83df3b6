"""MQuAKE's records, read and checked: a case is a chain of facts, the edits that change it, and questions about its end.

What is not used (the triples before the edits, say) is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from mixsd.corpora.files import read_json
from mixsd.errors import UserError

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
