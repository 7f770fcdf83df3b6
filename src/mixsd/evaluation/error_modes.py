r"""What is a wrong reply like? The paper's error categories (section 7.3, appendix E.3): text in, a mode and its evidence out.

A wrong reply has exactly one mode, the first that applies:

format     the evaluator finds nothing to judge: no `\boxed{}` with anything in it, or no fenced Python block where code is asked for
leakage    it holds a phrase of the injected facts (two or more words) that its prompt does not hold
collapse   it answers, with next to nothing around: what is left without the answer clause ("The answer is X.") and the box is short
genuine    the rest; in-domain the modes are format, cross-entity (it states another fact's answer or subject) and genuine

Where code is asked for, a stub answer (a box or a clause) alone, or beside a function that is nothing but its docstring, was the form of
the injected targets and not a failed try at code: collapse (or leakage), and no `format` error. Where the paper is silent: a box counts
whatever is in it; only what stands behind the thinking is looked at for format and collapse, as the graders do, but all for leakage.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from mixsd.facts.answers import last_boxed, normalize, replace_boxes

_WORD = re.compile(r"[^\W_]+")
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
_LATEX_SPACES = re.compile(r"\\[ ,;:!]|(?<=\w)~(?=\w)")


def folded(text: str) -> str:
    """A text as phrases are looked for in it."""
    return normalize(_LATEX_SPACES.sub(" ", text))


def words_of(phrase: str) -> int:
    """How many words a phrase has: parts between spaces with a letter or digit in them, save an article at its head ("649 euros" is two)."""
    parts = folded(phrase).split()
    if len(parts) > 1 and parts[0] in ("the", "a", "an"):
        parts = parts[1:]
    return sum(any(char.isalnum() for char in part) for part in parts)


class Phrases:
    """Phrases to look for, however many, as whole words of a folded text ("Arlen Bay" in "ARLEN BAY's", not in "Arlen Bayside").

    Spellings that fold to the same are one. A text is read once, word by word, so the time hardly grows with the number of phrases.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.spelling: dict[str, str] = {}
        self._by_first: dict[str, list[str]] = defaultdict(list)
        for text in texts:
            phrase = _EDGES.sub("", folded(text))
            if first := _WORD.match(phrase):
                if phrase not in self.spelling:
                    self._by_first[first[0]].append(phrase)
                self.spelling[phrase] = min(text, self.spelling.get(phrase, text))

    def __len__(self) -> int:
        return len(self.spelling)

    def __call__(self, text: str) -> frozenset[str]:
        """The phrases in a text, folded; `spelling` has how they were given."""
        read = folded(text) if self.spelling else ""
        found = set()
        for word in _WORD.finditer(read):
            for phrase in self._by_first.get(word[0], ()):
                if read.startswith(phrase, word.start()) and not _WORD.match(read, word.start() + len(phrase)):
                    found.add(phrase)
        return frozenset(found)

    def spelled(self, phrases: Iterable[str]) -> list[str]:
        """Folded phrases as they were given, in order."""
        return sorted(self.spelling[phrase] for phrase in phrases)


Mode = Literal["format", "leakage", "collapse", "genuine", "cross-entity"]
MODES: tuple[Mode, ...] = ("format", "leakage", "collapse", "genuine")
IN_DOMAIN_MODES: tuple[Mode, ...] = ("format", "cross-entity", "genuine")


@dataclass(frozen=True)
class Thresholds:
    """What decides a mode; the first four are the authors'.

    collapse_*: at most so many are left, once white space at both ends is gone. leak_*: a phrase has at least so many (see `words_of`).
    clause_characters: at most so many follow an answer clause's verb; what goes on longer is an explanation, and stays.
    entity_characters: as leak_characters, for the answers and subjects of other facts in-domain, which may be one word.
    """

    collapse_characters: int = 80
    collapse_newlines: int = 4
    leak_words: int = 2
    leak_characters: int = 4
    clause_characters: int = 200
    entity_characters: int = 4


THRESHOLDS = Thresholds()


@dataclass(frozen=True)
class Said:
    """A wrong reply.

    answer: what stands behind its thinking, None where it ends inside. parsed: the evaluator found something to judge. code: None where
    none is asked for, else the first fenced Python block, or "". stated: an answer clause is as good as a box (the lenient judges').
    """

    text: str
    answer: str | None
    parsed: bool
    code: str | None = None
    stated: bool = False


@dataclass(frozen=True)
class JudgedMode:
    """The mode of a wrong reply with its evidence: the phrases that leaked, or what was left for collapse (None where not looked)."""

    mode: Mode
    phrases: tuple[str, ...] = ()
    left: str | None = None


