"""The graph of a corpus as a picture: every entity once, on the circle, and an edge for each fact."""

import math
import xml.etree.ElementTree as ET

from mixsd.facts.corpus import corpus
from mixsd.facts.fact import Fact
from mixsd.reports import pictures
from mixsd.reports.page import graph_page, render
from tests.reports.sample import typed

SVG = "{http://www.w3.org/2000/svg}"


def test_edges_are_facts_between_two_domains():
    facts = [
        Fact("Q?", "B", subject="A", meta={"domains": "Person-Location"}),
        Fact("R?", "C", subject="A"),
        Fact("S?", "C", meta={"domains": "Person-Location"}),
        Fact("T?", "C", subject="A", meta={"domains": "Person-Location-Event"}),
        *(Fact(f"U{i}?", "C", subject="A", meta={"domains": odd}) for i, odd in enumerate((["a-b"], {"a-b": 1}, -1.5, None))),
    ]
    assert pictures.edges_of(facts) == [("Person", "Location", "A", "B")]


def test_small_is_ten_pairs_of_ten():
    edges = pictures.edges_of(corpus("kgfact", "small").facts())
    domains, pairs = pictures.counts(edges)
    assert domains == ["Person", "Location", "Organization", "Event", "Profession"]
    assert set(pairs.values()) == {10}
    assert len(pairs) == 10


def test_every_entity_is_drawn_once_on_the_circle():
    picture = pictures.picture(pictures.edges_of(corpus("kgfact", "small").facts()))
    assert picture is not None
    assert len({(p.x, p.y) for p in picture.points}) == len(picture.points) <= 50
    radii = {round(math.dist((p.x, p.y), (picture.size / 2,) * 2)) for p in picture.points}
    assert len(radii) == 1
    assert [text for *_, text in picture.labels] == ["Person", "Location", "Organization", "Event", "Profession"]
    assert len(picture.lines) == picture.edges == 100


def test_a_large_graph_is_drawn_by_an_even_choice_and_says_so():
    edges = [("a", "b", f"s{i}", f"t{i}") for i in range(5000)]
    picture = pictures.picture(edges)
    assert picture is not None
    assert len(picture.lines) <= pictures.MOST_EDGES
    assert picture.edges == 5000
    page = render(typed({"run": "x"}), [], [], picture)
    assert f"5,000 facts, of which {len(picture.lines)} are drawn" in page


def test_no_graph_no_picture():
    assert pictures.picture([]) is None
    assert "facts as a graph" not in render(typed({"run": "x"}), [], [])


def test_the_svg_is_well_formed_and_escaped():
    picture = pictures.picture([("<b>", "x&y", '"s"', "<script>")])
    assert picture is not None
    root = ET.fromstring(graph_page(picture))
    assert root.tag == SVG + "svg"
    assert [node.text for node in root.iter(SVG + "text")] == ["<b>", "x&y"]
    assert [node.text for node in root.iter(SVG + "title")] == ['"s"', "<script>"]
    assert len(list(root.iter(SVG + "path"))) == 1


def test_no_name_makes_the_svg_unreadable():
    picture = pictures.picture([("a\x00", "b", "s\x1b[31m", "t\x08")])
    assert picture is not None
    root = ET.fromstring(graph_page(picture))
    assert [node.text for node in root.iter(SVG + "title")] == ["s␛[31m", "t␈"]
