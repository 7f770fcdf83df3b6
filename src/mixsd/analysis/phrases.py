r"""Which phrases of a corpus does a text contain? The evidence of leakage, found fast.

A phrase is found where it stands as whole words: after `answers.normalize` (case, spaces, quotes, dashes, Unicode form) and without
LaTeX's spaces, with no letter or digit at either end. So "Arlen Bay" is found in "\boxed{ARLEN\ BAY}" and in "Arlen
Bay's", not in "Arlen Bayside" nor in "arlen_bay". Case is ignored because a name that leaked in capitals has leaked; what keeps
ordinary words from being evidence is that the base model and the prompt do not say them (see `error_modes`).

A text is read once, word by word; a phrase is looked at where its first word stands. So the time grows with the text, and hardly
with the number of phrases. The definition is `contained`, which the tests hold this against.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from mixsd.answers import normalize

_WORD = re.compile(r"[^\W_]+")
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
_LATEX_SPACES = re.compile(r"\\[ ,;:!]|(?<=\w)~(?=\w)")
_ARTICLES = ("the", "a", "an")


def folded(text: str) -> str:
    """A text as phrases are looked for in it."""
    return normalize(_LATEX_SPACES.sub(" ", text))


def words_of(phrase: str) -> int:
    """How many words a phrase has: parts between spaces with a letter or digit in them, save an article at its head ("649 euros" is two)."""
    parts = folded(phrase).split()
    if len(parts) > 1 and parts[0] in _ARTICLES:
        parts = parts[1:]
    return sum(any(char.isalnum() for char in part) for part in parts)


def contained(phrase: str, text: str) -> bool:
    """Whether a folded phrase stands in a folded text as whole words: the definition."""
    return re.search(rf"(?<![^\W_]){re.escape(phrase)}(?![^\W_])", text) is not None


class Phrases:
    """Phrases to look for, however many; spellings that fold to the same are one. Their order does not matter."""

    def __init__(self, texts: Iterable[str]) -> None:
        spelling: dict[str, str] = {}
        for text in texts:
            phrase = _EDGES.sub("", folded(text))
            if phrase:
                spelling[phrase] = min(text, spelling.get(phrase, text))
        self.spelling = spelling
        self._by_first: dict[str, list[str]] = defaultdict(list)
        for phrase in sorted(spelling):
            first = _WORD.match(phrase)
            assert first is not None  # its edges are letters or digits
            self._by_first[first[0]].append(phrase)

    def __len__(self) -> int:
        return len(self.spelling)

    def __call__(self, text: str) -> frozenset[str]:
        """The phrases in a text, folded; `spelling` has how they were given."""
        if not self.spelling:
            return frozenset()
        read = folded(text)
        found = set()
        for word in _WORD.finditer(read):
            for phrase in self._by_first.get(word[0], ()):
                end = word.start() + len(phrase)
                if read.startswith(phrase, word.start()) and not _WORD.match(read, end):
                    found.add(phrase)
        return frozenset(found)

    def spelled(self, phrases: Iterable[str]) -> list[str]:
        """Folded phrases as they were given, in order."""
        return sorted(self.spelling[phrase] for phrase in phrases)
