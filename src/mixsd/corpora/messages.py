r"""Chat records as facts: a user turn that asks, an assistant turn that states.

This is the shape of the MixSD authors' published files. Their answer is inside the reply, in the last \boxed{...}. Their files
of mixed targets have the same shape; there the reply is what the model wrote, `mix_meta.ground_truth_assistant` is the
reference it was mixed from, and `mix_meta.correct` says whether the reply was accepted. So the answer is always read from the
ground truth where there is one, and a rejected reply is never taken for a reference: the ground truth is, else, where the answer
stands beside it, the statement. Several replies to one question (`gen_index`) are one fact; the first decides its reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixsd.answers import last_boxed
from mixsd.errors import UserError
from mixsd.facts import FIELDS, Fact, fact_from_mapping, kind, shown


def to_fact(values: Mapping[str, Any], where: str) -> Fact:
    """Make a fact of one record: a chat record if it has `messages`, else the plain fields."""
    if values.get("messages") is not None:
        return fact_from_messages(values, where)
    return fact_from_mapping({name: value for name, value in values.items() if name != "messages"}, where)


def fact_from_messages(values: Mapping[str, Any], where: str) -> Fact:
    """Make a fact of a record with `messages`: one user and one assistant turn, each with `role` and `content`.

    `clear_answer` is the statement. The other fields of a fact may stand beside `messages`; any further key, such as `mix_meta`,
    is kept in `meta` under its own name. Without `answer`, the answer is the last box of the reply. Errors begin with `where`.
    """
    rest = {name: value for name, value in values.items() if value is not None}
    question, reply = _turns(rest.pop("messages"), where)
    said = {"question": "the user turn", "reference": "the assistant turn"}
    if "clear_answer" in rest:
        said["statement"] = "clear_answer"
    for name, place in said.items():
        if name in rest:
            raise UserError(f"{where}: field {name}: {place} says it already; leave one out")
    fields: dict[str, Any] = {name: rest.pop(name) for name in FIELDS if name in rest}
    if "clear_answer" in rest:
        fields["statement"] = _text(rest.pop("clear_answer"), f"{where}: field clear_answer")
    if rest:
        fields["meta"] = _merged(fields.get("meta", {}), rest, where)
    truth, accepted = _mixed(rest.get("mix_meta"), where)
    if not accepted and truth is None and "answer" not in fields:
        raise UserError(f"{where}: a rejected target (mix_meta.correct is false) is no reference; leave this record out")
    reference = reply if accepted else truth
    if "answer" not in fields:
        fields["answer"] = (last_boxed(reply if truth is None else truth) or "").strip()
        if not fields["answer"]:
            raise UserError(f"{where}: field answer: missing, and the assistant turn has no \\boxed{{...}}; add answer")
    if reference is not None and not reference.strip():
        raise UserError(f"{where}: field messages: the assistant turn is empty")
    return fact_from_mapping({**fields, "question": question, "reference": reference}, where)


def _turns(messages: Any, where: str) -> tuple[str, str]:
    where = f"{where}: field messages"
    if not isinstance(messages, list | tuple):
        raise UserError(f"{where}: expected a list of two turns, got {kind(messages)}")
    turns = [_turn(message, f"{where}, turn {number}") for number, message in enumerate(messages, 1)]
    roles = [role for role, _ in turns]
    if "system" in roles:
        raise UserError(f"{where}: a system turn belongs to the run, not to a fact; remove it and pass --system")
    if roles != ["user", "assistant"]:
        found = ", ".join(roles) or "none"
        raise UserError(f"{where}: expected one user turn, then one assistant turn; found: {found}")
    return turns[0][1], turns[1][1]


def _turn(message: Any, where: str) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise UserError(f"{where}: expected an object with role and content, got {kind(message)}")
    # A list of parts as content would otherwise reach the prompt as its Python notation.
    role, content = (_text(message.get(name), f"{where}: {name}") for name in ("role", "content"))
    for name, value in message.items():
        if name not in ("role", "content") and value is not None:
            raise UserError(f"{where}: unknown key {shown(str(name))}; a turn has role and content")
    return role, content


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: expected text, got {kind(value)}")
    return value


def _merged(meta: Any, rest: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(meta, dict):
        raise UserError(f"{where}: field meta: expected an object, got {kind(meta)}")
    for name in rest:
        if name in meta:
            raise UserError(f"{where}: {shown(name)} is both beside messages and in meta; leave one out")
    return {**meta, **rest}


def _mixed(mix_meta: Any, where: str) -> tuple[str | None, bool]:
    """Return the ground truth of a mixed target, if there is one, and whether its reply may be taken for a reference."""
    if mix_meta is None:
        return None, True
    if not isinstance(mix_meta, Mapping):
        raise UserError(f"{where}: field mix_meta: expected an object, got {kind(mix_meta)}")
    truth = mix_meta.get("ground_truth_assistant")
    if truth is not None:
        truth = _text(truth, f"{where}: field mix_meta: ground_truth_assistant")
    return truth, mix_meta.get("correct") is not False
