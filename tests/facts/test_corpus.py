"""A corpus as streams and as a folder: what is written is what is read, whole or not at all."""

import json

import pytest

from mixsd.errors import UserError
from mixsd.facts import corpus as facts_corpus
from mixsd.facts.corpus import Corpus, corpus, is_corpus, read, write, write_tests
from mixsd.facts.fact import Fact
from tests.garbage import alive

FACTS = [
    Fact("Who runs Orm?", "Una", old_answer="Bo", aliases=("Una Vell",), meta={"relation": "runs"}),
    Fact("Where is Orm?", "Kell", statement="Orm is in Kell.", subject="Orm", meta={"relation": "place"}),
]
TESTS = [Fact("Background.\n- Orm is in Kell.\n\nWhere is it?", "Kell", id="t", meta={"fact": FACTS[1].id})]


def made(**changes):
    values = {
        "name": "own",
        "options": {"seed": 3},
        "facts": lambda: iter(FACTS),
        "splits": {"retrieval": lambda: iter(TESTS), "empty": lambda: iter(())},
        "labels": ("relation",),
        "verifiers": {"plain": "exact", "boxed": "boxed"},
        "guidance": "solution",
        "max_new_tokens": {"plain": 9},
        "notes": ("edit 3 was dropped",),
    }
    return Corpus(**{**values, **changes})


def test_what_is_written_is_read(tmp_path):
    files = []
    counts = write(made(), tmp_path / "c", lambda: files.append(len([*tmp_path.rglob("*.jsonl")])))
    assert counts == {"train": 2, "retrieval": 1, "empty": 0}
    assert files == [1, 2, 3]
    found = read(tmp_path / "c")
    assert list(found.facts()) == list(found.facts()) == FACTS
    assert {name: list(facts()) for name, facts in found.splits.items()} == {"retrieval": TESTS, "empty": []}
    assert found.manners == made().manners
    assert (found.name, found.notes) == ("own", ("edit 3 was dropped",))
    assert found.options["seed"] == 3
    assert facts_corpus.load_facts(str(tmp_path / "c")).facts == FACTS


def test_the_same_corpus_has_the_same_bytes_and_identity_and_an_edited_one_another(tmp_path):
    for name in "ab":
        write(made(), tmp_path / name)
    a, b = tmp_path / "a", tmp_path / "b"
    assert {p.name: p.read_bytes() for p in a.iterdir()} == {p.name: p.read_bytes() for p in b.iterdir()}
    assert read(a).identity == read(b).identity
    with (b / "retrieval.jsonl").open("a") as file:
        file.write(json.dumps({"question": "More?", "answer": "yes"}) + "\n")
    assert read(a).identity != read(b).identity
    assert made().identity != made(options={"seed": 4}).identity


def test_tests_alone(tmp_path):
    assert write_tests(made(), tmp_path / "splits") == {"retrieval": 1, "empty": 0}
    assert is_corpus(tmp_path / "splits")
    assert list(read(tmp_path / "splits").splits) == ["retrieval", "empty"]


def test_a_folder_of_ones_own_needs_no_manifest(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"question": "Where is Orm?", "answer": "Kell"}\n')
    (tmp_path / "hard.jsonl").write_text('{"question": "Tell me where Orm lies.", "answer": "Kell"}\n')
    found = facts_corpus.open_source(str(tmp_path))
    assert isinstance(found, Corpus)
    assert [fact.answer for fact in found.facts()] == ["Kell"]
    assert list(found.splits) == ["hard"]
    assert found.verifiers["plain"] == "contains"


def test_an_interrupted_writing_leaves_what_was_there(tmp_path):
    write(made(), tmp_path / "c")
    before = (tmp_path / "c" / "train.jsonl").read_bytes()

    def breaking():
        yield FACTS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(made(facts=breaking), tmp_path / "c")
    assert (tmp_path / "c" / "train.jsonl").read_bytes() == before
    with pytest.raises(KeyboardInterrupt):
        write(made(facts=breaking), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_nothing_is_held_in_memory(tmp_path):
    """Of a stream of facts no more than the one being written is kept."""

    kept = []

    def stream():
        for number in range(20):
            yield Fact(f"Question {number}?", "a", subject="streamed")
            kept.append(sum(fact.subject == "streamed" for fact in alive(Fact)))

    assert write(made(facts=stream), tmp_path / "c")["train"] == len(kept) == 20
    assert set(kept) == {1}


def test_refused_folders(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"mine: is not empty and holds no corpus; choose another --output"):
        write(made(), tmp_path / "mine")
    write(made(), tmp_path / "c")
    (tmp_path / "c" / "retrieval.jsonl").unlink()
    with pytest.raises(UserError, match=r"retrieval.jsonl: no such file, but corpus.json names it"):
        read(tmp_path / "c")
    (tmp_path / "c" / "corpus.json").write_text('{"name": "x"}')
    with pytest.raises(UserError, match=r"corpus.json: not the manifest of a corpus"):
        read(tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write(made(), tmp_path / "file")


def test_a_bad_line_is_named(tmp_path):
    write(made(), tmp_path / "c")
    with (tmp_path / "c" / "train.jsonl").open("a") as file:
        file.write('{"question": "No answer?"}\n')
    with pytest.raises(UserError, match=r"train.jsonl: line 3: field answer: missing"):
        facts_corpus.load_facts(str(tmp_path / "c"))


def test_a_function_of_the_users_may_make_a_corpus(tmp_path, monkeypatch):
    (tmp_path / "own_corpus.py").write_text(
        "from mixsd.facts.corpus import Corpus\nfrom mixsd.facts.fact import Fact\n"
        "def make():\n    return Corpus('mine', {}, lambda: iter([Fact('Q?', 'A')]))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = facts_corpus.open_source("own_corpus:make")
    assert isinstance(found, Corpus)
    assert [fact.answer for fact in facts_corpus.load_facts("own_corpus:make").facts] == ["A"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: corpus("kgfakt"), 'corpus "kgfakt": unknown; did you mean "kgfact"?'),
        (lambda: corpus("kgfact", sead=1), "corpus kgfact: no option 'sead'; did you mean \"seed\"?"),
        (lambda: facts_corpus.load_facts("kgfakt:small"), 'did you mean "kgfact"?'),
        (lambda: facts_corpus.load_facts("kgfact:smal"), 'did you mean "small"?'),
    ],
)
def test_bad_names(call, said):
    with pytest.raises(UserError) as caught:
        call()
    assert said.split("; did")[0] in str(caught.value)
    assert said.rpartition("did you mean ")[2].strip('"?') in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_gives_the_same_facts_as_the_function_and_the_seed_counts():
    by_name = facts_corpus.load_facts("kgfact:small", seed=5).facts
    assert by_name == list(corpus("kgfact", "small", seed=5).facts())
    assert by_name != facts_corpus.load_facts("kgfact:small").facts
