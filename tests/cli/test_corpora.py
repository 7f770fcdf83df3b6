"""`mixsd corpus`: files as asked for, one line for what is wrong, and a look at what was made."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest


def test_kgfact(mixsd):
    outcome = mixsd("corpus", "kgfact", "--size", "small", "--seed", "0", "--output", "kg")
    assert outcome.code == 0
    lines = dict(line.split() for line in outcome.out.splitlines() if ".jsonl:" in line)
    assert lines == {
        f"{name}.jsonl:": "100" for name in ("train", "paraphrase", "validation", "retrieval", "two_hop", "two_hop_context")
    }
    assert "look at it with: mixsd corpus show kg" in outcome.out
    assert len(Path("kg/train.jsonl").read_text().splitlines()) == 100
    again = mixsd("corpus", "kgfact", "--output", "kg2")
    assert again.code == 0
    assert {p.name: p.read_bytes() for p in Path("kg").iterdir()} == {p.name: p.read_bytes() for p in Path("kg2").iterdir()}


def test_options_reach_the_corpus(mixsd):
    mixsd("corpus", "kgfact", "--size", "3x2", "--seed", "4", "--retrieval", "trained", "--output", "kg")
    options = json.loads(Path("kg/corpus.json").read_text())["options"]
    assert options == {"seed": 4, "domains": 3, "entities": 2, "retrieval": "trained"}
    mixsd("corpus", "kgfunc", "--train", "14", "--test", "7", "--seed", "1", "--output", "kf")
    manifest = json.loads(Path("kf/corpus.json").read_text())
    assert (manifest["counts"]["train"], manifest["counts"]["test"]) == (14, 7)
    mixsd("corpus", "kgfunc", "--train", "2", "--per-operation", "--test", "7", "--output", "kf")
    assert json.loads(Path("kf/corpus.json").read_text())["counts"]["train"] == 14


def test_show(mixsd):
    mixsd("corpus", "kgfact", "--output", "kg")
    shown = mixsd("corpus", "show", "kg", "--svg", "graph.svg").out
    assert "train: 100" in shown
    assert "two_hop_context: 100" in shown
    assert "Background information:" in shown
    assert "facts by domain" in shown
    ET.fromstring(Path("graph.svg").read_text())
    found = json.loads(mixsd("corpus", "show", "kg", "--json").out)
    assert found["splits"]["retrieval"]["count"] == 100
    assert {pair["facts"] for pair in found["pairs"]} == {10}
    assert json.loads(mixsd("corpus", "show", "kgfact:small", "--json").out)["splits"] == found["splits"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kgfact", "--size", "huge", "--output", "x"], 'size "huge": unknown'),
        (["kgfact", "--size", "8x10", "--output", "x"], "none for PhysicalObject"),
        (["kgfact", "--retrieval", "held", "--output", "x"], "--retrieval"),
        (["kgfact"], "--output"),
        (["kgfact", "--sise", "small", "--output", "x"], "did you mean"),
        (["kgfunc", "--train", "0", "--output", "x"], "--train"),
        (["simpleqa", "--data", "nowhere.csv", "--output", "x"], "nowhere.csv: no such file"),
        (["simpleqa", "--offline", "--output", "x"], "offline"),
        (["mquake", "--data", "nowhere.json", "--output", "x"], "nowhere.json: no such file"),
        (["show", "nowhere"], "nowhere"),
        (["show", "demo"], "is no corpus"),
        (["kgfakt", "--output", "x"], "kgfakt"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(fails, arguments, said):
    assert said in fails("corpus", *arguments)
    assert not Path("x").exists()


def test_a_graph_is_needed_for_a_picture(mixsd):
    mixsd("corpus", "kgfunc", "--train", "7", "--test", "7", "--output", "kf")
    outcome = mixsd("corpus", "show", "kf", "--svg", "graph.svg")
    assert outcome.code == 2
    assert outcome.err == "error: kf: its facts are no graph (they need a subject, and domains in their meta)\n"
    assert not Path("graph.svg").exists()
