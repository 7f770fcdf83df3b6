"""Invented names: entities that no model has read about.

A name is one or two made-up words; all but people also get an ending that tells what they are ("Vornelk Bay"). A made-up word is
none of the words that the built-in model has as one token, and no two entities of a domain share one. The k-th entity of a domain
is a function of (seed, domain, k) and of those before it, so a smaller graph's entities are the first ones of a larger one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from mixsd import bundled
from mixsd.randomness import uniforms

_ONSETS = "b br c ch cl d dr f fl g gl gr h j k kr l m n p pl pr qu r s sk sl st t th tr v vr w y z".split()
_VOWELS = "a a a e e e i i i o o o u u ai au ea ei ia io oa ou".split()
_MIDDLES = "b br d dr g k l ld lm ln lv m mb n nd nv p r rd rl rn rv s sk sp st t th v x z zl".split()
_ENDS = {
    # What a first name ends with, a surname, and the made-up word before an ending.
    "first": "a el en ia in is o on or us".split(),
    "last": "ack aine ald arth eck ell elm ern ick isk ock old orn ough ulf und usk yke".split(),
    "plain": "an ane ar ek el elk en ent er eth ik il ir isk ith ol om or oth ul un ur".split(),
}
# Pieces that would make an invented name read as a slur or worse, or badly.
_UNWELCOME = (
    "nig neg fag fuk fuc kik cunt cum slut tit rap rape puta kaka caca poo pis shit dik coon gook nazi spic spik wank "
    "anus beaner clit dago dick dild dyke heil homo jap kraut merde moron nude paki pedo penis polack porn puke semen sex slag slave "
    "spast tard turd urin vagin vomit whor wog wop yid uu"
).split()
_WORD_DRAWS = 5  # numbers that make one word, the last of them its length


@dataclass(frozen=True)
class Domain:
    """A kind of entity: the words its names end with (none for people), and how a name stands in a sentence."""

    name: str
    endings: tuple[str, ...]
    frame: str

    def rendered(self, entity: str) -> str:
        """An entity as it stands in the middle of a sentence: 'the Quennik Summit'."""
        return self.frame.replace("{name}", entity)


@cache
def domains() -> tuple[Domain, ...]:
    """The fourteen domains of the paper, in its order."""
    rows = bundled.rows("kgfact_domains.tsv")
    return tuple(Domain(row["domain"], tuple(filter(None, row["endings"].split("|"))), row["frame"]) for row in rows)


def names(seed: int, domain: Domain) -> Iterator[str]:
    """The entities of a domain, without end."""
    known = known_words()
    taken: set[str] = set()
    k = 0
    while True:
        attempt = 0
        while True:
            key = f"kgfact/{domain.name}/{k}"
            draws = uniforms(seed, "order", key, attempt=attempt, n=2 * _WORD_DRAWS + 1).tolist()
            words = (
                [_word(draws[:_WORD_DRAWS], "plain")]
                if domain.endings
                else [_word(draws[:_WORD_DRAWS], "first"), _word(draws[_WORD_DRAWS:-1], "last")]
            )
            if words[-1] not in taken and not known.intersection(words) and not _unwelcome(words):
                break
            attempt += 1
        taken.add(words[-1])
        ending = [_pick(domain.endings, draws[-1])] if domain.endings else []
        yield " ".join([word.capitalize() for word in words] + ending)
        k += 1


@cache
def known_words() -> frozenset[str]:
    """The words that a made-up word must not be."""
    return frozenset(bundled.text("words.txt").split())


def _unwelcome(words: list[str]) -> bool:
    return any(piece in word for word in words for piece in _UNWELCOME)


def _word(draws: list[float], kind: str) -> str:
    """A made-up word of two or three syllables, lower case."""
    onset, vowel, middle, end, length = draws
    word = _pick(_ONSETS, onset) + _pick(_VOWELS, vowel) + _pick(_MIDDLES, middle)
    if kind != "first" and length >= 0.5:
        # The rest of the number, spread out again, makes another syllable.
        rest = 2 * length - 1
        word += _pick("aeio", rest) + _pick(_MIDDLES, rest * 4 % 1)
    return word + _pick(_ENDS[kind], end)


def _pick(options: tuple[str, ...] | list[str] | str, draw: float) -> str:
    return options[int(draw * len(options))]
