"""`mixsd corpus`: files as asked for, one line for what is wrong, and a look at what was made."""

import json
from pathlib import Path

import pytest
import yaml


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
    shown = mixsd("corpus", "show", "kg").out
    assert "train: 100" in shown
    assert "two_hop_context: 100" in shown
    assert "Background information:" in shown
    assert "facts by domain" in shown
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


def test_the_config_that_is_printed_is_the_one_a_run_has(mixsd):
    """With the corpus's verifier, guidance and length of reply; what was typed goes before them, and the file says the same again."""
    printed = mixsd("inject", "kgfunc", "--output", "run", "--print-config").out
    values = yaml.safe_load(printed)
    assert (values["verifier"], values["max_new_tokens"]) == ("number", 512)
    assert "reference solution" in values["guidance"]
    Path("full.yaml").write_text(printed)
    assert mixsd("inject", "--config", "full.yaml", "--print-config").out == printed
    typed = yaml.safe_load(mixsd("inject", "kgfunc", "--verifier", "exact", "--print-config").out)
    assert (typed["verifier"], typed["max_new_tokens"]) == ("exact", 512)
    mixsd("corpus", "kgfunc", "--train", "7", "--test", "7", "--output", "kf")
    assert yaml.safe_load(mixsd("mix", "kf", "--print-config").out)["verifier"] == "number"
    assert yaml.safe_load(mixsd("mix", "no/such.jsonl", "--print-config").out)["verifier"] == "contains"


def test_a_folder_by_the_name_of_a_corpus_is_not_passed_over(mixsd, fails):
    """Else the user's own size and seed would be another corpus, without a word."""
    mixsd("corpus", "kgfact", "--size", "3x2", "--output", "kgfact")
    said = fails("corpus", "show", "kgfact")
    assert "write ./kgfact for the folder, kgfact: for the other" in said
    assert said == fails("inject", "kgfact", "--output", "run")
    assert json.loads(mixsd("corpus", "show", "./kgfact", "--json").out)["splits"]["train"]["count"] == 6
    assert json.loads(mixsd("corpus", "show", "kgfact:", "--json").out)["splits"]["train"]["count"] == 100
    Path("kgfunc").mkdir()  # a run folder, for one, is no corpus
    assert mixsd("corpus", "show", "kgfunc", "--json").code == 0


def test_a_corpus_of_strangers_does_not_steer_the_terminal(mixsd):
    mixsd("corpus", "kgfact", "--size", "3x2", "--output", "kg")
    manifest = json.loads(Path("kg/corpus.json").read_text())
    changes = {"name": "x\x1b[2J", "options": {"a\x1b": "\x1b[31m"}, "notes": ["\x1b]0;hi\x07"]}
    Path("kg/corpus.json").write_text(json.dumps({**manifest, **changes}))
    facts = [{"question": f"Q{i}?", "answer": "A", "subject": "S", "meta": {"domains": f"\x1b[3{i % 4}m-b"}} for i in range(4)]
    Path("kg/train.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    outcome = mixsd("corpus", "show", "kg")
    assert "facts by domain" in outcome.out
    assert outcome.out.replace("\n", "").isprintable()


def test_a_graph_of_many_domains_is_no_matrix(mixsd):
    facts = [{"question": f"Q{i}?", "answer": "A", "subject": "S", "meta": {"domains": f"a{i}-b"}} for i in range(300)]
    Path("kg").mkdir()
    Path("kg/train.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    out = mixsd("corpus", "show", "kg").out
    assert "a graph of 301 domains; --json has the facts of each pair" in out
    assert len(out) < 1000


def test_a_graph_is_of_facts_with_a_subject_and_two_domains(mixsd):
    domains = ["Person-Location", "Person-Location-Event", ["a-b"], {"a-b": 1}, -1.5, None]
    facts = [{"question": f"Q{i}?", "answer": "B", "subject": "A", "meta": {"domains": odd}} for i, odd in enumerate(domains)]
    facts.append({"question": "R?", "answer": "C", "meta": {"domains": "Person-Location"}})
    Path("kg").mkdir()
    Path("kg/train.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    found = json.loads(mixsd("corpus", "show", "kg", "--json").out)
    assert found["domains"] == ["Person", "Location"]
    assert found["pairs"] == [{"source": "Person", "target": "Location", "facts": 1}]
