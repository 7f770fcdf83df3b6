r"""Where in a reply without a box does its answer stand? The lenient half of judging mathematics.

A statement ("the answer is ...", "####") beats a mere number, and the last statement beats those before it.
"""

from __future__ import annotations

import re

from mixsd.evaluation.grading.maths_text import fold

_STATEMENT = re.compile(
    r"####[ \t]*"
    r"|\banswer\b[*_ \t]*(?:[ \t]+(?:to|for|of)\b[^.:=\n]{1,80}?)?(?:[ \t]+(?:is|would be|should be|must be|equals)\b|[ \t]*[:=：])"
    r"(?:[ \t]*(?:thus|therefore|simply|just|then|that|exactly)\b)?[*_ \t:：]*"
    r"|(?:最终)?答案(?:是|为|：|:)[ \t]*",
    re.IGNORECASE,
)
# Dollar signs that pair as pandoc pairs them: no space inside, no digit behind. "$5 and $7" is money.
_INLINE = r"(?<![\\$])\$(?=[^\s$])(?P<inline>(?:\\.|[^$\\\n]){1,400}?)(?<=\S)\$(?!\d)"
_MATHS = re.compile(
    rf"\$\$(?P<display>[^$]{{1,400}})\$\$|\\\[(?P<square>(?:[^\\]|\\(?!\])){{1,400}})\\\]|\\\((?P<round>(?:[^\\]|\\(?!\))){{1,400}})\\\)|{_INLINE}"
)
_NUMBER = re.compile(
    r"(?<![^\W_])(?<!\d[.,])(?P<sign>(?<![)\]\w])[-−])?[ ]?\\?\$?[ ]?"
    r"(?P<value>\\[dt]?frac\{\d+\}\{\d+\}|\d+[ ]\d+/\d+|(?:\d+(?:(?:\{,\}|,\\!|,)\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?|\.\d+)(?P<percent>\s?\\?%)?"
)
_PROSE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}(?!\s*[({])")
_SENTENCE_END = re.compile(r"(?<!\\)(?:[.!?](?=\s|$)|[;。])")
_LOOKED_AT = 5000  # characters at the end of a reply; the patterns take quadratic time on what no answer looks like
_COMMAND = re.compile(r"\\(?:text|mbox|textbf|mathrm|begin|end|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+")


def stated_answer(reply: str) -> str | None:
    r"""What a reply states as its answer, or None if it holds nothing of the kind.

    1. What stands behind the last "the answer is", "Answer:" (bold or not) or "####" that has anything behind it, on its line or the
       next one: the first mathematics in it (`$...$`, `\(...\)`), else all of it if it is one expression, else its first number, else
       its words up to the end of the sentence.
    2. The last number or mathematics of the reply, whichever ends later; of a chain of equations its last side.
    """
    reply = re.sub(r"[ \t]{3,}", "  ", re.sub(r"\s{9,}", "\n\n", reply))[-_LOOKED_AT:]
    for statement in reversed(list(_STATEMENT.finditer(reply))):
        behind = next((line for line in reply[statement.end() : statement.end() + 600].split("\n") if line.strip(" \t*_#>")), "")
        if said := _first(behind.strip(" \t*_#>")):
            return said
    return _last(reply)


def _first(line: str) -> str | None:
    """The answer in the line that states it."""
    maths = _MATHS.search(line)
    # "The answer is 5, since $x$ is ...": the mathematics is not what comes first.
    if maths and not re.search(r"\d", line[: maths.start()]):
        return _inside(maths)
    sentence = _SENTENCE_END.split(line, maxsplit=1)[0].strip(" \t*_:\"'`")
    if not _PROSE.search(_COMMAND.sub("·", sentence)):
        return sentence or None
    number = _NUMBER.search(fold(sentence))
    if number is None:
        return sentence
    return _number(number)


def _last(reply: str) -> str | None:
    maths = [match for match in _MATHS.finditer(reply) if not _wordy(_inside(match))]
    numbers = list(_NUMBER.finditer(reply))
    # A number of the last mathematics is a part of it.
    if numbers and (not maths or numbers[-1].start("value") >= maths[-1].end()):
        return _number(numbers[-1])
    return _inside(maths[-1]) if maths else None


def _number(number: re.Match[str]) -> str:
    return ("-" if number["sign"] else "") + number["value"] + ("\\%" if number["percent"] else "")


def _inside(maths: re.Match[str]) -> str:
    content = next(text for text in maths.groupdict().values() if text is not None)
    sides = re.split(r"(?<![<>!\\])=", content)
    return (sides[-1] if len(sides) > 2 else content).strip().rstrip(".,; ")


def _wordy(content: str) -> bool:
    """Whether what two dollar signs enclose is prose between two prices."""
    return len(_PROSE.findall(_COMMAND.sub("·", content))) > 2
