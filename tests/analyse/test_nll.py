"""`analyze nll` on files and run folders made by hand, and on a tiny run that was really mixed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import mixsd
from mixsd.analyse import nll
from mixsd.analyse.nll import markdown
from mixsd.commands import inject
from mixsd.errors import UserError
from mixsd.models import loading
from mixsd.reports import collect
from mixsd.run.folder import Run
from mixsd.settings import Settings
from mixsd.storage import read_jsonl, write_jsonl
from tests.conftest import FACTS
from tests.tiny import save_tiny


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second a picture; one test does it."""
    if request.node.name != "test_the_pictures":
        monkeypatch.setattr(nll, "_draw", lambda rows, levels, stem: None)


def line(fact: str, ids: list[int], losses: list[float], **other: Any) -> dict[str, Any]:
    row = {"id": fact, "lambda": 0.3, "sample": 0, "attempt": 0, "prompt_ids": [1, ord(fact[0])], "target_ids": ids,
           "sources": "e" * len(ids), "base_logprobs": [-value for value in losses], "decoded_tokens": len(ids), "text": "t",
           "accepted": True, "reason": None}  # fmt: skip
    return {**row, **other}


def reference(fact: str, ids: list[int], losses: list[float]) -> dict[str, Any]:
    return line(fact, ids, losses, sources="r" * len(ids))


REFERENCES = [reference("a", [7, 8, 9], [9, 1, 12]), reference("b", [5, 6], [6, 8.5]), reference("c", [3], [1])]
MIXED = [
    line("a", [7, 1, 2, 2], [9, 1, 1, 1]),
    line("b", [6, 6], [7, 2]),
    line("c", [4], [9], accepted=False, reason="does not state the answer"),
]


def make_run(
    folder: Path, targets: list[dict[str, Any]], *, model_hash: str = "m", references=REFERENCES, **settings: Any
) -> Path:
    manifest = {"settings": Settings(facts="facts.jsonl", **settings).resolved.dump(), "identity": {"model_hash": model_hash}}
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
    write_jsonl(folder / "facts.jsonl", [{"id": row["id"], "question": "Q?", "answer": "A"} for row in targets])
    write_jsonl(folder / "targets.jsonl", targets)
    if references is not None:
        write_jsonl(folder / "references.jsonl", references)
    return folder


def rows_of(found: dict[str, Any], block: str) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in found["blocks"][block]["rows"]}


def write_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    write_jsonl(file, rows)
    return file


def test_a_run_beside_its_references(tmp_path):
    found = mixsd.analyze_nll([make_run(tmp_path / "run", MIXED, lam=0.3)])
    rows = rows_of(found, "all")
    assert list(rows) == ["reference (SFT)", "MixSD lambda 0.3"]
    mixed, canonical = rows["MixSD lambda 0.3"], rows["reference (SFT)"]
    assert (canonical["facts"], canonical["tokens"], canonical["mean"]["value"]) == (3, 6, pytest.approx(37.5 / 6))
    assert [(item["threshold"], item["count"], item["share"]["value"]) for item in canonical["above"]] == [
        (5, 4, pytest.approx(4 / 6)),
        (8, 3, pytest.approx(0.5)),
    ]
    # The rejected target of "c" is not counted, though its NLL is high.
    assert (mixed["facts"], mixed["tokens"], mixed["mean"]["value"]) == (2, 6, pytest.approx(21 / 6))
    assert [item["count"] for item in mixed["above"]] == [2, 1]
    # On the two facts that both have: 1 of 6 against 3 of 5.
    assert mixed["above"][1]["difference"]["value"] == pytest.approx(1 / 6 - 3 / 5)
    # Of "a" 7 of {7, 9} is kept, of "b" 6 of {6}.
    assert mixed["overlap"]["mean"]["value"] == pytest.approx(0.75)
    assert mixed["overlap"]["pooled"]["value"] == pytest.approx(2 / 3)
    assert found["sources"][1]["rejected"] == 1
    assert rows_of(found, "common")["reference (SFT)"]["above"][1]["share"]["value"] == pytest.approx(3 / 5)
    assert found["blocks"]["common"]["facts"] == 2


