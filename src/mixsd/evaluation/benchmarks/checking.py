"""Which benchmarks can be asked here, and whether their judges judge right.

A judge is proved on what needs no model: every reference reply must be right and its corrupted twin wrong, in both forms.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

from mixsd.errors import UserError
from mixsd.evaluation.benchmarks.benchmark import ALLOW, BENCHMARKS, Benchmark, Item, Means, data_hash, get_benchmark
from mixsd.evaluation.benchmarks.data import find
from mixsd.facts.answers import Verdict
from mixsd.progress import Watcher

FORMS = ("strict", "lenient")
_RIGHT = {"reference": "correct", "twin": "wrong"}  # what each kind of reply must be


def survey(data: str | None = None, *, offline: bool = False, also: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Say of every benchmark where its data is and what it needs. Nothing is downloaded; only files of a local folder are read.

    Args:
        data: a folder that holds the benchmarks' data; else $MIXSD_DATA.
        offline: the network is forbidden, so data that only the hub has is not found.
        also: benchmarks of the user's, as `package.module:function`.

    Returns for each: `name`, `title`, `size` (items published), `items` (in the local folder), `source` (folder, cache, hub or
    none), `where`, `problem` (why the data cannot be read), `needs`: `what`, `met` (None: the user says so with each command) and
    `note` of each.
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
    told = {"source": source, "where": where, "problem": problem, "needs": list(_needs(benchmark))}
    return {"name": benchmark.name, "title": benchmark.title, "size": benchmark.size, "items": items, **told}


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
        data: a folder that holds its data; else $MIXSD_DATA, the hub's cache, the hub.
        allow_code_execution: run the programs of a benchmark that asks for some, in a sandbox.
        allow_weak_sandbox: also where this machine cannot isolate them.

    Returns `name`, `title`, `n`, `size` (published), `where`, `data` (hash), `scorer`, `sandbox` (its kind, or None), `seconds`,
    `allowed` (`missed`, and the `refused` share), `passed`, `problems` (one line each), and for each of `strict` and `lenient`:
    `right` (references), `refused` (twins), `errors` (of both), and `exceptions`, whatever did not come out as it should.
    """
    benchmark = get_benchmark(name)
    isolation = benchmark.require_means(allow_code=allow_code_execution, allow_weak=allow_weak_sandbox)
    found = benchmark.find(data, offline=offline)
    items = benchmark.items(found, Means(weak_sandbox=allow_weak_sandbox))
    started = time.perf_counter()
    judged: list[tuple[Item, str, str, Verdict]] = []
    # Judges that wait for a process of their own do so side by side.
    pool = ThreadPoolExecutor(os.cpu_count() if benchmark.needs or benchmark.runs_code else 1)
    try:
        with (watcher or Watcher()).task(f"checking {name}", len(items)) as task:
            for verdicts in pool.map(lambda place: _verdicts(benchmark, items, place), range(len(items))):
                judged += verdicts
                task.advance()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, what has not begun is not begun
    figures = {form: _figures([told for told in judged if told[1] == form]) for form in FORMS}
    problems = [f"{form}: {text}" for form in FORMS for text in _problems(benchmark, figures[form], len(items))]
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


def _verdicts(benchmark: Benchmark, items: Sequence[Item], place: int) -> list[tuple[Item, str, str, Verdict]]:
    item = items[place]
    replies = {"reference": item.reference, "twin": benchmark.corrupt(items, place)}
    judges = zip(FORMS, (item.strict, item.lenient), strict=True)
    return [(item, form, kind, judge(reply, item.expected)) for form, judge in judges for kind, reply in replies.items()]


def _figures(judged: list[tuple[Item, str, str, Verdict]]) -> dict[str, Any]:
    right = Counter(kind for _, _, kind, verdict in judged if verdict.outcome == _RIGHT[kind])
    exceptions = [
        {"id": item.id, "kind": kind, "outcome": verdict.outcome, "extracted": verdict.extracted, "reason": verdict.reason}
        for item, _, kind, verdict in judged
        if verdict.outcome != _RIGHT[kind]
    ]
    errors = sum(told["outcome"] == "error" for told in exceptions)
    return {"right": right["reference"], "refused": right["twin"], "errors": errors, "exceptions": exceptions}


def _problems(benchmark: Benchmark, figures: dict[str, Any], n: int) -> Iterator[str]:
    proof = benchmark.proof
    missed, refused = n - figures["right"], figures["refused"]
    if missed > proof.most_missed:
        yield f"{missed} of {n} references are not judged right, at most {proof.most_missed} may be"
    if refused < proof.least_refused * n:
        yield f"{n - refused} of {n} corrupted replies are not judged wrong, expected {proof.least_refused:.0%} to be"
    if figures["errors"]:
        yield f"{figures['errors']} errors of the judge"
