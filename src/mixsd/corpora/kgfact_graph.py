"""The world graph of KGFact: invented entities in domains, and edges between them that make every question have one answer.

For each ordered pair of domains every entity of the first has one edge to an entity of the second, by one of the pair's relations
(section 4; sizes in settings.md). The constraints, over the edges and those that they imply through inverse relations: a source has
one target by a relation, and a target one source. Linear in the number of edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mixsd import bundled
from mixsd.corpora.kgfact_names import Domain, domains, names
from mixsd.errors import UserError
from mixsd.randomness import uniforms

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
        self._rendered = [
            [domain.rendered(name) for name in entities] for domain, entities in zip(self.domains, self.entities, strict=True)
        ]
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
                target = next(waiting[number], None)
                if target is not None:
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
