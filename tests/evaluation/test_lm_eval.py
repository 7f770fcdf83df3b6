"""The adapter to lm-evaluation-harness: the figures are lm-eval's own, the rows are ours."""

import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mixsd.errors import MixsdError, UserError
from mixsd.evaluation import lm_eval_rows, lm_eval_tasks
from mixsd.models import loading
from tests.tiny import save_tiny

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'mixsd[lm-eval]'")

CAPITALS = dict(
    pair.split(":")
    for pair in (
        "France:Paris Germany:Berlin Italy:Rome Spain:Madrid Portugal:Lisbon Greece:Athens Austria:Vienna Poland:Warsaw "
        "Hungary:Budapest Norway:Oslo Sweden:Stockholm Finland:Helsinki Denmark:Copenhagen Ireland:Dublin Belgium:Brussels "
        "Switzerland:Bern Romania:Bucharest Bulgaria:Sofia Serbia:Belgrade Croatia:Zagreb Russia:Moscow Turkey:Ankara "
        "Egypt:Cairo Kenya:Nairobi Ghana:Accra Senegal:Dakar Morocco:Rabat Tunisia:Tunis Japan:Tokyo China:Beijing "
        "Thailand:Bangkok Vietnam:Hanoi Nepal:Kathmandu Iran:Tehran Iraq:Baghdad Canada:Ottawa Cuba:Havana Peru:Lima "
        "Chile:Santiago Ecuador:Quito"
    ).split()
)
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "Question: What is the capital of {{country}}?\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{choices.index(capital)}}",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
}
GENERATE = {
    "output_type": "generate_until",
    "doc_to_text": "Question: What is the capital of {{country}}?\nAnswer: The capital of {{country}} is",
    "doc_to_target": "{{capital}}",
    "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 16, "do_sample": False},
    "filter_list": [
        {"name": "strict", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]},
        {"name": "word", "filter": [{"function": "regex", "regex_pattern": r"([A-Z]\w+)\W*$"}, {"function": "take_first"}]},
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}],
}
ONE_FILTER = {key: value for key, value in GENERATE.items() if key != "filter_list"}
ROW = {
    "key", "split", "group", "labels", "prompt_hash", "reply", "reply_ids", "extracted", "outcome", "truncated", "metrics",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _data_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("lm-eval") / "model")


def documents(count=12):
    names = list(CAPITALS.values())
    docs = []
    for place, (country, capital) in enumerate(list(CAPITALS.items())[:count]):
        choices = [capital, *(names[(place + step) % len(names)] for step in (7, 13, 22))]
        docs.append({"country": country, "capital": capital, "choices": choices[place % 4 :] + choices[: place % 4]})
    return docs


