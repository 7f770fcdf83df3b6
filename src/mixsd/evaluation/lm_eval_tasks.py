"""Any task of lm-evaluation-harness, run on a model folder: `--suite lm-eval:TASK`.

Prompts, requests, metrics, aggregation and bootstrap are lm-eval's own, so the figures are those of the `lm_eval` command on the
same folder. Ours are the choice of a subset (by content, not the first N), the rows, and that offline means offline. lm-eval is an
optional extra: it is imported when a task is asked for.
"""

from __future__ import annotations

import gc
import importlib.util
import io
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mixsd.errors import MixsdError, UserError, did_you_mean
from mixsd.evaluation import lm_eval_rows
from mixsd.storage import digest

Say = Callable[[str], None]

SECONDS_BETWEEN_LINES = 30
_REQUESTS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
# What `datasets` reads from files at hand.
_LOCAL_FORMATS = {"json", "csv", "parquet", "text", "arrow", "xml"}
# Names in lm-eval's evaluator of what it finds out about the machine, seconds of `pip list` and git among it. We do not keep it.
_ABOUT_THE_MACHINE = ("add_env_info", "get_git_commit_hash")


@dataclass
class Ran:
    """A task that was run on one model.

    Attributes:
        rows: one per subtask, document and filter; see `lm_eval_rows.rows_of`.
        results: lm-eval's aggregated metrics by "metric,filter", by "TASK/metric,filter" where there are several tasks.
        about: what was asked and how: `lm_eval` (version), `task`, `config_hash`, `data_hash`, `n`, `limit`, `chat_template`,
            `dtype`, `batch_size`, `device`, `seeds`, `tasks` (by name: `version`, `config_hash`, `data_hash`, `n` of `of` documents,
            `num_fewshot`, `output_type`, `outcome_metric`, `higher_is_better`), `undefined` (metrics without a value), `warnings`.
    """

    rows: list[dict[str, Any]]
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
    for config in _leaves(task):
        if config.get("unsafe_code"):
            raise _unsafe(task, config.get("task"))


