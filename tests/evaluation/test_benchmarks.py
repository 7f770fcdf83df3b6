"""Benchmarks in a run: asked as told, resumed, judged again, left out with a reason; on a tiny model and invented records."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from mixsd import sandbox
from mixsd.commands import inject
from mixsd.decoding import engine
from mixsd.errors import UserError
from mixsd.evaluation import questions
from mixsd.evaluation.grading import maths
from mixsd.progress import Watcher
from mixsd.storage import read_json, read_jsonl, write_jsonl
from tests import fresh
from tests.commands.test_inject import SMALL, block_network
from tests.evaluation.benchmarks.small import FILES, publish, write
from tests.tiny import save_tiny

ASK = {"benchmark_tokens": 12, "forgetting_prompts": 2, "forgetting_tokens": 4, "probe_questions": 2}


class Listening(Watcher):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and a tuned model with a context that holds MMLU's examples, a character a token."""
    folder = tmp_path_factory.mktemp("models")
    stops = [2, *range(8, 262, 24)]
    save_tiny(folder / "base", stops=stops, max_position_embeddings=4096)
    save_tiny(folder / "tuned", stops=stops, max_position_embeddings=4096, seed=1)
    return folder


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """All five benchmarks, two to five records each."""
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIXSD_DATA", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    block_network(monkeypatch)
    publish(monkeypatch)
    for name, files in FILES.items():
        for stem, records in files.items():
            write(tmp_path / "data" / name / f"{stem}.jsonl", records)
    return tmp_path / "data"


def rows(folder, suite, model):
    return list(read_jsonl(folder / "evaluation" / suite / f"{model}.jsonl"))


def scores(folder):
    return {
        (item["suite"], item["split"], item["metric"], item["model"]): item
        for item in read_json(folder / "report.json")["scores"]
    }


def beside(models, tmp_path, data, output="evaluation", **options):
    options = {**ASK, "data": str(data), "offline": True, **options}
    inject.evaluate(models / "tuned", model=str(models / "base"), output=str(tmp_path / output), **options)
    return tmp_path / output


def test_every_benchmark_beside_its_base(models, tmp_path, data):
    suites = ["aime24", "math500", "gsm8k", "humaneval", "mmlu"]
    folder = beside(models, tmp_path, data, suite=suites, aime_samples=3, allow_code_execution=True, allow_weak_sandbox=True)
    found = scores(folder)
    assert {suite: len(rows(folder, suite, "base")) for suite in suites} == {
        **{"aime24": 2 * 3, "math500": 2, "gsm8k": 3},
        **{"humaneval": 2, "mmlu": 5},
    }
    for suite in suites:
        base, tuned = rows(folder, suite, "base"), rows(folder, suite, "tuned")
        assert [row["prompt_hash"] for row in base] == [row["prompt_hash"] for row in tuned]
        assert all(len(row["reply_ids"]) <= 12 for row in base + tuned)
        assert all(row["outcome"] in ("correct", "wrong", "unparseable") for row in base + tuned)
        assert found[suite, suite, "accuracy_delta", "tuned"]["n"] == len(base)
    assert len({tuple(row["reply_ids"]) for row in rows(folder, "aime24", "base") if row["group"] == "60"}) == 3, "sampled"
    assert found["held-out", "average", "drop", "tuned"]["value"] is not None
    assert found["mmlu", "mmlu/anatomy", "accuracy", "base"]["n"] == 2
    asked = read_json(folder / "evaluation" / "humaneval" / "asked.json")
    assert asked["sandbox"]["kind"] == sandbox.isolation().kind
    asked = read_json(folder / "evaluation" / "aime24" / "asked.json")
    assert (asked["samples"], asked["temperature"], asked["top_k"], asked["tokens"]) == (3, 0.7, 20, 12)
    assert asked["where"] == str(data / "aime24")
    assert (folder / "report.html").stat().st_size > 0


