r"""Is the answer of a reply mathematically the expected one? For AIME, MATH-500 and GSM8K.

Answers are compared by their spelling (`same_at_sight`) and, where that does not tell, by math-verify in a process of its own. What
counts as equal is then math-verify's: fractions, decimals (to six places) and roots by value, sets in any order, tuples in theirs,
`x=5` and 5, expressions by algebra. Its way with units and percent is ours too: units and degrees are passed over, and `50\%` equals
50, 0.5 and 1/2, while 50 and 0.5 differ. A number without its base equals the one with it ("2516" for `2516_8`); another base does not.
"""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

from mixsd.evaluation.grading import maths_process
from mixsd.evaluation.grading.letters import letter_in_box
from mixsd.facts.answers import Expected, Verdict, last_boxed, without_thinking

# Part of every cache key that holds outcomes: raise it whenever any verdict of the mathematics can change.
scorer_version: str = "2"

_MOST_CHARACTERS = 2000  # no answer is longer; math-verify's patterns are slow on what is
_SHOWN = 200


def strict(reply: str, expected: Expected) -> Verdict:
    r"""Judge what the last `\boxed{...}` behind the thinking holds; without one, or with an empty one, the reply is unparseable.

    A comparison that takes too long or too much memory is wrong, with the reason. A gold answer that cannot be read is an error.
    """
    return _judged(reply, expected, last_boxed)


def lenient(reply: str, expected: Expected) -> Verdict:
    """As `strict`; where there is no box, or an empty one, the answer that the reply states otherwise, see `stated_answer`."""
    return _judged(reply, expected, lambda answer: (last_boxed(answer) or "").strip() or stated_answer(answer))


def _judged(reply: str, expected: Expected, find: Callable[[str], str | None]) -> Verdict:
    answer = without_thinking(reply)
    if answer is None:
        return Verdict("unparseable", reason="the reply ends inside its thinking")
    said = (find(answer) or "").strip()
    if not said:
        return Verdict("unparseable")
    shown = said if len(said) <= _SHOWN else said[:_SHOWN] + "…"
    golds = [gold for gold in expected.accepted if gold.strip()]
    if not golds:
        return Verdict("error", shown, "the gold answer is empty")
    if len(said) > _MOST_CHARACTERS:
        same = said in map(str.strip, golds)
        return Verdict("correct" if same else "wrong", shown, None if same else f"longer than {_MOST_CHARACTERS} characters")
    seen = {gold: same_at_sight(gold, said) for gold in golds}
    open_golds = [without_unit(fold(gold)) for gold, same in seen.items() if same is None]
    if True in seen.values() or not open_golds:
        return Verdict("correct" if True in seen.values() else "wrong", shown)
    outcome, reason = maths_process.compare(open_golds, without_unit(fold(said)))
    return Verdict(outcome, shown, reason)


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

    1. What follows the last "the answer is", "Answer:" or "####" that is followed by anything, on its line or the next one: the first
       mathematics (`$...$`, `\(...\)`), else all of it if it is one expression, else its first number, else the sentence.
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
    return _number(number) if number else sentence


def _last(reply: str) -> str | None:
    # What two dollar signs enclose may be prose between two prices.
    maths = [match for match in _MATHS.finditer(reply) if len(_PROSE.findall(_COMMAND.sub("·", _inside(match)))) <= 2]
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


# One spelling for the many ways to typeset an answer. `fold` keeps it LaTeX and changes no meaning; `canonical` is only ever compared.

