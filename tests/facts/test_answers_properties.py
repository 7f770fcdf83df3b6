"""What holds whatever the model writes. The single strings that fooled a verifier are in test_answers.py."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd.facts.answers import Expected, contains_answer, get_verifier, last_boxed, normalize


def _balanced(text: str) -> bool:
    depth, skip = 0, False
    for char in text:
        if skip:
            skip = False
        elif char == "\\":
            skip = True
        else:
            depth += {"{": 1, "}": -1}.get(char, 0)
            if depth < 0:
                return False
    return depth == 0 and not skip


# Answers of letters and digits that begin and end with one, in scripts whose letters stand alone.
words = st.from_regex(r"[a-zA-Z0-9À-ÖØ-öΑ-Ωα-ωА-Яа-я東京서울]+( [a-zA-Z0-9東京]+){0,2}", fullmatch=True)
# The same with a letter or digit of ASCII at both ends.
glueable = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9À-ÖØ-öΑ-Ωα-ωА-Яа-я東京서울 ]*[a-zA-Z0-9])?", fullmatch=True)
integers = st.integers(0, 10**9).map(str)


@settings(deadline=None)
@given(words, st.text(' ,;:!?()[]{}"*\n', max_size=4), st.text(' .,;:!?()[]{}"*\n', max_size=4))
def test_an_answer_among_spaces_and_punctuation_is_found(answer: str, before: str, after: str) -> None:
    assert contains_answer(f"so {before}{answer}{after} then", answer)
    assert contains_answer(f"{before}{answer}{after}", answer)


@settings(deadline=None)
@given(integers, integers, st.sampled_from(["", ".", ",", ":", "/", "'", "^"]))
def test_a_number_within_a_longer_number_is_never_found(answer: str, other: str, joint: str) -> None:
    for text in (f"so {answer}{joint}{other} then", f"so {other}{joint}{answer} then"):
        assert not contains_answer(text, answer)


@settings(deadline=None)
@given(glueable, st.sampled_from("abcxyzæßж"))
def test_a_letter_glued_to_a_word_hides_it(answer: str, letter: str) -> None:
    assert not contains_answer(f"so {answer}{letter} then", answer)
    assert not contains_answer(f"so {letter}{answer} then", answer)


@settings(deadline=None)
@given(st.text() | st.text("0123456789.,'-–—½²\u00a0\u2009 ab\\{}", max_size=30))
def test_normalize_is_idempotent(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


strange = st.text(max_size=40) | st.text("\\boxed{}$-./^,'5½² _#+", max_size=40)


@settings(deadline=None)
@given(strange, strange)
def test_no_text_makes_a_verifier_raise(reply: str, answer: str) -> None:
    for name in ("contains", "boxed", "exact", "number", "regex:^{answer}$"):
        verdict = get_verifier(name)(reply, Expected(answer, (reply,)))
        assert verdict.outcome in ("correct", "wrong", "unparseable", "error")
    last_boxed(reply)


@settings(deadline=None)
@given(st.text("ab {}\\", max_size=20).filter(_balanced), strange)
def test_the_last_box_is_read_back(content: str, before: str) -> None:
    assert last_boxed(f"{before} \\boxed{{{content}}}") == content


@pytest.mark.parametrize("junk", ["\\boxed{", "{", "\\", "\\boxed ", "}", "\\boxed{}", "1,", "1", "a-", "'"])
def test_a_collapsed_reply_takes_linear_time(junk: str) -> None:
    reply = junk * (60_000 // len(junk))
    start = time.perf_counter()
    for name in ("contains", "boxed", "exact", "number"):
        assert get_verifier(name)(reply, Expected("a 12", ("12",))).outcome != "correct"
    assert time.perf_counter() - start < 5  # a quadratic scan takes minutes
