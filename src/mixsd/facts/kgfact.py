"""KGFact: facts about a world that exists nowhere (the paper's section 4 and appendix D; sizes and splits in settings.md).

A world is a graph: invented entities in domains, and for each ordered pair of domains an edge from every entity of the first to one
of the second, by one of the pair's relations. Every edge is one fact. By a relation a source has one target and a target one source,
also over what inverse relations imply, so that every question has one answer. Linear in the number of edges.

A name is one or two made-up words; all but people also get an ending that tells what they are ("Vornelk Bay"). The k-th entity of a
domain is a function of (seed, domain, k) and of those before it, so a smaller graph's entities are the first ones of a larger one.

The tests: other wordings; retrieval, where a background of statements holds the answer; and two-hop questions over trained facts,
with and without such a background. Retrieval asks about entities that are never trained on (the authors' script), or with
`retrieval='trained'` about the trained facts (the paper's text).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import count, islice
from typing import Any, Literal, get_args

import numpy as np

from mixsd.errors import UserError, did_you_mean
from mixsd.facts import bundled
from mixsd.facts.bundled import SPLIT, in_frame, with_background
from mixsd.facts.corpus import Corpus, Facts
from mixsd.facts.fact import Fact, question_id
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
    for k in count():
        for attempt in count():
            draws = uniforms(seed, "order", f"kgfact/{domain.name}/{k}", attempt=attempt, n=2 * _WORD_DRAWS + 1).tolist()
            parts = zip(
                ("plain",) if domain.endings else ("first", "last"), (draws[:_WORD_DRAWS], draws[_WORD_DRAWS:-1]), strict=False
            )
            words = [_word(numbers, kind) for kind, numbers in parts]
            if words[-1] not in taken and not known.intersection(words) and not _unwelcome(words):
                break
        taken.add(words[-1])
        ending = [_pick(domain.endings, draws[-1])] if domain.endings else []
        yield " ".join([word.capitalize() for word in words] + ending)


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


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge: its relation, and source and target as (domain, entity) numbers of the graph."""

    relation: Relation
    source: tuple[int, int]
    target: tuple[int, int]


def bundled_relations() -> tuple[Relation, ...]:
    """The relations that come with mixsd: ten for each pair of the first seven domains."""
    return tuple(Relation(**row) for row in bundled.rows("kgfact_relations.tsv"))


class Graph:
    """A world: `size` entities in each of the first `count` domains, and the edges between them.

    Args:
        seed: of names and edges.
        count: number of domains.
        size: entities per domain.
        part: 0 for the first `size` entities of each domain, 1 for the next ones, which share nothing with them.
        relations: what edges there may be; the pairs of domains are those that occur in it.

    Raises:
        UserError: there are no relations for so many domains.
    """

    def __init__(self, seed: int, count: int, size: int, part: int = 0, relations: Sequence[Relation] | None = None) -> None:
        relations = bundled_relations() if relations is None else relations
        self.domains: tuple[Domain, ...] = domains()[:count]
        self.size = size
        self.entities = [list(islice(names(seed, domain), part * size, (part + 1) * size)) for domain in self.domains]
        named = zip(self.domains, self.entities, strict=True)
        self._rendered = [[domain.rendered(name) for name in entities] for domain, entities in named]
        self._address = f"kgfact/{part}"
        self._seed = seed
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
        # Per pair of domains, in the order of the source entities.
        self.edges: dict[tuple[int, int], list[Edge]] = {}
        self._targets: dict[Key, dict[int, int]] = {}
        for pair, own in sorted(by_pair.items()):
            self.edges[pair] = list(self._connect(pair, own))

    def __iter__(self) -> Iterator[Edge]:
        for edges in self.edges.values():
            yield from edges

    def __len__(self) -> int:
        return sum(map(len, self.edges.values()))

    def name(self, entity: tuple[int, int]) -> str:
        """An entity's bare name."""
        return self.entities[entity[0]][entity[1]]

    def rendered(self, entity: tuple[int, int]) -> str:
        """An entity as it stands in the middle of a sentence."""
        return self._rendered[entity[0]][entity[1]]

    def _connect(self, pair: tuple[int, int], relations: list[Relation]) -> Iterator[Edge]:
        """One edge for each source entity of a pair, as far as the constraints leave one."""
        i, j = pair
        place = f"{self._address}/{self.domains[i].name}>{self.domains[j].name}"
        chosen = (uniforms(self._seed, "order", f"{place}/relation", n=self.size) * len(relations)).astype(int).tolist()
        waiting = [self._free_targets(place, relation) for relation in relations]
        said = [set(self._implied(relation).values()) for relation in relations]
        for source in range(self.size):
            for step in range(len(relations)):
                number = (chosen[source] + step) % len(relations)
                relation = relations[number]
                if source in said[number]:
                    continue  # the opposite edge says it already
                if (target := next(waiting[number], None)) is not None:
                    self._targets.setdefault(_key(relation), {})[source] = target
                    yield Edge(relation, (i, source), (j, target))
                    break

    def _free_targets(self, place: str, relation: Relation) -> Iterator[int]:
        """The targets of a relation in a drawn order, each once, without those that an opposite edge has taken."""
        draws = uniforms(self._seed, "order", f"{place}/{relation.relation}", n=self.size)
        implied = self._implied(relation)
        return (target for target in np.argsort(draws, kind="stable").tolist() if target not in implied)

    def _implied(self, relation: Relation) -> dict[int, int]:
        """The edges of the opposite pair by the inverse relation: source (a target here) to target (a source here)."""
        inverse = self._inverses.get(_key(relation))
        return self._targets.get(inverse, {}) if inverse else {}


