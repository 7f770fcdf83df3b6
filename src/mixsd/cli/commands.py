"""What there is to type: each command parses, calls the library's function of that name and shows what came back.

Typer only parses. A command that was parsed is `Work`, which `entry` does outside of typer, so that every way of ending is
decided in one place. torch is imported when work begins, never by a mistyped flag or `--help`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixsd.cli import show
from mixsd.cli.options import gather, with_flags
from mixsd.cli.progress import watcher
from mixsd.errors import RequirementMissedError, UserError
from mixsd.plugins import is_function_name
from mixsd.settings import EXECUTION, Settings, build, to_yaml

if TYPE_CHECKING:
    from mixsd.commands.inject import RunResult

ALL = tuple(Settings.model_fields)

Facts = Annotated[
    str | None, typer.Argument(metavar="FACTS", show_default=False, help="The facts, as for --facts, which it goes before.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", show_default=False, help="A run folder.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        show_default=False,
        help="A YAML file of settings, or a run's run.yaml; flags go before it (--no-offline undoes its offline, and so on).",
    ),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", metavar="", help="Write every resolved setting as YAML and do nothing.")
]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Write JSON.")]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Put new knowledge into language models without breaking them.",
    epilog="Begin with: mixsd inject demo --output runs/demo",
)


@dataclass(frozen=True)
class Work:
    """A parsed command line. `resumes`: after an interruption, the same command goes on where it was."""

    call: Callable[[], None]
    resumes: bool


def command(
    *, flags: Sequence[str] = (), resumes: bool = False, into: typer.Typer = app, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command; with `flags`, the settings that were typed are its first argument."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        complete = with_flags(flags)(function) if flags else function

        @wraps(complete)
        def parsed(**arguments: Any) -> Work:
            return Work(partial(complete, **arguments), resumes)

        into.command(name)(parsed)
        return function

    return decorate


def _version(wanted: bool) -> None:
    if wanted:
        import mixsd

        print(f"mixsd {mixsd.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Write the version.")] = False,
) -> None:
    pass


@command(flags=ALL, resumes=True)
def inject(
    typed: dict[str, Any],
    source: Facts = None,
    config: Config = None,
    print_config: PrintConfig = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", metavar="", help="Say what would be done, with tokens, memory, disk and time, and do nothing."),
    ] = False,
) -> None:
    """Teach a model facts: mix, train, evaluate and report. The same command resumes a run that was stopped."""
    values = gather(_with_facts(typed, source), config)
    if print_config:
        _print_config(values)
        return
    settings = _prepared(values)
    if dry_run:
        from mixsd.commands.dry_run import plan

        show.plan(plan(settings, watcher()))
        return
    from mixsd.commands import inject as commands_inject

    _reported(Path(settings.output), lambda: commands_inject.inject(settings, watcher=watcher()))


@command(flags=ALL, resumes=True)
def mix(typed: dict[str, Any], source: Facts = None, config: Config = None, print_config: PrintConfig = False) -> None:
    """Only make the targets of a run. Its other settings, of training and so on, are settled here too."""
    values = gather(_with_facts(typed, source), config)
    if print_config:
        _print_config(values)
        return
    settings = _prepared(values)
    from mixsd.commands import inject as commands_inject

    folder = commands_inject.mix(settings, watcher=watcher()).folder
    if settings.shard:
        print(f"shard {settings.shard}: mixed; when all are, the same command without --shard makes the targets")
        return
    show.targets(folder)


@command(flags=ALL, resumes=True)
def train(
    typed: dict[str, Any],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", show_default=False, help="A mixed run, or a file of targets.")],
    config: Config = None,
    print_config: PrintConfig = False,
) -> None:
    """Only train: a run that was mixed, with its own settings; or, given --output, on a file of targets."""
    values = gather(typed, config)
    if print_config:
        _print_config(values, source)
        return
    _prepared(values)
    from mixsd.commands import inject as commands_inject

    print(f"model: {commands_inject.train(source, watcher=watcher(), **values).model}")


@command(flags=ALL, resumes=True)
def evaluate(
    typed: dict[str, Any],
    source: Annotated[str, typer.Argument(metavar="SOURCE", show_default=False, help="A trained run, a model folder or name.")],
    *,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", show_default=False, help="Of a model: the base beside which it is asked. [default: it is asked alone]"
        ),
    ] = None,
    regrade: Annotated[
        bool, typer.Option("--regrade", metavar="", help="Judge the replies of a run once more; nothing is generated.")
    ] = False,
    config: Config = None,
    print_config: PrintConfig = False,
) -> None:
    """Only evaluate: a trained run; or any model, beside its base or alone, in a run folder of its own (--output)."""
    if base is not None:
        if "model" in typed:
            raise UserError("--base and --model name the same here; give one of them")
        typed = {**typed, "model": base}
    values = gather(typed, config)
    if print_config:
        _print_config(values, Path(source))
        return
    settings = _prepared(values)
    from mixsd.commands import inject as commands_inject
    from mixsd.run.folder import Run

    run = Run(Path(source))
    if run.exists() and base is not None:
        raise UserError(f"{source}: a run has its own base model; leave --base out")
    if settings.shard:
        commands_inject.evaluate(source, watcher=watcher(), **values)
        print(f"shard {settings.shard}: evaluated; when all are, the same command without --shard scores")
        return
    if not run.exists() and not regrade:
        folder = Path(commands_inject.evaluation_of(source, values).output)
        _reported(folder, lambda: commands_inject.evaluate(source, watcher=watcher(), **values))
        return
    commands_inject.evaluate(source, regrade=regrade, watcher=watcher(), **values)
    print(f"replies: {run.evaluation}; write the report with: mixsd report {source}")


@command(flags=EXECUTION, resumes=True)
def report(typed: dict[str, Any], run: RunFolder) -> None:
    """Write the report of a run that was evaluated: report.json, report.html and the model card."""
    values = gather(typed, None)
    _prepared(values)
    from mixsd.commands import inject as commands_inject

    _reported(run, lambda: commands_inject.report(run, watcher=watcher(), **values))


@command()
def inspect(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", show_default=False, help="A run folder, or a file of targets.")],
    *,
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="How many, from the beginning.")] = 5,
    ids: Annotated[
        list[str] | None, typer.Option("--id", show_default=False, help="Only the fact of this id. Repeatable.")
    ] = None,
    attempts: Annotated[
        bool, typer.Option("--attempts", metavar="", help="Every decoding that was tried, not only the outcome.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", show_default=False, help="Whose tokenizer to use; a run has its own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show targets token by token: where each came from, whether it is trained on, how likely the base model finds it."""
    from mixsd.cli import show
    from mixsd.targets import reading

    items = reading.inspect(source, limit=limit, ids=tuple(ids or ()), attempts=attempts, model=model)
    show.as_json(items) if as_json else show.render(items)


