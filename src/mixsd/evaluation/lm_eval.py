"""Any task of lm-evaluation-harness, run on a model folder: `--suite lm-eval:TASK`.

lm-eval runs as a process of its own, by its own command, so the figures are those of `lm_eval run` on the same folder. Ours are the
choice of a subset (by content, not the first N), the rows, and that offline means offline. It is an optional extra, looked for when
a task is asked for. What of it may change with a release is used in this file only:

- 0.4.10 brought `lm_eval run --config FILE`; the flags of before end a model's path at a comma.
- 0.4.12 brought `TaskManager.task_index` with the tasks' configs, and `lm_eval.tasks._yaml_loader`.
- 0.4.13, for an output path that ends in .json, writes OUT_DATE.json and beside it samples_TASK_DATE.jsonl, where replies and
  log-likelihoods are text and the words of a request are `gen_args_0: {arg_0: ...}`.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mixsd.errors import MixsdError, UserError, did_you_mean
from mixsd.killable import LAUNCHED, end_with_parent
from mixsd.storage import digest, disk_errors, read_json, read_jsonl, write_json

Say = Callable[[str], None]
Row = dict[str, Any]

SECONDS_BETWEEN_LINES = 30
# Parts of a task's config that say where it lies on this machine and not what it asks; the documents have a hash of their own.
_PLACES = ("metadata", "dataset_kwargs")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
# Names of metrics that say right or wrong of one document. By name and not by value: a small model's BLEU can be 0 everywhere.
_RIGHT_OR_WRONG = re.compile(r"(?:^|_)(?:acc|exact_match|em)(?:$|_)")
# What lm-eval 0.4.13 prints: a warning, the bar of its hf model, and in a traceback the calls that load the tasks and the model.
_WARNING = re.compile(r"^\S+ WARNING +\[[^\]]*\] *(.{1,300})", re.MULTILINE)
_BAR = re.compile(r"Running \w+ requests:[^\r\n]*? (\d+)/(\d+) ")
_LOADS_TASKS = re.compile(r'tasks.manager\.py", line \d+, in load$|, in process_tasks$', re.MULTILINE)
_LOADS_MODEL = re.compile(r", in create_from_arg_\w+$", re.MULTILINE)
_NOT_AT_HAND = re.compile(r"offline|couldn't (find|reach)", re.IGNORECASE)


@dataclass
class Ran:
    """A task that was run on one model.

    Attributes:
        rows: one per subtask, document and filter. The outcome is right or wrong only where the task's first metric says so; all
            numbers that lm-eval gave the document are in `metrics`, under the names it uses itself ("acc,none").
        results: lm-eval's aggregated metrics by "metric,filter", by "TASK/metric,filter" where there are several tasks.
        about: what was asked and how: `lm_eval` (version), `task`, `config_hash`, `data_hash`, `n`, `limit`, `chat_template`,
            `dtype`, `batch_size`, `device`, `seeds`, `tasks` (by name: `version`, `config_hash`, `data_hash`, `n` of `of` documents,
            `num_fewshot`, `output_type`, `outcome_metric`, `higher_is_better`), `undefined` (metrics without a value), `warnings`.
    """

    rows: list[Row]
    results: dict[str, float]
    about: dict[str, Any]


def check(task: str) -> None:
    """Refuse what cannot be run, before anything is loaded or downloaded (about 6 s the first time for a task by name).

    Args:
        task: a task, group or tag of lm-eval, or the path of a task's .yaml file.

    Raises:
        UserError: lm-eval is not installed, it has no such task, or the task runs code that the model writes.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(f"lm-eval:{task}: lm-evaluation-harness is not installed; run: pip install 'mixsd[lm-eval]'")
    config = _read(task) if _is_path(task) else None
    if config is None and task not in _known():
        raise UserError(
            f"lm-eval:{task}: lm-eval has no such task{did_you_mean(task, _known())}; `lm_eval ls tasks` lists them, "
            "a task of your own is the path of its .yaml file"
        )
    for leaf in [config] if config and not _is_group(config) else _leaves(config or task):
        if leaf.get("unsafe_code"):
            raise _unsafe(task, leaf.get("task"))


