"""Any task of lm-evaluation-harness, run on a model folder: `--suite lm-eval:TASK`.

lm-eval runs as a process of its own, by its own command, so the figures are those of `lm_eval run` on the same folder. Ours are the
choice of a subset (by content, not the first N), the rows, and that offline means offline. It is an optional extra, looked for when
a task is asked for. What of it may change with a release is used in this file only: `lm_eval run --config FILE` (0.4.10),
`TaskManager.task_index` and `lm_eval.tasks._yaml_loader` (0.4.12), and that an output path in .json gives OUT_DATE.json and beside it
samples_TASK_DATE.jsonl, where replies and log-likelihoods are text and the words of a request are `gen_args_0: {arg_0: ...}` (0.4.13).
"""

import importlib.util
import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mixsd.errors import MixsdError, UserError, did_you_mean
from mixsd.killable import LAUNCHED, end_with_parent
from mixsd.storage import digest, disk_errors, read_json, read_jsonl, write_json, write_text

Row = dict[str, Any]

_SECONDS_BETWEEN_LINES = 30
# Parts of a task's config that say where it lies on this machine and not what it asks; the documents have a hash of their own.
_PLACES = ("metadata", "dataset_kwargs")
_YAML = (".yaml", ".yml")
_UNCOUNTED = {"HF_UPDATE_DOWNLOAD_COUNTS": "0"}  # else `datasets` tells the hub of each local file that it reads
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
# Names of metrics that say right or wrong of one document. By name and not by value: a small model's BLEU can be 0 everywhere.
_RIGHT_OR_WRONG = re.compile(r"(?:^|_)(?:acc|exact_match|em)(?:$|_)")
# What lm-eval 0.4.13 prints: a warning, the bar of its hf model, and in a traceback the calls that load the tasks and the model.
_WARNING = re.compile(r"^\S+ WARNING +\[[^\]]*\] *(.{1,300})", re.MULTILINE)
_BAR = re.compile(r"Running \w+ requests:[^\r\n]*? (\d+)/(\d+) ")
_LOADS_TASKS = re.compile(r'tasks.manager\.py", line \d+, in load$|, in process_tasks$', re.MULTILINE)
_LOADS_MODEL = re.compile(r", in create_from_arg_\w+$", re.MULTILINE)
_UNSAFE = "it runs code that the model writes, which lm-eval does without a sandbox; use the humaneval benchmark of mixsd instead"
_NOT_AT_HAND = re.compile(r"offline|couldn't (find|reach)", re.IGNORECASE)


@dataclass
class Ran:
    """A task that was run on one model.

    rows: one per subtask, document and filter; the outcome is right or wrong only where the task's first metric says so; `metrics` has
    lm-eval's numbers. results: its aggregates, see `numbers`. about: versions, hashes, seeds, each task's own, warnings.
    """

    rows: list[Row]
    results: dict[str, float]
    about: dict[str, Any]


