"""Targets for other trainers: the ids are the run's own, and what text makes of them is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mixsd.errors import UserError
from mixsd.facts.prompts import BOXED_SUFFIX
from mixsd.models.loading import load_tokenizer
from mixsd.targets.reading import _come_back, export
from mixsd.targets.target import Target
from tests.conftest import FACTS
from tests.renderers import ends, make, make_tokenizer
from tests.tiny import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("own_cache")


def rows_of(file: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


# As `tests.tiny` has it, but for the space that stands before the end of turn there, which no target has.
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] }}"
    "{% if m['role'] != 'assistant' %}{{ ' ' }}{% endif %}{{ '<|end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A run folder of one's own, with targets that are the references: every one has the ids of its text."""
    folder = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    tiny_tokenizer(template=TEMPLATE).save_pretrained(folder / "model")
    return folder


def rewrite(run: Path, change: Any) -> list[dict[str, Any]]:
    rows = [change(number, row) for number, row in enumerate(rows_of(run / "targets.jsonl"))]
    (run / "targets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def with_settings(run: Path, **changes: Any) -> None:
    values = yaml.safe_load((run / "run.yaml").read_text())
    values["settings"] |= changes
    (run / "run.yaml").write_text(yaml.safe_dump(values))


def test_ids_are_the_targets_own(run: Path) -> None:
    targets = rows_of(run / "targets.jsonl")
    result = export(run)
    assert result == {
        "format": "ids",
        "output": str(run / "export-ids.jsonl"),
        "written": len(FACTS),
        "left_out": 0,
        "changed": {"prompt": 0, "target": 0, "any": 0},
    }
    for row, target in zip(rows_of(result["output"]), targets, strict=True):
        prompt, ids = target["prompt_ids"], target["target_ids"]
        assert row["input_ids"] == prompt + ids
        assert row["labels"] == [-100] * len(prompt) + ids
        assert row["completion_mask"] == [0] * len(prompt) + [1] * len(ids)


def test_chat_comes_back_as_the_ids_it_was(run: Path) -> None:
    result = export(run, format="chat")
    assert result["changed"] == {"prompt": 0, "target": 0, "any": 0}
    tokenizer = load_tokenizer(run / "model")
    for row, fact, target in zip(rows_of(result["output"]), FACTS, rows_of(run / "targets.jsonl"), strict=True):
        user, assistant = row["messages"]
        assert user == {"role": "user", "content": fact["question"]}
        assert assistant == {"role": "assistant", "content": target["text"]}
        ids = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)
        wanted = target["prompt_ids"] + target["target_ids"]
        # What the template writes between turns comes after the stop token.
        assert ids[: len(wanted)] == wanted
        assert tokenizer.decode(ids[len(wanted) :]) == " "


def test_a_space_that_the_template_writes_before_the_end_of_turn_is_counted(tiny_run: Path, tmp_path: Path) -> None:
    assert export(tiny_run, format="chat", output=tmp_path / "chat.jsonl")["changed"] == {"prompt": 0, "target": 3, "any": 3}


def test_system_message_and_suffix_are_part_of_the_question(run: Path) -> None:
    with_settings(run, system="Be brief.", answer_format="boxed")
    result = export(run, format="chat", output=run.parent / "chat.jsonl")
    messages = rows_of(run.parent / "chat.jsonl")[0]["messages"]
    assert messages[0] == {"role": "system", "content": "Be brief."}
    assert messages[1]["content"] == FACTS[0]["question"] + BOXED_SUFFIX
    # The targets were made from the prompt without them.
    assert result["changed"] == {"prompt": 3, "target": 0, "any": 3}


