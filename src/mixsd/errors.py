"""Every way mixsd says no, and the exit code that goes with it.

A `UserError` is something the user can mend: one line that names the file, line, field or option and what to do. The
command line prints it without a traceback and exits with its code; anything else that is raised is a bug of ours.
"""

import difflib
from collections.abc import Iterable


class MixsdError(Exception):
    """Base class of all errors that mixsd raises on purpose; `exit_code` is what the command line exits with."""

    exit_code = 1


class UserError(MixsdError, ValueError):
    """Bad input, configuration or environment. The message is one line and says what to do."""

    exit_code = 2


class RequirementMissedError(MixsdError):
    """A `--require` condition does not hold for a finished run."""

    exit_code = 3


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ' (did you mean "x"?)' for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""