def run(
    task: str,
    folder: Path,
    *,
    device: str,
    dtype: str,
    limit: int | None,
    log: Path,
    batch_size: int = 8,
    offline: bool,
    trust_remote_code: bool = False,
    chat_template: bool = False,
    say: Say = lambda text: None,
) -> Ran:
    """Run a task on the model in a local folder.

    Args:
        task: as for `check`.
        device: "cpu", "cuda", "cuda:1" or "mps".
        dtype: "float32" or "bfloat16".
        limit: documents asked of each subtask, those with the smallest content hashes; None asks all.
        log: the file that takes what lm-eval prints.
        offline: data sets must be at hand; an attempt to reach the network fails.
        trust_remote_code: let the model's folder bring code of its own.
        chat_template: render prompts with the model's chat template; lm-eval's default is not to.
        say: told every half minute how many requests are done.

    Raises:
        UserError: as `check`; or the task, its data or the model cannot be loaded.
        MixsdError: lm-eval failed while it ran the task.
    """
    if limit is not None and limit < 1:
        raise UserError(f"lm-eval:{task}: a limit of {limit} leaves nothing to ask; give 1 or more")
    check(task)
    with disk_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
    model = {"pretrained": str(folder.resolve()), "dtype": dtype, "use_safetensors": True, "trust_remote_code": trust_remote_code}
    options: dict[str, Any] = {"model_args": model, "log_samples": True}
    if limit is not None:  # which documents there are, by a model of lm-eval that computes nothing
        _, samples = _lm_eval(task, options | {"model": "dummy", "predict_only": True}, log, offline)
        documents = {name: _documents(logged) for name, logged in samples.items()}
        options["samples"] = {name: _chosen(hashes, limit) for name, hashes in documents.items() if limit < len(hashes)}
    options |= {"model": "hf", "device": device, "batch_size": batch_size, "apply_chat_template": chat_template}
    results, samples = _lm_eval(task, options, log, offline, say)
    rows: list[Row] = []
    tasks = {}
    for name, logged in samples.items():
        config, hashes = results["configs"][name], _documents(logged)
        asked = {key: value for key, value in config.items() if key not in _PLACES}
        higher_is_better = results["higher_is_better"].get(name) or {}
        metric = outcome_metric(logged, higher_is_better)
        rows += _rows(name, logged, config, metric, chat_template)
        tasks[name] = {
            "version": results["versions"].get(name),
            "config_hash": digest([asked, results["versions"].get(name)]),  # the same in another folder
            "data_hash": digest(sorted(hashes.values())),
            "n": len(hashes),
            "of": results["n-samples"][name]["original"],
            "num_fewshot": results["n-shot"].get(name),
            "output_type": config.get("output_type"),
            "outcome_metric": metric,
            "higher_is_better": higher_is_better,
        }
    metrics, undefined = numbers(results["results"])
    warnings = _WARNING.findall(log.read_text(encoding="utf-8", errors="replace"))
    about = {
        "lm_eval": version("lm_eval"),
        "task": task,
        "config_hash": digest({name: values["config_hash"] for name, values in tasks.items()}),
        "data_hash": digest({name: values["data_hash"] for name, values in tasks.items()}),
        "n": sum(values["n"] for values in tasks.values()),
        "limit": limit,
        "chat_template": chat_template,
        "dtype": dtype,
        "batch_size": batch_size,
        "device": device,
        "trust_remote_code": trust_remote_code,
        "seeds": {name: results["config"].get(f"{name}_seed") for name in ("random", "numpy", "torch", "fewshot")},
        "tasks": tasks,
        "undefined": undefined,
        "warnings": list(dict.fromkeys(warnings))[:20],
    }
    return Ran(rows, metrics, about)


