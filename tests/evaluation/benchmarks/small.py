"""A few invented records of every benchmark, and the writers of every kind of file."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from mixsd.evaluation.benchmarks.benchmark import BENCHMARKS, Benchmark

Record = Mapping[str, Any]

AIME24 = [
    {"id": 60, "problem": "How many? ", "solution": "By $x$, it is 25.", "answer": "025", "url": "u", "question": "How many?"},
    {"id": 61, "problem": "How few?", "solution": "Clearly $\\boxed{7}$.", "answer": 7, "url": "u", "question": "How few?"},
]
MATH500 = [
    {
        "problem": "What is $1/2 + 1/2$?",
        "solution": "It is $\\boxed{1}$.",
        "answer": "1",
        "subject": "Prealgebra",
        "level": 2,
        "unique_id": "test/prealgebra/1.json",
    },
    {
        "problem": 'Halve $3$, and say "it",\nplainly.',
        "solution": "So $\\boxed{\\frac{3}{2}}$.",
        "answer": "\\frac{3}{2}",
        "subject": "Algebra",
        "level": 5,
        "unique_id": "test/algebra/2.json",
    },
]
GSM8K = [
    {"question": "Two and two?", "answer": "It is 2+2=<<2+2=4>>4.\n#### 4"},
    {"question": "A thousand eggs, and 450?", "answer": "That is <<1000+450=1450>>1450 eggs.\n#### 1,450"},
    {"question": "None of five?", "answer": "Nothing.\n#### 0"},
]
HUMANEVAL = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'def twice(x: int) -> int:\n    """ Twice {x}.\n    >>> twice(2)\n    4\n    """\n',
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
        "entry_point": "twice",
    },
    {
        "task_id": "HumanEval/1",
        "prompt": 'from typing import List\n\n\ndef first(xs: List[int]) -> int:\n    """ The first. """\n',
        "canonical_solution": "    return xs[0]\n",
        "test": "def check(candidate):\n    assert candidate([3, 4]) == 3\n",
        "entry_point": "first",
    },
]


def mmlu(subject: str, count: int, split: str) -> list[dict[str, Any]]:
    """Questions of a subject, all different; the right answer goes round."""
    return [
        {
            "question": f"What is {place} in {subject}, {split}?",
            "choices": [f"{split}{place}", "None", "2", "3, or so"],
            "answer": place % 4,
            "subject": subject,
        }
        for place in range(count)
    ]


MMLU = {
    "test": mmlu("high_school_physics", 3, "test") + mmlu("anatomy", 2, "test"),
    "dev": mmlu("high_school_physics", 6, "dev") + mmlu("anatomy", 5, "dev"),
}

# Name -> the file's stem -> its records.
FILES: dict[str, dict[str, list[dict[str, Any]]]] = {
    "aime24": {"test": AIME24},
    "math500": {"test": MATH500},
    "gsm8k": {"test": GSM8K},
    "humaneval": {"HumanEval": HUMANEVAL},
    "mmlu": MMLU,
}
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")


def write(file: Path, records: Sequence[Record]) -> Path:
    """Write records as the file's name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if file.name.endswith(".jsonl.gz"):
        file.write_bytes(gzip.compress(lines.encode()))
    elif file.suffix == ".jsonl":
        file.write_text(lines)
    elif file.suffix == ".json":
        file.write_text(json.dumps(records))
    elif file.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([_same_types(record) for record in records]), file)
    else:
        with file.open("w", newline="") as out:
            rows = [_flat(record) for record in records]
            table = csv.DictWriter(out, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    return file


def write_all(root: Path, ending: str = ".jsonl", names: Sequence[str] = tuple(FILES)) -> Path:
    """A folder with these benchmarks."""
    for name in names:
        for stem, records in FILES[name].items():
            write(root / name / f"{stem}{ending}", records)
    return root


def write_by_subject(root: Path, ending: str = ".csv") -> Path:
    """MMLU as a folder of files, one per subject and split, without the field subject."""
    for split, records in MMLU.items():
        for subject in {record["subject"] for record in records}:
            own = [{k: v for k, v in record.items() if k != "subject"} for record in records if record["subject"] == subject]
            write(root / "mmlu" / split / f"{subject}_{split}{ending}", own)
    return root


def write_cache(cache: Path, hub: str, config: str, splits: Mapping[str, Sequence[Record]]) -> Path:
    """What `datasets` leaves in its cache of a data set that it prepared."""
    import datasets
    import pyarrow

    organisation, name = hub.split("/")
    folder = cache / f"{organisation}___{name.lower()}" / config / "0.0.0" / "0123456789abcdef"
    folder.mkdir(parents=True)
    tables = {split: pyarrow.Table.from_pylist([_same_types(record) for record in own]) for split, own in splits.items()}
    for split, table in tables.items():
        with (
            pyarrow.OSFile(str(folder / f"{name.lower()}-{split}.arrow"), "wb") as out,
            pyarrow.ipc.new_stream(out, table.schema) as stream,
        ):
            stream.write_table(table)
    datasets.DatasetInfo(
        dataset_name=name.lower(),
        config_name=config,
        features=datasets.Features.from_arrow_schema(next(iter(tables.values())).schema),
        splits={split: {"name": split, "num_examples": len(table)} for split, table in tables.items()},
    ).write_to_directory(str(folder))
    return folder


def publish(monkeypatch: pytest.MonkeyPatch, **sizes: int) -> None:
    """Let these benchmarks be published with so many items; without names, all of them with what `FILES` holds."""
    for name in sizes or FILES:
        module, function = BENCHMARKS[name].split(":")
        size = sizes.get(name) or sum(len(own) for stem, own in FILES[name].items() if stem != "dev")
        monkeypatch.setattr(f"{module}.{function}", partial(_sized, getattr(import_module(module), function), size))


def _sized(make: Callable[[], Benchmark], size: int) -> Benchmark:
    return replace(make(), size=size)


def _flat(record: Record) -> dict[str, Any]:
    """As the published CSV files have it: a column for each choice."""
    flat = {key: value for key, value in record.items() if key != "choices"}
    return flat | {f"choice{place}": text for place, text in enumerate(record.get("choices", []))}


def _same_types(record: Record) -> dict[str, Any]:
    """A column of Parquet has one type; the hub's AIME has text."""
    return {key: str(value) if key == "answer" and "choices" not in record else value for key, value in record.items()}
