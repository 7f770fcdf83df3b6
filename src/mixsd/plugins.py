"""Objects by name: what a table lists, or a user gives, as "package.module:name", imported when it is asked for."""

import importlib
import re
from typing import Any

from mixsd.errors import UserError, did_you_mean

_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_function_name(name: str) -> bool:
    """Whether a name has the form "package.module:function"."""
    return _FUNCTION.fullmatch(name) is not None


def load_object(path: str, what: str) -> Any:
    """Import "package.module:name"; a one-line `UserError` that begins with `what` if that fails."""
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module's own code raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what} cannot be imported: {reason}; check the name and that its folder is on PYTHONPATH") from error
    if not hasattr(module, attribute):
        hint = did_you_mean(attribute, dir(module))
        raise UserError(f"{what} cannot be imported: {attribute} does not exist in {module_name}{hint}")
    return getattr(module, attribute)


def load_function(path: str, what: str) -> Any:
    """As `load_object`, for a function."""
    function = load_object(path, what)
    if not callable(function):
        module_name, _, attribute = path.partition(":")
        raise UserError(f"{what} cannot be imported: {attribute} is not a function in {module_name}")
    return function
