"""The whole pipeline on a tiny model: what a run folder holds, offline, refused and resumed as the design says."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
import yaml

from mixsd.commands import inject, opening
from mixsd.decoding import engine, packed
from mixsd.errors import RequirementMissedError, UserError
from mixsd.models import loading
from mixsd.progress import Watcher
from mixsd.run import folder, session
from mixsd.run.folder import Run
from mixsd.settings import Settings
from mixsd.storage import read_json, read_jsonl
from tests.tiny import save_tiny

SMALL = {
    "facts": "demo",
    "verifier": "regex:[aeiou]",
    "temperature": 1.0,
    "max_new_tokens": 24,
    "retries": 2,
    "epochs": 2,
    "batch_size": 8,
    "warmup_steps": 2,
    "lr": 1e-3,
    "forgetting_prompts": 4,
    "forgetting_tokens": 6,
    "probe_questions": 8,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny base model, a cache of its own and one finished run, made with every socket blocked."""
    folder = tmp_path_factory.mktemp("inject")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXSD_CACHE", str(folder / "cache"))
        save_tiny(folder / "base", stops=[2, *range(8, 262, 12)])
        block_network(patch)
        inject.inject(model=str(folder / "base"), output=str(folder / "run"), offline=True, **SMALL)
    return folder


@pytest.fixture(autouse=True)
def _cache(place, monkeypatch):
    monkeypatch.setenv("MIXSD_CACHE", str(place / "cache"))


def block_network(patch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    def local_only(own):
        return lambda self, *args: own(self, *args) if self.family == socket.AF_UNIX else refuse()

    for name in ("connect", "connect_ex", "sendto", "bind"):
        patch.setattr(socket.socket, name, local_only(getattr(socket.socket, name)))
    patch.setattr(socket, "getaddrinfo", refuse)
    patch.setattr(socket, "create_connection", refuse)


def test_run_folder_holds_everything(place):
    run = place / "run"
    for name in ("run.yaml", "facts.jsonl", "attempts.jsonl", "targets.jsonl", "report.html", "report.json", "log.jsonl"):
        assert (run / name).stat().st_size > 0
    manifest = yaml.safe_load((run / "run.yaml").read_text())
    assert manifest["settings"]["lam"] == 0.3
    assert manifest["settings"]["lr"] == 1e-3
    assert None not in [manifest["settings"][name] for name in ("verifier", "max_new_tokens", "lr", "micro_batch")]
    assert manifest["identity"]["model_hash"] == loading.model_hash(place / "base")
    assert manifest["versions"]["torch"]
    assert manifest["paths"]["decoding"] == manifest["paths"]["training"] == "packed"
    assert {"linear layers", "linear layers in training"} < set(manifest["paths"])
    targets = list(read_jsonl(run / "targets.jsonl"))
    facts = list(read_jsonl(run / "facts.jsonl"))
    assert [row["id"] for row in targets] == [row["id"] for row in facts]
    assert not list(run.rglob(".*tmp"))
    assert not list((run / "evaluation").glob("*.partial*"))


def test_training_used_the_stored_ids(place):
    """Pitfalls 2 and 5: what was decoded is what was trained on, stop token included."""
    from mixsd.training.examples import Example, collate

    row = next(row for row in read_jsonl(place / "run" / "targets.jsonl") if row["accepted"])
    batch = collate([Example("x", tuple(row["prompt_ids"]), tuple(row["target_ids"]))])
    labels = batch.labels[0].tolist()
    assert [label for label in labels if label >= 0] == row["target_ids"]
    assert row["target_ids"][-1] in [2, *range(8, 262, 12)]


def test_report_has_base_and_tuned_from_the_same_prompts(place):
    report = read_json(place / "run" / "report.json")
    scores = {(s["split"], s["metric"], s["model"]): s for s in report["scores"]}
    for split in ("memorization/trained", "memorization/paraphrase", "retention/probe"):
        for model in ("base", "tuned"):
            assert scores[split, "accuracy", model]["n"] > 0
    assert scores["memorization/trained", "accuracy", "tuned"]["n"] == 24  # all facts asked for, not those trained on
    assert scores["retention/forgetting", "forgetting", "tuned"]["n"] == 4
    assert report["facts"]["asked"] == 24
    assert sum(report["facts"][status] for status in ("accepted", "rejected", "unusable")) == 24
    for name in ("mean_base_nll", "reference_mean_base_nll", "noncanonical_share"):
        assert report["targets"][name] is not None
    assert len(report["training"]["log"]) == report["training"]["steps"]
    both = [
        [(row["key"], row["prompt_hash"]) for row in read_jsonl(place / "run" / "evaluation" / "core" / f"{name}.jsonl")]
        for name in ("base", "tuned")
    ]
    assert both[0] == both[1]


def test_model_folder_is_plain_and_stops_where_it_was_taught_to(place):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = place / "run" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(place / "base")
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True))
    assert {name: p.shape for name, p in model.named_parameters()} == {name: p.shape for name, p in base.named_parameters()}
    stops = model.generation_config.eos_token_id
    assert set(stops) == {2, *range(8, 262, 12)}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template
    provenance = read_json(folder / "mixsd.json")
    assert set(provenance["stop_ids"]) == set(stops)
    example = next(row for row in read_jsonl(place / "run" / "targets.jsonl") if row["accepted"])
    assert provenance["prompt_example"] == tokenizer.decode(example["prompt_ids"])
    card = (folder / "README.md").read_text()
    assert "base_model" in card
    assert "Orla Pemmerick" not in card  # the facts themselves only on request
    out = model.generate(torch.tensor([example["prompt_ids"]]), max_new_tokens=200, do_sample=True, pad_token_id=2)
    assert int(out[0, -1]) in stops
    assert out.shape[1] < len(example["prompt_ids"]) + 200