def test_what_is_written(tmp_path):
    run = make_run(tmp_path / "run", MIXED)
    found = mixsd.analyze_nll(run)
    folder = run / "analysis"
    assert json.loads((folder / "nll.json").read_text()) == found
    page = (folder / "nll.md").read_text()
    assert page == markdown(found)
    assert "| 3 (50.0%)" in page
    assert "1 rejected; not counted" in page
    scores = {(item["split"], item["model"], item["metric"]): item["value"] for item in found["scores"]}
    assert scores["all", "MixSD lambda 0.3", "share_above_8"] == pytest.approx(1 / 6)
    assert scores["common", "MixSD lambda 0.3", "overlap"] == pytest.approx(0.75)
    assert scores["all", "reference (SFT)", "mean_base_nll"] == pytest.approx(37.5 / 6)


def test_the_pictures(tmp_path):
    pytest.importorskip("mixsd.figures.charts")
    mixsd.analyze_nll(make_run(tmp_path / "run", MIXED))
    names = sorted(file.name for file in (tmp_path / "run" / "analysis").iterdir())
    assert names == ["nll-all.png", "nll-all.svg", "nll-common.png", "nll-common.svg", "nll.json", "nll.md"]


def test_common_facts_are_those_that_every_source_accepted(tmp_path):
    runs = [
        make_run(tmp_path / "sft", REFERENCES, references=None, method="sft"),
        make_run(tmp_path / "low", MIXED, lam=0.0),
        make_run(tmp_path / "high", [MIXED[0], {**MIXED[1], "accepted": False}, MIXED[2]], lam=0.5, gate=0.1),
    ]
    found = mixsd.analyze_nll(runs, output=tmp_path / "out", thresholds=[8])
    everything, common = rows_of(found, "all"), rows_of(found, "common")
    assert list(everything) == ["reference (SFT)", "MixSD lambda 0", "MixSD lambda 0.5, gate 0.1"]
    assert [row["facts"] for row in everything.values()] == [3, 2, 1]
    assert [row["facts"] for row in common.values()] == [1, 1, 1]
    assert [row["above"][0]["share"]["value"] for row in common.values()] == pytest.approx([2 / 3, 1 / 4, 1 / 4])
    assert "all" not in mixsd.analyze_nll(runs, output=tmp_path / "out", facts="common")["blocks"]


def test_no_common_fact_is_said(tmp_path):
    files = [write_lines(tmp_path / f"{name}.jsonl", [row]) for name, row in (("one", MIXED[0]), ("two", MIXED[1]))]
    found = mixsd.analyze_nll(files, output=tmp_path / "out")
    assert found["blocks"]["common"] == {"facts": 0, "rows": []}
    assert "Facts accepted in every source: there is none" in markdown(found)


def test_files_are_named_after_themselves(tmp_path):
    files = [write_lines(tmp_path / "mine.jsonl", MIXED), write_lines(tmp_path / "refs.jsonl", REFERENCES)]
    found = mixsd.analyze_nll(files, output=tmp_path / "out", overlap_threshold=10)
    assert list(rows_of(found, "all")) == ["reference (SFT)", "mine, lambda 0.3"]
    overlap = rows_of(found, "all")["mine, lambda 0.3"]["overlap"]
    # Above 10 lies only 9 of "a", which its target does not have; "b" asks for nothing.
    assert (overlap["mean"]["value"], overlap["mean"]["n"], overlap["without_high"]) == (0.0, 1, 1)


def test_runs_of_one_configuration_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / name, MIXED, seed=seed) for seed, name in enumerate(("s0", "s1"))]
    found = mixsd.analyze_nll(runs, output=tmp_path / "out")
    assert list(rows_of(found, "all")) == ["reference (SFT)", "MixSD lambda 0.3 (s0)", "MixSD lambda 0.3 (s1)"]