_SYMBOLS = str.maketrans(
    dict.fromkeys("‐‑‒–−－﹣", "-")
    | dict.fromkeys("\u00a0\u2007\u2009\u202f\u3000", " ")
    | {"٫": ".", "٬": ",", "٪": "%", "、": ",", "。": ".", "⁄": "/", "∕": "/", "÷": "/"}
    | {"π": "\\pi ", "∞": "\\infty ", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "±": "\\pm ", "°": "^\\circ "}
    | {"≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset "}
    | {"θ": "\\theta ", "α": "\\alpha ", "β": "\\beta "}
)
_FULL_WIDTH = str.maketrans({code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if code != 0xFF0D})
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]+")
_VULGAR_FRACTION = re.compile("[¼½¾⅐-⅞↉]")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|\w))")
# A reply may escape LaTeX twice; a row of a matrix that ends in "\\" is followed by no command's name without its backslash.
_TWICE_ESCAPED = re.compile(
    r"\\\\(?=(?:[dt]?frac|sqrt|text|mathrm|pi|left|right|cdot|times|pm|infty|circ|le|ge|cup|in|begin|end|theta)(?![a-z]))"
)
_JOINED_DIGITS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|,\s*\\!|\\[,;: ]|\\!)\s*\d{3})+(?!\d)")
_MIXED = re.compile(r"(-?\d+)\s+(\d+)/(\d+)")
_CALL = re.compile(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)")
_NUMBER_IN_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{\s*(-?\d[\d.,]*)\s*\}")
_LONE_LETTER = re.compile(r"\\mathrm\s*\{\s*([ie])\s*\}")
_BLACKBOARD = re.compile(r"\\mathbb\s*([A-Z])(?![a-zA-Z])")
_REPEATING = re.compile(r"(?<![\d.])(\d{0,20})\.(\d{0,20})\\(?:overline|bar)\s*(?:\{\s*(\d{1,20})\s*\}|(\d))(?!\s*_)")
# A second number in the text behind a first: "18\text{ apples or 20 pears}", "5\text{ apples and }6\text{ pears}".
_IN_TEXT = r"\\(?:text|textrm|textnormal|mathrm|mbox)\s*\{"
_SECOND = re.compile(
    rf"{_IN_TEXT}(?:[^{{}}\d]*?\b(?P<word>or)\s+|\s*(?P<start>and|to|,)\s*)(?P<value>-?\d[\d.,/]*)(?P<rest>[^{{}}]*)\}}"
    rf"|{_IN_TEXT}[^{{}}\d]*?\w\W?\s(?P<end>or|and)\s*\}}(?=\s*-?\d)"
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALED = re.compile(rf"(?<![\d.,])(\d{{1,12}}(?:\.\d{{1,12}})?)\s*(?:\\text\{{)?\s*({'|'.join(_SCALES)})s?\b", re.IGNORECASE)
_PERCENT = re.compile(r"(?<!\\)%|(?<=\d)\s*(?:\\text\{\s*percent\s*\}|percent\b)")


def fold(text: str) -> str:
    r"""The same answer in plain LaTeX: ASCII digits and signs, no `$` or other currency, no thousands separators that are LaTeX's.

    π, √, ½, ², ×, ≤ and the like become LaTeX; `10,\!080`, `10{,}080` and `10\,080` become 10080; "3 1/2" becomes `3\frac{1}{2}`; "5 million"
    5000000; "%" and "percent" `\%`; `0.\overline{3}` a fraction. A second number in the text behind the first leaves it: "18\text{ or 20}" is
    "18\text{ or }20".
    """
    text = "".join(char for char in text if unicodedata.category(char) != "Cf").translate(_FULL_WIDTH)
    text = _SUPERSCRIPTS.sub(lambda run: f"^{{{unicodedata.normalize('NFKC', run[0]).replace('−', '-')}}}", text)
    text = _VULGAR_FRACTION.sub(lambda char: rf"\frac{{{unicodedata.normalize('NFKC', char[0]).replace('⁄', '}{')}}}", text)
    text = _ROOT.sub(lambda root: f"\\sqrt{{{root[1] or root[2] or root[3] or ''}}}", text.translate(_SYMBOLS))
    text = re.sub(r"[^\D0-9]", lambda digit: str(unicodedata.decimal(digit[0])), text)
    text = _TWICE_ESCAPED.sub(r"\\", text)
    text = re.sub(r"\\?\$|[€£¥₹]|(?<!\\)\\[()\[\]]|\\displaystyle(?![a-zA-Z])", "", text)
    text = _JOINED_DIGITS.sub(lambda number: re.sub(r"\D", "", number[0]), text)
    text = re.sub(r"(?<!\\)~", " ", _BLACKBOARD.sub(r"\\mathbb{\1}", _LONE_LETTER.sub(r"\1", text)))
    text = _SECOND.sub(_second, _REPEATING.sub(_repeating, text))
    text = _SCALED.sub(_scaled, _NUMBER_IN_TEXT.sub(r"\1", text))
    text = _PERCENT.sub(r"\\%", _CALL.sub(r"\\sqrt{\1}", text))
    text = " ".join(text.split()).removesuffix(".").strip()
    if mixed := _MIXED.fullmatch(text):
        return f"{mixed[1]}\\frac{{{mixed[2]}}}{{{mixed[3]}}}"
    return text


def _repeating(number: re.Match[str]) -> str:
    """0.1\\overline{6} is 16 - 1 of 90 parts."""
    before, once, over = number[1] or "0", number[2], number[3] or number[4]
    value = Fraction(int(before + once + over) - int(before + once), 10 ** len(once) * (10 ** len(over) - 1))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _second(found: re.Match[str]) -> str:
    joined = f"\\text{{ {found['word'] or found['start'] or found['end']} }}"
    if not found["value"]:
        return joined
    rest = found["rest"].strip(" )")
    return joined + found["value"] + (f"\\text{{ {rest}}}" if rest else "")


def _scaled(words: re.Match[str]) -> str:
    value = Fraction(words[1]) * 10 ** _SCALES[words[2].lower()]
    # The text box that the word opened stays open for what follows, such as "dollars".
    return (str(value) if value.denominator == 1 else f"{float(value)}") + ("\\text{" if "\\text{" in words[0] else "")


_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|boxed|operatorname)\s*\{([^{}]*)\}")
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?")
_SPACES = re.compile(r"(?<!\\)\\[,;:! ]|~|\\q?quad(?![a-zA-Z])")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|\\text\{\s*degrees?\s*\}|(?<=[\d}\s])degrees?)$")
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")