def _lm_eval(
    task: str, options: dict[str, Any], log: Path, offline: bool, say: Say = lambda text: None
) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    """Run lm-eval's command; returns its results, and its samples by task."""
    environment = {name: value for name, value in os.environ.items() if not LAUNCHED.fullmatch(name)}
    environment |= {"LMEVAL_LOG_LEVEL": "INFO", "PYTHONIOENCODING": "utf-8"} | (_OFFLINE if offline else {})
    start = log.stat().st_size
    with tempfile.TemporaryDirectory(prefix="mixsd-lm-eval-") as name:
        place = Path(name)
        what, words = _asked(task, place)
        write_json(place / "run.json", options | what | {"output_path": str(place / "results.json")})
        command = [sys.executable, "-m", __name__, str(place / "run.json"), *words, *(["offline"] if offline else [])]
        with disk_errors(log), log.open("ab") as out:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=environment)  # noqa: S603
        code = _wait(process, log, start, lambda text: say(f"lm-eval:{task}: {text}"))
        files = list(place.glob("results_*.json"))
        if code or not files:
            text = log.read_bytes()[start:].decode(errors="replace")
            raise _failure(task, options["model_args"]["pretrained"], text, log, offline)
        results, date = read_json(files[0]), files[0].stem.removeprefix("results_")
        return results, {each: list(read_jsonl(place / f"samples_{each}_{date}.jsonl")) for each in results["n-samples"]}


def _asked(task: str, place: Path) -> tuple[dict[str, Any], list[str]]:
    """The task as lm-eval's command takes it, and words for `_become_lm_eval`."""
    if not _is_path(task):
        return {"tasks": [task]}, []
    path, config = Path(task).expanduser().resolve(), _read(task)
    if _is_group(config):  # its members may be lm-eval's, or lie in files beside it
        return {"tasks": [config["group"]], "include_path": str(path.parent)}, []
    if path.suffix != ".yaml" or re.search(r"[,*?\[]", str(path)):  # lm-eval splits at commas, and takes the others for a pattern
        path, target = place / "task.yaml", path
        path.symlink_to(target)
    return {"tasks": [str(path)]}, ["alone"]


def _wait(process: subprocess.Popen[bytes], log: Path, start: int, say: Say) -> int:
    """The exit code of a process, whose progress is said meanwhile; it ends with us."""
    total, due = "", 0.0
    try:
        while process.returncode is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            with log.open("rb") as file:
                file.seek(max(start, log.stat().st_size - 4000))
                bars = _BAR.findall(file.read().decode(errors="replace"))
            if bars and (bars[-1][1] != total or (time.monotonic() >= due and process.returncode is None)):
                done, total = bars[-1]
                say(f"{done} of {total} requests")
                due = time.monotonic() + SECONDS_BETWEEN_LINES
        return process.returncode
    finally:
        process.kill()
        process.wait()


def _failure(task: str, folder: str, printed: str, log: Path, offline: bool) -> MixsdError:
    """The error that says in one line what went wrong in lm-eval's process."""
    _, traceback, last = printed.rpartition("Traceback (most recent call last):\n")
    lines = [line for line in re.split(r"[\r\n]+", last) if line.strip()] or ["it printed nothing"]
    first = next((place for place, line in enumerate(lines) if not line[0].isspace()), 0) if traceback else -1
    why = f"{' '.join(' '.join(lines[first:]).split())[:300]}; the rest is in {log}"
    if "which is marked as unsafe" in last:
        return _unsafe(task, None)
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


def _unsafe(task: str, name: Any) -> UserError:
    which = "the task" if name in (None, task) else f"its task {name}"
    return UserError(
        f"lm-eval:{task}: {which} runs code that the model writes, which lm-eval does without a sandbox; "
        "use the humaneval benchmark of mixsd instead"
    )


