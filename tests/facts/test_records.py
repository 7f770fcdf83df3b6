"""Facts from files: every format, every way a file can be wrong, and the line it is reported with."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd.errors import UserError
from mixsd.facts.corpus import load_facts
from mixsd.facts.fact import FIELDS, Fact, FactSet, to_json
from tests.facts.test_fact import FACTS

ROW = '{"question": "q1", "answer": "a1"}'


def load(folder: Path, name: str, content: bytes | str) -> FactSet:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_facts(str(path))


def refusal(folder: Path, name: str, content: bytes | str) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, name, content)
    message = str(caught.value)
    assert message.startswith(str(folder / name))
    assert len(message.splitlines()) == 1
    return message.removeprefix(str(folder) + "/")


# JSONL and JSON


@pytest.mark.parametrize("name", ["f.jsonl", "f.ndjson", "F.JSONL"])
def test_jsonl_with_mark_crlf_and_blank_lines(tmp_path: Path, name: str) -> None:
    content = b"\xef\xbb\xbf\r\n" + ROW.encode() + b"\r\n\n   \n" + '{"question": "Größe?", "answer": "ä"}'.encode()
    assert load(tmp_path, name, content).facts == [Fact("q1", "a1"), Fact("Größe?", "ä")]


def test_jsonl_keeps_unicode_line_separators_inside_a_text(tmp_path: Path) -> None:
    assert load(tmp_path, "f.jsonl", '{"question": "a\u2028b\x85c", "answer": "x"}\n').facts[0].question == "a\u2028b\x85c"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROW + "\n\n{oops\n", "f.jsonl: line 3: not valid JSON (Expecting property name"),
        (ROW + "\n" + ROW[:-4], "f.jsonl: line 2: not valid JSON (Unterminated string"),
        (ROW + ROW, "f.jsonl: line 1: not valid JSON (Extra data"),
        ('{"question": "q", "answer":\n', "f.jsonl: line 1: not valid JSON (Expecting value at character 28)"),
        ('["q", "a"]', 'f.jsonl: line 1: expected an object, {"question": ..., "answer": ...}, got a list'),
        ("7", "f.jsonl: line 1: expected an object"),
        ('{"question": "q", "answer": NaN}', "f.jsonl: line 1: not valid JSON (NaN is no JSON number)"),
        ('{"question": "q", "answer": "a", "meta": {"x": -Infinity}}', "f.jsonl: line 1: not valid JSON (-Infinity is no"),
        ('{"question": "q", "answer": "a", "meta": {"x": 1e999}}', "f.jsonl: line 1: field meta: cannot be written"),
        ('{"question": "q", "answer": "a", "answer": "b"}', 'f.jsonl: line 1: not valid JSON ("answer" is there twice)'),
        ('{"question": "q", "answer": ' + "9" * 5000 + "}", "f.jsonl: line 1: not valid JSON (Exceeds the limit"),
        ("[" * 100_000, "f.jsonl: line 1: not valid JSON (maximum recursion depth"),
        ('{"question": "\\ud800", "answer": "a"}', "f.jsonl: line 1: field question: contains half of a surrogate pair"),
        (ROW.encode() + b"\n" + b'{"question": "\xff", "answer": "a"}', "f.jsonl: line 2: not UTF-8 (invalid start byte); save"),
        (ROW.encode("utf-16"), "f.jsonl: line 1: not UTF-8"),
        (ROW + '\n{"question": "q2"}', "f.jsonl: line 2: field answer: missing; every fact needs a question and an answer"),
        (ROW + '\n{"question": "q2", "anwser": "a"}', 'f.jsonl: line 2: unknown field "anwser" (did you mean "answer"?)'),
        ("", "f.jsonl: contains no facts"),
        (b"\xef\xbb\xbf\n \n", "f.jsonl: contains no facts"),
    ],
)
def test_bad_jsonl(tmp_path: Path, content: bytes | str, message: str) -> None:
    assert refusal(tmp_path, "f.jsonl", content).startswith(message)


def test_repetitions_and_conflicts_in_a_file(tmp_path: Path) -> None:
    assert load(tmp_path, "f.jsonl", f"{ROW}\n{ROW}\n") == FactSet([Fact("q1", "a1")], duplicates=1)
    path = tmp_path / "f.jsonl"
    message = refusal(tmp_path, "f.jsonl", ROW + '\n\n{"question": "q1", "answer": "a2"}\n')
    assert message.startswith(f'f.jsonl: line 3: the question of {path}: line 1 with another answer ("a2" here, "a1" there)')
    same_id = '{"question": "q1", "answer": "a", "id": "k"}\n{"question": "q2", "answer": "a", "id": "k"}\n'
    message = refusal(tmp_path, "f.jsonl", same_id)
    assert message.startswith(f'f.jsonl: line 2: id "k" belongs to another question, {path}: line 1')


def test_json_list(tmp_path: Path) -> None:
    assert load(tmp_path, "f.json", f"\ufeff[{ROW},\r\n{ROW}]") == FactSet([Fact("q1", "a1")], duplicates=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROW, "f.json: expected one list of facts"),
        (f"{ROW}\n{ROW}\n", "f.json: not valid JSON (one object per line is .jsonl; Extra data at line 2, character 1)"),
        (f"[{ROW},\n{ROW}\n", "f.json: not valid JSON (Expecting ',' delimiter at line 3, character 1)"),
        (f"[{ROW}, 3]", "f.json: record 2: expected an object"),
        (f'[{ROW}, {{"question": "q"}}]', "f.json: record 2: field answer: missing"),
        ('[{"question": "q", "answer": NaN}]', "f.json: not valid JSON (NaN is no JSON number)"),
        ("[]", "f.json: contains no facts"),
        ("  \n", "f.json: contains no facts"),
    ],
)
def test_bad_json(tmp_path: Path, content: str, message: str) -> None:
    assert refusal(tmp_path, "f.json", content).startswith(message)


# CSV and TSV


def test_csv_with_mark_crlf_blank_lines_and_quoted_cells(tmp_path: Path) -> None:
    content = (
        "\ufeffanswer, question ,aliases,meta,subject\r\n"
        '"7",How many?,seven|VII,"{""page"": 3}",\r\n'
        "\r\n,,,,\r\n"
        '"a, ""b""","two\r\nlines","[""x|y""]",,S\r\n'
        "short,A row may end early\r\n"
    )
    assert load(tmp_path, "f.csv", content).facts == [
        Fact("How many?", "7", aliases=("seven", "VII"), meta={"page": 3}),
        Fact("two\r\nlines", 'a, "b"', aliases=("x|y",), subject="S"),
        Fact("A row may end early", "short"),
    ]