def test_replies_are_those_of_the_oracle(models, tmp_path, data):
    """Greedy and sampled, one row at a time and without a cache; in float32, as the run decodes."""
    from mixsd.commands.opening import open_checked
    from mixsd.decoding import oracle
    from mixsd.decoding.requests import Request, Sampling
    from mixsd.evaluation.asked import examine
    from mixsd.evaluation.questions import prompts_of
    from mixsd.models import loading
    from mixsd.settings import build

    folder = beside(models, tmp_path, data, suite=["aime24", "gsm8k"], aime_samples=2)
    settings = build({"model": str(models / "base"), "output": "x", "data": str(data), "aime_samples": 2, **ASK}, "here")
    renderer = open_checked(settings, Watcher(), without_facts=True).renderer
    model = loading.load_model(models / "base", dtype=__import__("torch").float32, device=__import__("torch").device("cpu"))
    for suite in ("aime24", "gsm8k"):
        exam = examine(suite, settings)
        said = {row["key"]: row["reply_ids"] for row in rows(folder, suite, "base")}
        sampling = Sampling(renderer.stops.ids, temperature=exam.asked.temperature, top_k=exam.asked.top_k)
        for prompt in prompts_of(exam.questions(0), renderer, 4096):
            request = Request(prompt.key, prompt.ids, prompt.max_new_tokens, noise=prompt.noise)
            assert oracle.decode(model, request, sampling).ids == said[prompt.key]


def test_a_reply_never_outgrows_the_context(models, tmp_path, data):
    save_tiny(tmp_path / "short", stops=[2], max_position_embeddings=400)
    inject.evaluate(
        tmp_path / "short", output=str(tmp_path / "alone"), suite=["math500", "mmlu"], data=str(data), benchmark_tokens=10_000
    )
    asked = rows(tmp_path / "alone", "math500", "base")
    assert all(0 < len(row["reply_ids"]) < 400 for row in asked)
    assert {row["outcome"] for row in rows(tmp_path / "alone", "mmlu", "base")} == {"error"}, "no room for the five examples"


def test_nothing_is_generated_twice(models, tmp_path, data, monkeypatch):
    generated = count_requests(monkeypatch)
    beside(models, tmp_path, data, suite=["gsm8k"], limit=2)
    assert len(generated) == 4
    folder = beside(models, tmp_path, data, suite=["gsm8k"])
    assert len(generated) == 6, "a larger sample holds the smaller one"
    assert len(rows(folder, "gsm8k", "tuned")) == 3
    beside(models, tmp_path, data, suite=["gsm8k"])
    beside(models, tmp_path, data, output="another", suite=["gsm8k"])
    assert len(generated) == 6 + 3, "the base's replies are everyone's"
    beside(models, tmp_path, data, suite=["gsm8k"], benchmark_tokens=13)
    assert len(generated) == 9 + 6, "another length is another reply"
    assert read_json(folder / "evaluation" / "gsm8k" / "asked.json")["tokens"] == 13


def count_requests(monkeypatch):
    generated = []
    decode_all = engine.decode_all

    def counting(model, requests, sampling, **options):
        generated.extend(request.key for request in requests)
        return decode_all(model, requests, sampling, **options)

    monkeypatch.setattr(questions, "decode_all", counting)
    return generated


def test_the_sample_is_the_same_whatever_the_order(models, tmp_path, data):
    one = rows(beside(models, tmp_path, data, suite=["gsm8k"], limit=2), "gsm8k", "base")
    write(data / "gsm8k" / "test.jsonl", list(reversed(FILES["gsm8k"]["test"])))
    two = rows(beside(models, tmp_path, data, output="again", suite=["gsm8k"], limit=2), "gsm8k", "base")
    assert sorted(row["key"] for row in one) == sorted(row["key"] for row in two)
    asked = [read_json(tmp_path / name / "evaluation" / "gsm8k" / "asked.json") for name in ("evaluation", "again")]
    assert asked[0]["data"] == asked[1]["data"]


def test_other_data_is_another_question(models, tmp_path, data, monkeypatch):
    folder = beside(models, tmp_path, data, suite=["gsm8k"])
    before = read_json(folder / "evaluation" / "gsm8k" / "asked.json")["data"]
    write(data / "gsm8k" / "test.jsonl", FILES["gsm8k"]["test"][:2])
    publish(monkeypatch, gsm8k=2)
    beside(models, tmp_path, data, suite=["gsm8k"])
    assert read_json(folder / "evaluation" / "gsm8k" / "asked.json")["data"] != before
    assert len(rows(folder, "gsm8k", "tuned")) == 2


