"""Verifiers: does a reply state the answer? Text only; no model, no file.

A verifier maps (reply, expected) to a `Verdict`. Where a rule has to choose, it refuses: a fact that is refused costs another
attempt, a fact that is wrongly accepted is trained on. A string that fools one becomes a line of tests/facts/test_answers.py.

Limits: `contains` does not read meaning ("it is not Arlen Bay" contains Arlen Bay) nor case ("join us" contains US), and a bare
number is also found in a list marker ("1. ...") or before "million"; `number` or `boxed` suit numbers better.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from mixsd.errors import UserError, did_you_mean
from mixsd.plugins import is_function_name, load_function

if TYPE_CHECKING:
    from mixsd.killable import Processes

# Part of every cache key that holds outcomes: raise it whenever any verdict of this file can change.
scorer_version: str = "1"

Outcome = Literal["correct", "wrong", "unparseable", "error"]  # unparseable: the reply holds nothing that could be judged


@dataclass(frozen=True)
class Expected:
    """What a reply has to state: the answer, or any one of its aliases."""

    answer: str
    aliases: tuple[str, ...] = ()

    @property
    def accepted(self) -> tuple[str, ...]:
        return (self.answer, *self.aliases)


@dataclass(frozen=True)
class Verdict:
    """The outcome of a reply, what was taken from it as its answer, and the reason of an error: of the verifier, not the model."""

    outcome: Outcome
    extracted: str | None = None
    reason: str | None = None


Verifier = Callable[[str, Expected], Verdict]


_THIN = "\x1f"  # stands for the spaces that group digits until the digits are joined; str.split takes it as a space

_FOLD = str.maketrans(
    dict.fromkeys("‘’‚‛′´ʼ", "'")
    | dict.fromkeys("“”„‟″«»", '"')
    | dict.fromkeys("‐‑‒–−", "-")
    # A long dash separates; a hyphen joins.
    | dict.fromkeys("—―﹘", " - ")
    | dict.fromkeys("⁄∕", "/")
    | dict.fromkeys("\u00a0\u2007\u2009\u202f", _THIN)
    | {"№": "no "}
)
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴-⁹⁺⁻]+")
_VULGAR_FRACTION = re.compile(r"(?<=\d)[¼½¾⅐-⅞↉]")
_LATEX_COMMA = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\,)(?=\d)")
_GROUPED = re.compile(rf"(?<!\d)(?<!\d[.,])[1-9]\d{{0,2}}(?:[,'{_THIN}]\d{{2,3}})*[,'{_THIN}]\d{{3}}(?![,']?\d)")
_LONG_DASH = re.compile(r"(?<=\w)--+(?=\w)")


@lru_cache(maxsize=512)  # one reply is judged against many answers, one answer sought in many texts
def normalize(text: str) -> str:
    """Fold what two spellings of one text may differ in; idempotent.

    Unicode form (NFKC) and case; white space; invisible characters; typographic quotes and dashes; digits of any script; thousands
    separators ("1,200", "1'200", LaTeX's "1{,}200"). "²" becomes "^2" and "3½" "3 1/2", lest they grow into the number before them.
    """
    if not text.isascii():  # no character of ASCII is of that category
        text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    text = _SUPERSCRIPTS.sub(lambda run: "^" + run[0], _VULGAR_FRACTION.sub(lambda char: " " + char[0], text))
    text = unicodedata.normalize("NFKC", text.translate(_FOLD)).casefold()
    text = unicodedata.normalize("NFKC", text).translate(_FOLD)
    text = re.sub(r"[^\D0-9]", lambda digit: str(unicodedata.decimal(digit[0])), text)
    text = _GROUPED.sub(lambda number: re.sub(r"\D", "", number[0]), _LATEX_COMMA.sub(",", text))
    return " ".join(_LONG_DASH.sub(" - ", text).split())


# Scripts written without spaces, and Hangul, whose particles are glued to the word before them.
_UNSPACED = (
    "\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u318f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_CHAR = re.compile(f"[{_UNSPACED}]")
_SPACED = rf"[^\W_{_UNSPACED}]"  # a letter or digit that takes part in word boundaries
_NUMERALS = "十百千万萬亿億兆만억조"


def _joined(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to one word; a combining mark always belongs to what it follows."""
    marks = [unicodedata.category(char)[0] == "M" for char in (left, right)]
    words = (left.isalnum() or marks[0]) and right.isalnum()
    return marks[1] or (words and not (_UNSPACED_CHAR.match(left) or _UNSPACED_CHAR.match(right)))


# What stands around a match and makes it part of something longer. Left: three characters, then the first two of the match.
_LONGER_LEFT = re.compile(
    rf"""(?xs)
      .(?!\d-\d){_SPACED}[-_]\w. # twenty-one, snake_case; but a range or a date is two numbers
    | (?:\W|_)o'\w.             # O'Brien
    | .\D-\d.                   # a minus sign, or a hyphen
    | .\d[.,:/']\d.             # 3.12, 12:30, 1/2, 5'10
    | .[ $(]\.\d.               # .12
    | ..\^\d.                   # 10^6
    | ..{_SPACED}[-+.]\d       # a match that begins with a sign, in 5-12
    """
)
# Right: the last character of the match, then three more.
_LONGER_RIGHT = re.compile(
    rf"""(?xs)
      (?!\d-\d)\w[-_][^\W_].    # Smith-Jones
    | [\w+#][+#]..              # C++, C#
    | \w't\W                    # don't
    | \d[.,:/']\d.
    | \d[\^{_NUMERALS}]..       # 10^6, and digits before a Chinese, Japanese or Korean numeral
    """
)


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is no part of a longer word or number; `text` is padded by three spaces."""
    if _joined(text[start - 1], text[start]) or _joined(text[end - 1], text[end]):
        return False
    left, right = text[start - 3 : start + 2], text[end - 1 : end + 3]
    return not (_LONGER_LEFT.fullmatch(left) or _LONGER_RIGHT.fullmatch(right))


@lru_cache(maxsize=4096)
def _needles(answer: str) -> tuple[str, ...]:
    """The normalized spellings to look for: edges bared, and "5 km" also as "5km"."""
    needle, previous = normalize(answer), None
    while needle != previous:
        previous = needle
        needle = needle.lstrip(",;:!?¿¡ ").rstrip(".,;:!? ")
        if len(needle) > 1 and needle[0] == needle[-1] and needle[0] in "\"'":
            needle = needle[1:-1]
    tight = re.sub(r"(?<=\d) (?=[^\W\d_]|[°%€£¥])", "", needle)
    loose = re.sub(r"(?<=\d)(?=[^\W\d_]|[°%€£¥])", " ", needle)
    return tuple(dict.fromkeys(spelling for spelling in (needle, tight, loose) if spelling))


def _find(text: str, candidates: Sequence[str]) -> str | None:
    """The first of the candidates that `text` contains, see `contains_answer`."""
    padded = f"   {normalize(text)}   "
    for candidate in candidates:
        for needle in _needles(candidate):
            at = padded.find(needle)
            while at >= 0:
                if _stands_alone(padded, at, at + len(needle)):
                    return candidate
                at = padded.find(needle, at + 1)
    return None


def contains_answer(text: str, answer: str, aliases: Sequence[str] = ()) -> bool:
    """Whether `text` contains the answer or an alias as whole words, after `normalize`.

    - Sentence punctuation and quotes around the answer are ignored; symbols that are part of it are not ("C++", ".NET", "$5").
    - A hyphen, an underscore, "+" and "#" belong to the word they touch ("one" is not in "twenty-one"), an apostrophe only in "don't"
      and "O'Brien". No boundary is asked for beside a character of a script without spaces, or Hangul.
    - A number is not found within a longer one: a decimal, time, fraction, power, ordinal, or behind a minus sign. Both ends of
      "1990-1999" are found, and "5" in "$5", "5%" and "5 km", which is the same as "5km".
    """
    return _find(text, (answer, *aliases)) is not None


def contains(reply: str, expected: Expected) -> Verdict:
    """Correct if the reply contains the answer or an alias (`contains_answer`); only an empty reply is unparseable."""
    if not normalize(reply):
        return Verdict("unparseable")
    found = _find(reply, expected.accepted)
    return Verdict("wrong") if found is None else Verdict("correct", found)


_BRACES = re.compile(r"(?P<box>\\\\?boxed\s*\{)|\\.|[{}]", re.DOTALL)
_TEXT_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


def _boxes(text: str) -> list[tuple[int, int, int]]:
    r"""Where each brace-matched `\boxed{...}` begins, where its content begins and ends, in the order in which they close."""
    found: list[tuple[int, int, int]] = []
    open_braces: list[tuple[int, int] | None] = []  # where a box and its content start; None for any other brace
    for token in _BRACES.finditer(text):
        if token["box"]:
            open_braces.append((token.start(), token.end()))
        elif token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}" and open_braces and (box := open_braces.pop()) is not None:
            found.append((*box, token.start()))
    return found


def last_boxed(text: str) -> str | None:
    r"""The content of the last brace-matched `\boxed{...}` (that which opens last), or None.

    Braces may nest; `\{` and `\}` do not count. A box that never closes is passed over. `\boxed 5` and `\fbox{5}` are no boxes.
    """
    if not (boxes := _boxes(text)):
        return None
    _, start, end = max(boxes)
    return text[start:end]


def replace_boxes(text: str, by: str) -> str:
    """The text with `by` in the place of every box that `last_boxed` sees, and of what is in it."""
    parts, done = [], 0
    for opening, _, end in sorted(_boxes(text)):
        if opening >= done:  # else it is inside the one before
            parts += [text[done:opening], by]
            done = end + 1
    return "".join([*parts, text[done:]])


def _bare(content: str) -> str:
    """Box content without what only typesets it: `$`, one `\\text{}` around all, the last period, double spaces."""
    previous = None
    while content != previous:
        previous = content
        content = " ".join(content.split()).removesuffix(".")
        if len(content) > 1 and content[0] == content[-1] == "$":
            content = content[1:-1]
        if wrapped := _TEXT_WRAPPER.fullmatch(content):
            content = wrapped[1]
    return content


def boxed(reply: str, expected: Expected) -> Verdict:
    r"""Correct if the last `\boxed{...}` equals the answer or an alias after strip (the paper's verifier); case counts.

    Beyond the paper, `$...$`, a `\text{...}` around the whole, a final period and double spaces are ignored on both sides.
    """
    content = last_boxed(reply)
    if content is None or not content.strip():
        return Verdict("unparseable")
    same = any(content.strip() == answer.strip() or _bare(content) == _bare(answer) for answer in expected.accepted)
    return Verdict("correct" if same else "wrong", content.strip())


def exact(reply: str, expected: Expected) -> Verdict:
    """Correct if the box, or without a box the whole reply, equals the answer or an alias after lower() and strip()."""
    content = last_boxed(reply)
    said = (reply if content is None else content).strip()
    if not said:
        return Verdict("unparseable")
    same = any(said.lower() == answer.strip().lower() for answer in expected.accepted)
    return Verdict("correct" if same else "wrong", said)


_FRAC = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_NUMBER = re.compile(
    rf"(?<!{_SPACED})(?<!\d\.)"  # not inside a word such as CO2, nor the third part of 3.12.1
    r"(?P<sign>(?<![)\]])-(?:\\?[$€£¥])?)?"
    r"(?:(?P<whole>\d+)[ ](?=\d+/\d))?"
    r"(?P<value>(?:\d+(?:\.\d+)?|(?<![\d.])\.\d+)(?:e[+-]?\d{1,3}(?!\d))?)"
    r"(?:/(?P<denominator>\d+))?"
    rf"(?P<unread>\^\{{?-?\d+|[{_NUMERALS}])?"
)


def _last_number(text: str) -> tuple[str, Fraction | None] | None:
    """The last number as written and its value; no value for what is not read (10^6), 5/0 and thousands of digits."""
    numbers = list(_NUMBER.finditer(_FRAC.sub(r"\1/\2", normalize(text))))
    if not numbers:
        return None
    last = numbers[-1]
    try:
        value = Fraction(last["value"]) / int(last["denominator"] or 1) + int(last["whole"] or 0)
    except (ValueError, ZeroDivisionError):
        return last[0], None
    return last[0], None if last["unread"] else -value if last["sign"] else value


def number(reply: str, expected: Expected) -> Verdict:
    r"""Correct if the last number in the box, or without a box in the reply, has the value of the answer's last number.

    Read are thousands separators, decimals, signs (a minus after a word is a hyphen), 1e5, 1/2, `\frac{1}{2}` and 3 1/2; currency,
    percent and units are passed over. Equality is exact: 0.33 is not 1/3. A power is wrong whatever its value; a decimal comma and
    number words are not read. No number in the answer is an error.
    """
    values = [parsed[1] for answer in expected.accepted if (parsed := _last_number(answer)) and parsed[1] is not None]
    if not values:
        return Verdict("error", reason=f"the answer {expected.answer!r} holds no number; choose another verifier")
    content = last_boxed(reply)
    said = _last_number(reply if content is None else content)
    if said is None:
        return Verdict("unparseable")
    return Verdict("correct" if said[1] in values else "wrong", said[0])


def _regex(name: str, pattern: str, limit_s: float) -> Verifier:
    """A verifier that searches the stripped reply for `pattern`, whatever the case; `{answer}` stands for the answer or any alias.

    A search that takes longer than `limit_s` is an error; it runs in another process, for nothing but that process's end stops a
    pattern that backtracks.
    """
    if not pattern:
        raise UserError(f'verifier "{name}": the pattern is empty and would accept every reply; write regex:PATTERN')
    try:
        _first_match(pattern.replace("{answer}", "(?:answer)"), "")
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f'verifier "{name}": the pattern does not compile: {error}') from error

    def verify(reply: str, expected: Expected) -> Verdict:
        from mixsd.killable import DiedError, LateError

        if not reply.strip():
            return Verdict("unparseable")
        alternatives = "|".join(re.escape(answer.strip()) for answer in expected.accepted if answer.strip())
        # With nothing to stand for, {answer} matches nowhere rather than everywhere.
        whole = pattern.replace("{answer}", f"(?:{alternatives or '(?!)'})")
        try:
            found = _searchers().run(limit_s, _first_match, whole, reply.strip())
        except LateError:
            reason = f"not searched within {limit_s:g} s; do not nest repetitions, as in (a+)+"
            return Verdict("error", reason=f'verifier "{name}": {reason}')
        except DiedError as error:
            return Verdict("error", reason=f'verifier "{name}": {error}')
        except (re.error, OverflowError, RecursionError) as error:
            return Verdict("error", reason=f"the pattern does not compile with this answer: {error}")
        return Verdict("wrong") if found is None else Verdict("correct", found)

    return verify


def _first_match(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.IGNORECASE)
    return match[0] if match else None


@lru_cache(maxsize=1)
def _searchers() -> Processes:
    from mixsd.killable import Processes

    return Processes()


def _user_function(function: Callable[[str, str, tuple[str, ...]], object]) -> Verifier:
    """A verifier from a function (reply, answer, aliases) -> bool or Verdict; whatever goes wrong inside is an error."""

    def verify(reply: str, expected: Expected) -> Verdict:
        try:
            result = function(reply, expected.answer, expected.aliases)
        except Exception as error:
            return Verdict("error", reason=f"{type(error).__name__}: {' '.join(str(error).split())}")
        if isinstance(result, Verdict):
            return result
        if isinstance(result, bool):
            return Verdict("correct" if result else "wrong")
        return Verdict("error", reason=f"the verifier returned {type(result).__name__}, not bool or Verdict")

    return verify


# Name -> where the verifier is; imported when asked for. A new verifier is a function of its own file and a line here.
VERIFIERS = {name: f"mixsd.facts.answers:{name}" for name in ("contains", "boxed", "exact", "number")}


def get_verifier(name: str, *, regex_limit_s: float = 5.0) -> Verifier:
    """The verifier called `name`: one of `VERIFIERS`, `regex:PATTERN`, or the user's `package.module:function`.

    A pattern has `regex_limit_s` seconds for each reply. A user's function gets (reply, answer, aliases) and returns a bool or a
    `Verdict`; an exception inside it is outcome error. A name of neither, or a pattern that does not compile, is a `UserError`.
    """
    if name in VERIFIERS:
        verifier: Verifier = load_function(VERIFIERS[name], f'verifier "{name}"')
        return verifier
    kind, colon, rest = name.partition(":")
    if kind == "regex" and colon:
        return _regex(name, rest, regex_limit_s)
    if is_function_name(name):
        return _user_function(load_function(name, f'verifier "{name}"'))
    known = [*VERIFIERS, "regex:PATTERN", "package.module:function"]
    raise UserError(f'verifier "{name}": unknown{did_you_mean(name, known)}; known: {", ".join(known)}')


_MARK = re.compile(r"<(?P<end>/?)think(?:ing)?\s*>", re.IGNORECASE)


def without_thinking(text: str) -> str | None:
    """What stands behind the last think block, or all of a reply that has none; None where the last block does not end.

    The last mark decides. `</think>` ends all thinking before it, whether or how often it was opened: the prompt may have opened the
    block, and a model that thinks about thinking does not nest it.
    """
    marks = list(_MARK.finditer(text))
    if not marks:
        return text
    return text[marks[-1].end() :] if marks[-1]["end"] else None