def canonical(text: str) -> str:
    r"""What is left of an answer when everything that only typesets it is gone. For comparing, not for reading.

    Beyond `fold` these go: sizes, spaces, one wrapper around the whole (`\text{...}`), `\dfrac`, braces around one character, a leading "=",
    degrees at the end, and the commas of a number that is the whole answer: "1,234" is a number, "1, 234" and "(1,234)" are not.
    """
    text, previous = fold(text), None
    while text != previous:
        previous = text
        if wrapped := _WRAPPER.fullmatch(text):
            text = wrapped[1]
        text = _DEGREES.sub("", text.strip().removeprefix("=")).strip().removesuffix(".")
    text = " ".join(_SPACES.sub(" ", _SIZES.sub("", text)).split())
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*(\d)\s*(?=[\d{])", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\d|[a-zA-Z](?![a-zA-Z]))", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<=[_^])\{(\w)\}", r"\1", text)
    if _THOUSANDS.fullmatch(text.strip()):
        return text.strip().replace(",", "")
    # A space keeps its meaning only between two letters or digits: "\cot x", "3 1".
    return re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text)


# Scale words and names of functions are no units.
_NO_UNIT = frozenset(
    "pi sqrt sin cos tan cot sec csc log exp inf infinity mod choose factorial dozen "
    "score half halves third thirds quarter quarters percent and plus minus times over or not squared cubed".split()
)
_SHORT_UNITS = frozenset("cm mm km ft in yd mi kg mg lb lbs oz ml hr hrs min sec am pm sq cu".split())
_WITH_UNIT = re.compile(r"([-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?)\s*([a-zA-Z][a-zA-Z. /]*)(?:\^\{?[23]\}?)?")


def without_unit(text: str) -> str:
    """A folded answer without the plain words behind its number: "18 dollars per day" is 18; "5 dozen" and "5x" stay."""
    if (wrapped := _TEXT.fullmatch(text)) and re.match(r"\s*[-+]?\d", wrapped[1]):
        text = wrapped[1].strip()
    text = _DEGREES.sub("", text)
    found = _WITH_UNIT.fullmatch(text)
    if found is None:
        return text
    words = found[2].lower().replace(".", "").replace("/", " ").split()
    if _NO_UNIT.intersection(words) or not all(len(word) > 2 or word in _SHORT_UNITS for word in words[:1]):
        return text
    return found[1]


_PLAIN = re.compile(r"[-+]?(?:\d+|\d*\.\d+|\d+\.)")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mbox)\s*\{([^{}]*)\}\.?")
_BASED = re.compile(r"(-?\d+)_\{?(\d+)\}?")
_TIME = re.compile(r"\d{1,3}:\d{1,3}(?::\d{1,3})*")
_LONG_WORD = re.compile(r"[^\W\d_]{4}")
_MOST_DIGITS = 1000  # beyond them int() is slow, and in the end refused


def same_at_sight(gold: str, answer: str) -> bool | None:  # noqa: PLR0911 - one return per rule
    r"""Whether the answer is the gold answer, where their spelling tells; None where it takes algebra.

    - Equal in `canonical`: the same. Whole numbers: by value, whatever leading zeros, signs, separators and units ("18 dollars" is 18).
      Decimals that differ are left open.
    - A gold answer in words (all of it in `\text{...}`, or a word of four letters and no sign) is the same words, whatever case,
      spaces and punctuation; a single letter A to J may be dressed as a choice: `\text{(C)}`, "C)".
    - Numbers that both name their base, and two times or ratios with a colon, are compared as written.
    """
    left, right = canonical(gold), canonical(answer)
    if left and left == right:
        return True
    bare = canonical(without_unit(fold(answer)))
    if None not in (number := _plain_number(left), value := _plain_number(bare)):
        return number == value or (None if "." in left + bare else False)
    if (words := _words(gold)) is not None:
        if re.fullmatch("[a-j]", words):
            return letter_in_box(answer) == words.upper()
        return words == _letters_and_digits(answer)
    if (based := _BASED.fullmatch(left)) and (said := _BASED.fullmatch(right)):
        return (based[1].lstrip("0"), based[2]) == (said[1].lstrip("0"), said[2])
    if _TIME.fullmatch(left) and (time := re.match(r"[\d:]+", right)) and ":" in time[0]:
        return left == time[0] and not re.search(r"\d", right[time.end() :])
    return None


def _plain_number(text: str) -> Fraction | None:
    number = _PLAIN.fullmatch(text) if len(text) <= _MOST_DIGITS else None
    return Fraction(text.removesuffix(".")) if number else None


def _words(gold: str) -> str | None:
    """The letters and digits of a gold answer that is text, or None for mathematics."""
    folded = fold(gold)
    text = _TEXT.fullmatch(folded)
    if text is None and ("\\" in folded or re.search(r"[-+*/^=<>_,()\[\]|]", folded) or not _LONG_WORD.search(folded)):
        return None
    said = _letters_and_digits(folded)
    # "\text{12}" is a number in a text box.
    return said if re.search(r"[^\W\d_]", said) else None


def _letters_and_digits(text: str) -> str:
    text, previous = fold(text), None
    while text != previous:
        previous, text = text, _WRAPPER.sub(r" \1 ", text)
    return re.sub(r"[\W_]", "", _SPACES.sub(" ", text)).casefold()
