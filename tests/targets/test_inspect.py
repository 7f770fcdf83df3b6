from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mixsd.errors import UserError
from mixsd.models.loading import load_tokenizer
from mixsd.targets.reading import inspect
from tests.conftest import FACTS
from tests.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("own_cache")


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def target(**changes: Any) -> dict[str, Any]:
    values = {
        "id": "a",
        "lambda": 0.3,
        "sample": 0,
        "attempt": 1,
        "prompt_ids": [3, 40],
        "target_ids": [41, 42, 2],
        "sources": "eng",
    }
    values |= {"base_logprobs": [-0.5, -2.0, 0.0], "decoded_tokens": 7, "text": "ab", "accepted": True, "reason": None}
    return {**values, "canonical": True, "usable": True, **changes}


def write(file: Path, *rows: dict[str, Any] | str) -> Path:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return file


def supervised(item: dict[str, Any], field: str) -> list[Any]:
    return [token[field] for token in item["tokens"] if token["supervised"]]


def test_a_run_shows_its_targets_token_by_token(tiny_run: Path, tiny_folder: Path) -> None:
    items = inspect(tiny_run)
    stored = rows_of(tiny_run / "targets.jsonl")
    assert [item["question"] for item in items] == [fact["question"] for fact in FACTS]
    tokenizer = load_tokenizer(tiny_folder)
    for item, row in zip(items, stored, strict=True):
        assert [token["id"] for token in item["tokens"]] == row["prompt_ids"] + row["target_ids"]
        assert supervised(item, "id") == row["target_ids"]
        assert "".join(supervised(item, "source")) == row["sources"] == "r" * len(row["target_ids"])
        assert supervised(item, "base_nll") == pytest.approx([-value for value in row["base_logprobs"]])
        prompt = [token for token in item["tokens"] if not token["supervised"]]
        assert all(token["source"] is None and token["base_nll"] is None for token in prompt)
        # One token is one character here, so the parts make up the whole.
        assert "".join(token["text"] for token in prompt) == tokenizer.decode(row["prompt_ids"])
        assert "".join(supervised(item, "text")) == row["text"] + "<|end|>"
        assert {key: item[key] for key in item if key in row} == {key: row[key] for key in item if key in row}
    assert json.loads(json.dumps(items, allow_nan=False)) == items


def test_limit_and_ids(tiny_run: Path) -> None:
    assert [item["id"] for item in inspect(tiny_run, limit=2)] == ["founder", "year"]
    assert [item["id"] for item in inspect(tiny_run, limit=1, ids=["town", "founder"])] == ["founder", "town"]
    with pytest.raises(UserError, match=r'targets\.jsonl: holds nothing of id "nobody"'):
        inspect(tiny_run, ids=["town", "nobody"])


def test_attempts_are_shown_whole_with_the_prompt_they_had(tiny_run: Path) -> None:
    items = inspect(tiny_run, attempts=True, limit=100)
    journal = rows_of(tiny_run / "attempts.jsonl")
    prompts = {row["id"]: row["prompt_ids"] for row in rows_of(tiny_run / "targets.jsonl")}
    assert len(items) == len(journal) == 2 * len(FACTS)
    for item, row in zip(items, journal, strict=True):
        assert [token["id"] for token in item["tokens"]] == prompts[item["id"]] + row["target_ids"]
        assert "".join(supervised(item, "source")) == row["sources"]
        assert not item["accepted"]
        assert item["reason"] == "did not end within 8 tokens"
        assert item["decoded_tokens"] == 8
    assert {item["canonical"] for item in items} <= {True, False}
    assert [item["attempt"] for item in inspect(tiny_run, attempts=True, ids=["year"], limit=1)] == [0, 1]