def check(task: str) -> None:
    """Refuse a task, group or tag of lm-eval, or the .yaml file of a task, that cannot be run; it takes 6 s the first time for a name."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(f"lm-eval:{task}: lm-evaluation-harness is not installed; run: pip install 'mixsd[lm-eval]'")
    config = _read(task) if task.endswith(_YAML) else None
    if config is None and task not in _known():
        raise UserError(
            f"lm-eval:{task}: lm-eval has no such task{did_you_mean(task, _known())}; `lm_eval ls tasks` lists them, "
            "a task of your own is the path of its .yaml file"
        )
    tasks = _leaves(config or task) if config is None or isinstance(config.get("task"), list) else [config]
    if any(each.get("unsafe_code") for each in tasks):
        raise UserError(f"lm-eval:{task}: {_UNSAFE}")


def run(
    task: str,
    folder: Path,
    *,
    device: str,
    dtype: str,
    limit: int | None,
    log: Path,
    offline: bool,
    trust_remote_code: bool = False,
    chat_template: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Ran:
    """Run a task on the model in a local folder.

    Args:
        limit: documents asked of each subtask, those with the smallest content hashes; None asks all.
        log: the file that takes what lm-eval prints.
        offline: data sets must be at hand; an attempt to reach the network fails.
        say: told every half minute how many requests are done.
    """
    check(task)
    write_text(log, "")
    model = {"pretrained": str(folder.resolve()), "dtype": dtype, "use_safetensors": True, "trust_remote_code": trust_remote_code}
    options: dict[str, Any] = {"model_args": model, "log_samples": True}
    if limit is not None:  # which documents there are, by a model of lm-eval that computes nothing
        _, samples = _lm_eval(task, options | {"model": "dummy", "predict_only": True}, log, offline)
        for name, logged in samples.items():
            # Fifty of them are part of a hundred of them, whatever the file's order; ascending, or lm-eval names others wrongly.
            ranked = sorted((content, place) for place, content in _documents(logged).items())
            options.setdefault("samples", {})[name] = sorted(place for _, place in ranked[:limit])
    options |= {"model": "hf", "device": device, "batch_size": 8, "apply_chat_template": chat_template}
    results, samples = _lm_eval(task, options, log, offline, say)
    rows: list[Row] = []
    tasks = {}
    for name, logged in samples.items():
        config, hashes, revision = results["configs"][name], _documents(logged), results["versions"].get(name)
        asked = {key: value for key, value in config.items() if key not in _PLACES}
        higher_is_better = results["higher_is_better"].get(name) or {}
        metric = outcome_metric(logged, higher_is_better)
        rows += _rows(name, logged, config, metric)
        tasks[name] = {
            "version": revision,
            "config_hash": digest([asked, revision]),  # the same in another folder
            "data_hash": digest(sorted(hashes.values())),
            "n": len(hashes),
            "of": results["n-samples"][name]["original"],
            "num_fewshot": results["n-shot"].get(name),
            "outcome_metric": metric,
            "higher_is_better": higher_is_better,
        }
    metrics, undefined = numbers(results["results"])
    warnings = _WARNING.findall(log.read_text(encoding="utf-8", errors="replace"))
    about = {
        "lm_eval": version("lm_eval"),
        **{each: digest({name: values[each] for name, values in tasks.items()}) for each in ("config_hash", "data_hash")},
        "n": sum(values["n"] for values in tasks.values()),
        "seeds": {name: results["config"].get(f"{name}_seed") for name in ("random", "numpy", "torch", "fewshot")},
        "tasks": tasks,
        "undefined": undefined,
        "warnings": list(dict.fromkeys(warnings))[:20],
    }
    return Ran(rows, metrics, about)


def _lm_eval(
    task: str, options: dict[str, Any], log: Path, offline: bool, say: Callable[[str], None] = lambda text: None
) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    """Run lm-eval's command; returns its results, and its samples by task."""
    environment = {name: value for name, value in os.environ.items() if not LAUNCHED.fullmatch(name)}
    environment |= {"LMEVAL_LOG_LEVEL": "INFO", "PYTHONIOENCODING": "utf-8"} | _UNCOUNTED | (_OFFLINE if offline else {})
    start = log.stat().st_size
    with tempfile.TemporaryDirectory(prefix="mixsd-lm-eval-") as name:
        place = Path(name)
        what, words = _asked(task, place)
        write_json(place / "run.json", options | what | {"output_path": str(place / "results.json")})
        command = [sys.executable, "-m", __name__, str(place / "run.json"), *words, *(["offline"] if offline else [])]
        with disk_errors(log), log.open("ab") as out:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=environment)  # noqa: S603
        due = 0.0
        try:
            while process.returncode is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
                if time.monotonic() >= due and (bars := _BAR.findall(_end_of(log, 4000))):
                    say("lm-eval:{}: {} of {} requests".format(task, *bars[-1]))
                    due = time.monotonic() + _SECONDS_BETWEEN_LINES
        finally:  # it ends with us
            process.kill()
            process.wait()
        printed = _end_of(log, log.stat().st_size - start)
        files = list(place.glob("results_*.json"))
        if process.returncode or not files:
            raise _failure(task, options["model_args"]["pretrained"], printed, log, offline)
        results, date = read_json(files[0]), files[0].stem.removeprefix("results_")
        return results, {each: list(read_jsonl(place / f"samples_{each}_{date}.jsonl")) for each in results["n-samples"]}


