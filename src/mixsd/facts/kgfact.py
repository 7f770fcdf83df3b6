"""KGFact: facts about a world that exists nowhere (the paper's section 4 and appendix D; sizes and splits in settings.md).

A world is a graph: invented entities in domains, and for each ordered pair of domains an edge, one fact, from every entity of the first
to one of the second, by one of the pair's relations. By a relation a source has one target and a target one source, also over what
inverse relations imply, so that every question has one answer. Linear in the number of edges. Of the tests, retrieval asks about
entities that are never trained on (the authors' script), or with `retrieval='trained'` about the trained facts (the paper's text).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import count, islice
from typing import Literal

import numpy as np

from mixsd.errors import UserError, did_you_mean
from mixsd.facts.corpus import Corpus
from mixsd.facts.fact import Fact, question_id
from mixsd.facts.prompts import about, in_other_words, with_background
from mixsd.facts.records import bundled_rows, bundled_text
from mixsd.randomness import uniforms

# What made-up words are made of: syllables; the ends of a first name, a surname and a word before an ending ("plain"); and the pieces
# that would make a name read as a slur or worse, or badly.
_PIECES = {kind: pieces.split() for kind, pieces in json.loads(bundled_text("kgfact_names.json")).items()}
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
    listed = bundled_rows("kgfact_domains.tsv")
    return tuple(Domain(row["domain"], tuple(filter(None, row["endings"].split("|"))), row["frame"]) for row in listed)


def names(seed: int, domain: Domain) -> Iterator[str]:
    """The entities of a domain, without end: one or two made-up words, then what tells the domain ("Vornelk Bay").

    The k-th is a function of (seed, domain, k) and of those before it, so a smaller graph's entities are the first of a larger one's.
    """
    known, taken = _known_words(), set[str]()
    for k in count():
        for attempt in count():
            draws = uniforms(seed, "order", f"kgfact/{domain.name}/{k}", attempt=attempt, n=2 * _WORD_DRAWS + 1).tolist()
            kinds = ("plain",) if domain.endings else ("first", "last")
            words = [_word(draws[place * _WORD_DRAWS :], kind) for place, kind in enumerate(kinds)]
            unwelcome = any(piece in word for word in words for piece in _PIECES["unwelcome"])
            if words[-1] not in taken and not known.intersection(words) and not unwelcome:
                break
        taken.add(words[-1])
        ending = [domain.endings[int(draws[-1] * len(domain.endings))]] if domain.endings else []
        yield " ".join([word.capitalize() for word in words] + ending)


@cache
def _known_words() -> frozenset[str]:
    return frozenset(bundled_text("words.txt").split())


def _word(draws: list[float], kind: str) -> str:
    """A made-up word of two or three syllables, lower case."""
    onset, vowel, middle, end, length = draws[:_WORD_DRAWS]
    word = _piece("onsets", onset) + _piece("vowels", vowel) + _piece("middles", middle)
    if kind != "first" and length >= 0.5:
        # The rest of the number, spread out again, makes another syllable.
        rest = 2 * length - 1
        word += _piece("extra vowels", rest) + _piece("middles", rest * 4 % 1)
    return word + _piece(f"{kind} ends", end)


def _piece(kind: str, draw: float) -> str:
    return _PIECES[kind][int(draw * len(_PIECES[kind]))]


Key = tuple[str, str, str]  # source, target and name of a relation


@dataclass(frozen=True)
class Relation:
    """A directed relation between two different domains (by their names), and what is said with it.

    `inverse` names the relation of the opposite pair that says the same from the other end, or is empty. {s} and {t} stand for the
    source and the target: `statement` has both; `question` and the noun phrase `phrase`, which denotes the target, have {s}.
    """

    source: str
    target: str
    relation: str
    inverse: str
    statement: str
    question: str
    phrase: str

    @property
    def key(self) -> Key:
        return self.source, self.target, self.relation


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge: its relation, and source and target as (domain, entity) numbers of the graph."""

    relation: Relation
    source: tuple[int, int]
    target: tuple[int, int]


def bundled_relations() -> tuple[Relation, ...]:
    """The relations that come with mixsd: ten for each pair of the first seven domains."""
    return tuple(Relation(**row) for row in bundled_rows("kgfact_relations.tsv"))


def sentence(template: str, **values: str) -> str:
    """A template filled in, with a capital at its beginning."""
    filled = template.format(**values)
    return filled[0].upper() + filled[1:]


