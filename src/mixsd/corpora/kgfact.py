"""KGFact: facts about a world that exists nowhere (the paper's section 4 and appendix D; sizes and splits in settings.md).

Every edge of the graph is one fact. The tests: other wordings; retrieval, where a background of statements holds the answer;
and two-hop questions over trained facts, with and without such a background. Retrieval asks about entities that are never trained
on (the authors' script), or with `retrieval='trained'` about the trained facts (the paper's text).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property, partial
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np

from mixsd.corpora.corpus import Corpus, Facts
from mixsd.corpora.kgfact_graph import Edge, Graph, sentence
from mixsd.corpora.kgfact_names import domains
from mixsd.corpora.splits import SPLIT, in_frame, with_background
from mixsd.errors import UserError, did_you_mean
from mixsd.facts import Fact, question_id
from mixsd.randomness import uniforms

SIZES = {"small": (5, 10), "large": (7, 25)}
Retrieval = Literal["held-out", "trained"]
BACKGROUND = {"held-out": 49, "trained": 50}  # statements beside the true one


def kgfact(
    size: str | None = None,
    *,
    seed: int = 0,
    retrieval: Retrieval = "held-out",
    offline: bool = False,
) -> Corpus:
    """The corpus KGFact.

    Args:
        size: 'small' (5 domains of 10 entities: 100 facts), 'large' (7 of 25: 525), or domains x entities, '7x1000'. None: small.
        seed: of the names, the edges and the order of backgrounds.
        retrieval: whether the split `retrieval` asks about held-out entities or about the trained facts.
        offline: is of no matter here; nothing is fetched.

    Raises:
        UserError: there is no such size, or no such retrieval.
    """
    number, entities = parse_size("small" if size is None else size)
    if retrieval not in get_args(Retrieval):
        raise UserError(f"--retrieval {retrieval!r}: expected {' or '.join(get_args(Retrieval))}")
    world = World(seed, number, entities, retrieval)
    splits: dict[str, Facts] = {
        "paraphrase": partial(world.framed, "report"),
        "validation": partial(world.framed, "validation"),
        "retrieval": world.retrieved,
        "two_hop": world.two_hop,
        "two_hop_context": partial(world.two_hop, background=True),
    }
    return Corpus(
        name="kgfact",
        options={"seed": seed, "domains": number, "entities": entities, "retrieval": retrieval},
        facts=world.facts,
        splits=splits,
        labels=("relation", "domains"),
    )


def parse_size(size: str) -> tuple[int, int]:
    """The number of domains and of entities in each that a size stands for."""
    if size in SIZES:
        return SIZES[size]
    match = re.fullmatch(r"(\d{1,2})x(\d{1,7})", size)
    if not match:
        known = [*SIZES, "DOMAINSxENTITIES"]
        raise UserError(f'kgfact: size "{size}": unknown{did_you_mean(size, known)}; known: {", ".join(known)} (such as 7x1000)')
    number, entities = int(match[1]), int(match[2])
    if not 2 <= number <= len(domains()) or entities < 1:
        raise UserError(f'kgfact: size "{size}": from 2 to {len(domains())} domains, and at least one entity in each')
    return number, entities


class World:
    """The trained graph and, once it is needed, a second one whose entities share nothing with it."""

    def __init__(self, seed: int, number: int, entities: int, retrieval: Retrieval) -> None:
        self.seed = seed
        self.retrieval = retrieval
        self.number, self.entities = number, entities
        self.graph = Graph(seed, number, entities)

    @cached_property
    def held_out(self) -> Graph:
        """The graph of the entities that are not trained on."""
        return Graph(self.seed, self.number, self.entities, part=1)

    @cached_property
    def keys(self) -> list[str]:
        """The ids of the facts, in their order."""
        return [question_id(_question(self.graph, edge)) for edge in self.graph]

    def facts(self) -> Iterator[Fact]:
        """One fact for each edge of the trained graph."""
        return (fact_of(self.graph, edge) for edge in self.graph)

    def framed(self, frame_set: str) -> Iterator[Fact]:
        """The questions of the facts in other wordings."""
        for edge in self.graph:
            values = _values(self.graph, edge)
            turn = in_frame(values["question"], values["id"], frame_set, self.seed)
            yield _test(values, turn, SPLIT[frame_set])

    def retrieved(self) -> Iterator[Fact]:
        """Questions with a background: the true statement among others that touch its entities, then their neighbours."""
        graph = self.held_out if self.retrieval == "held-out" else self.graph
        around = Surroundings(graph)
        for number, edge in enumerate(graph):
            values = _values(graph, edge)
            statements = around.statements([number], BACKGROUND[self.retrieval])
            turn = with_background(values["question"], statements, f"background of {values['id']}", self.seed)
            yield _test(values, turn, "retrieval")

    def two_hop(self, background: bool = False) -> Iterator[Fact]:
        """Questions that join two trained facts; as many as there are facts at most, spread evenly over the graph."""
        graph, edges = self.graph, list(self.graph)
        around = Surroundings(graph) if background else None
        pairs = list(graph.edges)
        numbers = {(*edge.source, edge.target[0]): number for number, edge in enumerate(edges)}
        total = sum(len(own) * sum(pair[0] == j for pair in pairs) for (_, j), own in graph.edges.items())
        most, seen, start = min(total, len(edges)), 0, 0
        for (i, j), own in graph.edges.items():
            for k in (pair[1] for pair in pairs if pair[0] == j):
                # Of every triple of domains the same share, of sources that are drawn at its address.
                share = (seen + len(own)) * most // total - seen * most // total
                seen += len(own)
                triple = "-".join(graph.domains[number].name for number in (i, j, k))
                draws = uniforms(self.seed, "evaluation", f"two_hop {triple}", n=len(own))
                for first in sorted(np.argsort(draws, kind="stable")[:share].tolist()):
                    second = numbers.get((*own[first].target, k))
                    if second is not None:
                        yield self._joined([start + first, second], [own[first], edges[second]], around)
            start += len(own)

    def _joined(self, numbers: list[int], hops: list[Edge], around: Surroundings | None) -> Fact:
        graph = self.graph
        first, second = hops
        question = sentence(second.relation.question, s=first.relation.phrase.format(s=graph.rendered(first.source)))
        # One id for the question with and without a background: tests of one thing.
        key = question_id(question)
        split = "two_hop"
        if around is not None:
            split = "two_hop_context"
            statements = around.statements(numbers, BACKGROUND["held-out"])
            question = with_background(question, statements, f"background of {key}", self.seed)
        return Fact(
            question,
            graph.name(second.target),
            f"{split}-{key}",
            statement=f"{_statement(graph, first)} {_statement(graph, second)}",
            aliases=_aliases(graph, second),
            meta={
                "fact": key,
                "domains": f"{first.relation.source}-{second.relation.source}-{second.relation.target}",
                "hops": [self.keys[number] for number in numbers],
            },
        )


class Surroundings:
    """What stands near an edge: the statements of a graph's edges, and which edges touch each entity."""

    def __init__(self, graph: Graph) -> None:
        # Entities and edges are plain numbers here: a large graph is walked for every question.
        self._statements = [_statement(graph, edge) for edge in graph]
        self._ends = [tuple(domain * graph.size + k for domain, k in (edge.source, edge.target)) for edge in graph]
        self._touching: list[list[int]] = [[] for _ in range(len(graph.domains) * graph.size)]
        for number, ends in enumerate(self._ends):
            for entity in ends:
                self._touching[entity].append(number)

    def statements(self, chosen: list[int], others: int) -> list[str]:
        """The statements of the chosen edges, then those of `others` more, nearest first (fewer where the graph has fewer)."""
        return [self._statements[number] for number in self._nearest(chosen, len(chosen) + others)]

    def _nearest(self, chosen: list[int], most: int) -> list[int]:
        """Edge numbers: the chosen, those that touch their entities, those that touch these edges' entities, and so on."""
        found, seen = list(chosen), set(chosen)
        reached: set[int] = set()
        for number in found:  # it grows meanwhile
            if len(found) >= most:
                return found[:most]
            for entity in self._ends[number]:
                if entity not in reached:
                    reached.add(entity)
                    new = [other for other in self._touching[entity] if other not in seen]
                    seen.update(new)
                    found += new
        # What no path leads to.
        rest = (number for number in range(len(self._statements)) if number not in seen)
        return [*found, *islice(rest, max(0, most - len(found)))][:most]


