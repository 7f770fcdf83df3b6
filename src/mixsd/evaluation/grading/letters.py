"""Which choice does a reply name? A letter A to J, in the box (strict) or as a statement (lenient); in prose "A" is an article."""

import re
import unicodedata
from collections.abc import Callable

from mixsd.facts.answers import Expected, Verdict, last_boxed, without_thinking

# Part of every cache key that holds outcomes: raise it whenever any verdict of this file can change.
scorer_version: str = "2"

_LONGEST_BOX = 1000  # characters; the patterns take quadratic time on what no choice looks like
_LOOKED_AT = 5000  # characters at the end of a reply
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathsf|mbox|bf|rm)\s*\{([^{}]*)\}")
_BOX_LETTER = re.compile(
    r"(?i:(?:the\s+)?(?:correct\s+)?(?:(?:option|choice|answer|letter)\b\s*(?:is\s*)?:?\s*)?)"
    r"(?:\(\s*(?P<round>[A-Ja-j])\s*\)|\[\s*(?P<square>[A-Ja-j])\s*\]|(?P<bare>[A-J])(?=\s*$|\s*[.):,;]|\s+[-–—]\s)"
    r"|(?P<small>[a-j])(?=\s*[.)]?$))"
    r"(?P<rest>.*)",
    re.DOTALL,
)
# "A, B", "(A) and (C)", "B/C": more than one choice is none.
_ANOTHER = re.compile(
    r"\s*[.):]?\s*[-–—]?\s*(?:,|/|&|\band\b|\bor\b|;)\s*(?:(?:and|or|maybe|perhaps)\s+)?"
    r"(?:\(?[A-J]\b(?!\s+[a-z])|\([a-j]\))|\([A-J]\)"
    # "A) Paris or B) Rome"; but "A) both (B and C)".
    r"|[^(]*(?:[,;/&]|\band\b|\bor\b)\s*[A-J][):](?=\s|$)"
)


def letter_in_box(content: str) -> str | None:
    r"""The one letter A to J that a box names, as a capital, or None.

    Alone, or first with a sign behind it: "B", "b", "(B)", "[B]", "B.", "B) Paris", "B: Paris", "B - Paris", "Option B", `\text{B}`,
    `\textbf{(B)} Paris`, "**B**"; a small letter alone or in brackets. Neither two letters ("A, B", "(A) and (B)") nor "A dog".
    """
    if len(content) > _LONGEST_BOX:
        return None
    content, previous = _fold(content).replace("**", " ").replace("$", " "), None
    while content != previous:
        previous, content = content, _WRAPPER.sub(r" \1 ", content)
    content = " ".join(re.sub(r"\\[,;:! ]|\\q?quad\b|~|[{}]", " ", content).split())
    found = _BOX_LETTER.fullmatch(content)
    if found is None or _ANOTHER.match(found["rest"]) or re.search(r"\([A-J]\)", found["rest"]):
        return None
    letter = found["round"] or found["square"] or found["bare"] or found["small"]
    return letter.upper()