class Graph:
    """A world: `size` entities in each of the first `count` domains, and the edges between them, by the relations that there are.

    `part` is 0 for the first `size` entities of each domain, 1 for the next ones, which share nothing with them. A domain that no
    relation joins is a `UserError`.
    """

    def __init__(self, seed: int, count: int, size: int, part: int = 0, relations: Sequence[Relation] | None = None) -> None:
        relations = bundled_relations() if relations is None else relations
        self.seed, self.size, self.part = seed, size, part
        self.domains = domains()[:count]
        self.entities = [list(islice(names(seed, domain), part * size, (part + 1) * size)) for domain in self.domains]
        numbers = {domain.name: number for number, domain in enumerate(self.domains)}
        by_pair: dict[tuple[int, int], list[Relation]] = {}
        for relation in relations:
            if relation.source in numbers and relation.target in numbers:
                by_pair.setdefault((numbers[relation.source], numbers[relation.target]), []).append(relation)
        joined = {number for pair in by_pair for number in pair}
        if len(joined) < count:
            missing = ", ".join(domain.name for number, domain in enumerate(self.domains) if number not in joined)
            raise UserError(f"kgfact: there are relations between {len(joined)} domains only (none for {missing}); ask for fewer")
        self._inverses = _inverses(relations)
        self._targets: dict[Key, dict[int, int]] = {}
        # Per pair of domains, in the order of the source entities.
        self.edges: dict[tuple[int, int], list[Edge]] = {}
        for pair, own in sorted(by_pair.items()):
            self.edges[pair] = list(self._connect(pair, own))

    def __iter__(self) -> Iterator[Edge]:
        for edges in self.edges.values():
            yield from edges

    def __len__(self) -> int:
        return sum(map(len, self.edges.values()))

    def _connect(self, pair: tuple[int, int], relations: list[Relation]) -> Iterator[Edge]:
        """One edge for each source entity of a pair, as far as the constraints leave one."""
        i, j = pair

        def drawn(what: str) -> np.ndarray:
            address = f"kgfact/{self.part}/{self.domains[i].name}>{self.domains[j].name}/{what}"
            return uniforms(self.seed, "order", address, n=self.size)

        chosen = (drawn("relation") * len(relations)).astype(int).tolist()
        # What the opposite edges say by the inverse relations (a relation itself says nothing yet): source, a target here, to target.
        said = [self._targets.get(self._inverses.get(relation.key, relation.key), {}) for relation in relations]
        sources = [set(taken.values()) for taken in said]
        # The targets of each relation in a drawn order, each once, without those that an opposite edge has taken.
        orders = [np.argsort(drawn(relation.relation), kind="stable").tolist() for relation in relations]
        waiting = [iter([k for k in order if k not in taken]) for order, taken in zip(orders, said, strict=True)]
        for source in range(self.size):
            for step in range(len(relations)):
                number = (chosen[source] + step) % len(relations)
                if source in sources[number]:
                    continue  # the opposite edge says it already
                if (target := next(waiting[number], None)) is not None:
                    self._targets.setdefault(relations[number].key, {})[source] = target
                    yield Edge(relations[number], (i, source), (j, target))
                    break

    def name(self, entity: tuple[int, int]) -> str:
        return self.entities[entity[0]][entity[1]]

    def rendered(self, entity: tuple[int, int]) -> str:
        """An entity as it stands in the middle of a sentence."""
        return self.domains[entity[0]].rendered(self.name(entity))

    def question(self, edge: Edge) -> str:
        return sentence(edge.relation.question, s=self.rendered(edge.source))

    def statement(self, edge: Edge) -> str:
        return sentence(edge.relation.statement, s=self.rendered(edge.source), t=self.rendered(edge.target))

    def aliases(self, edge: Edge) -> tuple[str, ...]:
        """The answer as a sentence has it: 'the Quennik Summit', with and without its article."""
        rendered = self.rendered(edge.target)
        found = dict.fromkeys((rendered, rendered.removeprefix("the ")))
        return tuple(spelling for spelling in found if spelling != self.name(edge.target))

    def facts(self) -> Iterator[Fact]:
        """One fact for each edge."""
        for edge in self:
            relation = edge.relation
            yield Fact(
                self.question(edge),
                self.name(edge.target),
                statement=self.statement(edge),
                reference=f"The answer is {self.name(edge.target)}.",
                aliases=self.aliases(edge),
                subject=self.name(edge.source),
                meta={"relation": relation.relation, "domains": f"{relation.source}-{relation.target}"},
            )


def _inverses(relations: Sequence[Relation]) -> dict[Key, Key]:
    """Of each relation the one that says the same from the other end; it is enough that one of the two names the other."""
    found: dict[Key, Key] = {}
    for relation in relations:
        if relation.inverse:
            one, other = relation.key, (relation.target, relation.source, relation.inverse)
            if found.setdefault(one, other) != other or found.setdefault(other, one) != one:
                raise ValueError(f"{relation}: a relation has one inverse at most")
    return found


SIZES = {"small": (5, 10), "large": (7, 25)}
Retrieval = Literal["held-out", "trained"]
BACKGROUND = {"held-out": 49, "trained": 50}  # statements beside the true one


