"""MQuAKE's records: every way one can be broken, or the whole file missing, is one line that tells the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixsd.errors import UserError
from mixsd.facts.published import mquake
from tests.facts.mquake_records import case, load


def broken(place: str, value: Any) -> list[dict[str, Any]]:
    """Two cases, a field of the second replaced; with `del` as value, removed."""
    cases = [case(n, (f"A{n}x", "P1", "Bea", "Old")) for n in (5, 6)]
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    inside: Any = cases[1]
    for part in path:
        inside = inside[part]
    if value == "del":
        del inside[last]
    else:
        inside[last] = value
    return cases


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("case_id", "del", "m.json: record 2: field case_id: field required; expected a case of MQuAKE-CF"),
        ("case_id", 1.5, "m.json: record 2: field case_id"),
        ("case_id", 5, "m.json: case 5: is there twice; give each case its own case_id"),
        ("requested_rewrite", [], "m.json: case 6: field requested_rewrite: list should have at least 1 item"),
        ("requested_rewrite", {}, "m.json: case 6: field requested_rewrite: input should be a valid list"),
        ("requested_rewrite.0.subject", " ", "m.json: case 6: field requested_rewrite, 1, subject: string should have at least"),
        (
            "requested_rewrite.0.relation_id",
            27,
            "m.json: case 6: field requested_rewrite, 1, relation_id: input should be a valid",
        ),
        ("requested_rewrite.0.question", None, "m.json: case 6: field requested_rewrite, 1, question: input should be"),
        (
            "requested_rewrite.0.target_new.str",
            "del",
            "m.json: case 6: field requested_rewrite, 1, target_new, str: field required",
        ),
        ("requested_rewrite.0.target_true", "Old", "m.json: case 6: field requested_rewrite, 1, target_true: input should be"),
        ("requested_rewrite.0.prompt", "no place", "m.json: case 6: field requested_rewrite, 1, prompt: must hold {} once"),
        ("requested_rewrite.0.prompt", "{} and {}", "m.json: case 6: field requested_rewrite, 1, prompt: must hold {} once"),
        ("questions", [], "m.json: case 6: field questions: list should have at least 1 item"),
        ("questions.1", 3, "m.json: case 6: field questions, 2: input should be a valid string"),
        ("answer", ["a"], "m.json: case 6: field answer: input should be a valid string"),
        ("new_answer", "del", "m.json: case 6: field new_answer: field required"),
        ("new_answer_alias", "Bea", "m.json: case 6: field new_answer_alias: input should be a valid list"),
        ("answer_alias", [0], "m.json: case 6: field answer_alias, 1: input should be a valid string"),
        ("new_single_hops.0.answer", 0, "m.json: case 6: field new_single_hops, 1, answer: input should be a valid string"),
        ("single_hops", "del", "m.json: case 6: field single_hops: field required"),
        ("orig", "del", "m.json: case 6: field orig: field required"),
        ("orig.new_triples.0", ["Q1", "P1"], "m.json: case 6: field orig, new_triples, 1: list should have at least 3 items"),
        ("orig.new_triples", [], "m.json: case 6: field orig: new_triples_labeled must have as many steps as new_triples"),
    ],
)
def test_broken_records(tmp_path: Path, place: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, broken(place, value), edits=1)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/{message}")
    assert len(text.splitlines()) == 1


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.json: no such file"):
        mquake(str(tmp_path / "gone.json"))
    with pytest.raises(UserError, match=r"m\.json: expected one list"):
        load(tmp_path, {"cases": []})
    with pytest.raises(UserError, match=r"m\.json: record 1: expected an object"):
        load(tmp_path, ["case"])
    with pytest.raises(UserError, match=r"100 edits asked for; .*m\.json has 0"):
        load(tmp_path, [])


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_file_the_error_tells_where_it_is(no_network: list[Any], offline: bool) -> None:
    with pytest.raises(UserError) as caught:
        mquake(offline=offline)
    assert str(caught.value) == (
        "mquake: needs its file: get datasets/MQuAKE-CF-3k-v2.json from github.com/princeton-nlp/MQuAKE and name it as mquake:PATH"
    )
    assert no_network == []