def _end_of(log: Path, most: int) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - most))
        return file.read().decode(errors="replace")


def _asked(task: str, place: Path) -> tuple[dict[str, Any], list[str]]:
    """The task as lm-eval's command takes it, and words for `_become_lm_eval`."""
    if not task.endswith(_YAML):
        return {"tasks": [task]}, []
    path, config = Path(task).expanduser().resolve(), _read(task)
    if isinstance(config.get("task"), list):  # its members may be lm-eval's, or lie in files beside it
        return {"tasks": [config["group"]], "include_path": str(path.parent)}, []
    link = place / "task.yaml"  # lm-eval splits a path at commas, takes others for a pattern, and knows no .yml
    link.symlink_to(path)
    return {"tasks": [str(link)]}, ["alone"]


def _failure(task: str, folder: str, printed: str, log: Path, offline: bool) -> MixsdError:
    _, traceback, last = printed.rpartition("Traceback (most recent call last):\n")
    lines = [line for line in re.split(r"[\r\n]+", last) if line.strip()] or ["it printed nothing"]
    first = next((place for place, line in enumerate(lines) if not line[0].isspace()), 0) if traceback else -1
    why = f"{' '.join(' '.join(lines[first:]).split())[:300]}; the rest is in {log}"
    if "which is marked as unsafe" in last:
        return UserError(f"lm-eval:{task}: {_UNSAFE}")
    if _LOADS_MODEL.search(printed):
        return UserError(f"{folder}: lm-eval cannot load the model ({why})")
    if not _LOADS_TASKS.search(printed):
        return MixsdError(f"lm-eval:{task}: lm-eval failed ({why})")
    if offline and _NOT_AT_HAND.search(why):
        return UserError(
            f"lm-eval:{task}: its data cannot be had offline ({why}); run it once with the network so that "
            "the Hugging Face cache holds it, or write a task .yaml with data_files of your own (docs/lm-eval.md)"
        )
    return UserError(f"lm-eval:{task}: the task cannot be loaded ({why})")


def _read(task: str) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(task).expanduser()
    if not path.is_file():
        raise UserError(f"lm-eval:{task}: no such file")
    try:
        config = load_yaml(path.resolve(), resolve_func=False)
    except Exception as error:  # YAML's own errors, or a file that it includes
        raise UserError(f"lm-eval:{task}: cannot be read as a task ({' '.join(str(error).split())[:300]})") from error
    if not isinstance(config, dict) or not isinstance(config.get("group", config.get("task")), str):
        raise UserError(f"lm-eval:{task}: not a task of lm-eval; its file needs `task: NAME`")
    return config


@lru_cache(maxsize=1)
def _known() -> Mapping[str, Any]:
    """lm-eval's index of its tasks: name -> entry, as its files say, with no function of theirs imported."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.tasks import TaskManager

    return dict(TaskManager().task_index)


def _leaves(spec: str | Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configs of the tasks that a task, group or tag comes down to; an empty one for a name that lm-eval does not know."""
    own: Mapping[str, Any] = {"task": spec} if isinstance(spec, str) else spec
    name = own.get("task") or own.get("group") or ""
    if isinstance(name, list):
        for member in name:
            yield from _leaves(member)
        return
    entry = _known().get(name)
    config = {} if entry is None else entry.cfg or {"task": sorted(entry.tags)}  # a tag has no config
    yield from _leaves(config) if isinstance(config.get("task"), list) else [{**config, **own}]


def _documents(samples: list[Row]) -> dict[int, str]:
    return {sample["doc_id"]: digest(sample["doc"]) for sample in samples}