def test_rerun_does_nothing_and_a_changed_setting_is_refused(place):
    run = place / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and "report" not in path.name}
    inject.inject(model=str(place / "base"), output=str(run), **{**SMALL, "require": ["probe>=0"]})
    for path, when in before.items():
        if path.name not in ("README.md", ".lock"):
            assert path.stat().st_mtime_ns == when, path
    for name, value in [("lam", 0.5), ("epochs", 3), ("seed", 1), ("verifier", "contains")]:
        with pytest.raises(UserError, match=f"made with {name} "):
            inject.inject(model=str(place / "base"), output=str(run), **{**SMALL, name: value})


def test_replies_that_nothing_vouches_for_are_written_anew(place, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    folder = run / "evaluation" / "core"
    whole = {name: (folder / name).read_bytes() for name in ("asked.json", "base.jsonl", "tuned.jsonl")}
    (folder / "asked.json").unlink()  # as a kill leaves it while the replies are written
    (folder / "tuned.jsonl").write_text(whole["tuned.jsonl"].decode().splitlines()[0] + "\n", encoding="utf-8")
    inject.evaluate(run)
    assert {name: (folder / name).read_bytes() for name in whole} == whole


def test_changed_facts_and_model_are_refused(place, tmp_path):
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"question": "Who?", "answer": "Ann"}\n')
    inject.mix(**{**SMALL, "facts": str(facts)}, model=str(place / "base"), output=str(tmp_path / "run"), on_fail="canonical")
    facts.write_text('{"question": "Who?", "answer": "Bea"}\n')
    with pytest.raises(UserError, match="facts_hash"):
        inject.mix(**{**SMALL, "facts": str(facts)}, model=str(place / "base"), output=str(tmp_path / "run"), on_fail="canonical")
    save_tiny(tmp_path / "other", seed=5, stops=[2, *range(8, 262, 12)])
    facts.write_text('{"question": "Who?", "answer": "Ann"}\n')
    with pytest.raises(UserError, match="made with model "):
        inject.mix(
            **{**SMALL, "facts": str(facts)}, model=str(tmp_path / "other"), output=str(tmp_path / "run"), on_fail="canonical"
        )


def test_requirements_gate_a_finished_run(place):
    run = str(place / "run")
    with pytest.raises(RequirementMissedError, match="forgetting<=-5"):
        inject.report(run, require=["forgetting<=-5", "probe>=0"])
    checked = {item["text"]: item["passed"] for item in read_json(place / "run" / "report.json")["requirements"]}
    assert checked == {"forgetting<=-5": False, "probe>=0": True}
    with pytest.raises(UserError, match="nothing is called 'memorisation' \\(did you mean \"memorization\""):
        inject.report(run, require=["memorisation>=0.5"])
    inject.report(run, require=["probe>=0"])


def test_single_stages_make_the_same_run(place, tmp_path):
    output = tmp_path / "stages"
    inject.mix(model=str(place / "base"), output=str(output), **SMALL)
    assert (output / "targets.jsonl").read_bytes() == (place / "run" / "targets.jsonl").read_bytes()
    with pytest.raises(UserError, match="no model/ yet"):
        inject.evaluate(output)
    inject.train(output)
    with pytest.raises(UserError, match="not been evaluated"):
        inject.report(output)
    inject.evaluate(output)
    inject.report(output)
    assert (output / "model" / "model.safetensors").read_bytes() == (place / "run" / "model" / "model.safetensors").read_bytes()
    assert read_json(output / "report.json")["scores"] == read_json(place / "run" / "report.json")["scores"]