def test_tsv(tmp_path: Path) -> None:
    content = 'question\tanswer\tparaphrases\nWho, then?\tAda\tWho is it? | Who?\n"a\tb"\tc\t\n'
    assert load(tmp_path, "f.tsv", content).facts == [
        Fact("Who, then?", "Ada", paraphrases=("Who is it?", "Who?")),
        Fact("a\tb", "c"),
    ]


def test_csv_cell_larger_than_the_default_limit(tmp_path: Path) -> None:
    reference = "long " * 100_000 + "end"
    assert load(tmp_path, "f.csv", f"question,answer,reference\nq,a,{reference}\n").facts[0].reference == reference


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "f.csv: contains no facts"),
        ("question,answer\n", "f.csv: contains no facts"),
        ("Who keeps the light?,Ada\n", "f.csv: line 1: the first line must name the columns: unknown field"),
        ("question,anwser\nq,a\n", 'f.csv: line 1: the first line must name the columns: unknown field "anwser" (did you mean'),
        ("question,subject\nq,a\n", "f.csv: line 1: the first line must name the columns, question and answer among them"),
        ("question,answer,source\nq,a,s\n", 'f.csv: line 1: unknown field "source"'),
        ("question,answer,\nq,a,s\n", 'f.csv: line 1: unknown field ""'),
        ("question,answer,answer\nq,a,b\n", "f.csv: line 1: column answer is there twice"),
        ("question;answer\nq;a\n", "f.csv: line 1: the columns are separated by a semicolon, expected a comma"),
        ("question\tanswer\nq\ta\n", "f.csv: line 1: the columns are separated by a tab, expected a comma"),
        ('question,answer\n"two\nlines",a\nq,a,b\n', "f.csv: line 4: 3 cells, but the header names 2; put quotes around a cell"),
        ("question,answer\n\nq1,a1\nq2,\n", "f.csv: line 4: field answer: missing"),
        ('question,answer\nq1,a1\n"q2,a2\nq3,a3\n', "f.csv: line 3: not a valid table"),
        ('question,answer\n"q" 1,a1\n', "f.csv: line 2: not a valid table"),
        ('question,answer,aliases\nq,a,"[1]"\n', "f.csv: line 2: field aliases, item 1: expected text, got a number"),
        ("question,answer,aliases\nq,a,[b\n\n]\n", "f.csv: line 4: field answer: missing"),
        ('question,answer,aliases\nq,a,"[b]"\n', "f.csv: line 2: field aliases: not valid JSON"),
        ("question,answer,aliases\nq,a,b||c\n", "f.csv: line 2: field aliases, item 2: empty"),
        ("question,answer,meta\nq,a,x\n", "f.csv: line 2: field meta: not valid JSON"),
        ("question,answer,meta\nq,a,7\n", "f.csv: line 2: field meta: expected an object, got a number"),
        (b"question,answer\nq,a\nq,\xe4\n", "f.csv: line 3: not UTF-8"),
    ],
)
def test_bad_csv(tmp_path: Path, content: bytes | str, message: str) -> None:
    assert refusal(tmp_path, "f.csv", content).startswith(message)


