"""How numbers and foreign text are written."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd import formats


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "0.5"])
def test_a_value_that_is_no_number_is_a_dash(value: object) -> None:
    assert formats.number(value) == formats.value_text("share", value) == formats.interval_text("nats", value, 1.0) == "–"


def test_numbers() -> None:
    assert formats.value_text("share", 23 / 24) == "95.8%"
    assert formats.value_text("share", -0.008, signed=True) == "-0.8 pp"
    assert formats.value_text("nats", 0.0791, signed=True) == "+0.079"
    assert formats.value_text("nats", -0.0001, signed=True) == "0.000"
    assert formats.interval_text("share", 0.5, 1.0) == "50.0 to 100.0"
    assert formats.number(134515008, 0) == "134,515,008"
    assert [formats.plain(value) for value in (None, False, 1e-5, [], ["a", 2], "", 0)] == [
        "–",
        "no",
        "1e-05",
        "–",
        "a, 2",
        "–",
        "0",
    ]
    assert formats.moment("2026-11-23T06:00:00Z") == "2026-11-23 06:00 UTC"


def test_tokens_show_their_whitespace() -> None:
    assert formats.token_text("\n\n") == "⏎\n⏎\n"
    assert formats.token_text(" ") == "␣"
    assert formats.token_text("\t") == "⇥"
    assert formats.token_text(" Hill") == " Hill"
    assert formats.token_text("") == "∅"


@settings(deadline=None)
@given(st.text(st.characters(codec=None)))
def test_printable_text_holds_nothing_that_steers_an_output(text: str) -> None:
    shown = formats.printable(text, keep="")
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cs"}
    assert not any(
        unicodedata.bidirectional(char) in {"RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI"} for char in shown
    )
    shown.encode("utf-8")


def test_clipped_says_how_much_is_missing() -> None:
    assert formats.clipped("abc", 3) == "abc"
    assert formats.clipped("abcd", 3) == "abc … (1 more characters)"
