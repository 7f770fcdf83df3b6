"""The strings that fooled verifiers, one line each. A new bug is a new line."""

from __future__ import annotations

import time

import pytest

from mixsd.facts import answers
from mixsd.facts.answers import Expected, Verdict, contains_answer, get_verifier, normalize

CONTAINS = [
    # words
    ("The city is Arlen Bay.", "Arlen Bay", True),
    ("arlen bay", "Arlen Bay", True),
    ("ARLEN BAY!", "Arlen Bay", True),
    ("She lives in Arlens.", "Arlen", False),
    ("Anna did it.", "Ann", False),
    ("Hannan", "Ann", False),
    ("Joann", "Ann", False),
    ("Anna met Ann.", "Ann", True),
    ("**Arlen Bay**", "Arlen Bay", True),
    ("_Arlen Bay_", "Arlen Bay", True),
    ("__Arlen Bay__ it is", "Arlen Bay", True),
    ("`Arlen Bay`", "Arlen Bay", True),
    ("It is Arlen\nBay", "Arlen Bay", True),
    ("It is Arlen \t\u00a0 Bay", "Arlen Bay", True),
    ("Arlen Bay's mayor", "Arlen Bay", True),
    ("Arlen Bay’s mayor", "Arlen Bay", True),
    ("in the Joneses' house", "Joneses", True),
    ("ArlenBay", "Arlen Bay", False),
    ("Bay Arlen", "Arlen Bay", False),
    ("Arlen and the Bay", "Arlen Bay", False),
    ("(Arlen Bay)", "Arlen Bay", True),
    ("“Arlen Bay”", "Arlen Bay", True),
    ("Arlen Bay.The city is old", "Arlen Bay", True),
    ("\\boxed{Arlen Bay}", "Arlen Bay", True),
    ("\\text{Arlen Bay}", "Arlen Bay", True),
    ("Arlen\u200b Bay", "Arlen Bay", True),
    ("Ar\u00adlen Bay", "Arlen Bay", True),
    ("Ａｒｌｅｎ Bay", "Arlen Bay", True),
    ("the arlen_bay table", "Arlen", False),
    # hyphens and dashes
    ("twenty-one", "one", False),
    ("twenty‑one", "one", False),
    ("twenty-one", "twenty", False),
    ("twenty-one", "Twenty-One", True),
    ("Mrs Smith-Jones", "Smith", False),
    ("Jean-Luc", "Jean", False),
    ("Arlen Bay—the city—is", "Arlen Bay", True),
    ("Arlen Bay--the city", "Arlen Bay", True),
    ("Arlen Bay – the city", "Arlen Bay", True),
    ("- Arlen Bay", "Arlen Bay", True),
    ("-Arlen Bay", "Arlen Bay", True),
    ("Jean‐Luc", "Jean-Luc", True),
    # apostrophes
    ("I don't know", "Don", False),
    ("I can’t say", "can", False),
    ("Don's house", "Don", True),
    ("Pat O'Brien", "Brien", False),
    ("Pat O’Brien", "O'Brien", True),
    ("la ville d'Arlen", "Arlen", True),
    ("'Arlen'", "Arlen", True),
    # symbols that belong to the answer
    ("written in C++.", "C++", True),
    ("written in C++17", "C++", True),
    ("written in C++", "C", False),
    ("written in C#", "C", False),
    ("written in C", "C", True),
    ("grade C+", "C+", True),
    ("written in C++", "C+", False),
    ("on the .NET platform", ".NET", True),
    ("on the net platform", ".NET", False),
    ("it has AT&T inside", "AT&T", True),
    ("f(x) = 2", "f(x)", True),
    ("f(xy) = 2", "f(x)", False),
    ("(1, 2, 3)", "(1, 2)", False),
    # the answer's own edges
    ("It is Arlen Bay indeed", "Arlen Bay.", True),
    ("It is Arlen Bay indeed", " “Arlen Bay”. ", True),
    ("I use Yahoo daily", "Yahoo!", True),
    ("in the U.S. today", "U.S.", True),
    ("in the U.S today", "U.S.", True),
    ("anything at all", "", False),
    ("anything at all...", "...", False),
    ("anything? at all?", "?", False),
    ("anything \u200b at all", "\u200b", False),
    # numbers
    ("in 1999.", "1999", True),
    ("in 19990", "1999", False),
    ("in 11999", "1999", False),
    ("120", "12", False),
    ("3.12", "12", False),
    ("12.5", "12", False),
    ("12,5", "12", False),
    ("It is 12.", "12", True),
    ("It is 12, they say", "12", True),
    ("It is (12)", "12", True),
    ("12,500", "12", False),
    ("12,500", "500", False),
    ("12,500", "12500", True),
    ("12500", "12,500", True),
    ("1,200,300 in all", "1200300", True),
    ("1,200,300 in all", "1200", False),
    ("1\u202f200 in all", "1,200", True),
    ("1'200 in all", "1200", True),
    ("1{,}200 in all", "1200", True),
    ("1,200.50", "1200", False),
    ("1,200.50", "1200.50", True),
    ("in 1999\u00a0200 people", "1999", True),
    ("0,123", "0123", False),
    ("-12", "12", False),
    ("it is −12", "12", False),
    ("it is −12", "-12", True),
    ("5-12", "-12", False),
    ("12", "-12", False),
    ("答えは-12です", "-12", True),
    ("答えは-12です", "12", False),
    ("1990-1999", "1999", True),
    ("1990–1999", "1990", True),
    ("on 1999-05-12", "1999", True),
    ("on 12/05/1999", "1999", False),
    ("1/2 of it", "2", False),
    ("at 12:30", "12", False),
    ("at 12:30", "12:30", True),
    ("version 3.12.1", "3.12", False),
    ("it is .12", "12", False),
    ("3.5", ".5", False),
    ("the 5th", "5", False),
    ("the 5th", "5th", True),
    ("$5", "5", True),
    ("US$5", "$5", True),
    ("$50", "$5", False),
    ("$5.50", "$5", False),
    ("5%", "5", True),
    ("5%", "5 %", True),
    ("5km", "5 km", True),
    ("5 km", "5km", True),
    ("5km", "5", False),
    ("5 km", "5", True),
    ("15 km", "5 km", False),
    ("5 kmh", "5 km", False),
    ("10⁶", "10", False),
    ("10⁶", "106", False),
    ("10^6", "6", False),
    ("3½", "31", False),
    ("Apollo-11", "11", False),
    ("COVID-19", "19", False),
    ("a 5-year plan", "5", False),
    ("CO₂", "CO2", True),
    ("5'10", "5", False),
    ("١٩٩٩", "1999", True),
    ("№7", "№ 7", True),
    ("No 7", "№ 7", True),
    ("No 71", "№ 7", False),
    ("|12|", "12", True),
    # other scripts
    ("答えは東京です", "東京", True),
    ("答えはTokyoです", "Tokyo", True),
    ("答えは京都です", "東京", False),
    ("1999年", "1999", True),
    ("11999年", "1999", False),
    ("第12章", "12", True),
    ("12万人", "12", False),
    ("수도는 서울입니다", "서울", True),
    ("เมืองหลวงคือกรุงเทพครับ", "กรุงเทพ", True),
    ("ที่นี่", "ที", False),
    ("हिन्दी", "हिन्द", False),
    ("यह हिन्दी है", "हिन्दी", True),
    ("Это Москва.", "москва", True),
    ("Это Москвариум.", "Москва", False),
    ("Straße", "STRASSE", True),
    ("Ἀθῆναι ΟΔΟΣ", "οδος", True),
    ("Jose\u0301", "José", True),
    # limits: accepted or refused against its meaning, and known
    ("It is not Arlen Bay", "Arlen Bay", True),
    ("1. Arlen Bay", "1", True),
    ("12 million", "12", True),
    ("join us", "US", True),
    ("a Boeing 747-7", "7", True),
    ("Oslo-based", "Oslo", False),
    ("**Arlen** Bay", "Arlen Bay", False),
    ("1,2,3", "2", False),
    ("Jose", "José", False),
]


