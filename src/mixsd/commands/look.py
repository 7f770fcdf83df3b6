"""What is in a corpus: counts, an example of each split, and its graph."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path
from typing import Any

from mixsd.errors import UserError
from mixsd.facts.corpus import TRAIN
from mixsd.facts.fact import to_json
from mixsd.facts.sources import Corpus, open_source
from mixsd.reports import graph
from mixsd.reports.page import graph_page
from mixsd.storage import write_text


def look(source: str, examples: int = 1) -> dict[str, Any]:
    """Look at a corpus, a folder or a name such as kgfact:small.

    Returns:
        JSON values: name, options, notes; splits: for each its count and some examples, as facts; domains and, for each pair of
        them, the number of facts that join them (none where the facts are no graph).

    Raises:
        UserError: it is no corpus.
    """
    corpus = _opened(source)
    splits = {}
    for name, facts in {TRAIN: corpus.facts, **corpus.splits}.items():
        stream = facts()
        first = [to_json(fact) for fact in islice(stream, examples)]
        splits[name] = {"count": len(first) + sum(1 for _ in stream), "examples": first}
    domains, pairs = graph.counts(graph.edges_of(corpus.facts()))
    return {
        "name": corpus.name,
        "options": corpus.options,
        "notes": list(corpus.notes),
        "splits": splits,
        "domains": domains,
        "pairs": [{"source": source, "target": target, "facts": count} for (source, target), count in pairs.items()],
    }


def write_picture(source: str, path: Path) -> None:
    """Write a corpus's graph as an SVG file.

    Raises:
        UserError: its facts are no graph.
    """
    picture = graph.picture(graph.edges_of(_opened(source).facts()))
    if picture is None:
        raise UserError(f"{source}: its facts are no graph (they need a subject, and domains in their meta)")
    write_text(path.expanduser(), graph_page(picture))


def _opened(source: str) -> Corpus:
    opened = open_source(source)
    if not isinstance(opened, Corpus):
        # What is no file at all says so when it is read; that message is the better one.
        for _ in islice(chain(opened), 1):
            break
        raise UserError(f"{source}: is no corpus; name a folder that mixsd corpus wrote, or kgfact:small")
    return opened
