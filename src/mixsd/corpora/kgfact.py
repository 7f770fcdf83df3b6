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
from typing import Literal, get_args

import numpy as np

from mixsd.corpora.corpus import Corpus, Facts
from mixsd.corpora.kgfact_graph import Edge, Graph, sentence
from mixsd.corpora.kgfact_names import domains
from mixsd.corpora.splits import about, framed, with_background
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
        "paraphrase": partial(framed, world.facts, "report", seed),
        "validation": partial(framed, world.facts, "validation", seed),
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

    def facts(self) -> Iterator[Fact]:
        """One fact for each edge of the trained graph."""
        return (fact_of(self.graph, edge) for edge in self.graph)

    def retrieved(self) -> Iterator[Fact]:
        """Questions with a background: the true statement among others that touch its entities, then their neighbours."""
        graph = self.held_out if self.retrieval == "held-out" else self.graph
        around = Surroundings(graph)
        for number, edge in enumerate(graph):
            fact = fact_of(graph, edge)
            statements = around.statements([number], BACKGROUND[self.retrieval])
            question = with_background(fact.question, statements, f"background of {fact.id}", self.seed)
            yield about(fact, question, "retrieval")

    def two_hop(self, background: bool = False) -> Iterator[Fact]:
        """Questions that join two trained facts; as many as there are facts at most, spread evenly over the graph."""
        graph = self.graph
        around = Surroundings(graph) if background else None
        places = {id(edge): number for number, edge in enumerate(graph)} if background else {}
        later = [[pair for pair in graph.edges if pair[0] == number] for number in range(self.number)]
        from_entity = {(*edge.source, edge.target[0]): edge for edge in graph}
        total = sum(len(edges) * len(later[j]) for (_, j), edges in graph.edges.items())
        most, seen = min(total, len(graph)), 0
        for (i, j), edges in graph.edges.items():
            for _, k in later[j]:
                # Of every triple of domains the same share, of sources that are drawn at its address.
                share = (seen + len(edges)) * most // total - seen * most // total
                seen += len(edges)
                triple = "-".join(graph.domains[number].name for number in (i, j, k))
                draws = uniforms(self.seed, "evaluation", f"two_hop {triple}", n=len(edges))
                for first in (edges[number] for number in sorted(np.argsort(draws, kind="stable")[:share].tolist())):
                    second = from_entity.get((*first.target, k))
                    if second is not None:
                        chosen = [places[id(first)], places[id(second)]] if background else []
                        yield self._joined(first, second, around, chosen)

    def _joined(self, first: Edge, second: Edge, around: Surroundings | None, chosen: list[int]) -> Fact:
        graph = self.graph
        phrase = first.relation.phrase.format(s=graph.rendered(first.source))
        question = sentence(second.relation.question, s=phrase)
        # One id for the question with and without a background: tests of one thing.
        key = question_id(question)
        split = "two_hop"
        if around is not None:
            split = "two_hop_context"
            statements = around.statements(chosen, BACKGROUND["held-out"])
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
                "hops": [question_id(_question(graph, edge)) for edge in (first, second)],
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
    relation = edge.relation
    answer = graph.name(edge.target)
    return Fact(
        question=_question(graph, edge),
        answer=answer,
        reference=f"The answer is {answer}.",
        statement=_statement(graph, edge),
        aliases=_aliases(graph, edge),
        subject=graph.name(edge.source),
        meta={"relation": relation.relation, "domains": f"{relation.source}-{relation.target}"},
    )


def _question(graph: Graph, edge: Edge) -> str:
    return sentence(edge.relation.question, s=graph.rendered(edge.source))


def _statement(graph: Graph, edge: Edge) -> str:
    return sentence(edge.relation.statement, s=graph.rendered(edge.source), t=graph.rendered(edge.target))


def _aliases(graph: Graph, edge: Edge) -> tuple[str, ...]:
    """The answer as a sentence has it: 'the Quennik Summit', with and without its article."""
    rendered = graph.rendered(edge.target)
    found = dict.fromkeys((rendered, rendered.removeprefix("the ")))
    return tuple(text for text in found if text != graph.name(edge.target))