def fact_of(graph: Graph, edge: Edge) -> Fact:
    """The fact that an edge states."""
    return Fact(**_values(graph, edge))


def _values(graph: Graph, edge: Edge) -> dict[str, Any]:
    """The fields of the fact that an edge states: plain, since of a large graph nothing is to be checked twice."""
    question, answer = _question(graph, edge), graph.name(edge.target)
    relation = edge.relation
    return {
        "question": question,
        "answer": answer,
        "id": question_id(question),
        "reference": f"The answer is {answer}.",
        "statement": _statement(graph, edge),
        "aliases": _aliases(graph, edge),
        "subject": graph.name(edge.source),
        "meta": {"relation": relation.relation, "domains": f"{relation.source}-{relation.target}"},
    }


def _test(values: dict[str, Any], turn: str, split: str) -> Fact:
    """A test of the fact with these fields, which another user turn asks for."""
    meta = {**values["meta"], "fact": values["id"]}
    return Fact(**{**values, "question": turn, "id": f"{split}-{values['id']}", "meta": meta})


def _question(graph: Graph, edge: Edge) -> str:
    return sentence(edge.relation.question, s=graph.rendered(edge.source))


def _statement(graph: Graph, edge: Edge) -> str:
    return sentence(edge.relation.statement, s=graph.rendered(edge.source), t=graph.rendered(edge.target))


def _aliases(graph: Graph, edge: Edge) -> tuple[str, ...]:
    """The answer as a sentence has it: 'the Quennik Summit', with and without its article."""
    rendered = graph.rendered(edge.target)
    found = dict.fromkeys((rendered, rendered.removeprefix("the ")))
    return tuple(text for text in found if text != graph.name(edge.target))
