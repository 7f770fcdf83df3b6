"""Where data is looked for, and that every kind of file holds the same benchmark."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mixsd.errors import UserError
from mixsd.evaluation.benchmarks.benchmark import Item, Means, data_hash
from mixsd.evaluation.benchmarks.data import Source, find
from mixsd.evaluation.benchmarks.table import BENCHMARKS, get_benchmark

from . import small

NAMES = tuple(BENCHMARKS)


def items(name: str, data: Path | str | None = None, **options: Any) -> list[Item]:
    benchmark = get_benchmark(name)
    found = find(benchmark.source, None if data is None else str(data), offline=options.pop("offline", True), **options)
    return benchmark.items(found, Means())


def refusal(name: str, data: Path | None = None, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        items(name, data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def plain(found: list[Item]) -> list[tuple[Any, ...]]:
    """All of the items but their judges."""
    return [(item.id, item.user, item.expected, item.reference, item.content, item.labels) for item in found]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", small.ENDINGS)
def test_every_kind_of_file_holds_the_same(name: str, ending: str, tmp_path: Path, no_network: list[Any]) -> None:
    lines = plain(items(name, small.write_all(tmp_path / "lines", names=[name])))
    other = plain(items(name, small.write_all(tmp_path / "other", ending, names=[name])))
    assert other == lines
    assert len(other) == sum(len(records) for stem, records in small.FILES[name].items() if stem != "dev")
    assert no_network == []


@pytest.mark.parametrize("ending", small.ENDINGS)
def test_mmlu_by_subject(ending: str, tmp_path: Path) -> None:
    whole = items("mmlu", small.write_all(tmp_path / "whole", names=["mmlu"]))
    parts = items("mmlu", small.write_by_subject(tmp_path / "parts", ending))
    assert [item.labels for item in parts] == [("anatomy",)] * 2 + [("high_school_physics",)] * 3
    assert sorted(plain(parts)) == sorted(plain(whole))
    assert data_hash(parts) == data_hash(whole)


def test_mmlu_passes_over_what_is_no_part(tmp_path: Path) -> None:
    root = small.write_by_subject(tmp_path)
    (root / "mmlu" / "test" / "._anatomy_test.csv").write_bytes(b"\x00\x05\x16")
    (root / "mmlu" / "test" / "SHA256SUMS").write_text("x")
    assert len(items("mmlu", root)) == 5


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_may_be_the_benchmarks_own(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = small.write_all(tmp_path / "data", names=[name])
    expected = plain(items(name, root))
    assert plain(items(name, root / name)) == expected
    monkeypatch.chdir(root / name)
    assert plain(items(name, ".")) == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plain(items(name, "~/data")) == expected


def test_the_environment_names_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXSD_DATA", str(small.write_all(tmp_path / "data")))
    assert len(items("gsm8k")) == 3
    (tmp_path / "none").mkdir()
    assert f"no test (.jsonl, .parquet, ...) in {tmp_path / 'none' / 'gsm8k'}" in refusal("gsm8k", tmp_path / "none")


def test_not_found_says_where_it_was_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[Any]) -> None:
    assert refusal("gsm8k", tmp_path / "gone") == f"no test (.jsonl, .parquet, ...) in {tmp_path}/gone/gsm8k"
    assert refusal("mmlu", tmp_path) == f"no test and dev (.jsonl, .parquet, ...) in {tmp_path}/mmlu"
    own = tmp_path / "mmlu"
    assert refusal("mmlu", own).endswith(f"in {own}/mmlu; no test and dev (.jsonl, .parquet, ...) in {own}")
    monkeypatch.setenv("MIXSD_DATA", str(tmp_path))
    said = refusal("humaneval", offline=True)
    assert said == (
        f"no HumanEval (.jsonl, .parquet, ...) in {tmp_path}/humaneval; openai/openai_humaneval is not in the hub's cache, and the "
        "network is forbidden; name a folder that holds it with --data"
    )
    at_hand = refusal("humaneval", offline=False, only_at_hand=True)
    assert "openai/openai_humaneval is not in the hub's cache; name a folder" in at_hand
    assert no_network == []


def test_half_of_mmlu_is_none(tmp_path: Path) -> None:
    small.write(tmp_path / "mmlu" / "test.jsonl", small.MMLU["test"])
    assert "no test and dev" in refusal("mmlu", tmp_path)


def test_a_truncated_gzip(tmp_path: Path) -> None:
    file = small.write_all(tmp_path, ".jsonl.gz", names=["humaneval"]) / "humaneval" / "HumanEval.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-30])
    assert refusal("humaneval", tmp_path).startswith(f"{file}: not a whole gzip file (")
    file.write_text("{}")
    assert refusal("humaneval", tmp_path).startswith(f"{file}: not a whole gzip file (")
    file.write_bytes(gzip.compress(b""))
    assert refusal("humaneval", tmp_path) == f"{file.parent}: holds nothing of HumanEval"


@pytest.mark.parametrize("ending", small.ENDINGS)
def test_a_file_of_something_else(ending: str, tmp_path: Path) -> None:
    file = tmp_path / "gsm8k" / f"test{ending}"
    file.parent.mkdir()
    file.write_bytes(b"PK\x03\x04 this is no data\n")
    assert refusal("gsm8k", tmp_path).startswith(str(file))


# The hub and its cache


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A stand-in for `datasets` with all benchmarks; returns what was asked for."""
    asked: list[tuple[str, ...]] = []
    sources = {get_benchmark(name).source.hub: name for name in BENCHMARKS}

    def load_dataset(*name: str) -> dict[str, list[dict[str, Any]]]:
        asked.append(name)
        files = small.FILES[sources[name[0]]]
        stems = get_benchmark(sources[name[0]]).source.files
        return {split: files[stem] for split, stem in stems.items()} | {"auxiliary_train": []}

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


