"""A corpus that a user wrote, or was given: what is wrong with it is said before a run folder is made, and it is data only."""

import json
import os
from pathlib import Path

import pytest

from mixsd.commands.opening import fitted, open_checked
from mixsd.errors import UserError
from mixsd.facts.corpus import Corpus, facts_of, open_source, read, write, write_tests
from mixsd.facts.fact import Fact
from mixsd.progress import Watcher
from mixsd.settings import Settings

MANIFEST = {
    "name": "own",
    "options": {},
    "counts": {"train": 1, "hard": 1},
    "labels": ["relation"],
    "verifiers": {"plain": "exact", "boxed": "boxed"},
    "guidance": "solution",
    "max_new_tokens": {"plain": 9},
    "notes": [],
}
TRAIN = {"question": "Where is Orm?", "answer": "Kell"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/train.jsonl").write_text(json.dumps(TRAIN) + "\n")
    (tmp_path / "own/hard.jsonl").write_text(json.dumps({"question": "Tell me where Orm is.", "answer": "Kell"}) + "\n")
    return tmp_path / "own"


def opened(folder, tiny_folder, **options):
    settings = Settings(facts=str(folder), model=str(tiny_folder), output=str(folder.parent / "run"), **options)
    return open_checked(settings, Watcher())


def test_its_records_are_those_of_any_file_of_facts(folder):
    """Chat records, blank lines and a byte order mark are read as from a file that is named by itself."""
    chat = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It is \\boxed{Una}."}]}
    lines = [json.dumps(TRAIN), "", json.dumps(chat), "", ""]
    (folder / "train.jsonl").write_text("\ufeff" + "\n".join(lines))
    found = facts_of(open_source(str(folder)), str(folder))
    assert [fact.answer for fact in found.facts] == ["Kell", "Una"]


def test_two_answers_to_one_question_are_named_with_their_file(folder):
    (folder / "train.jsonl").write_text("".join(json.dumps({**TRAIN, "answer": answer}) + "\n" for answer in ("Kell", "Una")))
    with pytest.raises(UserError, match=r"own/train\.jsonl: fact 2: the question of .*own/train\.jsonl: fact 1 with another"):
        facts_of(open_source(str(folder)), str(folder))


def test_what_is_no_test_is_passed_over(folder):
    """The hidden files that a Mac leaves on a shared disk, and folders."""
    (folder / "._hard.jsonl").write_bytes(b"\x00\x05\x16\x07")
    (folder / "old.jsonl").mkdir()
    assert list(read(folder).splits) == ["hard"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": "relation"}, "labels: input should be a valid list"),
        ({"labels": [1]}, "labels, 1: input should be a valid string"),
        ({"guidance": "poem"}, "guidance: input should be 'knowledge' or 'solution'"),
        ({"max_new_tokens": {"plain": "9"}}, "max_new_tokens, plain: input should be a valid integer"),
        ({"max_new_tokens": {"plain": 0}}, "max_new_tokens, plain: input should be greater than 0"),
        ({"verifiers": ["exact"]}, "verifiers: input should be"),
        ({"counts": ["train"]}, "counts: input should be"),
        ({"notes": "all of it"}, "notes: input should be a valid list"),
        ({"label": ["relation"]}, "label: extra inputs are not permitted"),
        ([], "input should be"),
    ],
)
def test_a_manifest_of_other_types_is_refused_by_name(folder, change, said):
    (folder / "corpus.json").write_text(json.dumps({**MANIFEST, **change} if isinstance(change, dict) else change))
    with pytest.raises(UserError) as caught:
        open_source(str(folder))
    assert f"own/corpus.json: not the manifest of a corpus: {'field ' if isinstance(change, dict) else ''}{said}" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../stolen", "a/b", ".hidden", "a\\b", "a\x1b[31m", ""])
def test_no_test_is_written_beside_the_run_folder(folder, name):
    (folder / "corpus.json").write_text(json.dumps({**MANIFEST, "counts": {"train": 1, name: 1}}))
    with pytest.raises(UserError, match="a test cannot be called") as caught:
        open_source(str(folder))
    assert str(caught.value).isprintable()


def test_a_test_cannot_take_the_place_of_the_facts():
    with pytest.raises(UserError, match='a test cannot be called "train"'):
        Corpus("own", {}, lambda: iter([Fact("Q?", "A")]), {"train": lambda: iter([Fact("R?", "B")])})


def test_a_folder_names_no_code_to_run(folder, tiny_folder):
    """Its verifier may be one of ours; a function runs where the user asks for it."""
    (folder / "corpus.json").write_text(json.dumps({**MANIFEST, "verifiers": {"plain": "timeit:timeit", "boxed": "boxed"}}))
    with pytest.raises(
        UserError, match=r"own/corpus\.json: its verifier timeit:timeit is a function; .*--verifier timeit:timeit"
    ):
        opened(folder, tiny_folder)
    assert opened(folder, tiny_folder, verifier="timeit:timeit").settings.verifier == "timeit:timeit"
    assert opened(folder, tiny_folder, answer_format="boxed").settings.verifier == "boxed"
    own = Corpus("own", {}, lambda: iter(()), verifiers={"plain": "timeit:timeit"})  # of a function that the user named
    assert fitted(Settings(), own).verifier == "timeit:timeit"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ['{"question": "Q?", "answer": "A", "id": "x"}', '{"question": "R?", "answer": "A", "id": "x"}'],
            'fact 2: id "x" belongs',
        ),
        (
            ['{"question": "Q?", "answer": "A", "id": "x"}', '{"question": "Q?", "answer": "B", "id": "x"}'],
            'fact 2: id "x" belongs',
        ),
        (['{"question": "Q?", "answer": "A"}', "no json"], "line 2: not valid JSON"),
        (['{"question": "Q?"}'], "line 1: field answer: missing"),
    ],
)
def test_a_bad_test_is_met_before_the_run_folder_is_made(folder, tiny_folder, lines, said):
    """Later, the mended corpus would be refused as another one."""
    (folder / "hard.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"hard\.jsonl: ") as caught:
        opened(folder, tiny_folder)
    assert said in str(caught.value)
    assert not (folder.parent / "run").exists()


def test_a_test_that_is_there_again_is_one(folder, tmp_path):
    lines = [
        '{"question": "Q?", "answer": "A"}',
        '{"question": " Q? ", "answer": "A"}',
        '{"question": "Q?", "answer": "A", "id": "x"}',
    ]
    (folder / "hard.jsonl").write_text("\n".join(lines))
    assert write_tests(read(folder), tmp_path / "splits") == {"hard": 2}


def test_shards_that_start_together_write_the_same_tests(folder, tmp_path, monkeypatch):
    """The second process begins and ends while the first one is in the middle of a file."""
    own, splits = read(folder), tmp_path / "splits"

    def interrupted():
        yield from own.splits["hard"]()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 10**6)
            write_tests(own, splits)

    assert write_tests(Corpus("own", dict(own.options), own.facts, {"hard": interrupted}), splits) == {"hard": 1}
    assert list(read(splits).splits["hard"]()) == list(own.splits["hard"]())