@command(flags=("device", "offline"))
def ask(
    typed: dict[str, Any],
    run: RunFolder,
    question: Annotated[
        str | None, typer.Argument(show_default=False, help="Without one: a prompt, until an empty line.")
    ] = None,
) -> None:
    """Ask the base and the tuned model of a run the same question, side by side."""
    values = gather(typed, None)
    _prepared(values)
    from mixsd.commands import ask as commands_ask

    if question is not None:
        show.replies(commands_ask.ask(run, question, watcher=watcher(), **values))
        return
    with commands_ask.Conversation(run, watcher(), **values) as conversation:
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


def _with_facts(typed: Mapping[str, Any], source: str | None) -> Mapping[str, Any]:
    return typed if source is None else {**typed, "facts": source}


def _prepared(values: Mapping[str, Any]) -> Settings:
    """Check the settings and forbid the network where they say so, before anything that might use it is imported."""
    from mixsd.run.folder import go_offline

    settings = build(values, "settings")
    if settings.offline:
        go_offline()
    return settings


def _print_config(values: Mapping[str, Any], source: Path | None = None) -> None:
    """Write the settings; those of a run folder are its own unless they were given."""
    from mixsd.run.folder import Run

    own = Run(source).settings().dump() if source is not None and Run(source).exists() else {}
    settings = build({**own, **values}, "settings")
    print(to_yaml((settings if own else _fitted(settings)).resolved), end="")


def _fitted(settings: Settings) -> Settings:
    """With a corpus's own ways of asking and judging, which a run on it will have."""
    from mixsd.facts.sources import CORPORA, Corpus, open_source

    facts = settings.facts
    if not (facts.partition(":")[0] in CORPORA or is_function_name(facts) or os.path.isdir(os.path.expanduser(facts))):
        return settings  # a file brings none, and whether it is there is not asked yet
    opened = open_source(facts, seed=settings.corpus_seed, offline=settings.offline)
    if not isinstance(opened, Corpus):
        return settings
    from mixsd.commands.opening import fitted

    return fitted(settings, opened)


def _reported(folder: Path, run: Callable[[], RunResult]) -> None:
    """Do work that ends in a report, and show it, the more so where it misses a requirement."""
    try:
        folder = run().folder
    except RequirementMissedError:
        show.report(folder.expanduser())
        raise
    show.report(folder)


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