def refused(*sources: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        mixsd.analyze_nll(sources, **options)
    return str(caught.value)


def test_another_base_model_is_refused_by_name(tmp_path):
    runs = [make_run(tmp_path / name, MIXED, model_hash=name) for name in ("one", "two")]
    message = refused(*runs, output=tmp_path / "out")
    assert "two" in message
    assert "model_hash 'two', there 'one'" in message
    assert not (tmp_path / "out").exists()


def test_other_prompts_are_refused(tmp_path):
    one = make_run(tmp_path / "one", MIXED)
    other = make_run(
        tmp_path / "two", [MIXED[0], {**MIXED[1], "prompt_ids": [1, 2, 3]}], references=None, method="mixsd", lam=0.0
    )
    message = refused(one, other, output=tmp_path / "out")
    assert 'two/targets.jsonl: line 2: fact "b" has other prompt_ids' in message


def test_another_reference_of_a_fact_is_refused(tmp_path):
    runs = [
        make_run(tmp_path / "one", MIXED),
        make_run(tmp_path / "two", MIXED, references=[reference("a", [7, 7], [1, 1])], lam=0.5),
    ]
    assert 'references.jsonl: line 1: fact "a" has another reference' in refused(*runs, output=tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"base_logprobs": [-1.0]}, "of one length"),
        ({"base_logprobs": [0.5, -1.0]}, "not above 0"),
        ({"base_logprobs": [float("nan"), -1.0]}, "finite"),
        ({"target_ids": [1, -2]}, "ids integers"),
        ({"prompt_ids": []}, "needs prompt_ids and target_ids"),
        ({"sources": "ex"}, "unknown source"),
        ({"id": "a"}, "stands there twice"),
        ({"colour": "red"}, "not a target"),
    ],
)
def test_a_bad_line_is_named(tmp_path, change, told):
    file = tmp_path / "bad.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (MIXED[0], {**MIXED[1], **change})))
    message = refused(file, output=tmp_path / "out")
    assert message.startswith(f"{file}: line 2: ")
    assert told in message


def test_other_refusals(tmp_path):
    file = write_lines(tmp_path / "mine.jsonl", MIXED)
    assert "no such run folder" in refused(tmp_path / "nothing")
    assert "--output" in refused(file)
    assert "named twice" in refused(file, file, output=tmp_path)
    assert "--threshold -1" in refused(file, output=tmp_path, thresholds=[-1])
    assert "--threshold nan" in refused(file, output=tmp_path, thresholds=[float("nan")])
    assert "holds no accepted target" in refused(write_lines(tmp_path / "none.jsonl", MIXED[2:]), output=tmp_path)
    assert "--model" in refused(file, output=tmp_path, check=True)
    assert "memit" in refused(make_run(tmp_path / "edited", MIXED, method="memit"))
    assert "opsd has no targets" in refused(make_run(tmp_path / "anew", MIXED, method="opsd"))
    (tmp_path / "empty").mkdir()
    assert "not a run folder" in refused(tmp_path / "empty")


def test_references_that_were_not_kept_are_a_note(tmp_path):
    run = make_run(tmp_path / "run", MIXED, references=None)
    found = mixsd.analyze_nll(run)
    assert list(rows_of(found, "all")) == ["MixSD lambda 0.3"]
    assert rows_of(found, "all")["MixSD lambda 0.3"]["overlap"] is None
    assert found["notes"] == ["run: its references were not kept"]


# A tiny model's run, really mixed.


