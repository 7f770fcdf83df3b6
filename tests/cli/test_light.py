"""Nothing heavy is imported before it is needed, and the public names are where they are said to be."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mixsd

PROBE = """
import sys, time
start = time.process_time()
{work}
seconds = time.process_time() - start
heavy = ("torch", "transformers", "matplotlib", "pydantic", "numpy", "typer")
print(seconds, *[name for name in heavy if name in sys.modules], file=sys.stderr)
"""


def measured(work: str) -> tuple[float, list[str]]:
    """The seconds of CPU of the fastest of three fresh interpreters, and which heavy modules it had in the end."""
    runs = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", PROBE.format(work=work)], capture_output=True, text=True, check=True, timeout=60
        )
        seconds, *modules = done.stderr.split()
        runs.append((float(seconds), modules))
    return min(runs)


def test_import_is_light() -> None:
    seconds, modules = measured("import mixsd")
    assert modules == []
    assert seconds < 0.3


def test_help_is_light() -> None:
    seconds, modules = measured("from mixsd.cli.entry import run\nassert run(['--help']) == 0")
    assert not {"torch", "transformers", "matplotlib"} & set(modules)
    assert seconds < 1


def test_refusing_a_flag_is_light() -> None:
    _, modules = measured("import io\nfrom mixsd.cli import entry\nsys.stderr, kept = io.StringIO(), sys.stderr\n"
                          "assert entry.run(['inject', '--lam', '3']) == 2\nsys.stderr = kept")  # fmt: skip
    assert not {"torch", "transformers", "matplotlib"} & set(modules)


def test_console_script_is_installed() -> None:
    from importlib.metadata import entry_points

    from mixsd import cli

    (script,) = entry_points(group="console_scripts", name="mixsd")
    assert script.load() is cli.main


@pytest.mark.parametrize("name", mixsd.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(mixsd, name)
    assert value is getattr(mixsd, name)
    assert isinstance(value, str) or value.__doc__
    assert name in dir(mixsd)


def test_every_command_is_a_function_of_the_same_name() -> None:
    from typer.main import get_command

    from mixsd.cli import entry  # noqa: F401 - registers the commands
    from mixsd.cli.options import app

    names = sorted(get_command(app).commands)  # type: ignore[attr-defined]
    assert {"inject", "mix", "train", "evaluate", "report", "inspect", "ask", "models", "doctor"} <= set(names)
    names[names.index("figures")] = "draw"  # `mixsd.figures` is the package that draws
    names[names.index("models")] = "built_in_models"  # and `mixsd.models` the one that loads
    names.remove("analyze")  # a group: each of its commands is a function
    names += [f"analyze_{name}" for name in get_command(app).commands["analyze"].commands]  # type: ignore[attr-defined]
    for name in names:
        assert callable(getattr(mixsd, name)), name


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="injct"):
        mixsd.injct  # noqa: B018
    with pytest.raises(ImportError):
        from mixsd import injct  # noqa: F401