def _rows(name: str, samples: list[Row], config: Mapping[str, Any], metric: str | None) -> list[Row]:
    kind, several = config.get("output_type"), len({sample["filter"] for sample in samples}) > 1
    rows = []
    for sample in samples:
        group = f"{name}/{sample['doc_id']}"
        requests = [list(request.values()) for request in sample["arguments"].values()]
        replies = [request[0] for request in sample["resps"]]
        filtered = sample["filtered_resps"][0]
        values = {each: sample[each] for each in sample["metrics"] if isinstance(sample[each], (int, float))}
        row: Row = {
            "key": f"{group}/{sample['filter']}" if several else group,
            "split": name,
            "group": group,
            "labels": [],
            "prompt_hash": digest(requests),
            "reply": replies[0] if isinstance(replies[0], str) else "",
            "reply_ids": [],
            "extracted": filtered if isinstance(filtered, str) else json.dumps(filtered, ensure_ascii=False),
            "outcome": None if metric is None else "correct" if _number(sample[metric]) == 1 else "wrong",
            "truncated": False,
            "metrics": {f"{each},{sample['filter']}": _number(value) for each, value in values.items()},
        }
        # A log-likelihood is "-1.5" where it is rolling, else ["-1.5", "False"].
        paired = all(isinstance(reply, list) and reply[1:] in (["True"], ["False"]) for reply in replies)
        if paired or kind == "loglikelihood_rolling":
            likelihoods = [float(reply[0] if paired else reply) for reply in replies]
            choices = zip(likelihoods, _choices(requests, config) if kind == "multiple_choice" else [], strict=False)
            row["reply"] = max(choices, key=lambda choice: choice[0], default=(0, ""))[1]
            row["extracted"] = None
            row["loglikelihoods"] = [_number(likelihood) for likelihood in likelihoods]
        rows.append(row)
    return rows


def _choices(requests: list[list[Any]], config: Mapping[str, Any]) -> list[str]:
    """The answers on offer: what follows the question, or the questions themselves where all go on alike.

    Requests without a question are the choices once more, for the mutual information.
    """
    asked = [request for request in requests if request[0]] or requests
    alike, between = len({request[1] for request in asked}) == 1 < len(asked), config.get("fewshot_delimiter") or "\n\n"
    return [(request[0].rpartition(between)[2] if alike else request[1]).strip() for request in asked]  # without the examples


def outcome_metric(samples: list[Row], higher_is_better: Mapping[str, Any]) -> str | None:
    """A task's first metric if it says right or wrong of every document, else None."""
    first = next((name for sample in samples for name in sample["metrics"]), None)
    if first is None or higher_is_better.get(first) is False or not _RIGHT_OR_WRONG.search(first):
        return None
    return first if all(_number(sample.get(first)) in (0.0, 1.0) for sample in samples) else None


def numbers(results: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, float], list[str]]:
    """lm-eval's aggregated metrics ("acc,none", or "TASK/acc,none" of several), and the names of those without a finite value."""
    values = {
        f"{task}/{name}" if len(results) > 1 else name: _number(value)
        for task, metrics in results.items()
        for name, value in metrics.items()
        if "," in name
    }
    found = {name: value for name, value in values.items() if value is not None}
    return found, [name for name in values if name not in found]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _become_lm_eval(config: str, *words: str) -> None:
    """What the process does: lm-eval's command. "alone" means a task file that refers to no task of lm-eval."""
    end_with_parent()
    if not sys.flags.safe_path:
        del sys.path[0]  # the user's folder, in which a datasets.py may lie
    if "offline" in words:
        socket.getaddrinfo = _refuse  # for a task's own code; the hub's clients read the environment
    from lm_eval import evaluator, tasks
    from lm_eval.__main__ import cli_evaluate

    # Of which we keep nothing: in 0.4.13 seconds of `pip list` and git, and a tokenizer of the hub's for the dummy model.
    for name in ("add_env_info", "get_git_commit_hash", "add_tokenizer_info"):
        setattr(evaluator, name, lambda *args: None)
    if "alone" in words:  # indexing lm-eval's 14,000 tasks takes 5 s, and one of the same name would be mixed with the file's
        tasks.TaskManager = partial(tasks.TaskManager, include_defaults=False)
    sys.argv = ["lm_eval", "run", "--config", config]
    cli_evaluate()


def _refuse(host: Any, *args: Any, **kwargs: Any) -> Any:
    raise OSError(f"offline: {host} was not asked")


if __name__ == "__main__":
    _become_lm_eval(*sys.argv[1:])
