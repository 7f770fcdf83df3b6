"""The data that comes with mixsd: records and texts of its own writing, read once."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def text(name: str) -> str:
    """A bundled file as text."""
    return (files("mixsd") / "data" / name).read_text(encoding="utf-8")


@cache
def records(name: str) -> list[dict[str, Any]]:
    """The records of a bundled JSONL file."""
    return [json.loads(line) for line in text(name).splitlines()]


@cache
def rows(name: str) -> list[dict[str, str]]:
    """The lines of a bundled TSV file as records by its header; a line that begins with # is a comment."""
    header, *lines = [line.split("\t") for line in text(name).splitlines() if line and not line.startswith("#")]
    return [dict(zip(header, line, strict=True)) for line in lines]


@cache
def frames() -> dict[str, list[str]]:
    """The paraphrase frames: ten for `validation`, ten others for `report`."""
    found: dict[str, list[str]] = json.loads(text("frames.json"))
    return found