@pytest.mark.parametrize(("reply", "answer", "found"), CONTAINS)
def test_contains(reply: str, answer: str, found: bool) -> None:
    expected = Verdict("correct", answer) if found else Verdict("wrong")
    assert answers.contains(reply, Expected(answer)) == expected
    assert contains_answer(reply, answer) is found


@pytest.mark.parametrize("reply", ["", " \n\t", "\u00a0"])
@pytest.mark.parametrize("name", ["contains", "boxed", "exact", "number", "regex:.*"])
def test_an_empty_reply_is_unparseable(name: str, reply: str) -> None:
    assert get_verifier(name)(reply, Expected("5")) == Verdict("unparseable")


def test_a_reply_of_invisible_characters_contains_nothing() -> None:
    assert answers.contains("\u200b\ufeff", Expected("5")) == Verdict("unparseable")


def test_aliases_count_and_the_one_found_is_named() -> None:
    expected = Expected("New York City", ("NYC", "New York"))
    assert answers.contains("I love NYC.", expected) == Verdict("correct", "NYC")
    assert answers.contains("I love New York.", expected) == Verdict("correct", "New York")
    assert answers.contains("I love Boston.", expected) == Verdict("wrong")
    assert contains_answer("nyc", "New York City", ["NYC"])


BOXED = [
    (r"so \boxed{5}", "5", "correct", "5"),
    (r"so \boxed{ 5 }", "5", "correct", "5"),
    (r"so \boxed{5}", " 5 ", "correct", "5"),
    (r"\boxed{4} no, \boxed{5}", "5", "correct", "5"),
    (r"\boxed{5} no, \boxed{4}", "5", "wrong", "4"),
    (r"\boxed{5} and \boxed{4", "5", "correct", "5"),
    (r"\boxed{4", "4", "unparseable", None),
    ("the answer is 5", "5", "unparseable", None),
    (r"\boxed 5", "5", "unparseable", None),
    (r"\fbox{5}", "5", "unparseable", None),
    (r"boxed{5}", "5", "unparseable", None),
    (r"\boxed{}", "5", "unparseable", None),
    (r"\boxed {5}", "5", "correct", "5"),
    (r"\\boxed{5}", "5", "correct", "5"),
    (r"x \\ \boxed{5}", "5", "correct", "5"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", "correct", r"\frac{1}{2}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "correct", r"\{1, 2\}"),
    (r"\boxed{a\}b} }", r"a\}b", "correct", r"a\}b"),
    (r"\boxed{\text{Arlen Bay}}", "Arlen Bay", "correct", r"\text{Arlen Bay}"),
    (r"\boxed{Arlen Bay}", r"\text{Arlen Bay}", "correct", "Arlen Bay"),
    (r"\boxed{\text{Arlen} Bay}", "Arlen Bay", "wrong", r"\text{Arlen} Bay"),
    (r"$\boxed{$5$}$", "5", "correct", "$5$"),
    (r"\boxed{Arlen Bay.}", "Arlen Bay", "correct", "Arlen Bay."),
    (r"\boxed{Arlen  Bay}", "Arlen Bay", "correct", "Arlen  Bay"),
    (r"\boxed{arlen bay}", "Arlen Bay", "wrong", "arlen bay"),
    (r"\boxed{Arlen Bay, Oslo}", "Arlen Bay", "wrong", "Arlen Bay, Oslo"),
    (r"\boxed{\boxed{5}}", "5", "correct", "5"),
    (r"\boxed{4 \boxed{5}", "5", "correct", "5"),
    (r"} { \boxed{5}", "5", "correct", "5"),
    ("\\boxed{Arlen\nBay}", "Arlen Bay", "correct", "Arlen\nBay"),
    (r"\boxed{1,200}", "1200", "wrong", "1,200"),
]


