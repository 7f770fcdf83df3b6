"""Shards: whoever did which part, in whatever order, the merged run is the single run."""

import fcntl
import shutil
from pathlib import Path

import pytest

from mixsd import storage
from mixsd.decoding import engine
from mixsd.errors import UserError
from mixsd.pipeline import commands
from mixsd.shards import Shard, merge
from mixsd.storage import Journal, read_jsonl
from tests.pipeline.test_inject import SMALL
from tests.tiny import save_tiny

KEYS = [f"fact-{i}" for i in range(200)]


def essence(folder: Path, name: str):
    """The rows of a file, log-probabilities apart."""
    return [
        {key: value for key, value in row.items() if key not in ("base_logprobs", "nll")} for row in read_jsonl(folder / name)
    ]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_every_key_is_in_one_shard(count):
    shards = [Shard(number, count) for number in range(1, count + 1)]
    assert [sum(shard.holds(key) for shard in shards) for key in KEYS] == [1] * len(KEYS)
    assert all(sum(shard.holds(key) for key in KEYS) > 0.5 * len(KEYS) / count for shard in shards)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_no_such_shard(text):
    with pytest.raises(UserError, match="expected I/N"):
        Shard.parse(text)


def test_merging_takes_each_item_once_and_in_order(tmp_path):
    own = tmp_path / "attempts.jsonl"
    for path, numbers in ((own, [1]), (Shard(1, 2).beside(own), [1, 2, 3]), (Shard(2, 2).beside(own), [4])):
        with Journal(path) as journal:
            for number in numbers:
                journal.append({"n": number})
    assert merge(own, lambda row: row["n"]) == 3
    assert merge(own, lambda row: row["n"]) == 0
    assert [row["n"] for _, row in Journal(own).read()] == [1, 2, 3, 4]


def test_merged_shards_are_the_single_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "base", stops=[2, *range(8, 262, 12)])
    options = {**SMALL, "model": str(tmp_path / "base")}
    single = commands.inject(output=str(tmp_path / "single"), **options).folder
    shutil.rmtree(tmp_path / "cache" / "replies")

    run = tmp_path / "parts"
    decoded = []
    decode = engine.continuous.decode

    def counted(*args, **kwargs):
        for item in decode(*args, **kwargs):
            decoded.append(item.key)
            yield item

    monkeypatch.setattr(engine.continuous, "decode", counted)
    for shard in ("3/3", "1/3"):
        commands.mix(output=str(run), shard=shard, **options)
        assert not (run / "targets.jsonl").exists()
    # The second part was killed half way: the whole command finishes it.
    commands.mix(output=str(run), shard="2/3", **options)
    part = run / "attempts.2-of-3.jsonl"
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    mixed_by_shards = len(decoded)
    commands.mix(output=str(run), **options)
    assert len(decoded) - mixed_by_shards < mixed_by_shards / 3, "only what the second part lost is done again"
    assert essence(run, "targets.jsonl") == essence(single, "targets.jsonl")

    commands.train(run)
    for shard in ("1/2", "2/2"):
        commands.evaluate(run, shard=shard)
        assert not (run / "evaluation" / "core" / "tuned.jsonl").exists()
    decoded.clear()
    commands.evaluate(run)
    assert decoded == [], "nothing was left to generate"
    for name in ("base", "tuned"):
        assert essence(run, f"evaluation/core/{name}.jsonl") == essence(single, f"evaluation/core/{name}.jsonl")
    assert sorted(path.name for path in (run / "evaluation" / "core").iterdir()) == ["base.jsonl", "tuned.jsonl"]


def test_who_may_work_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "base", stops=[2, *range(8, 262, 12)])
    options = {**SMALL, "model": str(tmp_path / "base"), "output": str(tmp_path / "run")}
    commands.mix(shard="1/2", **options)
    with (tmp_path / "run" / ".lock").open("w") as lock, (tmp_path / "run" / ".lock.1-of-2").open("w") as own:
        fcntl.flock(lock, fcntl.LOCK_SH)
        fcntl.flock(own, fcntl.LOCK_EX)
        commands.mix(shard="2/2", **options)
        for shard in ("1/2", None):
            with pytest.raises(UserError, match="another mixsd process"):
                commands.mix(shard=shard, **options)


def test_inject_does_the_whole_and_says_so(tmp_path):
    with pytest.raises(UserError, match="--shard is for mix and evaluate"):
        commands.inject(**{**SMALL, "model": str(save_tiny(tmp_path / "base")), "output": str(tmp_path / "run"), "shard": "1/2"})
    assert storage.Journal(tmp_path / "run" / "attempts.jsonl").path.exists() is False
