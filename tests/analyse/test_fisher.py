from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mixsd
from mixsd.analyse import base_fisher as analyse_base_fisher
from mixsd.analyse.base_fisher import base_fisher, stored_fisher
from mixsd.analyse.fisher import markdown, tables
from mixsd.errors import UserError
from mixsd.models import loading
from mixsd.storage import read_json, read_jsonl, write_json, write_jsonl
from tests.finished_runs import make
from tests.tiny import save_tiny

ASK = {"reference": "general", "examples": 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One Fisher for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXSD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("MIXSD_DATA", raising=False)
        yield


def moved(base: Path, folder: Path, scale: float, seed: int = 0) -> Path:
    """A tuned model: the base plus noise of this size."""
    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    save_file(
        {n: t + scale * torch.randn(t.shape, generator=generator) for n, t in tensors.items()}, folder / "model.safetensors"
    )
    return folder


def run_of(where: Path, base: Path, *, seed: int = 0, scales: tuple[float, ...] = (0.01, 0.02), method: str = "sft") -> Path:
    """A finished run: a checkpoint for each scale, forgetting 10 times the scale, the last checkpoint as its model."""
    path = [(10 * (place + 1), 0.5, 10 * scale) for place, scale in enumerate(scales)]
    folder = make(
        where,
        {"model": str(base), "method": method},
        seed=seed,
        path=path,
        forgetting=10 * scales[-1],
        identity={"model_hash": loading.model_hash(base)},
        training={"chosen": {"step": path[-1][0], "why": "the last checkpoint"}},
    )
    for (step, _, _), scale in zip(path, scales, strict=True):
        moved(base, folder / "checkpoints" / f"step-{step:06}", scale, seed)
    shutil.copytree(folder / "checkpoints" / f"step-{path[-1][0]:06}", folder / "model")
    return folder


def test_a_run_by_hand(base: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", base)
    found = mixsd.analyze_fisher([run], **ASK)
    assert [(row["checkpoint"], row["step"], row["final"]) for row in found["checkpoints"]] == [
        ("step-000010", 10, False), ("step-000020", 20, True),
    ]  # fmt: skip
    fisher = stored_fisher(Path(found["fisher"] and base_fisher(str(base), **ASK)[0].folder).parent, found["fisher"]["key"])
    assert fisher is not None
    first = load_file(base / "model.safetensors")
    with fisher.open() as known:
        f = {name: known.get_tensor(name).double() for name in fisher.sums}
    for row in found["checkpoints"]:
        tuned = load_file(run / "checkpoints" / row["checkpoint"] / "model.safetensors")
        delta = {name: (tuned[name] - first[name]).double() for name in f}
        squared = sum(float((d**2).sum()) for d in delta.values())
        weighted = sum(float((f[name] * d**2).sum()) for name, d in delta.items())
        mean = sum(float(t.sum()) for t in f.values()) / sum(t.numel() for t in f.values())
        assert row["displacement_squared"] == pytest.approx(squared, rel=1e-6)
        assert row["displacement"] == pytest.approx(squared**0.5, rel=1e-6)
        assert row["fisher_weighted"] == pytest.approx(weighted, rel=1e-6)
        assert row["alignment"] == pytest.approx(weighted / squared / mean, rel=1e-6)
    assert [row["forgetting"]["value"] for row in found["checkpoints"]] == [0.1, 0.2]
    assert found["table"][0]["forgetting"] == {"value": 0.2, "n": 20, "low": pytest.approx(0.1), "high": pytest.approx(0.3)}
    written = read_json(run / "analysis" / "fisher.json")
    assert written["scores"] == found["scores"]
    assert {score["metric"] for score in found["scores"]} == {
        "displacement",
        "displacement_squared",
        "alignment",
        "fisher_weighted",
    }
    assert "# Displacement" in (run / "analysis" / "fisher.md").read_text(encoding="utf-8")
    json.dumps(found, allow_nan=False)


def test_rows_outlive_their_checkpoints(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path / "run", base)
    before = mixsd.analyze_fisher([run], **ASK)
    shutil.rmtree(run / "checkpoints")
    (run / "model" / "model.safetensors").unlink()
    monkeypatch.setattr("mixsd.analyse.displacement.displacement", None)  # nothing is measured again
    after = mixsd.analyze_fisher([run], **ASK)
    volatile = ("gone", "final")
    strip = [[{k: v for k, v in row.items() if k not in volatile} for row in f["checkpoints"]] for f in (before, after)]
    assert strip[0] == strip[1]
    assert [row["final"] for row in after["checkpoints"]] == [False, True]
    assert all(row["gone"] for row in after["checkpoints"])
    assert any(note.startswith("gone: ") and "step-000010" in note and "step-000020" in note for note in after["notes"])
    assert after["correlations"] == before["correlations"]


def test_only_what_changed_is_measured_again(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixsd.analyse import displacement

    run = run_of(tmp_path / "run", base)
    asked: list[str] = []
    real = displacement.displacement

    def counted(first: Path, second: Path, fisher: Any) -> Any:
        asked.append(second.name)
        return real(first, second, fisher)

    monkeypatch.setattr(displacement, "displacement", counted)
    mixsd.analyze_fisher([run], **ASK)
    assert len(asked) == 2  # of three folders: the model is one of the checkpoints
    mixsd.analyze_fisher([run], **ASK)
    assert len(asked) == 2
    shutil.rmtree(run / "checkpoints" / "step-000010")
    moved(base, run / "checkpoints" / "step-000010", 0.05)
    again = mixsd.analyze_fisher([run], **ASK)
    assert asked[2:] == ["step-000010"]
    assert again["checkpoints"][0]["displacement"] > again["checkpoints"][1]["displacement"]
    mixsd.analyze_fisher([run], reference="general", examples=2)  # another Fisher, other rows
    assert len(asked) == 5


def test_a_torn_line_is_measured_again(base: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", base)
    before = mixsd.analyze_fisher([run], **ASK)
    file = run / "analysis" / "displacements.jsonl"
    file.write_bytes(file.read_bytes()[:-50])
    assert mixsd.analyze_fisher([run], **ASK)["checkpoints"] == before["checkpoints"]


def test_runs_together(base: Path, tmp_path: Path) -> None:
    runs = [run_of(tmp_path / f"sft-{s}", base, seed=s, scales=(0.01, 0.02 + 0.01 * s)) for s in range(3)]
    runs += [run_of(tmp_path / f"mix-{s}", base, seed=s, scales=(0.005, 0.01 + 0.01 * s), method="mixsd") for s in range(2)]
    with pytest.raises(UserError, match="--output"):
        mixsd.analyze_fisher(runs, **ASK)
    found = mixsd.analyze_fisher(runs, output=tmp_path / "out", **ASK)
    assert [(item["configuration"].split()[0], item["runs"]) for item in found["table"]] == [("sft", 3), ("mixsd", 2)]
    raw = [row["displacement"] for row in found["checkpoints"]]
    forgot = [row["forgetting"]["value"] for row in found["checkpoints"]]
    told = {item["metric"]: item for item in found["correlations"] if item["with"] == "forgetting"}
    assert set(told) == {"displacement", "alignment", "fisher_weighted"}
    assert told["displacement"]["r"] == pytest.approx(np.corrcoef(raw, forgot)[0, 1])
    assert (told["displacement"]["n"], told["displacement"]["runs"]) == (10, 5)
    assert told["displacement"]["interval"] == "bootstrap over runs"
    assert told["displacement"]["low"] <= told["displacement"]["r"] <= told["displacement"]["high"]
    four = mixsd.analyze_fisher(runs[:4], output=tmp_path / "four", **ASK)["correlations"][0]
    assert (four["low"], four["high"], four["interval"]) == (None, None, "none (4 runs)")
    mean = np.mean([row["alignment"] for row in found["checkpoints"] if row["final"] and row["configuration"].startswith("sft")])
    assert found["table"][0]["alignment"]["value"] == pytest.approx(mean)
    assert found["table"][0]["alignment"]["low"] < mean < found["table"][0]["alignment"]["high"]
    text = "\n".join(table.markdown() for table in tables(found))
    assert "bootstrap over runs" in text
    assert "5 runs" in text
    assert markdown(found) == (tmp_path / "out" / "fisher.md").read_text(encoding="utf-8")


def test_forgetting_comes_from_the_training_where_there_is_no_report(base: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", base)
    score = {"suite": "core", "split": "retention/forgetting", "metric": "forgetting", "model": "tuned", "checkpoint": 10,
             "value": 0.7, "n": 9, "low": 0.6, "high": 0.8}  # fmt: skip
    (run / "report.json").unlink()
    write_jsonl(run / "scores.jsonl", [{"step": 10, "scores": [score]}])
    found = mixsd.analyze_fisher([run], **ASK)
    assert [row["forgetting"] and row["forgetting"]["value"] for row in found["checkpoints"]] == [0.7, None]
    assert any("1 of 2 checkpoints have no forgetting" in note for note in found["notes"])


def test_model_folders(base: Path, tmp_path: Path) -> None:
    tuned, same = moved(base, tmp_path / "tuned", 0.03), tmp_path / "same"
    shutil.copytree(base, same)
    found = mixsd.analyze_fisher([tuned, same], model=str(base), output=tmp_path / "out", **ASK)
    one, two = found["checkpoints"]
    assert one["displacement"] > 0
    assert (two["displacement"], two["alignment"]) == (0.0, None)
    assert found["correlations"] == []
    assert any("nothing moved: same/" in note for note in found["notes"])


def test_bad_input_is_one_line(base: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", base)
    other = save_tiny(tmp_path / "other", seed=1)
    stranger = run_of(tmp_path / "stranger", other)
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    empty = make(tmp_path / "empty", {"model": str(base)}, identity={"model_hash": loading.model_hash(base)})
    made = moved(base, tmp_path / "made", 0.01)
    write_json(made / "mixsd.json", {"base": {"name": "some-model", "hash": "other"}})
    for sources, options, message in (
        ([made], {"output": tmp_path / "o"}, "--model some-model"),
        ([made], {"output": tmp_path / "o", "model": str(base)}, "another base model"),
        ([], {}, "name one or more"),
        ([tmp_path / "no"], {}, "no such folder"),
        ([run, run], {}, "named twice"),
        ([nothing], {"output": tmp_path / "o"}, "neither a run folder"),
        ([other], {"output": tmp_path / "o"}, "--model"),
        ([run, stranger], {"output": tmp_path / "o"}, "another base model"),
        ([empty], {}, "no checkpoints"),
        ([run], {"reference": "x"}, "--reference x"),
        ([run], {"examples": 0}, "--examples 0"),
        ([run], {"reference": "benchmarks", "data": str(nothing)}, "no benchmark's data is at hand"),
    ):
        with pytest.raises(UserError, match=message):
            mixsd.analyze_fisher(sources, **{**ASK, **options})


def test_a_lora_run_is_measured_by_its_merged_weights(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    from mixsd.commands import inject

    run = tmp_path / "lora"
    settings = {**options, "model": str(base), "lora": 4, "lr": 0.05, "epochs": 2, "output": str(run)}
    inject.mix(**settings)
    inject.train(run)
    found = mixsd.analyze_fisher([run], **ASK)
    final = found["checkpoints"][-1]
    assert final["displacement"] > 0
    groups = {name: part["displacement_squared"] for name, part in final["groups"].items()}
    assert groups["norms"] == groups["embeddings"] == 0  # adapters sit on the linear layers of attention and MLP
    assert groups["attention"] + groups["mlp"] == pytest.approx(final["displacement_squared"])


def benchmark_data(where: Path) -> Path:
    (where / "gsm8k").mkdir(parents=True)
    (where / "math500").mkdir()
    rows = [{"question": f"What is {n} and {n}?", "answer": f"Add them. #### {2 * n}"} for n in range(30)]
    rows[3]["answer"] = "so long " * 300 + "#### 6"
    write_jsonl(where / "gsm8k" / "test.jsonl", rows)
    maths = [
        {"problem": f"Find {n}.", "solution": f"It is $\\boxed{{{n}}}$.", "answer": str(n), "subject": "a", "level": 1,
         "unique_id": f"test/{n}"}
        for n in range(4)
    ]  # fmt: skip
    write_jsonl(where / "math500" / "test.jsonl", maths)
    return where


def test_references_of_benchmarks(base: Path, tmp_path: Path) -> None:
    data = str(benchmark_data(tmp_path / "data"))
    fisher, session = base_fisher(str(base), data=data, examples=12)
    record = fisher.record
    assert (record["reference"], record["counts"]) == ("benchmarks", {"math500": 4, "gsm8k": 8})
    found = analyse_base_fisher.gather(session, 12, None)
    smaller = analyse_base_fisher.gather(session, 6, None)
    assert {item.key for item in smaller.examples} < {item.key for item in found.examples}
    assert smaller.counts == {"math500": 3, "gsm8k": 3}
    tokenizer, stops = session.tokenizer, session.renderer.stops
    for item in found.examples:
        assert item.target_ids[-1] == stops.end
        text = tokenizer.decode(item.target_ids[:-1])
        assert "boxed" in text
        assert tokenizer.decode(item.prompt_ids).endswith("<|assistant|> ")
    everything = analyse_base_fisher.gather(session, 1000, "benchmarks")
    assert (everything.counts, everything.passed_over) == ({"math500": 4, "gsm8k": 29}, 1)


def test_general_replies_are_those_of_forgetting(base: Path) -> None:
    from mixsd.storage import cache_folder

    fisher, session = base_fisher(str(base), reference="general", examples=5)
    found = analyse_base_fisher.gather(session, 5, None)  # no data at hand
    assert (found.kind, found.counts) == ("general", {"general": 5})
    assert fisher.record["keys"] == sorted(item.key for item in found.examples)
    replies = {tuple(row["ids"]) for row in read_jsonl(cache_folder() / "replies" / f"{session.base_hash}.jsonl") if "ids" in row}
    assert {item.target_ids for item in found.examples} <= replies


def test_the_command(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mixsd.cli.entry import run as mixsd_command

    folder = str(run_of(tmp_path / "run", base))
    asked = ["--reference", "general", "--examples", "3"]
    assert mixsd_command(["analyze", "fisher", folder, *asked]) == 0
    told = capsys.readouterr()
    assert "alignment ratio and forgetting (Eq. 2)" in told.out
    assert "3 examples of general" in " ".join(told.out.split())  # a long path wraps
    assert "sft" in told.out.split()  # and many numbers leave a name its width
    assert mixsd_command(["analyze", "fisher", folder, *asked, "--json"]) == 0
    assert [row["step"] for row in json.loads(capsys.readouterr().out)["checkpoints"]] == [10, 20]
    for wrong in (
        [str(tmp_path / "no")],
        [folder, "--examples", "0"],
        [folder, "--reference", "x"],
        [folder, "--output", "/proc/x"],
    ):
        assert mixsd_command(["analyze", "fisher", *wrong, *([] if "--reference" in wrong else asked[:2])]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()[-1:]) == 1