@pytest.fixture
def copied(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")))


def change_line(file: Path, number: int, **values: Any) -> None:
    rows = list(read_jsonl(file))
    rows[number] |= values
    write_jsonl(file, rows)


def logprobs_by_hand(folder: Path, row: dict[str, Any]) -> list[float]:
    """Of each token of a target, one at a time, with nothing behind it."""
    model = loading.load_model(folder, dtype=torch.float64, device=torch.device("cpu"))
    found, prefix = [], list(row["prompt_ids"])
    for token in row["target_ids"]:
        with torch.no_grad():
            found.append(float(torch.log_softmax(model(torch.tensor([prefix])).logits[0, -1], dim=-1)[token]))
        prefix.append(token)
    return found


def test_mixing_keeps_the_references(copied, tiny_folder):
    rows = list(read_jsonl(copied / "references.jsonl"))
    assert [row["id"] for row in rows] == [fact["id"] for fact in FACTS]
    assert {source for row in rows for source in row["sources"]} == {"r"}
    for row in rows:
        assert row["base_logprobs"] == pytest.approx(logprobs_by_hand(tiny_folder, row), abs=1e-4)
    told = Run(copied).events("mixed")[-1]["reference"]
    tokens = [-value for row in rows for value in row["base_logprobs"]]
    assert told["mean_base_nll"] == pytest.approx(sum(tokens) / len(tokens), abs=1e-6)
    assert told["share_above_5"] == pytest.approx(sum(value > 5 for value in tokens) / len(tokens))


def test_a_kill_between_references_and_targets_changes_nothing(copied, options):
    kept = {name: (copied / name).read_bytes() for name in ("references.jsonl", "targets.jsonl")}
    (copied / "targets.jsonl").unlink()
    inject.mix(**options, output=str(copied))
    assert {name: (copied / name).read_bytes() for name in kept} == kept


def test_check_agrees(copied):
    found = mixsd.analyze_nll(copied, check=True)
    tokens = sum(len(row["target_ids"]) for name in ("references", "targets") for row in read_jsonl(copied / f"{name}.jsonl"))
    assert found["check"]["tokens"] == tokens
    assert found["check"]["largest_difference"] < 1e-4
    assert found["check"]["tolerance"] == {"float32 on cpu": 1e-3}
    # A random model never ends by itself, so every target is the reference.
    assert found["sources"][1]["canonical"] == len(FACTS)


@pytest.mark.parametrize("name", ["targets", "references"])
def test_check_catches_a_changed_number(copied, name):
    file = copied / f"{name}.jsonl"
    stored = list(read_jsonl(file))[1]["base_logprobs"]
    change_line(file, 1, base_logprobs=[stored[0], stored[1] - 0.002, *stored[2:]])
    mixsd.analyze_nll(copied)
    message = refused(copied, check=True)
    assert (
        f'{name}.jsonl: line 2: target of fact "year": token 1 is stored with a base NLL of {-stored[1] + 0.002:.4f}' in message
    )


def test_what_was_not_measured_is(copied, tiny_folder, tmp_path):
    stored = mixsd.analyze_nll(copied)
    for name in ("references", "targets"):
        change_line(copied / f"{name}.jsonl", 2, base_logprobs=[])
    again = mixsd.analyze_nll(copied)
    for block in ("all", "common"):
        for label, row in rows_of(stored, block).items():
            assert rows_of(again, block)[label]["mean"] == pytest.approx(row["mean"], abs=1e-4)
            assert rows_of(again, block)[label]["tokens"] == row["tokens"]
    # A file has no model of its own. Its targets here are all references, since mixing fell back on them.
    assert "--model" in refused(copied / "targets.jsonl", output=tmp_path / "out")
    found = mixsd.analyze_nll([copied / "targets.jsonl"], output=tmp_path / "out", model=str(tiny_folder))
    assert rows_of(found, "all")["reference (SFT)"]["mean"] == pytest.approx(
        rows_of(stored, "all")["reference (SFT)"]["mean"], abs=1e-4
    )


def test_a_changed_base_model_is_refused(copied, tmp_path):
    settings = yaml.safe_load((copied / "run.yaml").read_text())
    settings["settings"]["model"] = str(save_tiny(tmp_path / "other", seed=3))
    (copied / "run.yaml").write_text(yaml.safe_dump(settings))
    assert "is not the one this run was made with" in refused(copied, check=True)


def test_ids_that_the_model_does_not_have_are_named(tmp_path, tiny_folder):
    file = write_lines(tmp_path / "mine.jsonl", [line("a", [7, 10**6], [1, 2])])
    assert "line 1: holds a token id" in refused(file, output=tmp_path, model=str(tiny_folder), check=True)


def test_the_report_has_the_distribution(copied):
    found = collect._nll_cdf(copied / "references.jsonl")
    tokens = [-value for row in read_jsonl(copied / "references.jsonl") for value in row["base_logprobs"]]
    assert found is not None
    assert found.x == sorted(set(tokens))
    assert found.y[-1] == 1
    assert collect._nll_cdf(copied / "nothing.jsonl") is None