def _key(relation: Relation) -> Key:
    return relation.source, relation.target, relation.relation


def _inverses(relations: Sequence[Relation]) -> dict[Key, Key]:
    """Of each relation the one that says the same from the other end; it is enough that one of the two names the other."""
    found: dict[Key, Key] = {}
    for relation in relations:
        if relation.inverse:
            one, other = _key(relation), (relation.target, relation.source, relation.inverse)
            if found.setdefault(one, other) != other or found.setdefault(other, one) != one:
                raise ValueError(f"{relation}: a relation has one inverse at most")
    return found


def sentence(template: str, **values: str) -> str:
    """A template filled in, with a capital at its beginning."""
    text = template.format(**values)
    return text[0].upper() + text[1:]


SIZES = {"small": (5, 10), "large": (7, 25)}
Retrieval = Literal["held-out", "trained"]
BACKGROUND = {"held-out": 49, "trained": 50}  # statements beside the true one


def kgfact(size: str | None = None, *, seed: int = 0, retrieval: Retrieval = "held-out", offline: bool = False) -> Corpus:
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
    """The trained graph, and what is asked about it or, held out, about a second one whose entities share nothing with it."""

    def __init__(self, seed: int, number: int, entities: int, retrieval: Retrieval) -> None:
        self.seed = seed
        self.retrieval = retrieval
        self.number, self.entities = number, entities
        self.graph = Graph(seed, number, entities)

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
        graph = Graph(self.seed, self.number, self.entities, part=1) if self.retrieval == "held-out" else self.graph
        around = Surroundings(graph)
        for number, edge in enumerate(graph):
            values = _values(graph, edge)
            statements = around.statements([number], BACKGROUND[self.retrieval])
            turn = with_background(values["question"], statements, f"background of {values['id']}", self.seed)
            yield _test(values, turn, "retrieval")

    def two_hop(self, background: bool = False) -> Iterator[Fact]:
        """Questions that join two trained facts; as many as there are facts at most, spread evenly over the graph."""
        graph, edges = self.graph, list(self.graph)
        keys = [question_id(_question(graph, edge)) for edge in edges]
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
                        hops = {start + first: own[first], second: edges[second]}
                        yield self._joined(hops, [keys[number] for number in hops], around)
            start += len(own)

    def _joined(self, hops: dict[int, Edge], keys: list[str], around: Surroundings | None) -> Fact:
        """The question that joins two edges, given by their numbers; `keys` are the ids of their facts."""
        graph, (first, second) = self.graph, hops.values()
        question = sentence(second.relation.question, s=first.relation.phrase.format(s=graph.rendered(first.source)))
        # One id for the question with and without a background: tests of one thing.
        key, split = question_id(question), "two_hop" if around is None else "two_hop_context"
        if around is not None:
            statements = around.statements(list(hops), BACKGROUND["held-out"])
            question = with_background(question, statements, f"background of {key}", self.seed)
        domains = f"{first.relation.source}-{second.relation.source}-{second.relation.target}"
        return Fact(
            question,
            graph.name(second.target),
            f"{split}-{key}",
            statement=f"{_statement(graph, first)} {_statement(graph, second)}",
            aliases=_aliases(graph, second),
            meta={"fact": key, "domains": domains, "hops": keys},
        )


class Surroundings:
    """What stands near an edge: the statements of a graph's edges, and which edges touch each entity."""

    def __init__(self, graph: Graph) -> None:
        # Entities and edges are plain numbers: a large graph is walked for every question.
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
