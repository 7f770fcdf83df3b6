"""Which benchmarks can be asked here, and whether their judges judge right.

A judge is proved on what needs no model: every reference reply must be right and its corrupted twin wrong, in the strict and in the
lenient form, through the very functions that score a model. How many exceptions the data itself excuses is the benchmark's `Proof`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from mixsd.errors import UserError
from mixsd.evaluation.benchmarks.benchmark import ALLOW, BENCHMARKS, Benchmark, Item, Means, data_hash, get_benchmark
from mixsd.evaluation.benchmarks.data import find
from mixsd.facts.answers import Verdict
from mixsd.progress import Watcher

FORMS = ("strict", "lenient")
KINDS = ("reference", "twin")
_RIGHT = {"reference": "correct", "twin": "wrong"}


def survey(data: str | None = None, *, offline: bool = False, also: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Say of every benchmark where its data is and what it needs. Nothing is downloaded; only files of a local folder are read.

    Args:
        data: a folder that holds the benchmarks' data; else $MIXSD_DATA.
        offline: the network is forbidden, so data that only the hub has is not found.
        also: benchmarks of the user's, as `package.module:function`.

    Returns:
        JSON values, one for each benchmark, ours in the paper's order: `name`, `title`, `size` (how many items are published), `items` (how
        many are in the local folder, else None), `source` (folder, cache, hub or none), `where` (for people), `problem` (why the data
        cannot be read, or None), `needs`: a list of `what`, `met` (None where the user says so with each command) and `note`.
    """
    return [_state(get_benchmark(name), data, offline) for name in (*BENCHMARKS, *also)]


def _state(benchmark: Benchmark, data: str | None, offline: bool) -> dict[str, Any]:
    source, where, items, problem = "none", "", None, None
    try:
        found = find(benchmark.source, data, offline=offline)
        source, where = found.kind, found.where + (" (would be downloaded)" if found.kind == "hub" else "")
        if source == "folder":
            items = len(benchmark.items(found, Means()))
    except UserError as error:
        if source == "none":
            where = f"not found: {error}"
        else:
            problem = str(error)
    return {
        "name": benchmark.name,
        "title": benchmark.title,
        "size": benchmark.size,
        "items": items,
        "source": source,
        "where": where,
        "problem": problem,
        "needs": list(_needs(benchmark)),
    }


def _needs(benchmark: Benchmark) -> Iterator[dict[str, Any]]:
    if benchmark.needs:
        module, install = benchmark.needs
        here = find_spec(module) is not None
        yield {"what": module.replace("_", "-"), "met": here, "note": "installed" if here else install}
    if benchmark.runs_code:
        from mixsd import sandbox

        found = sandbox.isolation()
        yield {"what": f"sandbox {found.kind}", "met": found.kind != "none", "note": found.note}
        yield {"what": ALLOW, "met": None, "note": "it runs code that a model wrote"}


def check(
    name: str,
    data: str | None = None,
    *,
    offline: bool = False,
    allow_code_execution: bool = False,
    allow_weak_sandbox: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Judge every reference reply of a benchmark, and its corrupted twin, with the benchmark's judges.

    Args:
        name: the benchmark's.
        data: a folder that holds its data; else $MIXSD_DATA, the hub's cache, the hub.
        offline: forbid the network.
        allow_code_execution: run the programs of a benchmark that asks for some, in a sandbox.
        allow_weak_sandbox: also where this machine cannot isolate them.

    Returns:
        JSON values: `name`, `title`, `n`, `size` (published), `where`, `data` (hash), `scorer`, `sandbox` (its kind, or None),
        `seconds`, `allowed` (`missed`, and the `refused` share), `passed`, `problems` (one line for each way in which it falls short), and
        for each of `strict` and `lenient`: `right` (references), `refused` (twins that are wrong), `errors` (of both), and
        `exceptions`, whatever did not come out as it should: `id`, `kind` (reference or twin), `outcome`, `extracted`, `reason`.

    Raises:
        UserError: no such benchmark, its data is not there or not readable, something that it needs is missing, or code may not run.
    """
    benchmark = get_benchmark(name)
    isolation = benchmark.require_means(allow_code=allow_code_execution, allow_weak=allow_weak_sandbox)
    found = benchmark.find(data, offline=offline)
    items = benchmark.items(found, Means(weak_sandbox=allow_weak_sandbox))
    started = time.perf_counter()
    figures: dict[str, Any] = {form: {"right": 0, "refused": 0, "errors": 0, "exceptions": []} for form in FORMS}
    with (watcher or Watcher()).task(f"checking {name}", len(items)) as task, _judged(benchmark, items) as judged:
        for item, verdicts in zip(items, judged, strict=True):
            for (form, kind), verdict in verdicts.items():
                _count(figures[form], item, kind, verdict)
            task.advance()
    problems = [text for form in FORMS for text in _problems(benchmark, form, figures[form], len(items))]
    return {
        "name": name,
        "title": benchmark.title,
        "n": len(items),
        "size": benchmark.size,
        "where": found.where,
        "data": data_hash(items),
        "scorer": benchmark.scorer,
        "sandbox": isolation.kind if isolation else None,
        "seconds": round(time.perf_counter() - started, 3),
        "allowed": {"missed": benchmark.proof.most_missed, "refused": benchmark.proof.least_refused},
        "passed": not problems,
        "problems": problems,
        **figures,
    }


_Verdicts = dict[tuple[str, str], Verdict]


@contextmanager
def _judged(benchmark: Benchmark, items: Sequence[Item]) -> Iterator[Iterator[_Verdicts]]:
    """The verdicts on every item, in order. Judges that wait for a process of their own do so side by side."""

    def judge(place: int) -> _Verdicts:
        item = items[place]
        replies = {"reference": item.reference, "twin": benchmark.corrupt(items, place)}
        judges: dict[str, Callable[..., Verdict]] = {"strict": item.strict, "lenient": item.lenient}
        return {(form, kind): judges[form](replies[kind], item.expected) for form in FORMS for kind in KINDS}

    if not (benchmark.needs or benchmark.runs_code):
        yield map(judge, range(len(items)))
        return
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        yield pool.map(judge, range(len(items)))
    finally:
        # After an error or Ctrl-C, what has not begun is not begun.
        pool.shutdown(cancel_futures=True)


def _count(figures: dict[str, Any], item: Item, kind: str, verdict: Verdict) -> None:
    if verdict.outcome == _RIGHT[kind]:
        figures["right" if kind == "reference" else "refused"] += 1
        return
    figures["errors"] += verdict.outcome == "error"
    told = {"outcome": verdict.outcome, "extracted": verdict.extracted, "reason": verdict.reason}
    figures["exceptions"].append({"id": item.id, "kind": kind, **told})


def _problems(benchmark: Benchmark, form: str, figures: dict[str, Any], n: int) -> Iterator[str]:
    proof = benchmark.proof
    missed, refused = n - figures["right"], figures["refused"]
    if missed > proof.most_missed:
        yield f"{form}: {missed} of {n} references are not judged right, at most {proof.most_missed} may be"
    if refused < proof.least_refused * n:
        yield f"{form}: {n - refused} of {n} corrupted replies are not judged wrong, expected {proof.least_refused:.0%} to be"
    if figures["errors"]:
        yield f"{form}: {figures['errors']} errors of the judge"
