"""The commands of one run: each parses, calls the library's function of that name and shows what came back.

torch is imported when work begins, never by a mistyped flag or `--help`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixsd.cli import show
from mixsd.cli.options import Json, RunFolder, app, argument, command, gather, option, switch
from mixsd.cli.show import watcher
from mixsd.errors import RequirementMissedError, UserError
from mixsd.plugins import is_function_name
from mixsd.settings import EXECUTION, Settings, build, to_yaml

if TYPE_CHECKING:
    from mixsd.commands.inject import RunResult

ALL = tuple(Settings.model_fields)

Facts = Annotated[str | None, argument("FACTS", "Facts; overrides --facts.")]
Config = Annotated[Path | None, option("--config", None, "A YAML file of settings, or a run's run.yaml; flags override it.")]
PrintConfig = Annotated[bool, switch("--print-config", "Write every resolved setting as YAML and do nothing.")]


def _version(wanted: bool) -> None:
    if wanted:
        import mixsd

        print(f"mixsd {mixsd.__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Write the version.")]


@app.callback()
def _top(version: Version = False) -> None:
    pass


def _prepared(values: Mapping[str, Any]) -> Settings:
    """Check the settings and forbid the network where they say so, before anything that might use it is imported."""
    from mixsd.run.folder import go_offline

    settings = build(values, "settings")
    if settings.offline:
        go_offline()
    return settings


def _print_config(values: Mapping[str, Any], source: Path | None = None) -> None:
    """Write the settings: a run folder's own unless given, else with a corpus's own ways of asking and judging."""
    from mixsd.facts.corpus import CORPORA, Corpus, open_source
    from mixsd.run.folder import Run

    own = Run(source).settings().dump() if source is not None and Run(source).exists() else {}
    settings = build({**own, **values}, "settings")
    facts = settings.facts
    # A file brings no ways of its own, and whether it is there is not asked yet.
    if not own and (facts.partition(":")[0] in CORPORA or is_function_name(facts) or os.path.isdir(os.path.expanduser(facts))):
        opened = open_source(facts, seed=settings.corpus_seed, offline=settings.offline)
        if isinstance(opened, Corpus):
            from mixsd.commands.opening import fitted

            settings = fitted(settings, opened)
    print(to_yaml(settings.resolved), end="")


def _reported(folder: Path, run: Callable[[], RunResult]) -> None:
    """Do work that ends in a report, and show it, the more so where it misses a requirement."""
    try:
        folder = run().folder
    except RequirementMissedError:
        show.report(folder.expanduser())
        raise
    show.report(folder)


@command(flags=ALL, resumes=True)
def inject(
    typed: dict[str, Any],
    source: Facts = None,
    config: Config = None,
    print_config: PrintConfig = False,
    dry_run: Annotated[bool, switch("--dry-run", "Write what the run takes in tokens, memory and disk, and do nothing.")] = False,
) -> None:
    """Teach a model facts: mix, train, evaluate and report. The same command resumes a run that was stopped."""
    values = gather(typed if source is None else {**typed, "facts": source}, config)
    if print_config:
        _print_config(values)
        return
    settings = _prepared(values)
    if dry_run:
        from mixsd.commands.dry_run import plan

        show.plan(plan(settings, watcher()))
        return
    from mixsd.commands import inject as library

    _reported(Path(settings.output), lambda: library.inject(settings, watcher=watcher()))


@command(flags=ALL, resumes=True)
def mix(typed: dict[str, Any], source: Facts = None, config: Config = None, print_config: PrintConfig = False) -> None:
    """Only make the targets of a run. All settings of the run are settled here, those of training too."""
    values = gather(typed if source is None else {**typed, "facts": source}, config)
    if print_config:
        _print_config(values)
        return
    settings = _prepared(values)
    from mixsd.commands import inject as library

    folder = library.mix(settings, watcher=watcher()).folder
    if settings.shard:
        print(f"shard {settings.shard}: mixed; when all are, the same command without --shard makes the targets")
    else:
        show.targets(folder)


@command(flags=ALL, resumes=True)
def train(
    typed: dict[str, Any],
    source: Annotated[Path, argument("SOURCE", "A mixed run, or a file of targets.")],
    config: Config = None,
    print_config: PrintConfig = False,
) -> None:
    """Only train: a mixed run, with its own settings; or a file of targets, given --output."""
    values = gather(typed, config)
    if print_config:
        _print_config(values, source)
        return
    _prepared(values)
    from mixsd.commands import inject as library

    print(f"model: {library.train(source, watcher=watcher(), **values).model}")


@command(flags=ALL, resumes=True)
def evaluate(
    typed: dict[str, Any],
    source: Annotated[str, argument("SOURCE", "A trained run, a model folder or a model's name.")],
    *,
    base: Annotated[str | None, option("--base", None, "The base of a model. [default: the model is asked alone]")] = None,
    regrade: Annotated[bool, switch("--regrade", "Judge the replies of a run once more; generate nothing.")] = False,
    config: Config = None,
    print_config: PrintConfig = False,
) -> None:
    """Only evaluate: a trained run; or any model, beside its base or alone, in a run folder of its own (--output)."""
    from mixsd.run.folder import Run

    if base is not None:
        if "model" in typed:
            raise UserError("--base and --model name the same here; give one of them")
        typed = {**typed, "model": base}
    values, run = gather(typed, config), Run(Path(source))
    settings = _prepared(values)
    from mixsd.commands import inject as library

    if print_config:
        _print_config(values if run.exists() else library.evaluation_of(source, values).dump(), Path(source))
        return
    if run.exists() and base is not None:
        raise UserError(f"{source}: a run has its own base model; leave --base out")
    work = partial(library.evaluate, source, regrade=regrade, watcher=watcher(), **values)
    if settings.shard:
        work()
        print(f"shard {settings.shard}: evaluated; when all are, the same command without --shard scores")
    elif run.exists() or regrade:
        work()
        print(f"replies: {run.evaluation}; write the report with: mixsd report {source}")
    else:
        _reported(Path(library.evaluation_of(source, values).output), work)


@command(flags=EXECUTION, resumes=True)
def report(typed: dict[str, Any], run: RunFolder) -> None:
    """Write the report of an evaluated run: report.json, report.html and the model card."""
    values = gather(typed)
    _prepared(values)
    from mixsd.commands import inject as library

    _reported(run, lambda: library.report(run, watcher=watcher(), **values))


@command()
def inspect(
    source: Annotated[Path, argument("SOURCE", "A run folder, or a file of targets.")],
    *,
    limit: Annotated[int, option("--limit", "N", "Show the first N.")] = 5,
    ids: Annotated[list[str] | None, option("--id", None, "Show only the fact of this id. Repeatable.")] = None,
    attempts: Annotated[bool, switch("--attempts", "Show every attempt, not only the outcome.")] = False,
    model: Annotated[str | None, option("--model", None, "The model whose tokenizer is used. [default: the run's]")] = None,
    as_json: Json = False,
) -> None:
    """Show targets token by token: the source of each token, whether it is trained on, its base NLL."""
    from mixsd.targets import reading

    items = reading.inspect(source, limit=limit, ids=tuple(ids or ()), attempts=attempts, model=model)
    show.as_json(items) if as_json else show.inspected(items)


@command(flags=("device", "offline"))
def ask(
    typed: dict[str, Any],
    run: RunFolder,
    question: Annotated[str | None, argument("QUESTION", "Without one: a prompt, until an empty line.")] = None,
) -> None:
    """Ask the base and the tuned model of a run the same question, side by side."""
    values = gather(typed)
    _prepared(values)
    from mixsd.commands import ask as commands

    if question is not None:
        show.replies(commands.ask(run, question, watcher=watcher(), **values))
        return
    with commands.Conversation(run, watcher(), **values) as conversation:
        for line in _questions():
            try:
                show.replies(conversation.ask(line))
            except UserError as error:  # a question that does not fit shall not cost the loaded models
                print(f"error: {error}", file=sys.stderr)


@command()
def models(as_json: Json = False) -> None:
    """List the models that mixsd brings: where each is, its size and its licence."""
    from mixsd.models.doctor import built_in_models

    found = built_in_models()
    show.as_json(found) if as_json else show.models(found)


@command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine offers and what is missing: python, torch, devices, memory, disk, optional packages."""
    from mixsd.models.doctor import doctor as examine

    found = examine()
    show.as_json(found) if as_json else show.health(found)


def _questions() -> Iterator[str]:
    """What is typed at a prompt, or piped in, until an empty line or the end."""
    prompt = ""
    if sys.stdin.isatty():
        prompt = "question: "
        with suppress(ImportError):
            import readline  # noqa: F401 - gives `input` editing and history
    with suppress(EOFError):
        while line := input(prompt).strip():
            yield line
