"""How a command is declared: `command` registers it; `option`, `switch` and `argument` are its own flags, `Settings` has the rest.

Typer only parses: a parsed command is `ParsedCommand`, which `entry` does, so that every way of ending is decided in one place. The value of a
setting's flag is handed on as it was typed, and `settings.build` judges it together with the config file, so that all problems come
out at once. A flag that is not given overrides nothing; `--no-offline` undoes a config file's `offline: true`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from mixsd.errors import UserError
from mixsd.formats import plain
from mixsd.settings import Settings, build, read_config

_WORDS: dict[Any, str] = {int: "INTEGER", float: "NUMBER", str: "TEXT"}


def group(help: str, epilog: str | None = None) -> typer.Typer:
    """A group of commands."""
    options: dict[str, Any] = {"add_completion": False, "rich_markup_mode": "rich", "pretty_exceptions_enable": False}
    return typer.Typer(help=help, epilog=epilog, **options)


app = group("Put new knowledge into language models without breaking them.", "Begin with: mixsd inject demo --output runs/demo")


@dataclass(frozen=True)
class ParsedCommand:
    """A parsed command line. `resumes`: after an interruption, the same command goes on where it was."""

    call: Callable[[], None]
    resumes: bool


def command(
    *, flags: Sequence[str] = (), resumes: bool = False, into: typer.Typer = app, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command; those of the settings `flags` that were typed are its first argument, a dict."""
    switches = [setting for setting in flags if Settings.model_fields[setting].annotation is bool]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def parsed(**arguments: Any) -> ParsedCommand:
            if not flags:
                return ParsedCommand(partial(function, **arguments), resumes)
            typed = {setting: arguments.pop(setting) for setting in flags}
            undone = [setting for setting in switches if arguments.pop(f"no_{setting}")]
            # A repeatable flag that was not typed is an empty list in some versions of typer, None in others.
            given = {setting: value for setting, value in typed.items() if value not in (None, [], ())}
            return ParsedCommand(partial(function, {**given, **dict.fromkeys(undone, False)}, **arguments), resumes)

        signature = inspect.signature(function, eval_str=True)
        parameters = list(signature.parameters.values())[bool(flags) :]
        parameters += [_parameter(setting, None, _option(setting, Settings.model_fields[setting])) for setting in flags]
        for setting in switches:
            # Out of sight, since two columns of long flags would leave no room for the help.
            opposite = typer.Option(f"--no-{flag(setting)[2:]}", hidden=True)
            parameters.append(_parameter(f"no_{setting}", False, Annotated[bool, opposite]))
        # typer reads the flags off the signature.
        parsed.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        into.command(name)(parsed)
        return function

    return decorate


def option(name: str, metavar: str | None, help: str, **limits: Any) -> Any:
    """A flag with a value. Help texts are rich markup, in which a plain "[default: 3]" would be a style of that name."""
    return typer.Option(name, metavar=metavar, help=escape(help), **limits)


def switch(name: str, help: str) -> Any:
    """A flag without a value."""
    return typer.Option(name, metavar="", show_default=False, help=escape(help))


def argument(metavar: str, help: str) -> Any:
    """A positional argument."""
    return typer.Argument(metavar=metavar, show_default=False, help=escape(help))


RunFolder = Annotated[Path, argument("RUN", "A run folder.")]
RunFolders = Annotated[list[Path], argument("RUN ...", "Finished run folders, one or more.")]
Offline = Annotated[bool, switch("--offline", "Forbid the network.")]
Json = Annotated[bool, switch("--json", "Write JSON.")]


def flag(name: str) -> str:
    """The flag of a setting: `max_new_tokens` is `--max-new-tokens`."""
    return "--" + name.replace("_", "-")


def gather(typed: Mapping[str, Any], config: Path | None = None) -> dict[str, Any]:
    """The settings that were given: those of the config file, if there is one, overridden by the flags.

    Raises `UserError`: every problem of the file and of the flags, in one line.
    """
    values: dict[str, Any] = {}
    problems = []
    if config is not None:
        values = read_config(config)
        if isinstance(values.get("settings"), dict):  # the run.yaml of a run folder
            values = values["settings"]
        problems += _problems(values, str(config))
    for name, value in typed.items():
        # One at a time, so that each problem begins with its flag.
        problems += [text.replace(f": {name}: ", ": ", 1) for text in _problems({name: value}, flag(name))]
    if problems:
        raise UserError("; ".join(problems))
    return {**values, **typed}


def _problems(values: Mapping[str, Any], source: str) -> list[str]:
    try:
        build(values, source)
    except UserError as error:
        return [str(error)]
    return []


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _option(name: str, field: FieldInfo) -> Any:
    """The annotation that makes typer's option of a setting."""
    extra: Any = field.json_schema_extra  # a dict, see `settings._option`
    # With a Literal among them `|` makes the older kind of union.
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (UnionType, Union) else (field.annotation,)
    kind = next(kind for kind in kinds if kind is not NoneType)
    help = escape(field.description or "")
    if field.default not in (None, "", []):
        help = f"{help} [dim]{escape(f'[default: {plain(field.default)}]')}[/dim]"
    typed: Any
    if kind is bool:
        typed, word = bool | None, ""
    elif get_origin(kind) is list:
        typed, word = list[str] | None, "TEXT"
    else:
        typed, word = str | None, "|".join(extra["choices"] or get_args(kind)) or _WORDS[kind]
    return Annotated[typed, typer.Option(flag(name), metavar=word, help=help, show_default=False, rich_help_panel=extra["group"])]