def test_attempts_can_be_seen_before_there_are_targets(tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "targets.jsonl").unlink()
    shutil.rmtree(run / "model")
    with (run / "attempts.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "torn", "target_')
    assert inspect(run, attempts=True, limit=100) == inspect(tiny_run, attempts=True, limit=100)
    with pytest.raises(UserError, match=r"has no targets\.jsonl; run `mixsd mix`"):
        inspect(run)


def test_no_more_facts_are_read_than_are_shown(tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    first, *_ = (run / "facts.jsonl").read_text().splitlines(keepends=True)
    (run / "facts.jsonl").write_text(first + "torn\n")
    assert inspect(run, limit=1) == inspect(tiny_run, limit=1)


def test_a_file_of_targets_needs_no_model(tmp_path: Path, tiny_folder: Path) -> None:
    file = write(tmp_path / "targets.jsonl", target(), target(id="b", base_logprobs=[], reason="why", canonical=False))
    first, second = inspect(file)
    assert first["question"] is None
    assert {token["text"] for token in first["tokens"]} == {None}
    assert [token["base_nll"] for token in first["tokens"]] == [None, None, 0.5, 2.0, 0.0]
    assert supervised(first, "source") == ["e", "n", "g"]
    assert (first["lambda"], first["attempt"], first["decoded_tokens"]) == (0.3, 1, 7)
    assert supervised(second, "base_nll") == [None] * 3
    assert (second["reason"], second["canonical"]) == ("why", False)
    texts = [token["text"] for token in inspect(file, model=str(tiny_folder))[0]["tokens"]]
    assert texts == [load_tokenizer(tiny_folder).decode([token]) for token in (3, 40, 41, 42, 2)]


def test_an_unusable_fact_has_no_tokens(tmp_path: Path) -> None:
    row = target(prompt_ids=[], target_ids=[], sources="", base_logprobs=[], accepted=False, usable=False, reason="too long")
    (item,) = inspect(write(tmp_path / "targets.jsonl", row))
    assert (item["tokens"], item["accepted"], item["reason"]) == ([], False, "too long")


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path / "targets.jsonl", target(), target(id="b"), "not JSON")
    assert [item["id"] for item in inspect(file, limit=2)] == ["a", "b"]
    with pytest.raises(UserError, match="line 3: not valid JSON"):
        inspect(file, limit=3)


def test_words_of_a_sentencepiece_model_keep_their_spaces(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "▁Ork": 1, "▁is": 2, "▁here": 3, ".": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    folder = save_tiny(tmp_path / "model")
    for file in folder.glob("*token*"):
        file.unlink()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<unk>").save_pretrained(folder)
    file = write(tmp_path / "targets.jsonl", target(prompt_ids=[1], target_ids=[2, 3, 4]))
    assert [token["text"] for token in inspect(file, model=str(folder))[0]["tokens"]] == [" Ork", " is", " here", "."]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a"}, "line 1: not a target"),
        ("[1, 2]", "line 1: expected a JSON object"),
        (target(extra=1), "line 1: not a target"),
        (target(sources="en"), "of one length"),
        (target(base_logprobs=[-1.0]), "of one length"),
        (target(target_ids=[41, "x", 2]), "ids integers"),
        (target(target_ids=None), "line 1: not a target"),
        (target(sources="exn"), 'unknown source "x"'),
        (target(prompt_ids=[-1]), "ids integers"),
        (target(base_logprobs=[-1.0, None, "x"]), "line 1: not a target"),
    ],
)
def test_a_line_that_is_no_target_is_named(row: dict[str, Any] | str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "targets.jsonl", row)
    with pytest.raises(UserError, match=message) as caught:
        inspect(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_shown_is_said(tiny_run: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "targets.jsonl", target())
    with pytest.raises(UserError, match="no such run folder or file"):
        inspect(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a run folder"):
        inspect(tmp_path)
    with pytest.raises(UserError, match="name the folder"):
        inspect(file, attempts=True)
    with pytest.raises(UserError, match="--limit 0"):
        inspect(file, limit=0)
    with pytest.raises(UserError, match="no such folder or file"):
        inspect(file, model=str(tmp_path / "no-model"))
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "attempts.jsonl").unlink()
    with pytest.raises(UserError, match=r"has no attempts\.jsonl; nothing was decoded"):
        inspect(run, attempts=True)
