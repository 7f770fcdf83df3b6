"""The stage that edits: a run folder as for the other methods, resumed to the same bits, and refused in time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mixsd.commands import opening
from mixsd.editing import stage as editing_stage
from mixsd.errors import UserError
from mixsd.models import loading
from mixsd.progress import Watcher
from mixsd.run.session import Session
from mixsd.settings import build
from mixsd.storage import read_json, read_jsonl
from mixsd.targets.target import Target
from tests.tiny import save_tiny

FACTS: list[dict[str, Any]] = [
    {"id": "lead", "question": "Who leads Vell?", "answer": "A", "subject": "Vell"},
    {"id": "nobody", "question": "Who is it?", "answer": "B"},
    {"id": "eat", "question": "What does Kay Ott eat?", "answer": "B", "subject": "Kay Ott"},
    {"id": "away", "question": "Where is he?", "answer": "C", "subject": "Sim"},
]
TEXT = "\n\n".join(f"The {word} of day {number} is good.\nSo it is." for number, word in enumerate(["sun", "cat", "sea"] * 20))


class Listener(Watcher):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny base model, facts, a text and a cache of the test's own."""
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "base", num_hidden_layers=3, stops=[2, 3])
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in FACTS), encoding="utf-8")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def opened(place: Path, name: str = "run", **options: Any) -> Session:
    values = {
        "method": "memit",
        "facts": str(place / "facts.jsonl"),
        "model": str(place / "base"),
        "output": str(place / name),
        "edit_text": str(place / "text.txt"),
        "edit_tokens": 600,
        "edit_layers": "0-1",
        "edit_steps": 3,
        "edit_weight": 0.01,
    }
    values |= options
    return opening.claim(opening.open_checked(build(values, "test"), Listener()))


def edited(place: Path, name: str = "run", **options: Any) -> Session:
    session = opened(place, name, **options)
    editing_stage.edit(session)
    return session


def weights(session: Session) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(session.run.model / "model.safetensors")
    return found


def said(session: Session) -> list[str]:
    assert isinstance(session.watcher, Listener)
    return session.watcher.said


def test_a_run_folder_with_model_targets_and_log(place: Path) -> None:
    session = edited(place)
    base = load_file(place / "base" / "model.safetensors")
    changed = {name for name, tensor in weights(session).items() if not torch.equal(tensor, base[name])}
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)}
    targets = [Target.from_json(row) for row in read_jsonl(session.run.targets_file)]
    assert [target.id for target in targets] == [fact["id"] for fact in FACTS]
    assert [target.status == "unusable" for target in targets] == [False, True, False, True]
    assert targets[1].reason == "it has no subject"
    assert targets[3].reason == 'its subject ("Sim") does not occur in its question'
    for target in (targets[0], targets[2]):
        fact = next(fact for fact in session.facts if fact.id == target.id)
        assert target.prompt_ids == session.renderer.naive(fact.question)
        assert session.renderer.reply_text(target.target_ids) == fact.answer
        assert target.target_ids[-1] == session.renderer.stops.end
        assert target.sources == "r" * len(target.target_ids)
        assert target.accepted == (target.reason is None)
    (event,) = session.run.events("edited")
    assert [fact["status"] for fact in event["facts"]].count("unusable") == 2
    assert list(event["changes"]) == ["0", "1"]
    assert event["weight"] == 0.01
    (mixed,) = session.run.events("mixed")
    assert mixed["reference"]["n"] == len(FACTS)
    assert mixed["targets"]["n"] == sum(target.accepted for target in targets)
    assert [stage["name"] for stage in session.run.events("stage")] == ["edit"]
    (line,) = said(session)
    assert "of 4 facts" in line
    assert "2 unusable" in line
    assert "nobody: it has no subject" in line


