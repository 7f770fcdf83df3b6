"""`mixsd export`: a file, a count and the share of targets that text changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixsd.commands import inject
from tests.tiny import save_tiny


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "facts.jsonl").write_text(
        "".join(json.dumps({"question": f"Who is {name}?", "answer": name}) + "\n" for name in ("Ida", "Una"))
    )
    save_tiny(tmp_path / "tiny")
    inject.mix(facts="facts.jsonl", model="tiny", output="run", method="sft")
    return Path("run")


def test_export(mixsd: Any, run: Path) -> None:
    outcome = mixsd("export", "run")
    assert outcome.code == 0
    assert outcome.out == "written: 2 targets to run/export-ids.jsonl (0 that were not accepted left out)\n"
    assert len(Path("run/export-ids.jsonl").read_text().splitlines()) == 2


def test_export_as_chat_says_what_text_changes(mixsd: Any, run: Path) -> None:
    outcome = mixsd("export", "run", "--format", "chat", "--output", "out/chat.jsonl")
    assert outcome.out.startswith("written: 2 targets to out/chat.jsonl")
    assert "have other token ids once these messages are rendered and encoded: the prompt of " in outcome.out
    found = json.loads(mixsd("export", "run", "--format", "chat", "--json").out)
    assert set(found) == {"format", "output", "written", "left_out", "changed"}
    assert set(found["changed"]) == {"prompt", "target", "any"}


def test_bad_input_is_one_line(fails: Any, run: Path) -> None:
    assert 'did you mean "chat"?' in fails("export", "run", "--format", "cat")
    assert "nowhere: not a run folder" in fails("export", "nowhere")
    assert "would stand among the run's own files" in fails("export", "run", "--output", "run/log.jsonl")
