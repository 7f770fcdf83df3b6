"""The adapter to lm-evaluation-harness: the figures are lm-eval's own, the rows are ours."""

import functools
import importlib.util
import json
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mixsd.errors import MixsdError, UserError
from mixsd.evaluation import lm_eval
from mixsd.models import loading
from tests import fresh
from tests.tiny import save_tiny

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'mixsd[lm-eval]'")
datasets = pytest.importorskip("datasets")

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


class Forked(fresh.Forked):
    """Lm-eval's process."""

    @staticmethod
    def _work(module_and_arguments, environment):
        # as a new process reads it
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = environment["HF_UPDATE_DOWNLOAD_COUNTS"] != "0"
        fresh.Forked._work(module_and_arguments, environment)


@pytest.fixture(scope="module", autouse=True)
def _one_index():
    """Lm-eval's index of its own tasks, which takes seconds, is made once; forks inherit it."""
    from lm_eval.tasks._index import TaskIndex

    own = functools.cache(TaskIndex.build)

    def build(paths, **options):
        return {name: entry for path in paths for name, entry in own((path,), **options).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(build))
        yield


@pytest.fixture(scope="module", autouse=True)
def _data_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("datasets")
        patch.setenv("HF_DATASETS_CACHE", str(place))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", place)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("lm-eval") / "model")


@pytest.fixture(scope="module")
def choice(tmp_path_factory, model):
    """All documents of the choice task."""
    return run(write_task(tmp_path_factory.mktemp("choice"), CHOICE), model)


@pytest.fixture(scope="module")
def generated(tmp_path_factory, model):
    """All documents of the task that generates, with its two filters."""
    return run(write_task(tmp_path_factory.mktemp("generate"), GENERATE), model)


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