def _is_path(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _is_group(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get("task"), list)


def _read(task: str) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(task).expanduser()
    if not path.is_file():
        raise UserError(f"lm-eval:{task}: no such file")
    try:
        config = load_yaml(path.resolve(), resolve_func=False)
    except Exception as error:  # YAML's own errors, or a file that it includes
        raise UserError(f"lm-eval:{task}: cannot be read as a task ({' '.join(str(error).split())[:300]})") from error
    if not isinstance(config, dict) or not isinstance(config["group"] if "group" in config else config.get("task"), str):
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
    yield from _leaves(config) if _is_group(config) else [{**config, **own}]


def _documents(samples: Iterable[Row]) -> dict[int, str]:
    """By its place in the data set, the hash of each document's content."""
    return {sample["doc_id"]: digest(sample["doc"]) for sample in samples}


def _chosen(documents: Mapping[int, str], limit: int) -> list[int]:
    """The places, ascending (lm-eval names others wrongly), of the `limit` documents with the smallest hashes.

    Fifty of them are part of a hundred of them, and the order of the file does not matter.
    """
    return sorted(sorted(documents, key=lambda place: (documents[place], place))[:limit])


def _rows(name: str, samples: list[Row], config: Mapping[str, Any], metric: str | None, chat: bool) -> list[Row]:
    several = len({sample["filter"] for sample in samples}) > 1
    rows = []
    for sample in samples:
        group = f"{name}/{sample['doc_id']}"
        requests = [list(request.values()) for request in sample["arguments"].values()]
        replies = [request[0] for request in sample["resps"]]
        likelihoods = _likelihoods(replies, config.get("output_type"))
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
        if likelihoods:
            pairs = zip(likelihoods, _choices(requests, config, chat), strict=False)
            row["reply"] = max(pairs, key=lambda pair: pair[0], default=(0, ""))[1]
            row["extracted"] = None
            row["loglikelihoods"] = [_number(likelihood) for likelihood in likelihoods]
        rows.append(row)
    return rows


def _likelihoods(replies: list[Any], kind: str | None) -> list[float]:
    """The log-likelihood of each request, if that is what was asked: "-1.5" where it is rolling, else ["-1.5", "False"]."""
    if kind == "loglikelihood_rolling":
        return [float(reply) for reply in replies]
    pairs = all(isinstance(reply, list) and reply[1:] in (["True"], ["False"]) for reply in replies)
    return [float(reply[0]) for reply in replies] if pairs else []


def _choices(requests: list[list[Any]], config: Mapping[str, Any], chat: bool) -> list[str]:
    """The answers that a document offers: what follows its question, or the questions themselves where all go on alike.

    Requests without a question are the choices once more, for the mutual information.
    """
    if config.get("output_type") != "multiple_choice" or config.get("doc_to_choice") is None:
        return []
    asked = [request for request in requests if request[0]] or requests
    if len({request[1] for request in asked}) == 1 and len({request[0] for request in asked}) > 1:
        return [request[0].rpartition(config.get("fewshot_delimiter") or "\n\n")[2] for request in asked]  # without the examples
    delimiter = "" if chat and not config.get("gen_prefix") else config.get("target_delimiter", " ")
    return [request[1].removeprefix(delimiter) for request in asked]


def outcome_metric(samples: list[Row], higher_is_better: Mapping[str, Any]) -> str | None:
    """A task's first metric if it says right or wrong of every document, else None."""
    first = next((name for sample in samples for name in sample["metrics"]), None)
    if first is None or higher_is_better.get(first) is False or not _RIGHT_OR_WRONG.search(first):
        return None
    return first if all(_number(sample.get(first)) in (0.0, 1.0) for sample in samples) else None


def numbers(results: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, float], list[str]]:
    """lm-eval's aggregated metrics, and the names of those without a finite value ("N/A", NaN).

    They are called "acc,none" as it calls them; where there are several tasks or a group, "TASK/acc,none".
    """
    found, undefined = {}, []
    for task, metrics in results.items():
        for name, value in metrics.items():
            if "," in name:
                full = f"{task}/{name}" if len(results) > 1 else name
                if (number := _number(value)) is None:
                    undefined.append(full)
                else:
                    found[full] = number
    return found, undefined


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

    for name in ("add_env_info", "get_git_commit_hash"):  # in 0.4.13 seconds of `pip list` and git, of which we keep nothing
        setattr(evaluator, name, lambda *args: None)
    if "alone" in words:  # indexing lm-eval's 14,000 tasks takes 5 s, and one of the same name would be mixed with the file's
        tasks.TaskManager = partial(tasks.TaskManager, include_defaults=False)
    sys.argv = ["lm_eval", "run", "--config", config]
    cli_evaluate()


def _refuse(host: Any, *args: Any, **kwargs: Any) -> Any:
    raise OSError(f"offline: {host} was not asked")


if __name__ == "__main__":
    _become_lm_eval(*sys.argv[1:])