def write_task(folder: Path, kind, name="own", docs=None, **extra):
    """A task file with its data beside it; returns the path as a user would give it."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in (documents() if docs is None else docs)))
    kwargs = {"data_files": {"test": str(data)}}
    config = {"task": name, "dataset_path": "json", "dataset_kwargs": kwargs, "test_split": "test", **kind, **extra}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"metadata": {"version": 2.0}, **config}))
    return str(path)


def run(task, model, **options):
    return lm_eval_tasks.run(task, model, **{"device": "cpu", "dtype": "float32", "limit": None, "offline": True, **options})


def test_a_choice_task_gives_rows_that_say_what_its_aggregate_says(tmp_path, model, no_network, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    ran = run(write_task(tmp_path, CHOICE), model, say=said.append)
    assert no_network == []
    assert capfd.readouterr() == ("", "")
    assert said == ["lm-eval:" + str(tmp_path / "own.yaml") + ": 48 requests"]
    assert [row["key"] for row in ran.rows] == [f"own/{i}" for i in range(12)]
    for row, doc in zip(ran.rows, documents(), strict=True):
        assert set(row) == ROW | {"loglikelihoods"}
        best = max(range(4), key=row["loglikelihoods"].__getitem__)
        assert (row["split"], row["group"], row["labels"], row["reply_ids"]) == ("own", row["key"], [], [])
        assert row["reply"] == doc["choices"][best]
        assert row["outcome"] == ("correct" if row["reply"] == doc["capital"] else "wrong")
        assert (row["extracted"], row["truncated"], set(row["metrics"])) == (None, False, {"acc,none", "acc_norm,none"})
    for metric in ("acc,none", "acc_norm,none"):
        assert ran.results[metric] == pytest.approx(sum(row["metrics"][metric] for row in ran.rows) / 12)
    assert 0 < ran.results["acc_stderr,none"] < 1
    json.dumps([ran.rows, ran.results, ran.about], allow_nan=False)
    own = ran.about["tasks"]["own"]
    assert (own["version"], own["n"], own["of"], own["num_fewshot"], own["outcome_metric"]) == (2.0, 12, 12, 0, "acc")
    assert ran.about["seeds"] == {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
    assert (ran.about["n"], ran.about["limit"], ran.about["chat_template"], ran.about["undefined"]) == (12, None, False, [])


def test_a_generating_task_keeps_each_filter_apart(tmp_path, model):
    ran = run(write_task(tmp_path, GENERATE), model)
    assert [row["key"] for row in ran.rows[:1] + ran.rows[-1:]] == ["own/0/strict", "own/11/word"]
    assert {row["group"] for row in ran.rows} == {f"own/{i}" for i in range(12)}
    assert all(set(row) == ROW and isinstance(row["extracted"], str) for row in ran.rows)
    assert any(row["reply"] for row in ran.rows)
    assert {row["extracted"] for row in ran.rows if row["key"].endswith("strict")} == {
        row["reply"].strip() for row in ran.rows if row["key"].endswith("strict")
    }
    assert {name for row in ran.rows for name in row["metrics"]} == {"exact_match,strict", "exact_match,word"}
    assert {row["outcome"] for row in ran.rows} <= {"correct", "wrong"}
    json.dumps([ran.rows, ran.results, ran.about], allow_nan=False)


def test_a_limit_takes_the_same_questions_from_a_shuffled_file_and_fewer_are_part_of_more(tmp_path, model):
    shuffled = documents()
    random.Random(1).shuffle(shuffled)
    first = write_task(tmp_path / "a", CHOICE)
    second = write_task(tmp_path / "b", CHOICE, docs=shuffled)
    five, nine, other = run(first, model, limit=5), run(first, model, limit=9), run(second, model, limit=5)
    whole = run(first, model, limit=99)

    def asked(ran):
        return {row["prompt_hash"]: (row["reply"], row["metrics"]) for row in ran.rows}

    assert len(asked(five)) == 5
    assert asked(five) == asked(other)
    assert asked(five).items() <= asked(nine).items() <= asked(whole).items()
    assert [row["key"] for row in five.rows] != [f"own/{i}" for i in range(5)]
    by_key = {row["key"]: row for row in whole.rows}
    assert all(by_key[row["key"]] == row for row in five.rows)
    for name in ("data_hash", "config_hash", "n"):
        assert five.about[name] == other.about[name]
    assert five.about["data_hash"] != nine.about["data_hash"]
    assert five.results["acc,none"] == sum(row["metrics"]["acc,none"] for row in five.rows) / 5
    with pytest.raises(UserError, match="a limit of 0"):
        run(first, model, limit=0)


def test_a_perplexity_has_no_outcome(tmp_path, model):
    kind = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{country}} and {{capital}}"}
    ran = run(write_task(tmp_path, kind), model)
    assert {(row["outcome"], row["reply"], row["extracted"]) for row in ran.rows} == {(None, "", None)}
    assert all(row["loglikelihoods"][0] < 0 and row["metrics"] == {} for row in ran.rows)
    assert ran.results["bits_per_byte,none"] > 0
    assert ran.about["tasks"]["own"]["outcome_metric"] is None


def test_a_group_names_its_tasks(tmp_path, model):
    """One task is written out in the group's file, the other lies beside it."""
    one = yaml.safe_load(Path(write_task(tmp_path, CHOICE, "one")).read_text())
    (tmp_path / "one.yaml").unlink()
    write_task(tmp_path, CHOICE, "two")
    aggregate = [{"metric": "acc", "weight_by_size": True}]
    group = tmp_path / "both.yaml"
    group.write_text(yaml.safe_dump({"group": "both", "task": [one, "two"], "aggregate_metric_list": aggregate}))
    ran = run(str(group), model, limit=3)
    assert {row["split"] for row in ran.rows} == {"both::one", "two"} == set(ran.about["tasks"])
    assert len(ran.rows) == len({row["key"] for row in ran.rows}) == 6
    assert ran.results["both/acc,none"] == ran.results["both::one/acc,none"] == ran.results["two/acc,none"]