def test_tests_without_their_manifest_are_written_anew(folder, tmp_path):
    """The manifest comes last, so that a kill in between leaves no folder that looks whole."""
    written = []
    own = read(folder)

    def killed():
        written.append((tmp_path / "splits/corpus.json").exists())
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        write_tests(Corpus("own", {}, own.facts, {"hard": own.splits["hard"], "killed": killed}), tmp_path / "splits")
    assert written == [False]
    assert not (tmp_path / "splits/corpus.json").exists()


def test_only_a_corpus_is_replaced(tmp_path):
    """A project that happens to hold a corpus.json, or a corpus with notes of the user's beside it, is not thrown away."""
    made = Corpus("own", {}, lambda: iter([Fact("Q?", "A")]))
    for name, manifest in (("project", "{}"), ("corpus", json.dumps(MANIFEST))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "corpus.json").write_text(manifest)
        (tmp_path / name / "thesis.txt").write_text("years of work")
        with pytest.raises(UserError, match=r"(is not empty and holds no|holds thesis\.txt beside its) corpus; choose another"):
            write(made, tmp_path / name)
        assert (tmp_path / name / "thesis.txt").read_text() == "years of work"
    (tmp_path / "corpus/thesis.txt").unlink()
    write(made, tmp_path / "corpus")
    assert [path.name for path in sorted((tmp_path / "corpus").iterdir())] == ["corpus.json", "train.jsonl"]


def test_the_folder_one_is_in_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^\.: is the folder you are in, which cannot be replaced; choose another --output"):
        write(Corpus("own", {}, lambda: iter([Fact("Q?", "A")])), Path())