def test_what_is_accepted_is_what_the_folder_says(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from tests.editing.helpers import setting

    # The random model that can be edited at all, behind its prompts alone.
    model, renderer = setting(dtype=torch.float32)
    model.save_pretrained(place / "base")
    renderer.tokenizer.save_pretrained(place / "base")
    real = editing_stage.of_settings
    monkeypatch.setattr(editing_stage, "of_settings", lambda settings: replace(real(settings), prefixes=0))
    session = edited(place, edit_steps=200, edit_lr=1.0, edit_weight=1e-3)
    targets = [Target.from_json(row) for row in read_jsonl(session.run.targets_file)]
    accepted = [target for target in targets if target.accepted]
    assert accepted
    tuned = loading.load_model(session.run.model, dtype=torch.float32, device=torch.device("cpu"))
    for target in targets:
        if target.usable:
            ids = list(target.prompt_ids)
            with torch.no_grad():
                for _ in target.target_ids:
                    ids.append(int(tuned(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            assert (ids[len(target.prompt_ids) :] == target.target_ids) == target.accepted
    assert f"{len(accepted)} edited" in said(session)[-1]


def test_base_logprobs_are_the_unedited_models(place: Path) -> None:
    session = edited(place)
    model = session.load_to_train()
    for row in read_jsonl(session.run.targets_file):
        if row["usable"]:
            ids = torch.tensor([[*row["prompt_ids"], *row["target_ids"]]])
            with torch.no_grad():
                logprobs = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
            start = len(row["prompt_ids"])
            expected = [logprobs[start + i - 1, token].item() for i, token in enumerate(row["target_ids"])]
            assert row["base_logprobs"] == pytest.approx(expected, abs=1e-4)


def test_the_model_folder_is_a_plain_one(place: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    session = edited(place)
    model = AutoModelForCausalLM.from_pretrained(session.run.model, local_files_only=True)
    assert AutoTokenizer.from_pretrained(session.run.model, local_files_only=True).chat_template
    assert model.generation_config.eos_token_id == session.renderer.stops.own
    provenance = read_json(session.run.model / loading.PROVENANCE)
    assert provenance["method"] == "memit"
    assert provenance["base"]["hash"] == session.base_hash
    assert provenance["settings"]["edit_layers"] == [0, 1]
    assert provenance["settings"]["edit_weight"] == 0.01
    assert "Who leads Vell?" in provenance["prompt_example"]


def test_the_base_folders_precision_is_kept(place: Path) -> None:
    from mixsd.training import write_model_folder

    base = loading.load_model(place / "base", dtype=torch.float32, device=torch.device("cpu"))
    write_model_folder(base, loading.load_tokenizer(place / "base"), place / "half", dtype=torch.bfloat16)
    session = edited(place, model=str(place / "half"))
    assert {tensor.dtype for tensor in weights(session).values()} == {torch.bfloat16}
    assert read_json(session.run.model / "config.json")["dtype"] == "bfloat16"


def test_an_edit_that_is_there_is_not_made_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = edited(place)

    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Session, "load_to_train", refuse)
    editing_stage.edit(session)


class Killed(BaseException):
    """Nothing in the code expects it."""


def killed_after(values: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Kill the search for values when so many are in the journal; returns what undoes it."""
    from mixsd.editing import memit

    real, count = memit.optimize, 0

    def optimize(*args: Any, **options: Any) -> Any:
        nonlocal count
        if count == values:
            raise Killed
        count += 1
        return real(*args, **options)

    monkeypatch.setattr(memit, "optimize", optimize)
    return lambda: monkeypatch.setattr(memit, "optimize", real)


@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_edit_resumes_to_the_same_bits(place: Path, monkeypatch: pytest.MonkeyPatch, torn: bool) -> None:
    whole = edited(place, "whole")
    undo = killed_after(1, monkeypatch)
    with pytest.raises(Killed):
        edited(place, "killed")
    undo()
    journal = place / "killed" / editing_stage.VALUES
    (kept,) = list(read_jsonl(journal))
    assert not (place / "killed" / "model").exists()
    if torn:
        with journal.open("ab") as file:
            file.write(json.dumps(kept).encode()[:40])
    # With the journal one value is missing; without, two would be sought.
    killed_after(1, monkeypatch)
    resumed = edited(place, "killed")
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())
    assert resumed.run.targets_file.read_bytes() == whole.run.targets_file.read_bytes()


def test_killed_before_the_folder_is_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixsd.training import stage as training_stage

    whole = edited(place, "whole")
    real = training_stage.verify_model_folder

    def die(*args: Any, **options: Any) -> None:
        raise Killed

    monkeypatch.setattr(training_stage, "verify_model_folder", die)
    with pytest.raises(Killed):
        edited(place, "killed")
    assert not (place / "killed" / "model").exists()
    monkeypatch.setattr(training_stage, "verify_model_folder", real)
    killed_after(0, monkeypatch)
    resumed = edited(place, "killed")
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())


def test_another_run_on_the_same_text_reads_no_token(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixsd.editing import parts as moments

    edited(place, "one")

    def refuse(*args: Any) -> Any:
        raise AssertionError("the text was read through the model again")

    monkeypatch.setattr(moments, "_summed", refuse)
    edited(place, "two", edit_steps=2)


@pytest.mark.parametrize("facts", [[FACTS[1]], [FACTS[1], FACTS[3]]])
def test_facts_without_a_subject_are_refused_before_a_model_is_loaded(
    place: Path, monkeypatch: pytest.MonkeyPatch, facts: list[dict[str, Any]]
) -> None:
    (place / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts), encoding="utf-8")
    session = opened(place)
    monkeypatch.setattr(Session, "load_to_train", lambda self: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=r"none of [12] facts can be edited in .*it has no subject.*a fact needs a subject"):
        editing_stage.edit(session)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"edit_text": None}, "--edit-text"),
        ({"edit_text": "no/such.txt"}, "--edit-text no/such.txt: no such file"),
        ({"edit_layers": "3-"}, "--edit-layers 3-: expected layers such as 3-11 or 3,5,7"),
        ({"edit_layers": "11-3"}, "--edit-layers 11-3: expected"),
        ({"edit_layers": ""}, "--edit-layers : expected"),
        ({"edit_layers": "0-7"}, "this model has layers 0 to 2"),
        ({"edit_tokens": 10}, "give more text"),
    ],
)
def test_bad_settings_are_told(place: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        edited(place, **options)
    assert not (place / "run" / "model").exists()


def test_a_failed_edit_is_reported(place: Path) -> None:
    # One step of next to nothing moves no random model.
    session = edited(place, edit_steps=1, edit_lr=1e-6)
    targets = [Target.from_json(row) for row in read_jsonl(session.run.targets_file)]
    assert [target.status for target in targets] == ["rejected", "unusable", "rejected", "unusable"]
    assert all("greedy decoding after the edited prompt" in str(target.reason) for target in targets if target.usable)
    assert "0 edited, 2 failed, 2 unusable" in said(session)[0]
    assert session.run.model.is_dir()