def run(
    task: str,
    folder: Path,
    *,
    device: str,
    dtype: str,
    limit: int | None,
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
        offline: data sets must be at hand; an attempt to reach the network fails.
        trust_remote_code: let the model's folder bring code of its own.
        chat_template: render prompts with the model's chat template; lm-eval's default is not to.
        say: told how many requests there are, and every half minute how many are done.

    Raises:
        UserError: as `check`; or the task, its data or the model cannot be loaded.
        MixsdError: lm-eval failed while it ran the task.
    """
    if limit is not None and limit < 1:
        raise UserError(f"lm-eval:{task}: a limit of {limit} leaves nothing to ask; give 1 or more")
    check(task)
    with _quiet(say) as (told, warnings), _network(offline):
        # What the command line makes known to tasks, some of which build their data for the model.
        model_args = {"pretrained": str(folder.resolve()), "dtype": dtype}
        manager, called = _opened(task, metadata=dict(model_args))
        loaded, roots = _load(task, manager, called, offline)
        contents = {name: [lm_eval_rows.content(doc) for doc in each.eval_docs] for name, each in loaded.items()}
        places = {name: lm_eval_rows.chosen(hashes, limit) for name, hashes in contents.items()}
        try:
            results = _evaluate(
                task,
                _model(model_args | {"use_safetensors": True, "trust_remote_code": trust_remote_code}, device, batch_size),
                roots,
                manager,
                {name: chosen for name, chosen in places.items() if chosen is not None},
                chat_template=chat_template,
                say=told,
            )
        finally:
            gc.collect()  # the model has references to itself
    asked = {name: contents[name] if chosen is None else [contents[name][i] for i in chosen] for name, chosen in places.items()}
    rows: list[dict[str, Any]] = []
    about_tasks = {}
    for name, each in loaded.items():
        samples = results["samples"][name]
        metric = lm_eval_rows.outcome_metric(samples, results["higher_is_better"].get(name) or {})
        rows += lm_eval_rows.rows_of(name, samples, _options(each), metric)
        about_tasks[name] = {
            "version": lm_eval_rows.plain(results["versions"].get(name)),
            "config_hash": lm_eval_rows.config_hash(results["configs"][name], results["versions"].get(name)),
            "data_hash": lm_eval_rows.data_hash(asked[name]),
            "n": len(asked[name]),
            "of": len(contents[name]),
            "num_fewshot": lm_eval_rows.plain(results["n-shot"].get(name)),
            "output_type": each.OUTPUT_TYPE,
            "outcome_metric": metric,
            "higher_is_better": lm_eval_rows.plain(results["higher_is_better"].get(name) or {}),
        }
    metrics, undefined = lm_eval_rows.numbers(results["results"])
    about = {
        "lm_eval": version("lm_eval"),
        "task": task,
        "config_hash": digest({name: values["config_hash"] for name, values in about_tasks.items()}),
        "data_hash": digest({name: values["data_hash"] for name, values in about_tasks.items()}),
        "n": sum(map(len, asked.values())),
        "limit": limit,
        "chat_template": chat_template,
        "dtype": dtype,
        "batch_size": batch_size,
        "device": device,
        "trust_remote_code": trust_remote_code,
        "seeds": {name: results["config"].get(f"{name}_seed") for name in ("random", "numpy", "torch", "fewshot")},
        "tasks": about_tasks,
        "undefined": undefined,
        "warnings": warnings,
    }
    return Ran(rows, metrics, about)


def _unsafe(task: str, name: Any) -> UserError:
    which = "the task" if name in (None, task) else f"its task {name}"
    return UserError(
        f"lm-eval:{task}: {which} runs code that the model writes, which lm-eval does without a sandbox; "
        "use the humaneval benchmark of mixsd instead"
    )


def _is_path(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


@lru_cache(maxsize=1)
def _known() -> Mapping[str, Any]:
    """lm-eval's index of its tasks: name -> entry, as its files say, with no function of theirs imported."""
    from lm_eval.tasks import TaskManager

    with _quiet():
        return dict(TaskManager().task_index)


def _leaves(task: str) -> list[dict[str, Any]]:
    """The configs of the tasks that a task, group or tag comes down to, none of their functions imported."""
    if not _is_path(task):
        known = _known()
        if task not in known:
            raise UserError(
                f"lm-eval:{task}: lm-eval has no such task{did_you_mean(task, known)}; `lm_eval ls tasks` lists them, "
                "a task of your own is the path of its .yaml file"
            )
        return list(_below(task))
    config = _read(task)
    return list(_below(config)) if _is_group(config) else [config]


def _read(task: str) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(task).expanduser()
    if not path.is_file():
        raise UserError(f"lm-eval:{task}: no such file")
    try:
        config = load_yaml(path.resolve(), resolve_func=False)
    except Exception as error:  # YAML's own errors, or a file that it includes
        raise UserError(f"lm-eval:{task}: cannot be read as a task ({_line(error)})") from error
    if not isinstance(config, dict) or not isinstance(config["group"] if "group" in config else config.get("task"), str):
        raise UserError(f"lm-eval:{task}: not a task of lm-eval; its file needs `task: NAME`")
    return config


def _is_group(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get("task"), list)


def _below(spec: str | Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if isinstance(spec, str):
        if (entry := _known().get(spec)) is None:
            return
        if entry.cfg is None:  # a tag
            for name in sorted(entry.tags):
                yield from _below(name)
        elif _is_group(entry.cfg):
            yield from _below(entry.cfg)
        else:
            yield entry.cfg
    elif _is_group(spec):
        for member in spec["task"]:
            yield from _below(member)
    elif (name := spec.get("task") or spec.get("group")) in _known():
        for config in _below(str(name)):
            yield {**config, **spec}
    else:
        yield dict(spec)


def _opened(task: str, metadata: dict[str, Any]) -> tuple[Any, str]:
    """lm-eval's task manager, and what the task is called in it."""
    from lm_eval.tasks import TaskManager

    if not _is_path(task):
        return TaskManager(metadata=metadata), task
    path = Path(task).expanduser().resolve()
    config = _read(task)
    if _is_group(config):  # its members may be lm-eval's, or lie in files beside it
        return TaskManager(metadata=metadata, include_path=str(path.parent)), config["group"]
    # Indexing lm-eval's own tasks takes 5 s; a file that is one task refers to none of them.
    return TaskManager(metadata=metadata, include_defaults=False), str(path)


def _load(task: str, manager: Any, name: str, offline: bool) -> tuple[dict[str, Any], list[Any]]:
    """The tasks by name with their data, and what to hand to the evaluator: the groups at the top, or the tasks."""
    try:
        loaded = manager.load([name])
    except Exception as error:  # whatever the data sets' library and the tasks' own code raise
        hub = sorted({str(config.get("dataset_path")) for config in _leaves(task)} - _LOCAL_FORMATS - {"None"})
        if offline and hub:
            named = ", ".join(hub[:3]) + (f" and {len(hub) - 3} more" if len(hub) > 3 else "")
            raise UserError(
                f"lm-eval:{task}: its data set {named} cannot be had offline ({_line(error)}); run it once with the network so that "
                "the Hugging Face cache holds it, or write a task .yaml with data_files of your own (docs/lm-eval.md)"
            ) from error
        raise UserError(f"lm-eval:{task}: the task cannot be loaded ({_line(error)})") from error
    tasks, groups = loaded["tasks"], loaded.get("groups") or {}
    for member, each in tasks.items():
        if getattr(each, "UNSAFE_CODE", False):
            raise _unsafe(task, member)
    members = {name for group in groups.values() for name in group.child_names}
    return tasks, [group for name, group in groups.items() if name not in members] or list(tasks.values())


def _model(model_args: dict[str, Any], device: str, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    try:
        return HFLM(**model_args, device=device, batch_size=batch_size)
    except Exception as error:
        raise UserError(f"{model_args['pretrained']}: lm-eval cannot load the model ({_line(error)})") from error


def _evaluate(
    task: str, model: Any, roots: list[Any], manager: Any, samples: dict[str, list[int]], *, chat_template: bool, say: Say
) -> dict[str, Any]:
    import lm_eval
    from lm_eval import evaluator
    from lm_eval.models import huggingface

    for kind in _REQUESTS:
        setattr(model, kind, _counted(getattr(model, kind), f"lm-eval:{task}", say))
    try:
        with ExitStack() as stack:
            for name in _ABOUT_THE_MACHINE:
                stack.enter_context(patch.object(evaluator, name, lambda *args: None, create=True))
            stack.enter_context(patch.object(huggingface, "tqdm", _bar(f"lm-eval:{task}", say)))
            results = lm_eval.simple_evaluate(
                model=model,
                tasks=roots,
                task_manager=manager,
                batch_size=model.batch_size,
                samples=samples or None,
                log_samples=True,
                apply_chat_template=chat_template,
                fewshot_as_multiturn=chat_template,  # as the command line does
                confirm_run_unsafe_code=False,
            )
    except Exception as error:  # whatever the task's functions, its metrics and the model raise
        raise MixsdError(f"lm-eval:{task}: lm-eval failed ({_line(error)})") from error
    if results is None:
        raise MixsdError(f"lm-eval:{task}: lm-eval gave no results in this process (LOCAL_RANK={os.environ.get('LOCAL_RANK')})")
    found: dict[str, Any] = dict(results)
    return found


def _counted(ask: Callable[..., Any], what: str, say: Say) -> Callable[..., Any]:
    def asked(requests: list[Any], *args: Any, **kwargs: Any) -> Any:
        say(f"{what}: {len(requests)} requests")
        return ask(requests, *args, **kwargs)

    return asked


def _bar(what: str, say: Say) -> Callable[..., Any]:
    """A progress bar whose every redraw is a line that is said."""
    from tqdm import tqdm

    class Lines(tqdm):  # type: ignore[type-arg]
        def display(self, *args: Any, **kwargs: Any) -> bool:
            if self.n and self.n < (self.total or 0):
                say(f"{what}: {self.n} of {self.total} requests")
            return True

    return lambda *args, **kwargs: Lines(*args, **{**kwargs, "mininterval": SECONDS_BETWEEN_LINES})


def _options(task: Any) -> Callable[[Any], list[str]]:
    """What gives the answers that a document of a task offers; no answers where the task is of another kind."""

    def options(doc: Any) -> list[str]:
        config = getattr(task, "config", None)
        if task.OUTPUT_TYPE != "multiple_choice" or getattr(config, "doc_to_choice", None) is None:
            return []
        choices = task.doc_to_choice(doc)
        return [str(choice) for choice in choices] if isinstance(choices, (list, tuple)) else []

    return options


class _Kept(logging.Handler):
    """Keeps the first line of each different warning."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        line = (record.getMessage().strip().splitlines() or [""])[0][:300]
        if line not in self.lines and len(self.lines) < 20:
            self.lines.append(line)


@contextmanager
def _quiet(say: Say = lambda text: None) -> Iterator[tuple[Say, list[str]]]:
    """No bars, prints and logs of lm-eval meanwhile. Gives a `say` that is heard nevertheless, and the list of its warnings."""
    out, err = sys.stdout, sys.stderr
    warnings: list[str] = []

    def told(text: str) -> None:
        with redirect_stdout(out), redirect_stderr(err):
            say(text)

    logger, handler = logging.getLogger("lm_eval"), _Kept(warnings)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield told, warnings
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


@contextmanager
def _network(offline: bool) -> Iterator[None]:
    """Offline, no name is resolved: the hub's clients are told, and a task's own code that reaches out fails at once."""
    if not offline:
        yield
        return
    import datasets.config
    import huggingface_hub.constants

    def refuse(host: Any, *args: Any, **kwargs: Any) -> Any:
        raise OSError(f"offline: {host} was not asked")

    with ExitStack() as stack:
        # They read the environment when they are imported, which may be long ago.
        stack.enter_context(patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True))
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            stack.enter_context(patch.object(datasets.config, name, True, create=True))
        stack.enter_context(
            patch.dict(os.environ, {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"})
        )
        stack.enter_context(patch.object(socket, "getaddrinfo", refuse))
        yield


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
