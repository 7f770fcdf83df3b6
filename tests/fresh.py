"""Processes that begin with everything imported and nothing done: each is forked from one that has only imported.

A process that imports for itself takes seconds before its work begins. What is tested is the work, and how it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "tests.fresh",
        "mixsd.cli.commands",
        "mixsd.commands.inject",
        "mixsd.reports.collect",
        "transformers.models.llama.modeling_llama",
    ]
)


def start(
    function: Callable[..., Any], *arguments: Any, output: Path, environment: Mapping[str, str] = os.environ
) -> BaseProcess:
    """Start `function(*arguments)`, all of it picklable, with one thread; what is printed goes to the file `output`."""
    process = _CONTEXT.Process(target=_work, args=(function, arguments, str(output), dict(environment)))
    process.start()
    return process


def command(*arguments: str) -> None:
    """`mixsd ARGUMENTS`."""
    from mixsd.cli.entry import main

    main(arguments)


def _work(function: Callable[..., Any], arguments: tuple[Any, ...], output: str, environment: dict[str, str]) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    torch.set_num_threads(1)
    end_with(function, *arguments)


def end_with(function: Callable[..., Any], *arguments: Any) -> NoReturn:
    """Call a function as the last thing that this process does; what it raises is printed, as Python would."""
    code: Any = 0
    try:
        function(*arguments)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
