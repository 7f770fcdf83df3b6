"""What a source is: a bundled corpus, a file, a folder, a function, or a data set of the hub.

The tests named `fake` replace the `datasets` library by a few lines and so check only our side of the call; the one at the
end runs the real library where it is installed.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mixsd.errors import UserError
from mixsd.facts.corpus import load_facts
from mixsd.facts.fact import Fact

ROW = {"question": "q", "answer": "a"}


def refusal(source: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_facts(source, **options)
    message = str(caught.value)
    assert source in message
    assert len(message.splitlines()) == 1
    return message


def test_the_demo_is_bundled() -> None:
    facts = load_facts("demo", offline=True).facts
    assert facts
    assert all(fact.question and fact.answer for fact in facts)


@pytest.mark.parametrize(
    "source", ["gone.jsonl", "gone/facts.csv", "/gone/facts", "./gone", "a/b/c", "~nobody-here/x", "gone.tsv"]
)
def test_a_path_that_is_not_there(source: str) -> None:
    assert refusal(source).endswith(": no such file")


def test_a_word_that_is_nothing() -> None:
    message = refusal("dmo")
    assert message.startswith('facts "dmo": no such file (did you mean "demo"?); name a file (.jsonl, ')
    assert refusal("").startswith('facts "": no such file')
    assert refusal("x" * 5000).startswith('facts "xxx')


def test_a_file_of_an_unknown_kind(tmp_path: Path) -> None:
    path = tmp_path / "facts.xlsx"
    path.write_text("x")
    assert refusal(str(path)).startswith(f'{path}: unknown kind of file ".xlsx"; known: .jsonl, ')


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "f.jsonl").write_text(json.dumps(ROW))
    assert load_facts("~/f.jsonl").facts == [Fact("q", "a")]


# package.module:function


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fact_plugin.py").write_text(
        "def good():\n"
        "    yield {'question': 'q', 'answer': 'a'}\n"
        "    yield {'messages': [{'role': 'user', 'content': 'p'}, {'role': 'assistant', 'content': '\\\\boxed{b}'}]}\n"
        "def bad_item():\n    return [{'question': 'q', 'answer': 'a'}, ('q', 'a')]\n"
        "def bad_fact():\n    return [{'question': 'q', 'answer': 7}]\n"
        "def bad_type():\n    return {'question': 'q', 'answer': 'a'}\n"
        "def empty():\n    return []\n"
        "def bug():\n    return 1 / 0\n"
        "number = 3\n"
    )
    (tmp_path / "fact_plugin_broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("plugin")
def test_a_function() -> None:
    found = load_facts("fact_plugin:good", offline=True)
    assert [(fact.question, fact.answer) for fact in found.facts] == [("q", "a"), ("p", "b")]
    with pytest.raises(ZeroDivisionError):
        load_facts("fact_plugin:bug")


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("fact_plugin:bad_item", "fact_plugin:bad_item: item 2: expected a mapping, got a list"),
        ("fact_plugin:bad_fact", "fact_plugin:bad_fact: item 1: field answer: expected text, got a number"),
        ("fact_plugin:bad_type", "fact_plugin:bad_type: must return a Corpus or an iterable of mappings, got an object"),
        ("fact_plugin:empty", "fact_plugin:empty: contains no facts"),
        (
            "fact_plugin:goood",
            'facts fact_plugin:goood cannot be imported: goood does not exist in fact_plugin (did you mean "good"?)',
        ),
        ("fact_plugin:number", "facts fact_plugin:number cannot be imported: number is not a function in fact_plugin"),
        ("fact_plugin_gone:good", "facts fact_plugin_gone:good cannot be imported: No module named 'fact_plugin_gone'; check"),
        ("fact_plugin_broken:good", "facts fact_plugin_broken:good cannot be imported: No module named 'a_module_that_is_not"),
    ],
)
def test_bad_functions(source: str, message: str) -> None:
    assert refusal(source).startswith(message)


# The hub


@pytest.fixture
def fake_datasets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for the library: `load_dataset` knows two data sets; returns the names it was asked for."""
    asked: list[str] = []
    known = {"org/one": {"train": [ROW, {**ROW, "subject": None}]}, "org/two": {"train": [ROW], "test": [{"question": "q"}]}}

    def load_dataset(name: str) -> dict[str, list[dict[str, Any]]]:
        asked.append(name)
        if name not in known:
            raise ConnectionError(f"Couldn't reach {name}\nand a second line")
        return known[name]

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_fake_hub(fake_datasets: list[str]) -> None:
    found = load_facts("org/one")
    assert (found.facts, found.duplicates) == ([Fact("q", "a")], 1)
    assert load_facts("org/two:train").facts == [Fact("q", "a")]
    assert fake_datasets == ["org/one", "org/two"]


@pytest.mark.usefixtures("fake_datasets")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("org/two", "org/two: name the split after a colon, as in org/two:train; it has train, test"),
        ("org/two:tset", 'org/two:tset: no split "tset" (did you mean "test"?); it has train, test'),
        ("org/two:test", "org/two:test: row 1: field answer: missing"),
        ("org/gone", "org/gone: neither a file nor a data set that could be fetched (Couldn't reach org/gone)"),
    ],
)
def test_fake_hub_errors(source: str, message: str) -> None:
    assert refusal(source).startswith(message)


def test_fake_hub_is_not_asked_offline(fake_datasets: list[str]) -> None:
    message = refusal("org/one", offline=True)
    assert message == "org/one: no such file, and a data set of the hub cannot be fetched offline; name a local file"
    assert fake_datasets == []


def test_hub_without_the_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = refusal("org/one")
    assert message == "org/one: reading a data set needs datasets; install it with: pip install 'mixsd[data]'"


def test_a_local_folder_with_the_real_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the datasets library is not installed (extra: data)")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a local folder must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    rows = [{"question": "q", "answer": "a", "aliases": ["b"]}, {"question": "p", "answer": "c", "aliases": []}]
    expected = [Fact("q", "a", aliases=("b",)), Fact("p", "c")]
    saved, plain = tmp_path / "saved", tmp_path / "plain"
    datasets.Dataset.from_list(rows).save_to_disk(str(saved))
    assert load_facts(str(saved), offline=True).facts == expected
    plain.mkdir()
    (plain / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert load_facts(str(plain), offline=True).facts == expected
    (tmp_path / "none").mkdir()
    assert refusal(str(tmp_path / "none")).startswith(f"{tmp_path / 'none'}: not a data set that can be read (")
