"""Processes that begin with everything imported: forked from one that has only imported, or (`Forked`) from the one that tests.

A process that imports for itself takes seconds before its work begins. What is tested is the work, and how it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any, NoReturn

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


class Forked:
    """In place of `subprocess.Popen`, for `python -m MODULE ARGUMENTS` with a pipe as its input, with one thread."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: IO[Any] | int,
        stderr: IO[Any],
        env: Mapping[str, str] = os.environ,
    ) -> None:
        assert stdin == subprocess.PIPE
        self.returncode: int | None = None
        kept, said = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(kept[0])
            os.close(said[1])
            self.stdin, self.stdout = os.fdopen(kept[1], "wb"), os.fdopen(said[0], "rb")
            return
        out = said[1] if isinstance(stdout, int) else stdout.fileno()
        for source, target in ((kept[0], 0), (out, 1), (stderr.fileno(), 2)):
            os.dup2(source, target)
        for end in (*kept, *said):
            os.close(end)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        end_with(self._work, command[2:], env)

    @staticmethod
    def _work(module_and_arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        import torch

        os.environ.update(environment)
        sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
        sys.argv[1:] = module_and_arguments[1:]
        torch.set_num_threads(1)  # the threads of this process are not in the fork
        runpy.run_module(module_and_arguments[0], run_name="__main__", alter_sys=True)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended; there is no time limit."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self.stdin.close()
            self.stdout.close()
        return self.returncode

    kill = wait


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