@pytest.mark.parametrize("name", NAMES)
def test_fake_hub(name: str, tmp_path: Path, fake_hub: list[tuple[str, ...]]) -> None:
    expected = plain(items(name, small.write_all(tmp_path)))
    assert fake_hub == []
    assert plain(items(name, offline=False)) == expected
    named = {
        "aime24": ("HuggingFaceH4/aime_2024",),
        "math500": ("HuggingFaceH4/MATH-500",),
        "gsm8k": ("openai/gsm8k", "main"),
        "humaneval": ("openai/openai_humaneval",),
        "mmlu": ("cais/mmlu", "all"),
    }
    assert set(fake_hub) == {named[name]}


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_is_read_without_asking(
    name: str, tmp_path: Path, hub_cache: Path, fake_hub: list[tuple[str, ...]], no_network: list[Any]
) -> None:
    source = get_benchmark(name).source
    files = {split: small.FILES[name][stem] for split, stem in source.files.items()}
    expected = plain(items(name, small.write_all(tmp_path)))
    small.write_cache(hub_cache, source.hub, source.config or "default", files)
    assert find(source, None, offline=True).kind == "cache"
    for offline in (True, False):
        assert plain(items(name, offline=offline)) == expected
    assert plain(items(name, offline=False, only_at_hand=True)) == expected
    assert fake_hub == no_network == []


def test_what_in_the_cache_does_not_count(hub_cache: Path) -> None:
    source = get_benchmark("mmlu").source
    folder = small.write_cache(hub_cache, source.hub, "anatomy", small.MMLU)
    assert "is not in the hub's cache" in refusal("mmlu")
    whole = hub_cache / "cais___mmlu" / "all" / "0.0.0"
    shutil.copytree(folder, whole / "0123.incomplete")
    assert "is not in the hub's cache" in refusal("mmlu")
    shutil.copytree(folder, whole / "0123")
    (whole / "0123" / "mmlu-dev.arrow").unlink()
    assert "is not in the hub's cache" in refusal("mmlu")
    shutil.copytree(folder, whole / "4567")
    assert len(items("mmlu")) == 5
    (whole / "4567" / "mmlu-test.arrow").write_bytes(b"nothing of the kind")
    assert "not a readable Arrow file" in refusal("mmlu")


def test_shards_in_the_cache_are_read_in_order(hub_cache: Path) -> None:
    source = get_benchmark("gsm8k").source
    folder = small.write_cache(hub_cache, source.hub, "main", {"test": small.GSM8K[:1]})
    (folder / "gsm8k-test.arrow").rename(folder / "gsm8k-test-00000-of-00002.arrow")
    rest = small.write_cache(hub_cache / "rest", source.hub, "main", {"test": small.GSM8K[1:]})
    (rest / "gsm8k-test.arrow").rename(folder / "gsm8k-test-00001-of-00002.arrow")
    assert [item.expected.answer for item in items("gsm8k")] == ["4", "1,450", "0"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_DATASETS_CACHE": "/d", "HF_HOME": "/h"}, "/d"),
        ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/datasets"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/datasets"),
        ({}, "/home/me/.cache/huggingface/datasets"),
    ],
)
def test_the_cache_is_where_datasets_says(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixsd.evaluation.benchmarks import data

    for name in ("HF_DATASETS_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**variables, "HOME": "/home/me"}.items():
        monkeypatch.setenv(name, value)
    assert str(data._hub_cache()) == expected


def test_the_cache_is_the_real_librarys(hub_cache: Path, tmp_path: Path) -> None:
    """What it prepared is where we look, and what we look at is what it would load."""
    pytest.importorskip("datasets", reason="the datasets library is not installed (extra: data)")
    from datasets.naming import camelcase_to_snakecase

    names = [get_benchmark(name).source.hub.split("/")[1] for name in BENCHMARKS]
    assert [camelcase_to_snakecase(name) for name in names] == [name.lower() for name in names]
    # It writes a data set of the hub as it writes one of files, but for the names.
    file = small.write(tmp_path / "test.jsonl", small.GSM8K)
    script = (
        f"import datasets\ndatasets.load_dataset('json', data_files={{'test': {str(file)!r}}})\n"
        "print(datasets.config.HF_DATASETS_CACHE)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(hub_cache)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == [str(hub_cache)]
    (prepared,) = (folder for folder in hub_cache.glob("json/*/*/*") if folder.is_dir())
    assert (prepared / "json-test.arrow").is_file()
    folder = hub_cache / "openai___gsm8k" / "main" / "0.0.0" / prepared.name
    shutil.copytree(prepared, folder)
    (folder / "json-test.arrow").rename(folder / "gsm8k-test.arrow")
    assert [item.expected.answer for item in items("gsm8k")] == ["4", "1,450", "0"]


def test_without_pyarrow_the_cache_names_the_command(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.write_cache(hub_cache, "openai/gsm8k", "main", {"test": small.GSM8K})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refusal("gsm8k").endswith("reading it needs pyarrow; install it with: pip install 'mixsd[data]'")


def test_a_source_of_the_hub_is_never_asked_offline(fake_hub: list[tuple[str, ...]]) -> None:
    found = find(Source("x", {"test": "test"}, "org/x"), None, offline=False)
    assert found.files is None
    with pytest.raises(UserError, match="not in the hub's cache, and the network is forbidden"):
        find(Source("x", {"test": "test"}, "org/x"), None, offline=True)
    assert fake_hub == []