def test_regrade_judges_and_generates_nothing(models, tmp_path, data, monkeypatch):
    folder = beside(models, tmp_path, data, suite=["gsm8k", "core"])
    untouched = (folder / "evaluation" / "core" / "base.jsonl").read_bytes()
    file = folder / "evaluation" / "gsm8k" / "base.jsonl"
    said = list(read_jsonl(file))
    said[0]["reply"] = "So it is \\boxed{4}."
    write_jsonl(file, said)
    generated = count_requests(monkeypatch)
    inject.evaluate(folder, regrade=True)
    assert rows(folder, "gsm8k", "base")[0]["outcome"] == "correct"
    assert (folder / "evaluation" / "core" / "base.jsonl").read_bytes() == untouched
    monkeypatch.setattr(maths, "scorer_version", "another")
    inject.evaluate(folder, regrade=True, suite=["gsm8k"], data=str(data))
    assert read_json(folder / "evaluation" / "gsm8k" / "asked.json")["scorer"] == "another"
    assert not generated
    with pytest.raises(UserError, match="no replies to mmlu"):
        inject.evaluate(folder, regrade=True, suite=["mmlu"], data=str(data))
    write(data / "gsm8k" / "test.jsonl", [*FILES["gsm8k"]["test"][:2], {"question": "Else?", "answer": "#### 5"}])
    with pytest.raises(UserError, match="other data"):
        inject.evaluate(folder, regrade=True, suite=["gsm8k"], data=str(data))


def test_a_model_alone(models, tmp_path, data):
    inject.evaluate(models / "base", output=str(tmp_path / "alone"), suite=["gsm8k", "core"], data=str(data), **ASK)
    report = read_json(tmp_path / "alone" / "report.json")
    assert report["alone"]
    assert {item["model"] for item in report["scores"]} == {"base"}
    assert not (tmp_path / "alone" / "evaluation" / "gsm8k" / "tuned.jsonl").exists()
    inject.evaluate(tmp_path / "alone", suite=["math500"], data=str(data), benchmark_tokens=12)
    inject.report(tmp_path / "alone")
    assert "math500" in {item["suite"] for item in read_json(tmp_path / "alone" / "report.json")["scores"]}
    with pytest.raises(UserError, match="alone"):
        inject.evaluate(models / "tuned", model=str(models / "base"), output=str(tmp_path / "alone"), data=str(data), **ASK)


def test_requirements_on_benchmarks(models, tmp_path, data):
    with pytest.raises(UserError, match=r"gsm9k.*did you mean"):
        beside(models, tmp_path, data, suite=["gsm8k"], require=["gsm9k>=0.1"])
    assert not (tmp_path / "evaluation").exists()
    folder = beside(models, tmp_path, data, suite=["gsm8k"], require=["gsm8k>=0", "gsm8k_delta>=-1"])
    assert [item["passed"] for item in read_json(folder / "report.json")["requirements"]] == [True, True]
    with pytest.raises(UserError, match="drop"):
        beside(models, tmp_path, data, suite=["gsm8k"], require=["drop<=0.1"])


class TestPresets:
    def test_quick_takes_what_is_at_hand_and_says_what_is_not(self, models, tmp_path, data):
        (data / "gsm8k" / "test.jsonl").unlink()
        watcher = Listening()
        folder = beside(models, tmp_path, data, suite=["quick"], watcher=watcher)
        report = read_json(folder / "report.json")
        assert set(report["asked"]) == {"core", "aime24", "math500", "mmlu"}
        assert "--allow-code-execution" in report["skipped"]["humaneval"]
        assert str(data / "gsm8k") in report["skipped"]["gsm8k"]
        assert [text for text in watcher.said if text.startswith("gsm8k is not asked: ")]
        assert {name: report["asked"][name]["samples"] for name in ("aime24", "mmlu")} == {"aime24": 1, "mmlu": 1}
        assert report["asked"]["mmlu"]["tokens"] == 12, "what was asked for goes before the preset"
        again = Listening()
        inject.evaluate(folder, watcher=again, suite=["quick"], data=str(data), benchmark_tokens=12)
        assert [text for text in again.said if text.startswith("gsm8k is not asked: ")], "of a run, too"

    def test_what_was_left_out_may_be_asked_later(self, models, tmp_path, data):
        folder = beside(models, tmp_path, data, suite=["quick"])
        assert "humaneval" in read_json(folder / "report.json")["skipped"]
        inject.evaluate(
            folder, suite=["humaneval"], data=str(data), benchmark_tokens=12, allow_code_execution=True, allow_weak_sandbox=True
        )
        inject.report(folder)
        report = read_json(folder / "report.json")
        assert report["skipped"] == {}
        assert ("held-out", "average", "accuracy", "tuned") in scores(folder)

    def test_quick_asks_fifty(self, models, tmp_path, data, monkeypatch):
        many = [{"question": f"{n} and one?", "answer": f"Plus one.\n#### {n + 1}"} for n in range(70)]
        write(data / "gsm8k" / "test.jsonl", many)
        publish(monkeypatch, gsm8k=70)
        folder = beside(models, tmp_path, data, suite=["quick"], benchmark_tokens=1)
        assert len(rows(folder, "gsm8k", "base")) == 50
        assert read_json(folder / "evaluation" / "gsm8k" / "asked.json")["limit"] == 50

    def test_paper_asks_all(self, models, tmp_path, data):
        folder = beside(
            models, tmp_path, data, suite=["paper"], benchmark_tokens=1, allow_code_execution=True, allow_weak_sandbox=True
        )
        report = read_json(folder / "report.json")
        assert report["skipped"] == {}
        assert report["asked"]["aime24"]["samples"] == 16
        assert {"core", "aime24", "math500", "gsm8k", "humaneval", "mmlu"} == set(report["asked"])

    def test_what_is_named_itself_has_to_be_there(self, models, tmp_path, data):
        (data / "gsm8k" / "test.jsonl").unlink()
        for suite in (["gsm8k"], ["quick", "gsm8k"]):
            with pytest.raises(UserError, match=r"GSM8K: no test .*gsm8k"):
                beside(models, tmp_path, data, suite=suite)
        with pytest.raises(UserError, match="--allow-code-execution"):
            beside(models, tmp_path, data, suite=["humaneval"])
        with pytest.raises(UserError, match='did you mean "gsm8k"'):
            beside(models, tmp_path, data, suite=["gsm8"])
        assert not (tmp_path / "evaluation").exists()