_DRESSED = r"(?:\*{1,2}|__|[\"'“‘`]|\$){0,4}(?:\\text(?:bf)?\{)?\s*[(\[]?\s*(?P<letter>[A-J])(?![\w'’+#-])(?:\s*[)\]])?\}?"
# Behind a bare A or I a small word makes it an article or a pronoun, save the words that give a reason.
_NO_PROSE = r"(?!(?<=[AI])\s+(?!because\b|since\b|as\b|due\b|is\b|and\b|for\b|with\b|based\b)[a-z])"
_NAMED = r"(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:option|choice|letter|answer)?\s*:?\s*"
_STATEMENTS = [
    re.compile(
        r"(?i:\b(?:answer|solution|(?:correct|right|best)\s+(?:option|choice|one))\b(?:\s+(?:to|for|of)\s+[^.\n]{1,60}?)?"
        rf"[*_]{{0,4}}\s*(?:is|would\s+be|should\s+be|must\s+be|:|=)[*_]{{0,4}}\s*:?\s*(?:{_NAMED})){_DRESSED}{_NO_PROSE}"
    ),
    re.compile(rf"(?i:\b(?:choose|pick|select|go\s+with|going\s+with)\s+(?:{_NAMED})){_DRESSED}{_NO_PROSE}"),
    re.compile(
        rf"(?i:\b(?:option|choice|answer)\s+){_DRESSED}[*_]{{0,4}}\s+(?:is|seems|looks|must\s+be)\s+(?:the\s+)?(?:correct|right|best|answer)\b"
    ),
    re.compile(rf"(?<![\w'’]){_DRESSED}[*_]{{0,4}}\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b"),
    re.compile(r"\*\*\s*(?:(?i:option|choice|answer)\s*:?\s*)?[(\[]?(?P<letter>[A-J])(?:\s*[)\].:](?:[^*\n]*)|\s*)\*\*"),
]
_LONE_LINE = re.compile(
    r"^[ \t>#*_]{0,12}(?:(?i:option|choice|answer)\s*:?\s*)?[*_$\"]{0,4}[(\[]?(?P<letter>[A-J])[)\]]?[.:]?[*_$\"]{0,4}[ \t]*$",
    re.MULTILINE,
)
_OPENING = re.compile(r"\s*[*_]*(?:\((?P<round>[A-J])\)|(?P<letter>[A-J])[.):])(?=[\s*_]|$)")
_LISTED = re.compile(r"^[ \t>*_-]*\(?([A-J])[.):]", re.MULTILINE)
_SMALL = re.compile(r"\s*[(\[]?([a-j])[)\].]?\.?\s*")


def _fold(text: str) -> str:
    """Full-width and styled letters as plain ones; no invisible characters."""
    text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    return unicodedata.normalize("NFKC", text) if not text.isascii() else text


def _stated(reply: str) -> str | None:
    if small := _SMALL.fullmatch(reply.strip()):
        return small[1].upper()
    start, reply = reply[:_LOOKED_AT], re.sub(r"[ \t]{3,}", "  ", re.sub(r"\s{9,}", "\n\n", reply))[-_LOOKED_AT:]
    # A reply that goes through the choices opens with "A." and answers nothing by it.
    listed = len(set(_LISTED.findall(reply))) > 1
    found = [] if listed else [(-1, m["round"] or m["letter"]) for m in [_OPENING.match(start)] if m]
    for pattern in (*_STATEMENTS, _LONE_LINE):
        found += [(match.start("letter"), match["letter"]) for match in pattern.finditer(reply)]
    return max(found)[1] if found else None


def strict(reply: str, expected: Expected) -> Verdict:
    r"""Correct if the last `\boxed{...}` behind the thinking names the expected letter, see `letter_in_box`.

    No box, or a box that names no letter or several, is unparseable. Another letter, even one that was no choice, is wrong.
    """
    return _judged(reply, expected, _boxed)


def lenient(reply: str, expected: Expected) -> Verdict:
    """As `strict`; where the box names no letter, the last statement in the reply that does.

    Statements are: "answer is (B)", "Answer: B", "the correct option is B", "I choose B", "B is correct", a letter in bold ("**B**",
    "**B. Paris**"), a line that is nothing but the letter, and "B." or "(B)" at the very start, unless the reply lists several choices so.
    Letters are capitals, save in a reply that is one letter. "A" and "I" before a small word are prose: "the answer is A dog".
    """
    return _judged(reply, expected, lambda answer: _boxed(answer) or _stated(_fold(answer)))


def _boxed(answer: str) -> str | None:
    return letter_in_box(last_boxed(answer) or "")


def _judged(reply: str, expected: Expected, find: Callable[[str], str | None]) -> Verdict:
    answer = without_thinking(reply)
    if answer is None:
        return Verdict("unparseable", reason="the reply ends inside its thinking")
    letter, golds = find(answer), {gold.strip().upper() for gold in expected.accepted}
    if not all(re.fullmatch("[A-J]", gold) for gold in golds):
        return Verdict("error", letter, f"the answer {expected.answer!r} is no letter from A to J")
    if letter is None:
        return Verdict("unparseable")
    return Verdict("correct" if letter in golds else "wrong", letter)
