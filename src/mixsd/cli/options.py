"""How a command is declared: `command` registers it, `option`, `switch` and `argument` are its own flags, the rest come from `Settings`.

Typer only parses. A command that was parsed is `Work`, which `entry` does outside of typer, so that every way of ending is
decided in one place.

A setting's flag has its name, default and help from its field. Its value is handed on as it was typed, and `settings.build` judges
it together with the config file, so that all problems come out at once. A flag that is not given overrides nothing; `--no-offline`
undoes a config file's `offline: true`, and so for every switch.
"""

from __future__ import annotations

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


def option(name: str, metavar: str | None, help: str, *, show_default: bool = False, **limits: Any) -> Any:
    """A flag with a value. Help texts are rich markup, in which a plain "[default: 3]" would be a style of that name."""
    return typer.Option(name, metavar=metavar, show_default=show_default, help=escape(help), **limits)


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


def with_flags(names: Sequence[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command a flag for each of these settings; it gets those that were typed as its first argument, a dict."""

    switches = [name for name in names if Settings.model_fields[name].annotation is bool]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def command(**arguments: Any) -> Any:
            typed = {name: arguments.pop(name) for name in names}
            undone = [name for name in switches if arguments.pop(f"no_{name}")]
            # A repeatable flag that was not typed is an empty list in some versions of typer, None in others.
            given = {name: value for name, value in typed.items() if value not in (None, [], ())}
            return function({**given, **dict.fromkeys(undone, False)}, **arguments)

        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]
        flags = [_parameter(name, None, _option(name, Settings.model_fields[name])) for name in names]
        # Out of sight, since two columns of long flags would leave no room for the help.
        opposites = [
            _parameter(f"no_{name}", False, Annotated[bool, typer.Option(f"--no-{flag(name)[2:]}", hidden=True)])
            for name in switches
        ]
        # typer reads the flags off the signature.
        command.__signature__ = signature.replace(parameters=[*own, *flags, *opposites])  # type: ignore[attr-defined]
        return command

    return decorate


def gather(typed: Mapping[str, Any], config: Path | None) -> dict[str, Any]:
    """The settings that were given: those of the config file, if there is one, overridden by the flags.

    Raises:
        UserError: every problem of the file and of the flags, in one line.
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
    common: dict[str, Any] = {"help": _help(field), "show_default": False, "rich_help_panel": extra["group"]}
    if kind is bool:
        return Annotated[bool | None, typer.Option(flag(name), metavar="", **common)]
    if get_origin(kind) is list:
        return Annotated[list[str] | None, typer.Option(flag(name), metavar="TEXT", **common)]
    word = "|".join(extra["choices"] or get_args(kind)) or _WORDS[kind]
    return Annotated[str | None, typer.Option(flag(name), metavar=word, **common)]


def _help(field: FieldInfo) -> str:
    text = escape(field.description or "")
    if field.default in (None, "", []):
        return text
    return f"{text} [dim]{escape(f'[default: {plain(field.default)}]')}[/dim]"