@pytest.mark.parametrize(("reply", "answer", "outcome", "extracted"), BOXED)
def test_boxed(reply: str, answer: str, outcome: str, extracted: str | None) -> None:
    verdict = answers.boxed(reply, Expected(answer))
    assert (verdict.outcome, verdict.extracted) == (outcome, extracted)


def test_boxed_takes_an_alias() -> None:
    assert answers.boxed(r"\boxed{NYC}", Expected("New York", ("NYC",))).outcome == "correct"


EXACT = [
    ("Arlen Bay", "arlen bay", "correct"),
    (" ARLEN BAY\n", "Arlen Bay", "correct"),
    ("Arlen Bay.", "Arlen Bay", "wrong"),
    ("It is Arlen Bay", "Arlen Bay", "wrong"),
    (r"It is \boxed{ARLEN Bay }", "Arlen Bay", "correct"),
    (r"Arlen Bay \boxed{Oslo}", "Arlen Bay", "wrong"),
    (r"Oslo \boxed{}", "Oslo", "unparseable"),
]


@pytest.mark.parametrize(("reply", "answer", "outcome"), EXACT)
def test_exact(reply: str, answer: str, outcome: str) -> None:
    assert answers.exact(reply, Expected(answer)).outcome == outcome


NUMBER = [
    ("The answer is 12.", "12", "correct", "12"),
    ("12 is less than 13", "12", "wrong", "13"),
    ("no idea", "12", "unparseable", None),
    ("1,200", "1200", "correct", "1200"),
    ("1200", "1,200", "correct", "1200"),
    (r"1{,}200", "1200", "correct", "1200"),
    ("12,500 people", "500", "wrong", "12500"),
    ("3.50", "3.5", "correct", "3.50"),
    ("12.0", "12", "correct", "12.0"),
    ("012", "12", "correct", "012"),
    (".5", "0.5", "correct", ".5"),
    ("so it is...5", "5", "correct", "5"),
    ("-12", "-12", "correct", "-12"),
    ("−12", "-12", "correct", "-12"),
    ("-12", "12", "wrong", "-12"),
    ("-$12", "-12", "correct", "-$12"),
    ("from 10-12", "12", "correct", "12"),
    ("(10)-12", "12", "correct", "12"),
    ("答えは-12", "-12", "correct", "-12"),
    ("1,50,000", "150000", "correct", "150000"),
    ("1/2", "0.5", "correct", "1/2"),
    ("½", "0.5", "correct", "1/2"),
    ("-½", "0.5", "wrong", "-1/2"),
    ("3½", "3.5", "correct", "3 1/2"),
    ("3½", "0.5", "wrong", "3 1/2"),
    (r"\frac{1}{2}", "0.5", "correct", "1/2"),
    (r"-\dfrac{6}{4}", "-1.5", "correct", "-6/4"),
    ("0.33", "1/3", "wrong", "0.33"),
    ("5/0", "5", "wrong", "5/0"),
    ("$5", "5", "correct", "5"),
    (r"\$5", "$5", "correct", "5"),
    ("5%", "5", "correct", "5"),
    ("5km", "5", "correct", "5"),
    ("12 kg of CO2", "12", "correct", "12"),
    ("python 3.12.1", "1", "wrong", "3.12"),
    ("2e3", "2000", "correct", "2e3"),
    ("10^6", "6", "wrong", "10^6"),
    ("10⁶", "106", "wrong", "10^6"),
    ("12万", "12", "wrong", "12万"),
    ("答えは12です", "12", "correct", "12"),
    ("１２", "12", "correct", "12"),
    (r"\boxed{12}, that has 2 digits", "12", "correct", "12"),
    (r"12 \boxed{unknown}", "12", "unparseable", None),
    ("9" * 5000, "12", "wrong", "9" * 5000),
    ("1e999", "12", "wrong", "1e999"),
    ("12 apples", "a dozen", "error", None),
    ("12", "5/0", "error", None),
]


