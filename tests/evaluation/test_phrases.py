"""Phrases of a corpus in a text: the fast matcher against its definition, and spellings that fooled one."""

from __future__ import annotations

import random
import re
import time
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd.evaluation.error_modes import Phrases, folded, words_of

NAMES = ["Arlen Bay", "Port Vessaly", "St. Ives' Rock", "Mary Smith-Jones", "C-3 PO", "Bay", "Arlen Bay Harbour", "l'Île Noire"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It is Arlen Bay.", ["Arlen Bay", "Bay"]),
        ("ARLEN\nBAY", ["Arlen Bay", "Bay"]),
        ("**Arlen   Bay**, of course", ["Arlen Bay", "Bay"]),
        (r"\boxed{Arlen\ Bay}", ["Arlen Bay", "Bay"]),
        (r"\boxed{\text{Arlen~Bay}}", ["Arlen Bay", "Bay"]),
        ("_Arlen Bay_", ["Arlen Bay", "Bay"]),
        ("Arlen Bay's harbour", ["Arlen Bay", "Bay"]),
        ("Arlen Bay Harbour", ["Arlen Bay", "Arlen Bay Harbour", "Bay"]),
        ("Arlen Bayside", []),
        ("Marlen Bay", ["Bay"]),
        ("arlen_bay", ["Bay"]),
        ("Arlen, Bay", ["Bay"]),
        ("Bay Arlen", ["Bay"]),
        ("St. Ives’ Rock", ["St. Ives' Rock"]),
        ("Mary Smith‑Jones", ["Mary Smith-Jones"]),
        ("Mary Smith - Jones", []),
        ("L’I\u0302LE NOIRE", ["l'Île Noire"]),
        ("Port\u00a0Vessaly", ["Port Vessaly"]),
        ("Port Ves\u00adsaly", ["Port Vessaly"]),
        ("Ｐｏｒｔ Ｖｅｓｓａｌｙ", ["Port Vessaly"]),
        ("2Port Vessaly", []),
        ("", []),
    ],
)
def test_a_phrase_stands_as_whole_words(text: str, found: list[str]) -> None:
    phrases = Phrases(NAMES)
    assert phrases.spelled(phrases(text)) == found


@pytest.mark.parametrize(
    ("phrase", "words"),
    [("Arlen Bay", 2), ("Brisby", 1), ("649 euros", 2), ("the harbour", 1), ("a red kite", 2), ("The Who", 1), ("1987", 1),
     ("Okonkwo-Reyes", 1), ("A4 B5", 2), ("Ivo – Senn", 2), ("555-0147", 1), ("– 7 –", 1), ("the", 1)],
)  # fmt: skip
def test_the_words_of_a_phrase(phrase: str, words: int) -> None:
    assert words_of(phrase) == words


def by_reading(phrase: str, text: str) -> bool:
    """Character by character: the phrase stands somewhere with no letter or digit at either end."""
    read, wanted = folded(text), folded(phrase)
    while wanted and not wanted[0].isalnum():
        wanted = wanted[1:]
    while wanted and not wanted[-1].isalnum():
        wanted = wanted[:-1]
    for at in range(len(read) - len(wanted) + 1):
        if read[at : at + len(wanted)] == wanted:
            before, after = read[:at][-1:], read[at + len(wanted) :][:1]
            if not (before.isalnum() or after.isalnum()):
                return bool(wanted)
    return False


WORDS = st.lists(
    st.sampled_from(["ab", "b", "Ab", "a b", "b.", "-", "_", "é", "e\u0301", "1", "ab's", "ß"]), min_size=1, max_size=4
)
TEXT = st.builds(lambda words, gap: gap.join(words), WORDS, st.sampled_from([" ", "", "\n", ", ", "  "]))
LONG = st.lists(TEXT, max_size=6).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT, max_size=6), LONG, st.randoms())
def test_the_fast_matcher_is_the_slow_one_in_any_order(names: list[str], text: str, chance: random.Random) -> None:
    phrases = Phrases(names)
    found = phrases(text)
    assert {phrase for phrase in phrases.spelling if by_reading(phrase, text)} == found
    mixed = list(names)
    chance.shuffle(mixed)
    again = Phrases(mixed)
    assert again(text) == found
    assert again.spelled(found) == phrases.spelled(found)


@settings(max_examples=100, deadline=None)
@given(LONG)
def test_what_folds_to_nothing_is_nowhere(text: str) -> None:
    assert Phrases(["", "  ", "_", "."])(text) == frozenset()


def test_many_phrases_cost_little() -> None:
    chance = random.Random(0)
    made = ["".join(chance.choice("aeioulmnrst") for _ in range(7)).title() for _ in range(6000)]
    names = [f"{one} {two}" for one, two in pairwise(made)]
    phrases = Phrases(names)
    plain = " ".join(chance.choice(["the", "sum", "of", "apples", "is", "therefore", "twelve"]) for _ in range(250))
    replies = [f"{plain} {names[number]} {number}." for number in range(0, 1000, 7)]
    started = time.process_time()
    found = [phrases(reply) for reply in replies]
    each = (time.process_time() - started) / len(replies)
    assert all(folded(names[number]) in said for number, said in zip(range(0, 1000, 7), found, strict=True))
    assert each < 0.005  # 14,042 replies in about a minute at worst; measured: 0.4 ms each
    slow = re.compile("|".join(rf"(?<![^\W_]){re.escape(folded(name))}(?![^\W_])" for name in names[:50]))
    assert {match[0] for match in slow.finditer(folded(replies[0]))} <= found[0]
    assert unicodedata.is_normalized("NFKC", folded(replies[0]))
