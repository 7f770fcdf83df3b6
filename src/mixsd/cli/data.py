"""`mixsd corpus ...`: make a corpus's files and look at them. `mixsd benchmarks`: what can be asked, and whether its judges hold."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mixsd.cli import show
from mixsd.cli.options import Json, Offline, ParsedCommand, app, argument, command, group, option, switch
from mixsd.cli.show import duration, watcher
from mixsd.errors import MixsdError, UserError
from mixsd.formats import printable

corpora = group(
    "Make the paper's corpora: facts with in-domain tests, as JSONL files in a folder.",
    "Then: mixsd inject FOLDER --output RUN. Or at once, with every default: mixsd inject kgfact:small --output RUN",
)

Output = Annotated[Path, option("--output", "DIR", "The folder to write to.")]
Seed = Annotated[int, option("--seed", "INTEGER", "Seed of every random number.", min=0)]
Data = Annotated[str | None, option("--data", "FILE", "The data set as a local file. [default: from the hub]")]


@command(into=corpora)
def kgfact(
    output: Output,
    size: Annotated[str, option("--size", None, "small (100 facts), large (525), or DOMAINSxENTITIES such as 7x1000.")] = "small",
    seed: Seed = 0,
    retrieval: Annotated[
        Literal["held-out", "trained"], option("--retrieval", None, "Ask about entities never trained on, or the trained facts.")
    ] = "held-out",
) -> None:
    """Facts about an invented world: a graph of entities that no model has read about."""
    _make(output, "kgfact", size, seed=seed, retrieval=retrieval)


@command(into=corpora)
def kgfunc(
    output: Output,
    train: Annotated[int, option("--train", "N", "Training instances, in all.")] = 1600,
    per_operation: Annotated[bool, switch("--per-operation", "As many for each operation (the paper's text).")] = False,
    test: Annotated[int, option("--test", "N", "Test instances, in all.")] = 175,
    seed: Seed = 0,
) -> None:
    """Arithmetic functions on digits: ten examples and a new input, with references that go step by step."""
    _make(output, "kgfunc", None, train=train, per_operation=per_operation, test=test, seed=seed)


@command(into=corpora)
def simpleqa(output: Output, data: Data = None, seed: Seed = 0, offline: Offline = False) -> None:
    """SimpleQA's 4,326 short questions about the world."""
    _make(output, "simpleqa", data, seed=seed, offline=offline)


@command(into=corpora)
def mquake(
    output: Output,
    data: Data = None,
    edits: Annotated[int, option("--edits", "N", "How many facts are changed.")] = 100,
    seed: Seed = 0,
    offline: Offline = False,
) -> None:
    """MQuAKE-CF: facts that the model may know, changed; with questions that need several of them."""
    _make(output, "mquake", data, edits=edits, seed=seed, offline=offline)


@command(into=corpora, name="show")
def show_corpus(
    folder: Annotated[str, argument("DIR", "A folder that mixsd corpus wrote, or kgfact:small.")],
    as_json: Json = False,
) -> None:
    """Show a corpus: its counts, an example of each split, and the facts between its domains."""
    from mixsd.commands.ask import look

    found = look(folder)
    show.as_json(found) if as_json else show.corpus(found)


def _make(output: Path, name: str, argument: str | None, **options: Any) -> None:
    from mixsd.facts.corpus import corpus, write

    if options.get("offline"):
        from mixsd.run.folder import go_offline

        go_offline()
    made = corpus(name, argument, **options)
    with watcher().task("writing", 1 + len(made.splits)) as task:
        counts = write(made, output.expanduser(), task.advance)
    for split, number in counts.items():
        print(f"{split + '.jsonl:':24} {number:>9,}")
    for note in made.notes:
        print(f"note: {note}")
    print(f"corpus: {output}; look at it with: mixsd corpus show {output}")


_MOST = 20  # exceptions that are listed

BenchmarkData = Annotated[str | None, option("--data", "DIR", "Folder of the data. [default: $MIXSD_DATA, else the hub's cache]")]
Suites = Annotated[list[str] | None, option("--suite", "NAME", "Also this package.module:function of yours. Repeatable.")]