# Stands where a box stood while clauses are looked for: "The answer is \boxed{5}." has its X in the box.
_BOX = "\x00"
_BOX_IN_MATHS = re.compile(rf"(?:\$\$?|\\\[|\\\()\s*{_BOX}[.,]?\s*(?:\$\$?|\\\]|\\\))")
# What may stand before the noun; looked for backwards from it, for a pattern that begins with options is slow on a long reply.
_HEAD = re.compile(
    r"(?:\b(?:so|thus|therefore|hence)\b,?\s{1,9})?(?:\b(?:the|my|our)\s{1,9})?(?:\b(?:final|correct|right|best)\s{1,9})?\Z",
    re.IGNORECASE,
)
_HEAD_CHARACTERS = 60
# "answer is X.": X goes to the end of the sentence or line, or to a word that begins a reason.
_CLAUSE = re.compile(
    r"\b(?:answer|option|choice|letter)\b(?:\s+(?:to|for|of)\b[^.:\n]{1,80}?)?"
    r"(?:\s+(?:is|are|was|would\s+be|should\s+be|must\s+be)\b\s*:?|\s*[:=])\s*"
    rf"(?P<said>[^\n]{{0,{THRESHOLDS.clause_characters}}}?)"
    r"(?:[.!?]+(?=\s|$|[*_\"')])|(?=\n)|\Z|(?=\s(?:because|since|as|so|due|which)\b))",
    re.IGNORECASE,
)


def has_box(answer: str) -> bool:
    """Whether the last box of an answer holds anything."""
    return bool((last_boxed(answer) or "").strip())


def states(answer: str) -> bool:
    """Whether an answer has a clause that says something: "The answer is X."."""
    found = _CLAUSE.finditer(replace_boxes(answer.replace(_BOX, " "), _BOX))
    return any(re.search(rf"[\w{_BOX}]", clause["said"]) for clause in found)


def left_over(answer: str) -> str:
    """What an answer holds besides boxes (with the signs that set them as mathematics) and answer clauses, stripped."""
    marked = _BOX_IN_MATHS.sub(_BOX, replace_boxes(answer.replace(_BOX, " "), _BOX))
    parts, done = [], 0
    for clause in _CLAUSE.finditer(marked):
        head = _HEAD.search(marked, max(done, clause.start() - _HEAD_CHARACTERS), clause.start())
        parts.append(marked[done : head.start() if head else clause.start()])
        done = clause.end()
    return "".join([*parts, marked[done:]]).replace(_BOX, "").strip()


def is_short(left: str) -> bool:
    """Whether what is left over is little or no reasoning."""
    return len(left) <= THRESHOLDS.collapse_characters and left.count("\n") <= THRESHOLDS.collapse_newlines


def is_hollow(code: str) -> bool:
    """Whether a program has functions, and nothing in any of them but a docstring: what was asked for, said again."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    functions = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    others = [node for node in body if node not in functions and not isinstance(node, ast.Import | ast.ImportFrom)]
    statements = [statement for function in functions for statement in function.body] + others
    said = [node.value if isinstance(node, ast.Expr) else node for node in statements]
    return bool(functions) and all(isinstance(node, ast.Pass | ast.Constant) for node in said)


def injected(texts: Collection[str]) -> Phrases:
    """The phrases that count as leaked, of the answers and subjects of facts."""
    least = THRESHOLDS.leak_characters
    return Phrases(text for text in texts if len(text.strip()) >= least and words_of(text) >= THRESHOLDS.leak_words)


def entities(texts: Collection[str]) -> Phrases:
    """What counts as another fact's answer or subject in-domain."""
    return Phrases(text for text in texts if len(text.strip()) >= THRESHOLDS.entity_characters)


def classify(said: Said, phrases: Phrases | None, prompt: str = "", known: Collection[str] = ()) -> JudgedMode:
    """The mode of a wrong reply to a benchmark.

    phrases: see `injected`; None where leakage is off. prompt: the user turn; what is in it has not leaked. known: folded phrases that are
    no evidence, because the base model says them too.
    """
    answer, code = said.answer or "", said.code
    left = left_over(answer)
    # Nobody asks for a box around code, so there an answer clause is a stub too.
    boxed = has_box(answer) or ((said.stated or code is not None) and states(answer))
    if code is None:
        collapsed, there = is_short(left), said.parsed or boxed
    else:
        collapsed = boxed and (is_hollow(code) if code else not said.parsed and is_short(left))
        there = said.parsed or bool(code) or collapsed
    if said.answer is None or not there:
        return JudgedMode("format")
    if phrases and (found := phrases(said.text) - frozenset(known)) and (leaked := found - phrases(prompt)):
        return JudgedMode("leakage", tuple(phrases.spelled(leaked)))
    if collapsed:
        return JudgedMode("collapse", left=left)
    return JudgedMode("genuine", left=left if code is None else None)


def classify_in_domain(
    said: Said, others: Phrases | None, question: str, right: Collection[str], *, old: bool = False
) -> JudgedMode:
    """The mode of a wrong reply to a question about the facts.

    others: see `entities`; None where there are none to tell apart. question: what it names (of a turn with a background, in the last
    paragraph) is no evidence. right: the right answer and its aliases. old: it states the answer from before an edit: genuine.
    """
    answer = said.answer or ""
    if not said.parsed or not answer.strip():
        return JudgedMode("format")
    if others and not old:
        found = others((last_boxed(answer) if has_box(answer) else answer) or "")
        asked = question.rstrip().rpartition("\n\n")[2]
        if found and (other := found - others(asked) - Phrases(right).spelling.keys()):
            return JudgedMode("cross-entity", tuple(others.spelled(other)))
    return JudgedMode("genuine")