def test_the_chat_template_is_used_only_when_asked_for(tmp_path, model):
    task = write_task(tmp_path, ONE_FILTER)
    plain, again, chat = run(task, model, limit=2), run(task, model, limit=2), run(task, model, limit=2, chat_template=True)
    assert plain == again
    assert {row["prompt_hash"] for row in plain.rows}.isdisjoint(row["prompt_hash"] for row in chat.rows)
    assert chat.about["chat_template"] is True


def test_an_unknown_task_gets_a_hint(tmp_path, model):
    with pytest.raises(UserError, match=r'lm-eval:arc_esay: .*did you mean "arc_easy"'):
        lm_eval_tasks.check("arc_esay")
    with pytest.raises(UserError, match="no such file"):
        lm_eval_tasks.check(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("task: [")
    with pytest.raises(UserError, match="cannot be read as a task"):
        lm_eval_tasks.check(str(tmp_path / "bad.yaml"))
    (tmp_path / "other.yaml").write_text("lam: 0.3")
    with pytest.raises(UserError, match="needs `task: NAME`"):
        run(str(tmp_path / "other.yaml"), model)
    lm_eval_tasks.check("arc_easy")
    lm_eval_tasks.check("mmlu")


def test_without_lm_eval_the_message_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else find(name, *rest))
    with pytest.raises(UserError, match=re.escape("pip install 'mixsd[lm-eval]'")):
        lm_eval_tasks.check("arc_easy")


def test_the_module_does_not_import_lm_eval():
    code = "import sys, mixsd.evaluation.lm_eval_tasks; assert not {'lm_eval', 'datasets', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("task", "data"), [("arc_easy", "allenai/ai2_arc"), ("ai2_arc", "allenai/ai2_arc"), ("mmlu", "cais/mmlu")]
)
def test_offline_a_task_of_the_hub_fails_at_once_and_names_its_data(task, data, model, no_network):
    lm_eval_tasks.check(task)
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"{data} cannot be had offline.*data_files") as caught:
        run(task, model)
    assert time.monotonic() - start < 30
    assert no_network == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", ["humaneval", "mbpp"])
def test_a_task_that_runs_code_is_refused(task, model):
    with pytest.raises(UserError, match="runs code that the model writes"):
        run(task, model)


def test_a_file_that_runs_code_is_refused(tmp_path, model):
    task = write_task(tmp_path, ONE_FILTER, unsafe_code=True)
    with pytest.raises(UserError, match="runs code that the model writes"):
        run(task, model)


def test_errors_of_lm_eval_are_one_line(tmp_path, model):
    broken = write_task(tmp_path, CHOICE | {"doc_to_target": "{{choices.index('nowhere')}}"})
    with pytest.raises(MixsdError, match=r"lm-eval:.*own\.yaml: the task cannot be loaded") as caught:
        run(broken, model)
    assert "\n" not in str(caught.value)
    late = documents(3)
    late[2]["choices"] = []
    with pytest.raises(MixsdError, match="lm-eval failed"):
        run(write_task(tmp_path / "late", CHOICE, docs=late), model)
    with pytest.raises(UserError, match="cannot load the model"):
        run(write_task(tmp_path / "no-model", CHOICE), tmp_path)


