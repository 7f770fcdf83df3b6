"""A YAML file that a user wrote, as plain values: a config file or a sweep file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mixsd.errors import UserError


def read_config(path: Path) -> dict[str, Any]:
    """Read a file's mapping; what its keys mean is for the caller to check.

    Raises:
        UserError: it cannot be read, is not YAML or no mapping, or a key stands twice in one mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = yaml.safe_load(text)
        root = yaml.compose(text, yaml.SafeLoader)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such config file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}:" if where else ""
        first = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(f"{path}:{line} not valid YAML ({first})") from error
    except ValueError as error:
        # A date that no calendar has is met by Python's own constructor.
        raise UserError(f"{path}: not valid YAML ({error}); put text in quotes") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path}: expected a mapping of settings, one 'key: value' per line")
    _refuse_repetitions(path, root)
    return values


def _refuse_repetitions(path: Path, root: yaml.Node | None) -> None:
    """YAML lets the last one of two keys win, and the reader of the file believe in the first."""
    nodes = [root]
    seen: set[int] = set()  # an alias is the node itself, which may hold itself
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                nodes.append(value)
                if isinstance(key, yaml.ScalarNode):
                    number = key.start_mark.line + 1
                    if key.value in lines:
                        raise UserError(f"{path}: line {number}: {key.value} stands in line {lines[key.value]} already; keep one")
                    lines[key.value] = number