def run(task, model, process=Forked, **options):
    settings = {"device": "cpu", "dtype": "float32", "limit": None, "offline": True, "log": model.parent / "logs" / "lm-eval.log"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", process)
        return lm_eval.run(task, model, **settings | options)


def test_a_choice_task_gives_rows_that_say_what_its_aggregate_says(choice):
    assert [row["key"] for row in choice.rows] == [f"own/{i}" for i in range(12)]
    for row, doc in zip(choice.rows, documents(), strict=True):
        assert set(row) == ROW | {"loglikelihoods"}
        best = max(range(4), key=row["loglikelihoods"].__getitem__)
        assert (row["split"], row["group"], row["labels"], row["reply_ids"]) == ("own", row["key"], [], [])
        assert row["reply"] == doc["choices"][best]
        assert row["outcome"] == ("correct" if row["reply"] == doc["capital"] else "wrong")
        assert (row["extracted"], row["truncated"], set(row["metrics"])) == (None, False, {"acc,none", "acc_norm,none"})
    for metric in ("acc,none", "acc_norm,none"):
        assert choice.results[metric] == pytest.approx(sum(row["metrics"][metric] for row in choice.rows) / 12)
    assert 0 < choice.results["acc_stderr,none"] < 1
    json.dumps([choice.rows, choice.results, choice.about], allow_nan=False)
    own = choice.about["tasks"]["own"]
    assert (own["version"], own["n"], own["of"], own["num_fewshot"], own["outcome_metric"]) == (2.0, 12, 12, 0, "acc")
    assert choice.about["seeds"] == {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
    assert choice.about["n"] == 12
    assert (choice.about["undefined"], choice.about["warnings"]) == ([], [])


def test_a_generating_task_keeps_each_filter_apart(generated):
    assert [row["key"] for row in generated.rows[:1] + generated.rows[-1:]] == ["own/0/strict", "own/11/word"]
    assert {row["group"] for row in generated.rows} == {f"own/{i}" for i in range(12)}
    assert all(set(row) == ROW and isinstance(row["extracted"], str) for row in generated.rows)
    assert any(row["reply"] for row in generated.rows)
    assert {row["extracted"] for row in generated.rows if row["key"].endswith("strict")} == {
        row["reply"].strip() for row in generated.rows if row["key"].endswith("strict")
    }
    assert {name for row in generated.rows for name in row["metrics"]} == {"exact_match,strict", "exact_match,word"}
    assert {row["outcome"] for row in generated.rows} <= {"correct", "wrong"}
    json.dumps([generated.rows, generated.results, generated.about], allow_nan=False)


def asked(rows):
    return {row["prompt_hash"]: (row["reply"], row["metrics"]) for row in rows}


@pytest.fixture(scope="module")
def five(tmp_path_factory, model):
    """Five documents of the choice task."""
    return run(write_task(tmp_path_factory.mktemp("five"), CHOICE), model, limit=5)


def test_a_limit_takes_the_same_questions_from_a_shuffled_file(tmp_path, model, choice, five, capfd, monkeypatch):
    def notice(host, *args, **kwargs):  # in lm-eval's process
        (tmp_path / "asked").write_text(str(host))
        raise OSError("the network is off limits")

    monkeypatch.setattr(socket, "getaddrinfo", notice)
    shuffled = documents()
    random.Random(1).shuffle(shuffled)
    # What a path must not mean to lm-eval: a list, a pattern.
    (tmp_path / "a, [b]").mkdir()
    task = Path(write_task(tmp_path, CHOICE, docs=shuffled)).rename(tmp_path / "a, [b]" / "own.yml")
    other = run(str(task), model, limit=5, offline=False)
    assert not (tmp_path / "asked").exists()
    assert capfd.readouterr() == ("", "")
    assert len(asked(five.rows)) == 5
    assert asked(five.rows) == asked(other.rows)
    assert [row["key"] for row in five.rows] != [f"own/{i}" for i in range(5)]
    by_key = {row["key"]: row for row in choice.rows}
    for row in five.rows:  # in other company the last bits may differ
        assert row == by_key[row["key"]] | {"loglikelihoods": pytest.approx(by_key[row["key"]]["loglikelihoods"], abs=1e-4)}
    for name in ("data_hash", "config_hash", "n"):
        assert five.about[name] == other.about[name]
    assert five.about["data_hash"] != choice.about["data_hash"]
    assert (five.about["tasks"]["own"]["n"], five.about["tasks"]["own"]["of"]) == (5, 12)
    assert five.results["acc,none"] == sum(row["metrics"]["acc,none"] for row in five.rows) / 5


def test_a_group_names_its_tasks(tmp_path, model, five):
    """One task is written out in the group's file, the others lie beside it; fewer of its documents are part of more."""
    one = yaml.safe_load(Path(write_task(tmp_path, CHOICE, "one")).read_text())
    (tmp_path / "one.yaml").unlink()
    write_task(tmp_path, CHOICE, "two")
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{country}} and {{capital}}"}
    write_task(tmp_path, rolling, "text", docs=documents(2))
    aggregate = [{"metric": "acc", "weight_by_size": True}]
    group = tmp_path / "both.yaml"
    group.write_text(yaml.safe_dump({"group": "both", "task": [one, "two", "text"], "aggregate_metric_list": aggregate}))
    ran = run(str(group), model, limit=3)
    assert {row["split"] for row in ran.rows} == {"both::one", "two", "text"} == set(ran.about["tasks"])
    assert len(ran.rows) == len({row["key"] for row in ran.rows}) == 8
    assert asked(row for row in ran.rows if row["split"] != "text").items() < asked(five.rows).items()
    assert ran.results["both/acc,none"] == ran.results["both::one/acc,none"] == ran.results["two/acc,none"]
    texts = [row for row in ran.rows if row["split"] == "text"]
    assert {(row["outcome"], row["reply"], row["extracted"]) for row in texts} == {(None, "", None)}
    assert all(row["loglikelihoods"][0] < 0 and row["metrics"] == {} for row in texts)
    assert ran.results["text/bits_per_byte,none"] > 0
    assert ran.about["tasks"]["text"]["outcome_metric"] is None


def test_the_chat_template_is_used_only_when_asked_for(tmp_path, model, generated):
    chat = run(write_task(tmp_path, ONE_FILTER), model, chat_template=True)
    assert {row["prompt_hash"] for row in generated.rows}.isdisjoint(row["prompt_hash"] for row in chat.rows)
    assert len(chat.rows) == 12


def test_an_unknown_task_gets_a_hint(tmp_path, model):
    with pytest.raises(UserError, match=r'lm-eval:arc_esay: .*did you mean "arc_easy"'):
        lm_eval.check("arc_esay")
    with pytest.raises(UserError, match="no such file"):
        lm_eval.check(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("task: [")
    with pytest.raises(UserError, match="cannot be read as a task"):
        lm_eval.check(str(tmp_path / "bad.yaml"))
    (tmp_path / "other.yaml").write_text("lam: 0.3")
    with pytest.raises(UserError, match="needs `task: NAME`"):
        run(str(tmp_path / "other.yaml"), model)
    lm_eval.check("arc_easy")
    lm_eval.check("mmlu")


def test_without_lm_eval_the_message_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else find(name, *rest))
    with pytest.raises(UserError, match=re.escape("pip install 'mixsd[lm-eval]'")):
        lm_eval.check("arc_easy")


def test_the_module_does_not_import_lm_eval():
    code = "import sys, mixsd.evaluation.lm_eval; assert not {'lm_eval', 'datasets', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("task", "data"), [("ai2_arc", "allenai/ai2_arc"), pytest.param("mmlu", "cais/mmlu", marks=pytest.mark.slow)]
)
def test_offline_a_task_of_the_hub_names_its_data(task, data, model):
    lm_eval.check(task)
    with pytest.raises(UserError, match=rf"cannot be had offline.*{data}.*data_files") as caught:
        run(task, model, subprocess.Popen)
    assert "\n" not in str(caught.value)


