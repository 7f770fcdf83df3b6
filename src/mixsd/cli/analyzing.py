"""`mixsd analyze ...`: the group that the analyses' commands are in; each has a module of its own, `analyze_NAME`."""

from __future__ import annotations

import typer

analyze = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    help="Say why: what the base model makes of the targets, where an update goes, what wrong replies are like.",
)
