"""Targets on stdout, token by token: as coloured text on a terminal with colours, else one line per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from mixsd.cli.show import console
from mixsd.reporting.formats import MISSING, number, printable, token_text

_HIGH_NLL = 8.0  # nats; the paper's threshold, as in `mixing.targets`
_NAMES = {"e": "expert", "n": "naive", "g": "gated", "r": "reference", None: "prompt"}
# Readable on dark and light backgrounds; the prompt is dim, since it is not trained on.
_STYLES = {
    "e": "black on bright_green",
    "n": "black on bright_cyan",
    "g": "black on bright_yellow",
    "r": "black on bright_magenta",
}
_SURPRISING = "underline"


def render(items: Sequence[Mapping[str, Any]]) -> None:
    """Write the items of `mixsd.inspect`."""
    out = console()
    coloured = out.color_system is not None and not out.no_color
    if coloured and items:
        out.print(_legend())
    for item in items:
        out.print()
        for line in _head(item):
            out.print(line, soft_wrap=True)
        if coloured:
            out.print(_text(item["tokens"]))
        else:
            _lines(out, item["tokens"])


def _head(item: Mapping[str, Any]) -> list[Text]:
    state = "accepted" if item["accepted"] else f"not accepted: {item['reason']}"
    facts = [f"lambda {item['lambda']:g}", f"sample {item['sample']}", f"attempt {item['attempt']}", printable(state, keep="")]
    if not item["canonical"]:
        facts.append("its text encodes to other ids")
    lines = [Text.assemble((printable(item["id"], keep=""), "bold"), "  ", ", ".join(facts))]
    if item["question"] is not None:
        lines.append(Text(printable(item["question"])))
    return lines


def _legend() -> Text:
    text = Text()
    for source, style in _STYLES.items():
        text.append(f" {_NAMES[source]} ", style).append(" ")
    text.append("prompt, not trained on", "dim").append("  ")
    return text.append(f"base NLL above {_HIGH_NLL:g} nats", _SURPRISING)


def _text(tokens: Sequence[Mapping[str, Any]]) -> Text:
    text = Text()
    for token in tokens:
        shown = f"[{token['id']}]" if token["text"] is None else token_text(token["text"])
        if not token["supervised"]:
            text.append(shown, "dim")
            continue
        style = _STYLES[token["source"]]
        if token["base_nll"] is not None and token["base_nll"] > _HIGH_NLL:
            style = f"{_SURPRISING} {style}"
        text.append(shown, style)
    return text


def _lines(out: Console, tokens: Sequence[Mapping[str, Any]]) -> None:
    """Id, mask, source, base NLL and text of each token, in columns that a script can split on blanks up to the text."""
    rows = [("id", "trained", "source", "nll", "text")]
    for token in tokens:
        rows.append(
            (
                str(token["id"]),
                "yes" if token["supervised"] else "no",
                _NAMES[token["source"]],
                MISSING if token["base_nll"] is None else number(token["base_nll"], 3),
                MISSING if token["text"] is None else repr(token["text"]),
            )
        )
    for key, trained, source, nll, text in rows:
        out.print(f"{key:>7}  {trained:7}  {source:9}  {nll:>7}  {text}", soft_wrap=True)