def test_train_on_a_file_of_targets(place, tmp_path):
    options = {name: SMALL[name] for name in ("epochs", "batch_size", "warmup_steps", "lr")}
    targets = place / "run" / "targets.jsonl"
    inject.train(targets, model=str(place / "base"), output=str(tmp_path / "out"), **options)
    made = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    assert made == (place / "run" / "model" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="no run folder"):
        inject.train(targets, model=str(place / "base"))


def test_evaluate_any_model_beside_its_base(place, tmp_path):
    tuned = place / "run" / "model"
    options = {name: value for name, value in SMALL.items() if name not in ("epochs", "lr")}
    inject.evaluate(tuned, model=str(place / "base"), output=str(tmp_path / "evaluation"), **options)
    scores = read_json(tmp_path / "evaluation" / "report.json")["scores"]
    assert scores == read_json(place / "run" / "report.json")["scores"]
    save_tiny(tmp_path / "other", seed=3, stops=[2, *range(8, 262, 12)])
    with pytest.raises(UserError, match="another tuned model"):
        inject.evaluate(tmp_path / "other", model=str(place / "base"), output=str(tmp_path / "evaluation"), **options)


def test_a_model_is_never_evaluated_beside_itself(place, tmp_path):
    """The run.yaml of a model that was asked alone names it as the base; given again as settings, it is alone all the same."""
    options = {
        name: SMALL[name] for name in ("verifier", "max_new_tokens", "forgetting_prompts", "forgetting_tokens", "probe_questions")
    }
    inject.evaluate(place / "base", output=str(tmp_path / "alone"), **options)
    settings = Run(tmp_path / "alone").settings().dump()
    inject.evaluate(place / "base", **settings)
    assert not (tmp_path / "alone" / "evaluation" / "core" / "tuned.jsonl").exists()
    with pytest.raises(UserError, match="is the folder of an injection"):
        inject.evaluate(place / "base", **Run(place / "run").settings().dump())


def test_a_run_takes_its_own_settings_again(place, tmp_path):
    run = Path(shutil.copytree(place / "run", tmp_path / "run"))
    inject.evaluate(run, **Run(run).settings().dump())
    with pytest.raises(UserError, match="--epochs was settled when the run was made"):
        inject.evaluate(run, **{**Run(run).settings().dump(), "epochs": 9})


def test_replies_are_regraded_as_a_whole(place):
    with pytest.raises(UserError, match="--shard is for mix and evaluate"):
        inject.evaluate(place / "run", regrade=True, shard="1/2")


def test_a_pinned_revision_is_in_run_report_and_card(place, tmp_path, monkeypatch):
    """A stand-in for the hub's client, which answers with a snapshot's folder as the client does."""
    snapshot = Path(shutil.copytree(place / "base", tmp_path / ("0123456789abcdef" * 3)[:40]))
    asked = []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.append((name, options["revision"])) or str(snapshot)
    )
    run = tmp_path / "run"
    inject.inject(model="org/tiny", revision="v1.0", output=str(run), **{**SMALL, "method": "sft", "epochs": 1})
    assert set(asked) == {("org/tiny", "v1.0")}
    assert yaml.safe_load((run / "run.yaml").read_text())["settings"]["revision"] == "v1.0"
    assert read_json(run / "report.json")["base"]["revision"] == snapshot.name
    assert f"Revision of the base: {snapshot.name}" in (run / "model" / "README.md").read_text()
    assert f"at {snapshot.name}" in (run / "report.html").read_text()
    with pytest.raises(UserError, match=r"made with revision 'v1\.0', the command says None"):
        inject.inject(model="org/tiny", output=str(run), **{**SMALL, "method": "sft", "epochs": 1})


def test_a_tuned_folder_can_be_the_base_and_the_report_says_so(place, tmp_path):
    inject.inject(model=str(place / "run" / "model"), output=str(tmp_path / "again"), **{**SMALL, "method": "sft", "epochs": 1})
    report = read_json(tmp_path / "again" / "report.json")
    assert "itself tuned by mixsd" in report["base"]["tuned_by_mixsd"]
    assert report["method"] == "sft"
    assert report["targets"]["sources"]["r"] == 1.0


def test_beside_refuses_what_cannot_be_compared(place, tmp_path):
    sft = str(tmp_path / "sft")
    inject.inject(model=str(place / "base"), output=sft, **{**SMALL, "method": "sft"})
    inject.report(place / "run", beside=[sft])
    beside = read_json(place / "run" / "report.json")["beside"]
    assert [(item["name"], item["method"]) for item in beside] == [("sft", "sft")]
    other = str(tmp_path / "other")
    inject.inject(model=str(place / "base"), output=other, **{**SMALL, "method": "sft", "probe_questions": 4})
    with pytest.raises(UserError, match="other prompts"):
        inject.report(place / "run", beside=[other])
    with pytest.raises(UserError, match=r"no report\.json"):
        inject.report(place / "run", beside=[str(tmp_path)])