def test_numbers_become_json():
    import numpy as np

    assert lm_eval_rows.plain({1: (np.float32("nan"), np.int64(3), {"b", "a"}, np.bool_(True))}) == {
        "1": [None, 3, ["a", "b"], True]
    }
    found, undefined = lm_eval_rows.numbers({"t": {"alias": "t", "acc,none": np.float64(0.5), "f1_stderr,none": "N/A"}})
    assert (found, undefined) == ({"acc,none": 0.5}, ["f1_stderr,none"])
    bleu = [{"metrics": ["bleu"], "bleu": 0.0}]
    assert lm_eval_rows.outcome_metric(bleu, {}) is None
    assert lm_eval_rows.outcome_metric([{"metrics": ["em", "f1"], "em": True, "f1": 0.4}], {}) == "em"
    assert lm_eval_rows.outcome_metric([{"metrics": ["acc"], "acc": 0.5}], {}) is None


def test_the_example_of_the_docs_runs(tmp_path, model, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "lm-eval.md").read_text(encoding="utf-8")
    (task,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (data,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "capitals.yaml").write_text(task)
    (tmp_path / "capitals.jsonl").write_text(data)
    monkeypatch.chdir(tmp_path)
    ran = run("capitals.yaml", model)
    assert [row["key"] for row in ran.rows] == [f"my_capitals/{i}" for i in range(3)]
    assert "acc,none" in ran.results


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.skipif(loading.built_in_gguf() is None, reason=f"the wheel {loading.BUILT_IN_WHEEL} is not installed")
@pytest.mark.parametrize("options", [{}, {"chat_template": True}], ids=["plain", "chat"])
@pytest.mark.parametrize("kind", [CHOICE, GENERATE, CHOICE | {"num_fewshot": 2}], ids=["choice", "generate", "few-shot"])
def test_the_figures_are_those_of_the_lm_eval_command(tmp_path, kind, options):
    folder = loading.locate(loading.BUILT_IN).folder
    task = write_task(tmp_path, kind, docs=documents(40), fewshot_split="test")
    ran = run(task, folder, **options)
    model_args = f"pretrained={folder},dtype=float32"
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", model_args, "--tasks", task]
    command += ["--device", "cpu", "--batch_size", "8", "--output_path", str(tmp_path / "out"), "--log_samples"]
    command += ["--apply_chat_template"] if options else []
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    subprocess.run(command, check=True, env=env, cwd=tmp_path, capture_output=True)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    theirs = json.loads(results.read_text())["results"]["own"]
    metrics = {name: value for name, value in theirs.items() if "," in name}
    assert metrics == ran.results
    assert len(metrics) == 4
    logged = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(logged) == len(ran.rows) == 40 * len({sample["filter"] for sample in logged})
    rows = {(row["group"], name): value for row in ran.rows for name, value in row["metrics"].items()}
    for sample in logged:
        for name in sample["metrics"]:
            assert rows[f"own/{sample['doc_id']}", f"{name},{sample['filter']}"] == sample[name]
    if kind is GENERATE:
        replies = {(row["group"], row["reply"]) for row in ran.rows}
        assert {(f"own/{sample['doc_id']}", sample["resps"][0][0]) for sample in logged} == replies
    else:
        likelihoods = {row["group"]: row["loglikelihoods"] for row in ran.rows}
        assert {f"own/{doc['doc_id']}": [float(request[0][0]) for request in doc["resps"]] for doc in logged} == likelihoods
    # Equal scores say little where all documents are right or all wrong (with examples, this model knows all capitals).
    if "num_fewshot" not in kind:
        assert any(0 < value < 1 for name, value in metrics.items() if "stderr" not in name)