benchmarks = group(
    "List the held-out benchmarks: where the data of each is, and what it needs. Nothing is downloaded.",
    "Then: mixsd evaluate RUN --suite gsm8k. Or all that are at hand, in part: --suite quick",
)
app.add_typer(benchmarks, name="benchmarks")


@benchmarks.callback(invoke_without_command=True)
def listing(
    context: typer.Context, data: BenchmarkData = None, suite: Suites = None, offline: Offline = False, as_json: Json = False
) -> ParsedCommand | None:
    if context.invoked_subcommand is None:
        return ParsedCommand(partial(_list, data, suite or [], offline, as_json), resumes=False)
    if data is not None or suite or offline or as_json:
        raise UserError(f"options of {context.invoked_subcommand} stand behind it: mixsd benchmarks check NAME --offline")
    return None


def _list(data: str | None, also: list[str], offline: bool, as_json: bool) -> None:
    from mixsd.evaluation.benchmarks.checking import survey

    found = survey(data, offline=offline, also=also)
    if as_json:
        show.as_json(found)
        return
    for entry in found:
        place = str(entry["where"])
        if entry["problem"]:
            place = f"cannot be read: {entry['problem']}"
        elif entry["items"] is not None:
            part = "" if entry["items"] == entry["size"] else f"; not all, so only with --limit {entry['items']} or less"
            place = f"{entry['items']:,} in {place}{part}"
        print(f"{entry['name']:10} {entry['title']:10} {entry['size']:>7,} published   {printable(place)}")
        for need in entry["needs"]:
            missing = "MISSING, " if need["met"] is False else ""
            print(f"{'':36}needs {need['what']}: {missing}{printable(need['note'])}")


@command(into=benchmarks)
def check(
    name: Annotated[str, argument("NAME", "A benchmark of the list.")],
    *,
    data: BenchmarkData = None,
    offline: Offline = False,
    allow_code_execution: Annotated[bool, switch("--allow-code-execution", "Run HumanEval's programs, in a sandbox.")] = False,
    allow_weak_sandbox: Annotated[bool, switch("--allow-weak-sandbox", "Even where it cannot isolate your files.")] = False,
    as_json: Json = False,
) -> None:
    """Check a benchmark's judge: every reference reply must be right, a corrupted one wrong. Exits with 1 where they are not."""
    from mixsd.evaluation.benchmarks import checking

    if offline:
        from mixsd.run.folder import go_offline

        go_offline()
    allowed = {"allow_code_execution": allow_code_execution, "allow_weak_sandbox": allow_weak_sandbox}
    found = checking.check(name, data, offline=offline, watcher=watcher(), **allowed)
    show.as_json(found) if as_json else _show(found)
    if not found["passed"]:
        raise MixsdError(f"{found['title']}: {'; '.join(found['problems'])}")


def _show(found: Mapping[str, Any]) -> None:
    n, whole = found["n"], "" if found["n"] == found["size"] else f" ({found['size']:,} are published)"
    print(f"{found['title']}: {n:,} items{whole}, {printable(found['where'])}")
    for form in ("strict", "lenient"):
        part = found[form]
        counts = f"references right {part['right']:,} of {n:,}, twins judged wrong {part['refused']:,} of {n:,}"
        print(f"{form + ':':8} {counts}, errors {part['errors']:,}")
    for form in ("strict", "lenient"):
        exceptions = found[form]["exceptions"]
        for item in exceptions[:_MOST]:
            took = "" if item["extracted"] is None else f", took {printable(' '.join(item['extracted'].split())[:80])}"
            why = f" ({printable(item['reason'])})" if item["reason"] else ""
            print(f"  {form} {item['kind']} of {printable(item['id'])}: {item['outcome']}{why}{took}")
        if len(exceptions) > _MOST:
            print(f"  {len(exceptions) - _MOST:,} more of {form}; --json has all")
    apart = f" in the sandbox {found['sandbox']}" if found["sandbox"] else ""
    print(f"{'holds' if found['passed'] else 'FALLS SHORT'}: judged in {duration(found['seconds'])}{apart}")