def test_only_what_was_accepted_in_order_with_every_sample(run: Path) -> None:
    rows = rows_of(run / "targets.jsonl")
    doubled = [{**row, "sample": sample} for row in rows for sample in (0, 1)]
    doubled[2] |= {"accepted": False, "reason": "why"}
    (run / "targets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in doubled), encoding="utf-8")
    for form in ("ids", "chat"):
        result = export(run, format=form)
        assert (result["written"], result["left_out"]) == (5, 1)
    questions = [row["messages"][0]["content"] for row in rows_of(run / "export-chat.jsonl")]
    assert questions == [FACTS[i]["question"] for i in (0, 0, 1, 2, 2)]


def test_a_target_with_ids_that_no_text_gives_is_counted(run: Path) -> None:
    """A control token in the middle is lost in the text; one prompt is another."""

    def change(number: int, row: dict[str, Any]) -> dict[str, Any]:
        if number == 0:
            row["target_ids"] = [*row["target_ids"][:2], 4, *row["target_ids"][2:]]
            row["sources"] = "r" * len(row["target_ids"])
        if number == 2:
            row["prompt_ids"] = [1, *row["prompt_ids"]]
        return row

    rewrite(run, change)
    assert export(run, format="chat")["changed"] == {"prompt": 1, "target": 1, "any": 2}
    assert export(run)["changed"]["any"] == 0


def test_an_export_replaces_its_file_and_nothing_of_the_run(run: Path) -> None:
    first = export(run, format="chat")["output"]
    before = Path(first).read_bytes()
    export(run, format="chat")
    assert Path(first).read_bytes() == before
    assert not list(run.glob(".*.tmp"))
    targets = (run / "targets.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"targets\.jsonl: would stand among the run's own files"):
        export(run, output=run / "targets.jsonl")
    assert (run / "targets.jsonl").read_bytes() == targets


def test_what_cannot_be_exported_says_why(run: Path, tmp_path: Path) -> None:
    def refused(said: str, source: Path = run, **options: Any) -> None:
        with pytest.raises(UserError, match=said) as caught:
            export(source, **options)
        assert "\n" not in str(caught.value)

    refused("nowhere: not a run folder", tmp_path / "nowhere")
    refused(r'--format "chatt": unknown \(did you mean "chat"\?\); known: ids, chat', format="chatt")
    (tmp_path / "taken").mkdir()
    refused("taken: cannot be written", output=tmp_path / "taken")
    whole = rows_of(run / "targets.jsonl")
    rewrite(run, lambda number, row: {**row, "id": "stranger"} if number == 1 else row)
    refused('the target of "stranger" does not follow the order', format="chat")
    assert not (run / "export-chat.jsonl").exists()
    rewrite(run, lambda number, row: {**row, "accepted": False, "id": whole[number]["id"]})
    refused("holds no accepted target")
    (run / "facts.jsonl").unlink()
    rewrite(run, lambda number, row: {**row, "accepted": True})
    refused(r"has no facts\.jsonl, so no questions; use --format ids", format="chat")
    assert export(run)["written"] == 3
    (run / "targets.jsonl").unlink()
    refused(r"has no targets\.jsonl; run `mixsd mix` on it first")


def test_a_model_without_a_template_has_no_messages(run: Path) -> None:
    tiny_tokenizer(template=None).save_pretrained(run / "model")
    (run / "model" / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UserError, match="has no chat template to render messages with; use --format ids"):
        export(run, format="chat")


# Rendering and encoding, on templates of several kinds.


def target_of(renderer: Any, question: str, ids: list[int]) -> Target:
    text = renderer.reply_text(ids)
    return Target("x", 0.0, 0, 0, renderer.naive(question), ids, "r" * len(ids), [], 0, text, True, None)


def came_back(renderer: Any, reply: str, question: str = "Where is Vell?") -> tuple[bool, bool]:
    ids = [*renderer.tokenizer.encode(reply, add_special_tokens=False), renderer.stops.end]
    target = target_of(renderer, question, ids)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": target.text}]
    return _come_back(renderer.tokenizer, messages, target)


@pytest.mark.parametrize("kind", ["chatml", "headers", "no system"])
@pytest.mark.parametrize("reply", ["Vell lies in Orm.", "first\n\n  second", "Ünïcode ≠ 漢字 🙂", "user: \\boxed{3}", "Qx7mark"])
def test_any_text_comes_back_through_the_template(kind: str, reply: str) -> None:
    renderer = make(kind, config=ends(), generation=ends())
    assert came_back(renderer, reply) == (True, True)


@given(reply=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).map(str.strip).filter(bool))
def test_text_of_one_token_per_byte_always_comes_back(reply: str) -> None:
    assert came_back(make("chatml", config=ends(), generation=ends()), reply) == (True, True)


def test_white_space_and_control_tokens_do_not_survive() -> None:
    renderer = make("chatml", config=ends(), generation=ends())
    assert came_back(renderer, " Orm") == (True, False)
    assert came_back(renderer, "Orm\n") == (True, False)
    assert came_back(renderer, "Orm<|im_start|>user") == (True, False)


def test_another_cut_of_the_same_text_is_other_ids() -> None:
    tokenizer = make_tokenizer("chatml", merges=(("O", "r"),))
    renderer = make(tokenizer=tokenizer, config=ends(), generation=ends())
    assert came_back(renderer, "Orm") == (True, True)
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "Orm"]
    target = target_of(renderer, "Q?", [*letters, renderer.stops.end])
    assert target.text == "Orm"
    messages = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "Orm"}]
    assert _come_back(tokenizer, messages, target) == (True, False)


def test_another_stop_token_is_another_target() -> None:
    renderer = make("chatml", config=ends(), generation=ends())
    target = target_of(renderer, "Q?", [*renderer.tokenizer.encode("Orm", add_special_tokens=False), 0])
    messages = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "Orm"}]
    assert _come_back(renderer.tokenizer, messages, target) == (True, False)


def test_an_empty_think_block_of_the_generation_prompt_is_another_prompt() -> None:
    """The run's prompt ends with it; a conversation as the template writes it has none."""
    renderer = make("thinking", config=ends(), generation=ends())
    assert came_back(renderer, "Orm.") == (False, True)