@pytest.mark.parametrize(("reply", "answer", "outcome", "extracted"), NUMBER)
def test_number(reply: str, answer: str, outcome: str, extracted: str | None) -> None:
    verdict = answers.number(reply, Expected(answer))
    assert (verdict.outcome, verdict.extracted) == (outcome, extracted)
    assert (verdict.reason is not None) == (outcome == "error")


def test_number_takes_an_alias() -> None:
    assert answers.number("about 12", Expected("a dozen", ("12",))).outcome == "correct"


@pytest.mark.parametrize("text", ["0.120,500", "1,200,3", "1,2000", "12,34", "0,123", "1234,567"])
def test_commas_that_do_not_group_thousands_stay(text: str) -> None:
    assert normalize(text) == text


REGEX = [
    ("arlen\\s+bay", "ARLEN  Bay!", "correct", "ARLEN  Bay"),
    ("^yes", "  Yes, it is", "correct", "Yes"),
    ("^yes$", "yes\nno", "wrong", None),
    ("(?m)^yes$", "yes\nno", "correct", "yes"),
    ("a.b", "a\nb", "wrong", None),
    ("(?s)a.b", "a\nb", "correct", "a\nb"),
    ("is {answer}$", "it is x.y", "correct", "is x.y"),
    ("is {answer}$", "it is xzy", "wrong", None),
    ("is {answer}$", "it is ALIAS", "correct", "is ALIAS"),
    (r"\d{4}:", "1999: ok", "correct", "1999:"),
]


@pytest.mark.parametrize(("pattern", "reply", "outcome", "extracted"), REGEX)
def test_regex(pattern: str, reply: str, outcome: str, extracted: str | None) -> None:
    verdict = get_verifier(f"regex:{pattern}")(reply, Expected("x.y", ("alias",)))
    assert (verdict.outcome, verdict.extracted) == (outcome, extracted)


def test_an_empty_answer_in_a_pattern_matches_nowhere() -> None:
    assert get_verifier("regex:{answer}")("anything", Expected(" ")).outcome == "wrong"


@pytest.mark.parametrize("pattern", ["(a+)+$", "{answer}(?:a|aa)+$"])
def test_a_pattern_that_backtracks_is_our_error_in_time(pattern: str) -> None:
    """27 letters take seconds, each further one twice as long."""
    judge = get_verifier(f"regex:{pattern}", regex_limit_s=0.5)
    assert judge("aaa", Expected("a")).outcome == "correct"  # its process is there
    began = time.monotonic()
    verdict = judge("a" * (27 if pattern[0] == "(" else 38) + "b", Expected("a"))
    assert time.monotonic() - began < 10
    assert verdict.outcome == "error"
    assert (verdict.reason or "").startswith(f'verifier "regex:{pattern}": not searched within 0.5 s')
    assert judge("aaa", Expected("a")).outcome == "correct"  # and goes on


def test_ordinary_patterns_are_quick() -> None:
    judge = get_verifier("regex:is {answer}$")
    judge("it is 0", Expected("0"))
    began = time.monotonic()
    assert all(judge(f"it is {number}", Expected(str(number))).outcome == "correct" for number in range(300))
    assert time.monotonic() - began < 10  # a third of a second where nothing else runs