def test_offline_code_of_a_task_reaches_nothing(tmp_path, model):
    (tmp_path / "reach.py").write_text("import socket\ndef out(docs):\n    socket.create_connection(('example.org', 80))\n")
    task = write_task(tmp_path, ONE_FILTER)
    Path(task).write_text(Path(task).read_text() + "process_docs: !function reach.out\n")
    with pytest.raises(UserError, match=r"offline: example\.org was not asked"):
        run(task, model)


@pytest.mark.parametrize("task", ["humaneval", "mbpp", "longproc"])  # the last is a group of groups
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
    log = tmp_path / "logs" / "log"
    with pytest.raises(UserError, match=rf"cannot load the model.*the rest is in {log}") as caught:
        run(write_task(tmp_path / "no-model", CHOICE), tmp_path, log=log)
    assert "Traceback" in log.read_text()
    assert "\n" not in str(caught.value)


@pytest.fixture
def sleeping(tmp_path, monkeypatch):
    """In place of lm-eval a script that has done half and then sleeps; gives the processes that were started."""
    script = tmp_path / "half"
    bar = "Running generate_until requests:  50%|xx  | 24/48 [00:01<00:01, 19.99it/s]"
    script.write_text(f"#!/bin/sh\necho '{bar}'\nexec sleep 500\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: started.append(popen(*args, **kwargs)) or started[-1])
    return started


def test_it_says_how_far_it_is_and_ends_with_ctrl_c(tmp_path, model, sleeping):
    def stop(text):
        assert text == f"lm-eval:{task}: 24 of 48 requests"
        raise KeyboardInterrupt

    task = write_task(tmp_path, CHOICE)
    with pytest.raises(KeyboardInterrupt):
        run(task, model, subprocess.Popen, say=stop)
    assert [process.returncode for process in sleeping] == [-9]


def test_it_ends_when_its_parent_does():
    command = [sys.executable, "-m", "mixsd.evaluation.lm_eval", "none.json"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.close()  # as the system does when the parent is killed
    assert (process.wait(60), process.stderr.read()) == (1, b"")


def test_what_has_no_value_is_named():
    found, undefined = lm_eval.numbers({"t": {"alias": "t", "acc,none": 0.5, "f1_stderr,none": "N/A", "x,none": float("nan")}})
    assert (found, undefined) == ({"acc,none": 0.5}, ["f1_stderr,none", "x,none"])


def test_only_the_first_metric_can_say_right_or_wrong():
    assert lm_eval.outcome_metric([{"metrics": ["bleu"], "bleu": 0.0}], {}) is None
    assert lm_eval.outcome_metric([{"metrics": ["em", "f1"], "em": True, "f1": 0.4}], {}) == "em"
    assert lm_eval.outcome_metric([{"metrics": ["acc"], "acc": 0.5}], {}) is None
    assert lm_eval.outcome_metric([{"metrics": ["acc"], "acc": 1}], {"acc": False}) is None


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
    ran = run(task, folder, subprocess.Popen, **options)
    model_args = f"pretrained={folder},dtype=float32"
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", model_args, "--tasks", task]
    command += ["--device", "cpu", "--batch_size", "8", "--output_path", str(tmp_path / "out"), "--log_samples"]
    command += ["--apply_chat_template"] if options else []
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "theirs")}
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
