"""Any number in any spelling is itself; any text at all is judged without an exception."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd.evaluation.grading import code, letters, maths
from mixsd.evaluation.grading.maths import canonical, fold, same_at_sight
from mixsd.facts.answers import Expected

OUTCOMES = {"correct", "wrong", "unparseable", "error"}
INTEGERS = st.integers(-(10**15), 10**15)
_PIECES = r"\ { } $ ( ) [ ] , . - + / ^ _ % = < & ! : 1 23 0.5 x A B I \boxed{ \frac \sqrt \text{ \pi \left \pm \% \! \\ ½ ² ٣ √".split()
_PIECES += [
    "<think>",
    "</think>",
    "####",
    " ",
    "\n",
    "`",
    "```python\n",
    "~~~",
    "**",
    "def f(x):\n",
    "    return x\n",
    "import a\n",
]
_PIECES += ["The answer is", "Answer:", "Option", "million", "degrees", r"\begin{pmatrix}"]
LATEX = st.lists(st.sampled_from(_PIECES), max_size=25).map("".join)


def grouped(number: int, comma: str) -> str:
    return f"{number:,}".replace(",", comma)


@given(
    INTEGERS,
    st.sampled_from([",", "{,}", r",\!", r"\,", r"\!", "٬"]),
    st.sampled_from(["%s", "$%s$", r"\$%s", "%s.", r"\text{%s}", "+%s", "0%s"]),
)
def test_an_integer_is_itself(number: int, comma: str, dress: str) -> None:
    said = grouped(number, comma) if "0%" not in dress else str(number)
    if number < 0 and dress in ("+%s", "0%s"):
        dress = "%s"
    for gold in (str(number), grouped(number, ",")):
        assert maths.strict(f"\\boxed{{{dress % said}}}", Expected(gold)).outcome == "correct"
        assert maths.lenient(f"The answer is {said}.", Expected(gold)).outcome == "correct"
        assert (
            maths.strict(f"\\boxed{{{dress % grouped(number + 1, comma)}}}", Expected(gold)).outcome != "correct"
            or dress[0] == "0"
        )


@given(INTEGERS, INTEGERS)
def test_integers_at_sight_are_compared_as_integers(left: int, right: int) -> None:
    assert same_at_sight(str(left), grouped(right, ",")) == (left == right)
    assert same_at_sight(grouped(left, ","), f"{left}.0")


@settings(max_examples=60, deadline=None)
@given(st.integers(-999, 999), st.integers(1, 999))
def test_a_fraction_is_itself(above: int, below: int) -> None:
    value = Fraction(above, below)
    spellings = [
        f"{above}/{below}",
        f"\\frac{{{above}}}{{{below}}}",
        f"\\dfrac{{{2 * above}}}{{{2 * below}}}",
        f"-\\frac{{{-above}}}{{{below}}}",
    ]
    if below in (1, 2, 4, 5, 8, 10, 16, 20, 25, 40, 50, 80, 100, 125):
        spellings.append(f"{float(value)}")
    for said in spellings:
        assert maths.strict(f"\\boxed{{{said}}}", Expected(f"\\frac{{{above}}}{{{below}}}")).outcome == "correct", said
    assert maths.strict(f"\\boxed{{{above + 1}/{below}}}", Expected(f"\\frac{{{above}}}{{{below}}}")).outcome == "wrong"


@given(st.decimals(-(10**6), 10**6, places=3, allow_nan=False, allow_infinity=False))
def test_a_decimal_is_itself(value: object) -> None:
    said = f"{value:f}"
    assert maths.strict(f"\\boxed{{{said}00}}", Expected(said)).outcome == "correct"
    assert maths.lenient(f"It is ${said}$", Expected(f"{said}0")).outcome == "correct"


@given(LATEX | st.text(max_size=60))
def test_spelling_is_settled_in_one_step(text: str) -> None:
    assert isinstance(canonical(text), str)
    assert isinstance(fold(text), str)
    assert same_at_sight(text, text) in (True, None, False)


@settings(max_examples=150, deadline=None)
@given(LATEX | st.text(max_size=60), st.sampled_from(["42", r"\frac{1}{2}", r"\text{even}", "x=5", "(1,2)"]))
def test_no_reply_raises(reply: str, gold: str) -> None:
    for judge in (maths.strict, maths.lenient):
        assert judge(reply, Expected(gold)).outcome in OUTCOMES
        assert judge(f"\\boxed{{{reply}}}", Expected(gold)).outcome in OUTCOMES


@settings(deadline=None)
@given(LATEX | st.text(max_size=60), st.text(max_size=8))
def test_no_reply_raises_for_letters_and_code(reply: str, gold: str) -> None:
    for judge in (letters.strict, letters.lenient):
        assert judge(reply, Expected("B")).outcome in OUTCOMES - {"error"}
        assert judge(reply, Expected(gold)).outcome in OUTCOMES
    code.first_block(reply)
    code.program(reply, "def f(x):\n", "f")
    code.lenient_program(reply, "def f(x):\n", "f")
