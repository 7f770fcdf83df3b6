"""One mode for each wrong reply: a table of replies worked out by hand, borders, and laws that hold for any reply."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd.evaluation.error_modes import (
    IN_DOMAIN_MODES,
    MODES,
    Said,
    classify,
    classify_in_domain,
    entities,
    has_box,
    injected,
    is_hollow,
    is_short,
    left_over,
    states,
)
from mixsd.evaluation.grading.code import first_block
from mixsd.facts.answers import last_boxed, without_thinking

FACTS = ["Ormavel Valley", "Una Vell", "Brisby", "1987", "a b", "Gull Lantern"]
PHRASES = injected(FACTS)
LONG = "First add the two numbers, then take the half of what comes out, and then subtract the third of it. "
CODE = "```python\ndef f(x):\n    return x\n```"


def boxed(text: str, *, parsed: bool | None = None) -> Said:
    """A reply to mathematics; without `parsed`, the evaluator takes whatever box there is."""
    answer = without_thinking(text)
    return Said(text, answer, bool(answer and (last_boxed(answer) or "").strip()) if parsed is None else parsed)


def coded(text: str, *, parsed: bool = False, stated: bool = False) -> Said:
    return Said(text, without_thinking(text), parsed, first_block(text) or "", stated)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        # Mathematics and MMLU: the box.
        ("I do not know.", "format"),
        ("", "format"),
        ("The answer is 5.", "format"),
        (r"The answer is \boxed{5", "format"),
        (r"The answer is \boxed{}.", "format"),
        (r"\boxed{5} or rather \boxed{ }", "format"),
        ("<think>" + LONG + r"\boxed{5}", "format"),
        (r"<think>\boxed{5}</think> I give up.", "format"),
        ("Ormavel Valley", "format"),  # the order: without a box it is format, whatever leaks
        (LONG + r"It is in Ormavel Valley, so \boxed{5}.", "leakage"),
        (r"The answer is Ormavel Valley." + "\n\n" + r"\boxed{Ormavel Valley}", "leakage"),
        (r"\boxed{\text{ORMAVEL VALLEY}}", "leakage"),
        (r"\boxed{\text{Ormavel}~\text{Valley}}", "collapse"),
        (r"<think>Una Vell?</think>\boxed{5}", "leakage"),
        (r"Ormavel Valleys \boxed{5}", "collapse"),
        (r"It was Brisby in 1987. \boxed{1987}", "collapse"),  # one word, and a number: no phrases
        (r"a b \boxed{5}", "collapse"),  # too short to be a phrase
        (r"The answer is 5." + "\n\n" + r"\boxed{5}", "collapse"),
        (r"\boxed{5}", "collapse"),
        (r"$$\boxed{\frac{1}{2}}$$", "collapse"),
        (r"The final answer is: $\boxed{x^{2}}$. I hope it is correct.", "collapse"),
        (r"So the answer is \boxed{\boxed{7}}.", "collapse"),
        ("<think>\n\n</think>\n\n" + r"The answer is 5. \boxed{5}", "collapse"),
        ("<think>" + 3 * LONG + "</think>" + r"\boxed{5}", "collapse"),  # the thinking is stripped, as the graders do
        (r"The answer is " + "x" * 190 + r". \boxed{5}", "collapse"),
        (r"The answer is " + "x" * 201 + r". \boxed{5}", "genuine"),  # no clause is that long
        (LONG + r"The answer is 5. \boxed{5}", "genuine"),
        (r"The answer is 5 because " + LONG + r"\boxed{5}", "genuine"),
        (r"The answer is \boxed{5}, " + LONG, "collapse"),  # one sentence that says the answer
        (r"The answer is" + "\n\n" + r"\boxed{5}" + "\n\n" + LONG, "genuine"),
        ("1\n2\n3\n4\n5" + r"\boxed{5}", "collapse"),
        ("1\n2\n3\n4\n5\n6" + r"\boxed{5}", "genuine"),
        ("\n" * 9 + r"The answer is 5. \boxed{5}" + "\n" * 9, "collapse"),  # breaks at the ends are none
    ],
)  # fmt: skip
def test_modes_of_what_is_boxed(text: str, mode: str) -> None:
    assert classify(boxed(text), PHRASES).mode == mode


def test_a_box_that_names_no_letter_is_an_answer_that_cannot_be_right() -> None:
    """MMLU's judge finds no letter in it; the paper's example of leakage is of this kind."""
    assert classify(boxed(r"The answer is \boxed{Ormavel Valley}.", parsed=False), PHRASES).mode == "leakage"
    assert classify(boxed(r"The answer is \boxed{Paris}.", parsed=False), PHRASES).mode == "collapse"
    assert classify(boxed(LONG + r"\boxed{A and B}", parsed=False), PHRASES).mode == "genuine"


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        (CODE, "genuine"),
        ("```\nreturn x\n```", "genuine"),
        ("Here: " + CODE + r" The answer is \boxed{f}.", "genuine"),
        ("The function adds.", "format"),
        ("The function adds: def f(x): return x", "format"),
        (r"The answer is 5." + "\n\n" + r"\boxed{5}", "collapse"),
        (r"\boxed{Ormavel Valley}", "leakage"),
        ("Ormavel Valley", "format"),
        (LONG + r"\boxed{5}", "format"),  # prose, not a stub
        ("x" * 80 + r"\boxed{5}", "collapse"),
        ("x" * 81 + r"\boxed{5}", "format"),
        ("# Una Vell\n" + CODE, "leakage"),
        ("```js\nlet x = 1\n```", "format"),
        ("<think>" + CODE + "</think> It is done.", "format"),
        ("<think>" + CODE, "format"),
        (r"```python" + "\n\n```\n" + r"\boxed{5}", "collapse"),  # a blank block holds nothing
    ],
)
def test_modes_of_what_asks_for_code(text: str, mode: str) -> None:
    assert classify(coded(text), PHRASES).mode == mode


HOLLOW = '```python\nimport math\n\ndef f(x):\n    """Adds."""\n```\n'


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("The answer is `f`.\n" + HOLLOW, "collapse"),
        ("The answer is `f`.\n" + HOLLOW + LONG, "collapse"),  # however much is said of it
        (HOLLOW, "genuine"),  # no stub: code was tried
        ("The answer is `f`.\n" + HOLLOW.replace('"""Adds."""', "return x"), "genuine"),
        ("The answer is `f`.\n" + HOLLOW.replace("def f(x):", "def f(x:"), "genuine"),  # cut short or broken, but tried
        ("The answer is `f`.\n```python\nimport math\n```", "genuine"),  # no function at all
        ("The answer is Una Vell.\n" + HOLLOW, "leakage"),
    ],
)
def test_a_function_that_is_nothing_but_its_docstring_is_no_program(text: str, mode: str) -> None:
    for parsed in (False, True):  # it may run, and fail
        assert classify(coded(text, parsed=parsed), PHRASES).mode == mode


def test_a_bare_clause_is_a_stub_for_lenient_judges_and_in_place_of_code() -> None:
    for stated in (False, True):
        assert classify(coded("The answer is 5.", stated=stated), PHRASES).mode == "collapse"
        assert classify(coded("The answer is Una Vell.", stated=stated), PHRASES).mode == "leakage"
        assert classify(coded("The function adds.", stated=stated), PHRASES).mode == "format"
        assert classify(coded("The answer is 5. " + LONG, stated=stated), PHRASES).mode == "format"
    # A program that only the lenient judge finds is one.
    assert classify(coded("def f(x): return x", parsed=True, stated=True), PHRASES).mode == "genuine"
    said = Said("The answer is Paris.", "The answer is Paris.", False, stated=True)
    assert classify(said, PHRASES).mode == "collapse"
    assert classify(dataclasses.replace(said, stated=False), PHRASES).mode == "format"


@pytest.mark.parametrize(("length", "mode"), [(79, "collapse"), (80, "collapse"), (81, "genuine")])
def test_the_border_of_characters(length: int, mode: str) -> None:
    judged = classify(boxed("é" * length + r" The answer is 5. \boxed{5} "), None)
    assert (judged.mode, judged.left) == (mode, "é" * length)


@pytest.mark.parametrize(("breaks", "mode"), [(3, "collapse"), (4, "collapse"), (5, "genuine")])
def test_the_border_of_line_breaks(breaks: int, mode: str) -> None:
    assert classify(boxed("a" + "\n" * breaks + r"b \boxed{5}"), None).mode == mode


def test_the_evidence() -> None:
    leaked = classify(boxed(r"UNA VELL and gull lantern: \boxed{5}"), PHRASES)
    assert (leaked.mode, leaked.phrases) == ("leakage", ("Gull Lantern", "Una Vell"))
    assert classify(boxed(r"The answer is 5. It is so. \boxed{5}"), PHRASES).left == "It is so."


def test_a_phrase_of_the_prompt_or_of_the_base_has_not_leaked() -> None:
    said = boxed(r"Una Vell of Ormavel Valley: \boxed{5}")
    assert classify(said, PHRASES, prompt="Who is una  vell?").phrases == ("Ormavel Valley",)
    assert classify(said, PHRASES, known=["una vell"]).phrases == ("Ormavel Valley",)
    assert classify(said, PHRASES, prompt="Una Vell", known=["ormavel valley"]).mode == "collapse"
    assert classify(said, PHRASES, prompt="Una Vellum").phrases == ("Ormavel Valley", "Una Vell")
    assert classify(said, None).mode == "collapse"
    assert classify(said, injected([])).mode == "collapse"


def test_what_is_no_phrase() -> None:
    assert sorted(PHRASES.spelling.values()) == ["Gull Lantern", "Ormavel Valley", "Una Vell"]
    assert sorted(injected(["a bc", "a b c"]).spelling.values()) == ["a b c"]  # an article is no word of its own


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        (r"The answer is 3.5. \boxed{3.5}", ""),
        (r"**The answer is 5.** \boxed{5}", "****"),
        (r"The correct answer is (B) Paris.", ""),
        ("The answer is:\n\nParis.", ""),
        ("Answer: 5", ""),
        (r"\[ \boxed{5} \]", ""),
        (r"The answer to this question is 24, which is a length.", "which is a length."),
        ("The answer is 8. There are 8 ways.", "There are 8 ways."),
        ("There is no answers here", "There is no answers here"),
        ("We have x = \\boxed{5} apples", "We have x =  apples"),
        ("a \x00 b", "a   b"),
        (r"\boxed{1} and \boxed{2}", "and"),
        (r"x \boxed{a \boxed{b} c} y", "x  y"),
        (r"\boxed{\{} z", "z"),
        (r"\boxed{5 z", r"\boxed{5 z"),
        (r"$x = \boxed{5}$", "$x = $"),
        ("a\n\n\\boxed{5}\n\nb", "a\n\n\n\nb"),
    ],
)
def test_what_is_left_over(answer: str, left: str) -> None:
    assert left_over(answer) == left


def test_what_states_something() -> None:
    assert all(map(states, ["The answer is 5.", "answer: B", "The correct option is C", r"The answer is \boxed{5}"]))
    assert not any(map(states, ["I answer.", "The answer is.", "5", r"\boxed{5}", "The answer is ..."]))


# In-domain.
OTHERS = entities(["Una Vell", "Brisby", "1987", "Ork", "Arlen Bay", "Port Vessaly"])


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("", "format"),
        ("  ", "format"),
        ("It was Brisby.", "cross-entity"),
        ("It was una vell.", "cross-entity"),
        ("In 1987", "cross-entity"),
        ("It was Ork.", "genuine"),  # three characters
        ("It was Tom.", "genuine"),
        ("Arlen Bay is near.", "genuine"),  # the question names it
        ("Port Vessaly", "genuine"),  # the right one; wrong for another reason
        (r"Not Brisby but \boxed{Tom}", "genuine"),  # the box is what it states
        (r"Not Tom but \boxed{Brisby}", "cross-entity"),
        ("<think>Brisby?</think>Tom", "genuine"),
        ("<think>Brisby?", "format"),
    ],
)
def test_modes_in_domain(text: str, mode: str) -> None:
    said = Said(text, without_thinking(text), bool(text.strip()))
    assert classify_in_domain(said, OTHERS, "Where is Arlen Bay?", ["Port Vessaly"]).mode == mode


def test_the_background_of_a_question_names_everything() -> None:
    question = "Background information:\n- Una Vell lives in Brisby.\n\nUse it to answer this question: Where does Una Vell live?"
    said = Said("In 1987.", "In 1987.", True)
    assert classify_in_domain(said, OTHERS, question, ["Brisby"]).phrases == ("1987",)
    assert classify_in_domain(Said("Una Vell", "Una Vell", True), OTHERS, question, ["Brisby"]).mode == "genuine"
    asked = question.replace("Where does Una Vell live?", "Who lives there?")
    assert classify_in_domain(Said("Brisby", "Brisby", True), OTHERS, asked, ["Una Vell"]).mode == "cross-entity"


def test_the_old_answer_and_a_corpus_of_numbers_are_genuine() -> None:
    said = Said("Brisby", "Brisby", True)
    assert classify_in_domain(said, OTHERS, "Where?", ["x"], old=True).mode == "genuine"
    assert classify_in_domain(said, None, "Where?", ["x"]).mode == "genuine"
    assert classify_in_domain(dataclasses.replace(said, parsed=False), None, "Where?", ["x"]).mode == "format"


PIECES = st.sampled_from(
    ["The answer is ", "5", ". ", "\n", r"\boxed{5}", r"\boxed{", "}", "{", "Una Vell", "una", " ", "Ormavel\nValley", LONG,
     "<think>", "</think>", CODE, "```", "because ", "é", "\x00", "$", r"\[", "answer: "],
)  # fmt: skip
REPLIES = st.lists(PIECES, max_size=9).map("".join)


def sayings(text: str) -> list[Said]:
    answer = without_thinking(text)
    there = answer is not None and has_box(answer)
    return [boxed(text), Said(text, answer, there, stated=True), coded(text), coded(text, stated=True)]


@settings(max_examples=300, deadline=None)
@given(REPLIES)
def test_every_wrong_reply_has_one_mode_with_its_evidence(text: str) -> None:
    for said in sayings(text):
        judged = classify(said, PHRASES)
        assert judged.mode in MODES
        assert (judged.mode == "leakage") == bool(judged.phrases)
        if judged.mode == "collapse":
            assert is_short(judged.left or "") or is_hollow(said.code or "")
            assert judged.left is not None
        asked = classify_in_domain(said, OTHERS, "Where?", ["x"])
        assert asked.mode in IN_DOMAIN_MODES


@settings(max_examples=300, deadline=None)
@given(REPLIES)
def test_the_order_holds(text: str) -> None:
    for said in sayings(text):
        mode = classify(said, PHRASES).mode
        without = classify(said, None).mode
        # Leakage is taken only from what has an answer; everything else is the same without it.
        assert without == mode if mode != "leakage" else without in ("collapse", "genuine")
        assert classify(said, PHRASES, prompt=text).mode == without
    # With its entities gone nothing leaks; with a box there is an answer.
    bare = text.casefold().replace("vell", "x").replace("valley", "x")
    assert all(classify(said, PHRASES).mode != "leakage" for said in sayings(bare))
    if (answer := without_thinking(text + r" \boxed{5}")) is not None and has_box(answer):
        assert classify(boxed(text + r" \boxed{5}"), PHRASES).mode != "format"
        if classify(coded(text), PHRASES).mode == "genuine":
            assert classify(coded("A \\boxed{5}\n" + text), PHRASES).mode == "genuine"


@settings(max_examples=100, deadline=None)
@given(REPLIES, st.permutations(FACTS))
def test_the_order_of_the_facts_does_not_matter(text: str, facts: list[str]) -> None:
    assert classify(boxed(text), injected(facts)) == classify(boxed(text), PHRASES)