def test_a_fault_in_the_data_shows_before_the_training(models, tmp_path, data):
    write(data / "gsm8k" / "test.jsonl", [{"question": "Two?", "answer": "no mark"}])
    with pytest.raises(UserError, match=r"test\.jsonl: line 1"):
        inject.inject(model=str(models / "base"), output=str(tmp_path / "run"), suite=["gsm8k"], data=str(data), **SMALL)
    assert not (tmp_path / "run").exists()


def test_the_dry_run_counts_reasoned_replies(models, tmp_path, data, monkeypatch):
    from mixsd.commands.dry_run import plan
    from mixsd.settings import build

    write(data / "gsm8k" / "test.jsonl", [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(2000)])
    publish(monkeypatch, gsm8k=2000)
    options = {"model": str(models / "base"), "output": str(tmp_path / "run"), "data": str(data), **SMALL}
    plain = plan(build({**options, "suite": ["core"]}, "here"), Watcher())
    more = plan(build({**options, "suite": ["core", "gsm8k"]}, "here"), Watcher())
    assert any("has 48 tokens" in text for text in plain["assumptions"])
    assert plan(build({**options, "suite": ["gsm8k"]}, "here"), Watcher())["assumptions"] == [
        text.replace("has 48 tokens", "has 300 tokens") for text in plain["assumptions"]
    ]
    assert more["evaluation"]["decoded"] > plain["evaluation"]["decoded"]


def test_shards_and_then_the_whole(models, tmp_path, data, monkeypatch):
    whole = rows(beside(models, tmp_path, data, suite=["gsm8k", "mmlu"]), "mmlu", "tuned")
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "another"))
    for shard in ("1/2", "2/2"):
        beside(models, tmp_path, data, output="parts", suite=["gsm8k", "mmlu"], shard=shard)
    generated = count_requests(monkeypatch)
    assert rows(beside(models, tmp_path, data, output="parts", suite=["gsm8k", "mmlu"]), "mmlu", "tuned") == whole
    assert not generated


