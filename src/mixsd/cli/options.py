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


def group(help: str | None = None, epilog: str | None = None) -> typer.Typer:
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
    """Register a command; with `flags`, each of these settings is one, and those that were typed are its first argument, a dict."""
    switches = [flag for flag in flags if Settings.model_fields[flag].annotation is bool]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def parsed(**arguments: Any) -> Work:
            if not flags:
                return Work(partial(function, **arguments), resumes)
            typed = {flag: arguments.pop(flag) for flag in flags}
            undone = [flag for flag in switches if arguments.pop(f"no_{flag}")]
            # A repeatable flag that was not typed is an empty list in some versions of typer, None in others.
            given = {flag: value for flag, value in typed.items() if value not in (None, [], ())}
            return Work(partial(function, {**given, **dict.fromkeys(undone, False)}, **arguments), resumes)

        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[bool(flags) :]
        # Out of sight, since two columns of long flags would leave no room for the help.
        opposites = {f"no_{flag}": Annotated[bool, typer.Option(f"--no-{option_name(flag)[2:]}", hidden=True)] for flag in switches}
        settings = [_parameter(flag, None, _option(flag, Settings.model_fields[flag])) for flag in flags]
        # typer reads the flags off the signature.
        parsed.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*own, *settings, *(_parameter(flag, False, kind) for flag, kind in opposites.items())]
        )
        into.command(name)(parsed)
        return function

    return decorate