def kgfact(size: str | None = None, *, seed: int = 0, retrieval: Retrieval = "held-out", offline: bool = False) -> Corpus:
    """The corpus KGFact; nothing is fetched.

    `size`: 'small' (5 domains of 10 entities: 100 facts; the default), 'large' (7 of 25: 525), or domains x entities, '7x1000'.
    """
    number, entities = parse_size("small" if size is None else size)
    if retrieval not in BACKGROUND:
        raise UserError(f"--retrieval {retrieval!r}: expected {' or '.join(BACKGROUND)}")
    graph = Graph(seed, number, entities)
    return Corpus(
        name="kgfact",
        options={"seed": seed, "domains": number, "entities": entities, "retrieval": retrieval},
        facts=graph.facts,
        splits={
            **in_other_words(graph.facts, seed),
            "retrieval": partial(_retrieved, graph, retrieval),
            "two_hop": partial(_two_hop, graph),
            "two_hop_context": partial(_two_hop, graph, background=True),
        },
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


def _retrieved(trained: Graph, retrieval: Retrieval) -> Iterator[Fact]:
    """Questions with a background: the true statement among others that touch its entities, then their neighbours."""
    graph = Graph(trained.seed, len(trained.domains), trained.size, part=1) if retrieval == "held-out" else trained
    around = Surroundings(graph)
    for number, fact in enumerate(graph.facts()):
        statements = around.statements([number], BACKGROUND[retrieval])
        yield about(fact, with_background(fact.question, statements, f"background of {fact.id}", graph.seed), "retrieval")


def _two_hop(graph: Graph, background: bool = False) -> Iterator[Fact]:
    """Questions that join two trained facts; as many as there are facts at most, spread evenly over the graph."""
    edges = list(graph)
    around = Surroundings(graph) if background else None
    numbers = {(*edge.source, edge.target[0]): number for number, edge in enumerate(edges)}
    triples = [(i, j, k) for i, j in graph.edges for middle, k in graph.edges if middle == j]
    total = sum(len(graph.edges[i, j]) for i, j, _ in triples)
    most, seen = min(total, len(edges)), 0
    for i, j, k in triples:
        own = graph.edges[i, j]
        # Of every triple of domains the same share, of sources that are drawn at its address.
        share = (seen + len(own)) * most // total - seen * most // total
        seen += len(own)
        triple = "-".join(graph.domains[number].name for number in (i, j, k))
        draws = uniforms(graph.seed, "evaluation", f"two_hop {triple}", n=len(own))
        for place in sorted(np.argsort(draws, kind="stable")[:share].tolist()):
            second = numbers.get((*own[place].target, k))
            if second is not None:
                hops = {numbers[(*own[place].source, j)]: own[place], second: edges[second]}
                yield _joined(graph, hops, triple, around)


def _joined(graph: Graph, hops: dict[int, Edge], triple: str, around: Surroundings | None) -> Fact:
    """The question that joins two edges, given by their numbers."""
    first, second = hops.values()
    question = sentence(second.relation.question, s=first.relation.phrase.format(s=graph.rendered(first.source)))
    # One id for the question with and without a background: tests of one thing.
    key, split = question_id(question), "two_hop"
    if around is not None:
        split, statements = "two_hop_context", around.statements(list(hops), BACKGROUND["held-out"])
        question = with_background(question, statements, f"background of {key}", graph.seed)
    return Fact(
        question,
        graph.name(second.target),
        f"{split}-{key}",
        statement=f"{graph.statement(first)} {graph.statement(second)}",
        aliases=graph.aliases(second),
        meta={"fact": key, "domains": triple, "hops": [question_id(graph.question(edge)) for edge in hops.values()]},
    )


class Surroundings:
    """What stands near an edge: the statements of a graph's edges, and which edges touch each entity."""

    def __init__(self, graph: Graph) -> None:
        # Entities and edges are plain numbers: a large graph is walked for every question.
        self._statements = [graph.statement(edge) for edge in graph]
        self._ends = [tuple(domain * graph.size + k for domain, k in (edge.source, edge.target)) for edge in graph]
        self._touching: list[list[int]] = [[] for _ in range(len(graph.domains) * graph.size)]
        for number, ends in enumerate(self._ends):
            for entity in ends:
                self._touching[entity].append(number)

    def statements(self, chosen: list[int], others: int) -> list[str]:
        """The statements of the chosen edges, then those of `others` more (fewer where the graph has fewer), nearest first.

        These touch the entities of the chosen, then the entities of these edges, and so on; last comes what no path leads to.
        """
        most = len(chosen) + others
        found, seen = list(chosen), set(chosen)
        reached: set[int] = set()
        for number in found:  # it grows meanwhile
            if len(found) >= most:
                break
            for entity in self._ends[number]:
                if entity not in reached:
                    reached.add(entity)
                    new = [other for other in self._touching[entity] if other not in seen]
                    seen.update(new)
                    found += new
        rest = (number for number in range(len(self._statements)) if number not in seen)
        return [self._statements[number] for number in [*found, *islice(rest, max(0, most - len(found)))][:most]]