def test_tsv_names_its_own_separator(tmp_path: Path) -> None:
    assert refusal(tmp_path, "f.tsv", "question,answer\nq,a\n").endswith("separated by a comma, expected a tab")


# Round trips


def write_jsonl(path: Path, facts: list[Fact], ascii_only: bool) -> None:
    path.write_bytes("".join(json.dumps(to_json(fact), ensure_ascii=ascii_only) + "\n" for fact in facts).encode())


def write_csv(path: Path, facts: list[Fact], delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, FIELDS, delimiter=delimiter)
        rows.writeheader()
        for fact in facts:
            rows.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in to_json(fact).items()})


DISTINCT = st.lists(FACTS, min_size=1, max_size=3, unique_by=(lambda f: " ".join(f.question.split()), lambda f: f.id)).filter(
    # Texts of up to 20 arbitrary characters may still be equal in NFC; such lists test `unique`, not the formats.
    lambda facts: all(a.question.isascii() for a in facts) or len(facts) == 1
)


@settings(max_examples=60, deadline=None)
@given(DISTINCT, st.booleans(), st.sampled_from([("f.jsonl", ""), ("f.csv", ","), ("f.tsv", "\t")]))
def test_any_fact_survives_any_text_format(facts: list[Fact], ascii_only: bool, form: tuple[str, str]) -> None:
    name, delimiter = form
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if delimiter:
            write_csv(path, facts, delimiter)
        else:
            write_jsonl(path, facts, ascii_only)
        assert load_facts(str(path)) == FactSet(facts, 0)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["f.jsonl", "f.json", "f.csv", "f.tsv", "f.parquet"]))
def test_no_bytes_raise_anything_but_a_user_error(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(UserError):
        load(Path(folder), name, content)


# Parquet


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the data extra")
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), path)


def test_parquet(tmp_path: Path) -> None:
    count = 2500
    columns: dict[str, list[Any]] = {
        "question": [f"q{number}" for number in range(count)],
        "answer": [f"ä{number}" for number in range(count)],
        "aliases": [["x", "y"] if number == 0 else None for number in range(count)],
        "meta": [{"page": number} for number in range(count)],
    }
    write_parquet(tmp_path / "f.parquet", columns)
    facts = load_facts(str(tmp_path / "f.parquet")).facts
    assert len(facts) == count
    assert facts[0] == Fact("q0", "ä0", aliases=("x", "y"), meta={"page": 0})
    assert facts[-1] == Fact(f"q{count - 1}", f"ä{count - 1}", meta={"page": count - 1})


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    for columns, message in [
        ({"question": ["q", "r"], "answer": ["a", None]}, "row 2: field answer: missing"),
        ({"question": ["q"], "answer": [7]}, "row 1: field answer: expected text, got a number"),
        ({"question": ["q"], "answer": ["a"], "source": ["s"]}, 'row 1: unknown field "source"'),
        ({"question": [], "answer": []}, "contains no facts"),
    ]:
        write_parquet(path, columns)
        with pytest.raises(UserError) as caught:
            load_facts(str(path))
        assert str(caught.value).startswith(f"{path}: {message}")
    assert refusal(tmp_path, "f.parquet", b"PAR1 no table").startswith("f.parquet: not a readable Parquet file (")


def test_parquet_without_pyarrow_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = refusal(tmp_path, "f.parquet", b"")
    assert message == "f.parquet: reading Parquet needs pyarrow; install it with: pip install 'mixsd[data]'"


# Size and weight


def test_the_time_to_read_grows_with_the_facts_and_no_faster(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        path = tmp_path / f"{count}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(count):
                row = {
                    "question": f"Where is Dörf {number}?",
                    "answer": f"north {number}",
                    "aliases": ["N"],
                    "subject": f"Dörf {number}",
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        start = time.process_time()
        assert len(load_facts(str(path)).facts) == count
        return time.process_time() - start

    assert seconds(100_000) < 2 * 10 * seconds(10_000)


def test_lines_are_streamed(tmp_path: Path) -> None:
    # An error in line 2 is met before the rest of the file is read: line 3 is not even UTF-8.
    assert "line 2: not valid JSON" in refusal(tmp_path, "f.jsonl", ROW.encode() + b"\n{\n\xff\n")


def test_reading_facts_imports_no_heavy_library(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text(ROW)
    code = (
        "import sys; from mixsd.facts.corpus import load_facts; load_facts(sys.argv[1]);"
        "print([n for n in ('torch', 'transformers', 'datasets', 'pyarrow', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
