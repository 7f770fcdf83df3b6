"""What lm-evaluation-harness logged, as our rows and plain JSON. Nothing here imports it, and nothing here computes a score.

A row is one (task, document, filter). Its outcome is right or wrong only where the task's first metric says so; all numbers that
lm-eval gave the document are in `metrics`, under the names it uses itself ("acc,none").
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from numbers import Number
from typing import Any

import numpy as np

from mixsd.storage import digest

Row = dict[str, Any]

# Names of metrics that say right or wrong of one document. By name and not by value: a small model's BLEU can be 0 everywhere.
_RIGHT_OR_WRONG = re.compile(r"(?:^|_)(?:acc|exact_match|em)(?:$|_)")
# Parts of a task's config that say where it lies on this machine and not what it asks; the documents have a hash of their own.
_PLACES = ("metadata", "dataset_kwargs")


def plain(value: Any) -> Any:
    """A value as JSON has it: numpy's numbers and tuples turned into Python's, NaN and infinities into None, the rest into text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def content(doc: Any) -> str:
    """The hash of a document's content, whatever its place among the others."""
    return digest(plain(doc))


def chosen(contents: list[str], limit: int | None) -> list[int] | None:
    """The places, ascending, of the `limit` documents with the smallest hashes; None where that is all of them.

    Fifty of them are part of a hundred of them, and the order of the file does not matter.
    """
    if limit is None or limit >= len(contents):
        return None
    return sorted(sorted(range(len(contents)), key=lambda place: (contents[place], place))[:limit])


def rows_of(name: str, samples: list[Mapping[str, Any]], options: Callable[[Any], list[str]], metric: str | None) -> list[Row]:
    """The rows of one task.

    Args:
        name: the task, which is the rows' split.
        samples: what lm-eval logged of it.
        options: gives the answers that a document offers to choose from, none where it offers none.
        metric: the metric that says right or wrong, see `outcome_metric`.
    """
    several = len({sample["filter"] for sample in samples}) > 1
    rows = []
    for sample in samples:
        group = f"{name}/{sample['doc_id']}"
        likelihoods = _likelihoods(sample)
        row: Row = {
            "key": f"{group}/{sample['filter']}" if several else group,
            "split": name,
            "group": group,
            "labels": [],
            "prompt_hash": digest(plain(sample["arguments"])),
            "reply": _best(likelihoods, options(sample["doc"])) if likelihoods else _reply(sample),
            "reply_ids": [],
            "extracted": None if likelihoods else _extracted(sample),
            "outcome": _outcome(sample, metric),
            "truncated": False,
            "metrics": _metrics(sample),
        }
        if likelihoods:
            row["loglikelihoods"] = plain(likelihoods)
        rows.append(row)
    return rows


def outcome_metric(samples: list[Mapping[str, Any]], higher_is_better: Mapping[str, Any]) -> str | None:
    """The task's first metric if it says right or wrong of every document, else None."""
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
                number = _number(value)
                if number is None:
                    undefined.append(full)
                else:
                    found[full] = number
    return found, undefined


def config_hash(config: Mapping[str, Any], version: Any) -> str:
    """The hash of what a task's config asks for: the same file gives the same hash in another folder."""
    return digest([plain({key: value for key, value in config.items() if key not in _PLACES}), plain(version)])


def data_hash(contents: Iterable[str]) -> str:
    """The hash of a set of documents."""
    return digest(sorted(contents))


def _number(value: Any) -> float | None:
    if isinstance(value, (Number, np.generic)) and not isinstance(value, complex):
        number = float(value)  # type: ignore[arg-type]
        return number if math.isfinite(number) else None
    return None


def _metrics(sample: Mapping[str, Any]) -> dict[str, float | None]:
    """Its metrics that are numbers; perplexities, say, are pairs until they are aggregated."""
    values = {name: sample[name] for name in sample["metrics"] if isinstance(sample[name], (Number, np.generic))}
    return {f"{name},{sample['filter']}": _number(value) for name, value in values.items()}


def _outcome(sample: Mapping[str, Any], metric: str | None) -> str | None:
    if metric is None:
        return None
    return "correct" if _number(sample[metric]) == 1 else "wrong"


def _likelihoods(sample: Mapping[str, Any]) -> list[float]:
    """The log-likelihood of each of its requests, if that is what was asked of the model."""
    replies = [request[0] for request in sample["resps"]]
    if all(isinstance(reply, tuple) and isinstance(reply[0], float) for reply in replies):
        return [reply[0] for reply in replies]
    return replies if all(isinstance(reply, float) for reply in replies) else []


def _best(likelihoods: list[float], choices: list[str]) -> str:
    """The likeliest choice. There may be more requests than choices: those after them are the choices without the question."""
    if not choices or len(likelihoods) % len(choices):
        return ""
    return choices[max(range(len(choices)), key=lambda place: likelihoods[place])]


def _reply(sample: Mapping[str, Any]) -> str:
    reply = sample["resps"][0][0]
    return reply if isinstance(reply, str) else ""


def _extracted(sample: Mapping[str, Any]) -> str | None:
    filtered = sample["filtered_resps"][0]
    if isinstance(filtered, str) or filtered is None:
        return filtered
    return json.dumps(plain(filtered), ensure_ascii=False)
