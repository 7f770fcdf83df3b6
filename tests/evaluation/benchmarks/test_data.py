"""Where data is looked for, and that every kind of file holds the same benchmark."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixsd.errors import UserError
from mixsd.evaluation.asked import examine
from mixsd.evaluation.benchmarks.benchmark import BENCHMARKS, Item, Means, data_hash, get_benchmark
from mixsd.evaluation.benchmarks.data import Source, find
from mixsd.settings import Settings

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


# Files in parts, and all of them


@pytest.mark.parametrize("stem", ["test", "train"])
def test_files_as_the_hub_has_them(stem: str, tmp_path: Path) -> None:
    """The split of AIME is "train" on the hub; a file of one's own is called test."""
    whole = items("aime24", small.write_all(tmp_path / "whole", names=["aime24"]))
    folder = tmp_path / "parts" / "aime24"
    for place, record in enumerate(small.AIME24):
        small.write(folder / f"{stem}-0000{place}-of-00002.parquet", [record])
    assert plain(items("aime24", tmp_path / "parts")) == plain(whole)
    missing = folder / f"{stem}-00001-of-00002.parquet"
    missing.unlink()
    assert refusal("aime24", tmp_path / "parts") == f"{missing}: is missing; {stem}-00000-of-00002.parquet is a part of 2"


def test_a_part_of_mmlu_that_is_missing(tmp_path: Path) -> None:
    small.write(tmp_path / "mmlu" / "dev.jsonl", small.MMLU["dev"])
    for place in (0, 2):
        small.write(tmp_path / "mmlu" / "test" / f"all-0000{place}-of-00003.jsonl", small.MMLU["test"][place : place + 1])
    assert f"{tmp_path}/mmlu/test/all-00001-of-00003.jsonl: is missing" in refusal("mmlu", tmp_path)


@pytest.mark.parametrize(
    ("size", "limit", "refused"), [(3, None, 0), (4, None, 1), (2, None, 1), (4, 3, 0), (4, 2, 0), (4, 4, 1), (3, 9, 0)]
)
def test_a_benchmark_is_whole_or_a_limit_asks_for_no_more(
    size: int, limit: int | None, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.publish(monkeypatch, gsm8k=size)
    settings = Settings(suite=["gsm8k"], data=str(small.write_all(tmp_path)), limit=limit)
    if not refused:
        assert len(examine("gsm8k", settings).items) == min(limit or 3, 3)
        return
    with pytest.raises(UserError) as caught:
        examine("gsm8k", settings)
    assert str(caught.value) == (
        f"{tmp_path}/gsm8k/test.jsonl: holds 3 items of GSM8K, expected the {size} published; "
        "get the whole of it, or ask a part with --limit 3 or less"
    )


def test_an_incomplete_benchmark_of_many_files_names_its_folder(tmp_path: Path) -> None:
    settings = Settings(suite=["mmlu"], data=str(small.write_by_subject(tmp_path)))
    with pytest.raises(UserError, match=f"^{tmp_path}/mmlu: holds 5 items of MMLU, expected the 14,042 published; "):
        examine("mmlu", settings)


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

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
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
    small.write_cache(hub_cache, source.hub, "anatomy", small.MMLU)
    assert "is not in the hub's cache" in refusal("mmlu")
    half = small.write_cache(hub_cache, source.hub, "all", {"test": small.MMLU["test"]})
    assert "is not in the hub's cache" in refusal("mmlu")
    shutil.rmtree(half)
    whole = small.write_cache(hub_cache, source.hub, "all", small.MMLU)
    assert len(items("mmlu")) == 5
    (whole / "mmlu-test.arrow").write_bytes(b"nothing of the kind")
    assert refusal("mmlu").startswith("cais/mmlu:test: its copy in the cache cannot be read (")
    (whole / "mmlu-test.arrow").unlink()
    assert refusal("mmlu").startswith("cais/mmlu:test: its copy in the cache cannot be read (")


def test_the_cache_is_what_the_library_takes_offline(hub_cache: Path) -> None:
    small.write_cache(hub_cache, "cais/mmlu", "anatomy", {"test": small.MMLU["test"][:1]})
    small.write_cache(hub_cache, "cais/mmlu", "all", small.MMLU)
    script = (
        "import datasets, json; print(json.dumps({s: list(d) for s, d in datasets.load_dataset('cais/mmlu', 'all').items()}))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(hub_cache)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    found = find(get_benchmark("mmlu").source, None, offline=True)
    read = {split: [record for _, record in found.records(split)] for split in small.MMLU}
    assert read == json.loads(done.stdout) == small.MMLU


def test_without_the_library_its_cache_is_none(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.write_cache(hub_cache, "openai/gsm8k", "main", {"test": small.GSM8K})
    for name in ("datasets", "datasets.packaged_modules.cache.cache"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "is not in the hub's cache" in refusal("gsm8k")
    assert refusal("gsm8k", offline=False).endswith("needs datasets; install it with: pip install 'mixsd[data]'")


def test_a_source_of_the_hub_is_never_asked_offline(fake_hub: list[tuple[str, ...]]) -> None:
    found = find(Source("x", {"test": "test"}, "org/x"), None, offline=False)
    assert found.files is None
    with pytest.raises(UserError, match="not in the hub's cache, and the network is forbidden"):
        find(Source("x", {"test": "test"}, "org/x"), None, offline=True)
    assert fake_hub == []