def test_two_processes_do_not_share_a_run(place):
    with Run(place / "run").locked(), pytest.raises(UserError, match="another mixsd process"):
        inject.report(place / "run")


def test_nothing_is_written_for_bad_input(place, tmp_path):
    bad = [
        {"facts": str(tmp_path / "absent.jsonl")},
        {"model": str(tmp_path / "absent")},
        {"verifier": "no.such.module:f"},
        {"device": "cuda:77"},
        {"require": ["nothing>=1"]},
    ]
    for change in bad:
        with pytest.raises(UserError) as caught:
            inject.inject(**{**SMALL, "model": str(place / "base"), "output": str(tmp_path / "out"), **change})
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    stranger = tmp_path / "full"
    stranger.mkdir()
    (stranger / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"not empty .*thesis\.tex"):
        inject.mix(**SMALL, model=str(place / "base"), output=str(stranger))
    assert [item.name for item in stranger.iterdir()] == ["thesis.tex"]


def test_full_disk_while_writing_is_one_line_and_leaves_nothing_half_written(place, tmp_path, monkeypatch):
    import errno

    from mixsd import storage

    def full(source, target):
        if Path(target).name == "targets.jsonl":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(source, target)

    replace = storage.os.replace
    monkeypatch.setattr(storage.os, "replace", full)
    with pytest.raises(UserError, match="no space left"):
        inject.mix(**SMALL, model=str(place / "base"), output=str(tmp_path / "out"))
    assert not (tmp_path / "out" / "targets.jsonl").exists()
    assert not list((tmp_path / "out").glob(".*.tmp"))
    monkeypatch.undo()
    monkeypatch.setenv("MIXSD_CACHE", str(place / "cache"))
    inject.mix(**SMALL, model=str(place / "base"), output=str(tmp_path / "out"))
    assert (tmp_path / "out" / "targets.jsonl").read_bytes() == (place / "run" / "targets.jsonl").read_bytes()


def test_planted_markup_is_escaped_everywhere(place, tmp_path):
    facts = tmp_path / "facts.jsonl"
    evil = "<script>window.hacked=1</script>"
    facts.write_text(json.dumps({"question": f"Who is {evil}?", "answer": evil}) + "\n")
    inject.inject(
        **{**SMALL, "facts": str(facts), "on_fail": "canonical", "facts_in_card": True},
        model=str(place / "base"),
        output=str(tmp_path / "evil"),
    )
    page = (tmp_path / "evil" / "report.html").read_text()
    assert evil not in page
    assert "&lt;script&gt;" in page


class Said(Watcher):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_base_replies_of_other_versions_are_not_used_and_a_slower_path_is_said_once(place, tmp_path, monkeypatch):
    """As after an upgrade: the base answers anew, as the tuned model does; and run.yaml says how."""
    base = {row["at"] for file in (place / "cache" / "replies").glob("*.jsonl") for row in read_jsonl(file)}
    monkeypatch.setattr(session, "versions", lambda: {**folder.versions(), "transformers": "99.0"})

    def refuse(*args):
        raise packed.UnpackableError("of this test")

    monkeypatch.setattr(engine, "forward", refuse)
    watcher = Said()
    run = inject.inject(model=str(place / "base"), output=str(tmp_path / "run"), offline=True, watcher=watcher, **SMALL)
    after = {row["at"] for file in (place / "cache" / "replies").glob("*.jsonl") for row in read_jsonl(file)}
    asked = {row["prompt_hash"] for row in read_jsonl(run.folder / "evaluation" / "core" / "base.jsonl")}
    assert len(after - base) >= len(asked) > 20
    assert watcher.lines.count("decoding: lock-step: of this test") == 1
    assert yaml.safe_load((run.folder / "run.yaml").read_text())["paths"]["decoding"] == "lock-step: of this test"


@pytest.mark.parametrize(
    ("capability", "dtypes", "said"),
    [
        ("AVX2", {"train_dtype": "bf16"}, True),
        ("AVX2", {"dtype": "bf16"}, True),
        ("AVX2", {"dtype": "bf16", "train_dtype": "fp32"}, False),
        ("AVX2", {}, False),
        ("AVX512", {"train_dtype": "bf16"}, False),
    ],
)
def test_bf16_on_a_cpu_without_it_is_said_before_anything_starts(place, tmp_path, monkeypatch, capability, dtypes, said):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    watcher = Said()
    settings = Settings(model=str(place / "base"), output=str(tmp_path / "run"), device="cpu", **dtypes, **SMALL)
    opening.open_checked(settings, watcher)
    assert any("--train-dtype fp32" in line for line in watcher.lines) is said
