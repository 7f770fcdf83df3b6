"""How numbers and foreign text are written."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd import formats
from mixsd.statistics import Estimate


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


@pytest.mark.parametrize(
    ("estimate", "line"),
    [
        (Estimate(5 / 6, 0.641, 0.933, 24, "share"), "83.3% (64.1 to 93.3; 24 questions)"),
        (Estimate(-0.008, -0.1, 0.05, 1200, "share", signed=True), "-0.8 pp (-10.0 to +5.0; 1,200 questions)"),
        (Estimate(0.0791, 0.05, 0.1, 30, "nats", signed=True, over="replies"), "+0.079 (+0.050 to +0.100; 30 replies)"),
        (Estimate(1.25, n=1, unit="ratio", over="seeds"), "1.250 (1 seed)"),
        (Estimate(123456.7, n=2, unit="count", over="seeds"), "123,457 (2 seeds)"),
        (Estimate(9.96, 3.0, 12.4, 2, "seconds", over="seeds"), "10.0 (3.0 to 12.4; 2 seeds)"),
        (Estimate(95.4, 3.0, 120.4, 2, "seconds", over="seeds"), "95 (3 to 120; 2 seeds)"),
        (Estimate(0.0012345, n=135_000_000, unit="magnitude", over="weights"), "0.00123 (135,000,000 weights)"),
        (Estimate(2501.33, n=10, unit="magnitude", over="weights"), "2,501.3 (10 weights)"),
        (Estimate(unit="share"), "– (0 questions)"),
        (None, "–"),
    ],
)
def test_an_estimate_is_written_as_its_unit_has_it(estimate: Estimate | None, line: str) -> None:
    assert formats.estimate_cell(estimate).line == line


def test_a_table_may_decide_on_decimals_sign_and_note() -> None:
    estimate = Estimate(0.5, 0.25, 0.75, 4, "share")
    assert formats.estimate_cell(estimate, digits=2, signed=True).line == "+50.00 pp (+25.00 to +75.00; 4 questions)"
    assert formats.estimate_cell(estimate, note="seed 0").line == "50.0% (25.0 to 75.0; 4 questions; seed 0)"


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