def test_a_benchmark_of_the_users_own(models, tmp_path, data, monkeypatch):
    (tmp_path / "own_exam.py").write_text(
        "from dataclasses import replace\n"
        "from mixsd.evaluation.benchmarks.published import gsm8k\n"
        "def made():\n    return replace(gsm8k(), name='mine', title='Mine')\n"
        "def broken():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = beside(models, tmp_path, data, suite=["own_exam:made"])
    assert ("own_exam:made", "own_exam:made", "accuracy", "base") in scores(folder)
    with pytest.raises(UserError, match="expected a Benchmark"):
        beside(models, tmp_path, data, suite=["own_exam:broken"])


def test_a_model_without_a_template_may_write_lines(tmp_path, data):
    """Its reply ends at an end token, not at a line break; what it goes on to ask itself is no part of it."""
    from mixsd.commands.opening import open_checked
    from mixsd.evaluation.asked import examine
    from mixsd.evaluation.questions import Reply, ask
    from mixsd.settings import build

    save_tiny(tmp_path / "plain", template=None)
    settings = build({"model": str(tmp_path / "plain"), "output": "x", "data": str(data), **ASK}, "here")
    renderer = open_checked(settings, Watcher(), without_facts=True).renderer
    text = "First.\nSo \\boxed{4}.\nQuestion: and \\boxed{9}?"

    class Said:
        def replies(self, prompts):
            assert all(prompt.lines for prompt in prompts)
            return {prompt.key: Reply(renderer.tokenizer.encode(text, add_special_tokens=False), False) for prompt in prompts}

    said = ask(examine("gsm8k", settings).questions(0), renderer, Said())
    assert [row["reply"] for row in said] == ["First.\nSo \\boxed{4}."] * 3
    assert [row["outcome"] for row in said].count("correct") == 1


def test_examples_of_a_subject_are_asked_together(models, data):
    from mixsd.commands.opening import open_checked
    from mixsd.evaluation.asked import examine
    from mixsd.evaluation.questions import prompts_of
    from mixsd.settings import build

    settings = build({"model": str(models / "base"), "output": "x", "data": str(data), **ASK}, "here")
    renderer = open_checked(settings, Watcher(), without_facts=True).renderer
    prompts = prompts_of(examine("mmlu", settings).questions(0), renderer, 4096)
    ordered = [prompt for _, prompt in questions._longest_first([("", prompt) for prompt in prompts])]
    groups = [prompt.group for prompt in ordered]
    assert groups == ["high_school_physics"] * 3 + ["anatomy"] * 2
    lengths = [len(prompt.ids) for prompt in ordered]
    assert lengths[:3] == sorted(lengths[:3], reverse=True)
    assert max(lengths) == lengths[0]


@pytest.mark.parametrize("delay", [0.0, 1.5])
def test_killed_and_run_again(models, tmp_path, data, delay):
    """SIGKILL while replies are being made; the second call makes only those that are missing (pitfall 30)."""
    write(data / "gsm8k" / "test.jsonl", [{"question": f"{n} and {n}?", "answer": f"Twice.\n#### {2 * n}"} for n in range(40)])
    command = ["evaluate", str(models / "tuned"), "--base", str(models / "base")]
    command += ["--output", str(tmp_path / "killed"), "--suite", "gsm8k", "--data", str(data), "--benchmark-tokens", "200"]
    command += ["--limit", "40"]
    process = fresh.start(fresh.command, *command, "--token-budget", "800", output=tmp_path / "printed")
    journal = None
    end = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < end:
        found = list((tmp_path / "cache" / "replies").glob("*.jsonl"))
        if found and len(found[0].read_text().splitlines()) >= 5:
            journal = found[0]
            time.sleep(delay)
            break
        time.sleep(0.02)
    assert journal, (tmp_path / "printed").read_text()
    process.kill()
    process.join()
    before = [json.loads(line)["at"] for line in journal.read_text().splitlines() if line.endswith("}") and '"ids"' in line]
    again = fresh.start(fresh.command, *command, output=tmp_path / "printed")
    again.join(120)
    assert again.exitcode == 0, (tmp_path / "printed").read_text()
    after = [json.loads(line)["at"] for line in journal.read_text().splitlines() if line.endswith("}") and '"ids"' in line]
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 40
    undisturbed = beside(models, tmp_path, data, suite=["gsm8k"], benchmark_tokens=200, limit=40)
    for model in ("base", "tuned"):
        assert rows(tmp_path / "killed", "gsm8k", model) == rows(undisturbed, "gsm8k", model)


BACKEND = """
import torch
from mixsd.models import loading
from mixsd.decoding import engine

def connect(folder, *, device, dtype, trust_remote_code):
    model = loading.load_model(folder, dtype=getattr(torch, dtype), device=torch.device(device)).eval()
    return lambda take, sampling, **options: engine.decode(model, take, sampling, token_budget=4000, **options)
"""


def test_another_backend_answers_in_its_own_process(models, tmp_path, data, monkeypatch):
    (tmp_path / "own_engine.py").write_text(BACKEND)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(subprocess, "Popen", fresh.Forked)
    asked = {"suite": ["aime24", "core"], "aime_samples": 2, "limit": 2}  # the engine's process knows the published number
    here = beside(models, tmp_path, data, **asked)
    generated = count_requests(monkeypatch)
    there = beside(models, tmp_path, data, output="there", backend="own_engine:connect", **asked)
    assert not generated, "nothing is decoded here, not even the reference replies"
    for suite in ("aime24", "core"):
        for model in ("base", "tuned"):
            assert rows(here, suite, model) == rows(there, suite, model)
    assert Path(there / "backend.log").is_file()
