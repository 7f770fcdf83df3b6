"""How a command ends: one line on stderr and an exit code, whatever happened; a traceback only where it is a bug of ours."""

import errno
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

import typer
from typer.main import get_command

from mixsd.cli import commands, runs  # noqa: F401 - importing them registers their commands, in the order of the help
from mixsd.cli.data import corpora
from mixsd.cli.options import ParsedCommand, app
from mixsd.errors import MixsdError, did_you_mean
from mixsd.formats import printable

# typer carries click inside or imports it, depending on its version; this is the base of what they raise for a bad command line.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_ENVIRONMENT = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENAMETOOLONG, errno.ETIMEDOUT, errno.ESTALE),
)
_NOISY = ("transformers", "torch", "accelerate", "peft", "huggingface_hub", "datasets", "tokenizers", "matplotlib")

app.add_typer(corpora, name="corpus")
app.add_typer(runs.analyze, name="analyze")
_COMMANDS = get_command(app)


class Terminated(KeyboardInterrupt):
    """SIGTERM."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console entry point `mixsd`; exits with the code that `run` returns."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Do what a command line says; returns the exit code. Without arguments it is `--help`."""
    if isinstance(sys.stdout, TextIOWrapper):
        # A reply in any script shall not break a terminal that knows only some.
        sys.stdout.reconfigure(errors="backslashreplace")
    resumes = False
    try:
        with _terminable(), _one_of_several() as leads:
            line = list(arguments) or ["--help"]
            parsed = _COMMANDS.main(line, "mixsd", standalone_mode=False) if leads else 0
            # A command only says what is to be called; --help and --version typer has done: their exit code, or None.
            if not isinstance(parsed, ParsedCommand):
                return parsed or 0
            resumes = parsed.resumes
            quiet()
            parsed.call()
            sys.stdout.flush()
            return 0
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does. The interpreter's last flush must not meet the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as stop:
        _tell("interrupted; the same command goes on from here" if resumes else "interrupted")
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    except MixsdError as error:
        _tell(f"error: {error}")
        return error.exit_code
    except Exception as error:
        text = _usage(error) if isinstance(error, _UsageError) else _environment(error)
        if text is None:
            raise
        _tell(f"error: {text}")
        return 2


@contextmanager
def _one_of_several() -> Iterator[bool]:
    """Whether this process does the command; any but the first of several, as torchrun starts them, has helped that one to train by then."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield True
        return
    quiet()
    from mixsd.training import ranks, stage

    with ranks.joined() as leads:
        if not leads:
            stage.follow()
        yield leads


def quiet() -> None:
    """Keep the libraries' own warnings and logs, which a user can do nothing about, out of the output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars in a log are noise; on a terminal a download's is worth having
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM end the work like Ctrl-C does, with all that cleans up after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(text: str) -> None:
    print(printable(" ".join(text.split()), keep=""), file=sys.stderr)


def _usage(error: Exception) -> str:
    """A bad command line in one line, with the nearest flag where there is one."""
    context = getattr(error, "ctx", None)
    if context is not None and hasattr(error, "possibilities") and hasattr(error, "option_name"):
        flags = [text for option in context.command.params for text in (*option.opts, *option.secondary_opts)]
        message = f"no such option: {error.option_name}{did_you_mean(error.option_name, flags)}"
    else:
        message = str(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
        message = message[:1].lower() + message[1:]
    return f"{message}; see `{context.command_path} --help`" if context is not None else message


def _environment(error: Exception) -> str | None:
    """What the machine would not do, in one line; None for an error that is not the machine's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory: lower --token-budget or --micro-batch, or choose another --device or a smaller model"
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return None
