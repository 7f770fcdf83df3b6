"""`mixsd.corpus`: any corpus by its name and options."""

from __future__ import annotations

import inspect
from typing import Any

from mixsd.corpora import CORPORA
from mixsd.corpora.corpus import Corpus
from mixsd.errors import UserError, did_you_mean
from mixsd.plugins import load_function


def corpus(name: str, argument: str | None = None, **options: Any) -> Corpus:
    """Make a corpus.

    >>> corpus("kgfact", "small", seed=0)                                           # doctest: +SKIP
    >>> corpus("mquake", "MQuAKE-CF-3k-v2.json", edits=100, seed=0)                 # doctest: +SKIP

    Args:
        name: kgfact, kgfunc, simpleqa or mquake.
        argument: kgfact's size, simpleqa's and mquake's file.
        options: seed, offline and those of the corpus, see `mixsd.corpora.kgfact.kgfact` and so on.

    Returns:
        The corpus, whose `facts()` and `splits[NAME]()` stream `Fact`s. `mixsd.corpora.corpus.write` puts it into a folder.

    Raises:
        UserError: no such corpus or option, or a bad value.
    """
    if name not in CORPORA:
        raise UserError(f'corpus "{name}": unknown{did_you_mean(name, CORPORA)}; known: {", ".join(CORPORA)}')
    make = load_function(CORPORA[name], f"corpus {name}")
    known = list(inspect.signature(make).parameters)[1:]
    for option in options:
        if option not in known:
            raise UserError(f"corpus {name}: no option {option!r}{did_you_mean(option, known)}; it has {', '.join(known)}")
    made: Corpus = make(argument, **options)
    return made
