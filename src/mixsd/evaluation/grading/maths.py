r"""Is the answer of a reply mathematically the expected one? For AIME, MATH-500 and GSM8K.

The answer is found in the reply (`strict`: the box; `lenient`: a statement or the last number too), compared by its spelling
(`maths_text`) and, where that does not tell, by math-verify in a process of its own (`maths_pool`). What counts as equal is then
math-verify's: fractions, decimals (to six places) and roots by value, sets in any order, tuples in theirs, `x=5` and 5, expressions
by algebra. Its way with units and percent is ours too: units and degrees are passed over, and `50\%` equals 50, 0.5 and 1/2, while
50 and 0.5 differ. A number without its base equals the one with it ("2516" for `2516_8`); another base does not.
"""

from __future__ import annotations

from mixsd.evaluation.grading import maths_pool
from mixsd.evaluation.grading.maths_found import stated_answer
from mixsd.evaluation.grading.maths_text import fold, same_at_sight, without_unit
from mixsd.facts.answers import Expected, Outcome, Verdict, last_boxed, without_thinking

# Part of every cache key that holds outcomes: raise it whenever any verdict of the mathematics can change.
scorer_version: str = "2"

_UNFINISHED = "the reply ends inside its thinking"
_MOST_CHARACTERS = 2000  # no answer is longer; math-verify's patterns are slow on what is
_SHOWN = 200


def strict(reply: str, expected: Expected) -> Verdict:
    r"""Judge what the last `\boxed{...}` behind the thinking holds; without one, or with an empty one, the reply is unparseable.

    A comparison that takes longer than `maths_pool.LIMIT_S`, or too much memory, is wrong, with the reason. A gold answer that math-verify
    cannot read is an error.

    Raises:
        UserError: math-verify is not installed, and the spelling does not tell.
    """
    answer = without_thinking(reply)
    if answer is None:
        return Verdict("unparseable", reason=_UNFINISHED)
    content = last_boxed(answer)
    return _judged(content, expected)


def lenient(reply: str, expected: Expected) -> Verdict:
    """As `strict`; where there is no box, or an empty one, the answer that the reply states otherwise, see `stated_answer`.

    Unparseable is only a reply without any statement, number or mathematics, and one that ends inside its thinking.
    """
    answer = without_thinking(reply)
    if answer is None:
        return Verdict("unparseable", reason=_UNFINISHED)
    content = last_boxed(answer)
    return _judged(content if content and content.strip() else stated_answer(answer), expected)


def _judged(content: str | None, expected: Expected) -> Verdict:
    if content is None or not content.strip():
        return Verdict("unparseable")
    said = content.strip()
    shown = said if len(said) <= _SHOWN else said[:_SHOWN] + "…"
    golds = [gold for gold in expected.accepted if gold.strip()]
    if not golds:
        return Verdict("error", shown, "the gold answer is empty")
    if len(said) > _MOST_CHARACTERS:
        same = any(said == gold.strip() for gold in golds)
        return Verdict("correct", shown) if same else Verdict("wrong", shown, f"longer than {_MOST_CHARACTERS} characters")
    seen = {gold: same_at_sight(gold, said) for gold in golds}
    if True in seen.values():
        return Verdict("correct", shown)
    open_golds = [without_unit(fold(gold)) for gold, same in seen.items() if same is None]
    if not open_golds:
        return Verdict("wrong", shown)
    compared = maths_pool.POOL.compare(open_golds, without_unit(fold(said)))
    outcome: Outcome = "correct" if compared.outcome == "correct" else "wrong" if compared.outcome == "wrong" else "error"
    return Verdict(outcome, shown, compared.reason)
