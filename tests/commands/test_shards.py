"""Shards: whoever did which part, in whatever order, the merged run is the single run."""

import fcntl
import json
import shutil
from pathlib import Path

import pytest

from mixsd.cli.entry import run
from mixsd.commands import inject
from mixsd.decoding import engine
from mixsd.errors import UserError
from mixsd.run import session
from mixsd.storage import Journal, Shard, left_beside, merge, read_jsonl
from tests.commands.test_inject import SMALL
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
        Shard.of(text)


def test_merging_takes_each_item_once_and_in_order(tmp_path):
    own = tmp_path / "attempts.jsonl"
    for path, numbers in ((own, [1]), (Shard(1, 2).beside(own), [1, 2, 3]), (Shard(2, 2).beside(own), [4])):
        with Journal(path) as journal:
            for number in numbers:
                journal.append({"n": number})
    assert merge(left_beside(own), own, lambda row: row["n"]) == 3
    assert merge(left_beside(own), own, lambda row: row["n"]) == 0
    assert [row["n"] for _, row in Journal(own).read()] == [1, 2, 3, 4]


def test_merged_shards_are_the_single_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "base", stops=[2, *range(8, 262, 12)])
    options = {**SMALL, "model": str(tmp_path / "base")}
    single = inject.inject(output=str(tmp_path / "single"), **options).folder
    shutil.rmtree(tmp_path / "cache" / "replies")

    parts = tmp_path / "parts"
    decoded = []
    decode = engine.continuous.decode

    def counted(*args, **kwargs):
        for item in decode(*args, **kwargs):
            decoded.append(item.key)
            yield item

    monkeypatch.setattr(engine.continuous, "decode", counted)
    for shard in ("3/3", "1/3"):
        inject.mix(output=str(parts), shard=shard, **options)
        assert not (parts / "targets.jsonl").exists()
    # The second part was killed half way: the whole command finishes it.
    inject.mix(output=str(parts), shard="2/3", **options)
    part = parts / "attempts.2-of-3.jsonl"
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    mixed_by_shards = len(decoded)
    inject.mix(output=str(parts), **options)
    assert len(decoded) - mixed_by_shards < mixed_by_shards / 3, "only what the second part lost is done again"
    assert essence(parts, "targets.jsonl") == essence(single, "targets.jsonl")

    inject.train(parts)
    for shard in ("1/2", "2/2"):
        inject.evaluate(parts, shard=shard)
        assert not (parts / "evaluation" / "core" / "tuned.jsonl").exists()
    decoded.clear()
    inject.evaluate(parts)
    assert decoded == [], "nothing was left to generate"
    for name in ("base", "tuned"):
        assert essence(parts, f"evaluation/core/{name}.jsonl") == essence(single, f"evaluation/core/{name}.jsonl")
    assert sorted(path.name for path in (parts / "evaluation" / "core").iterdir()) == ["asked.json", "base.jsonl", "tuned.jsonl"]


def test_who_may_work_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "base", stops=[2, *range(8, 262, 12)])
    options = {**SMALL, "model": str(tmp_path / "base"), "output": str(tmp_path / "run")}
    inject.mix(shard="1/2", **options)
    with (tmp_path / "run" / ".lock").open("w") as lock, (tmp_path / "run" / ".lock.1-of-2").open("w") as own:
        fcntl.flock(lock, fcntl.LOCK_SH)
        fcntl.flock(own, fcntl.LOCK_EX)
        inject.mix(shard="2/2", **options)
        for shard in ("1/2", None):
            with pytest.raises(UserError, match="another mixsd process"):
                inject.mix(shard=shard, **options)


def test_what_changes_the_whole_run_refuses_a_shard_before_it_touches_anything(tmp_path):
    folder = tmp_path / "run"
    options = {**SMALL, "model": str(save_tiny(tmp_path / "base")), "output": str(folder)}
    for refused in (
        lambda: inject.inject(**options, shard="1/2"),
        lambda: inject.train(folder, shard="1/2"),
        lambda: inject.report(folder, shard="1/2"),
    ):
        with pytest.raises(UserError, match="--shard is for mix and evaluate"):
            refused()
    assert not folder.exists()


def test_a_shard_of_references_decodes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    options = {**SMALL, "method": "sft", "model": str(save_tiny(tmp_path / "base")), "output": str(tmp_path / "run")}
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "load_to_read", lambda self, folder=None: pytest.fail("a model was loaded"))
        inject.mix(shard="1/2", **options)
    inject.mix(**options)
    assert (tmp_path / "run" / "targets.jsonl").is_file()


def test_two_spellings_of_a_shard_are_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    options = {
        **SMALL,
        "model": str(save_tiny(tmp_path / "base", stops=[2, *range(8, 262, 12)])),
        "output": str(tmp_path / "run"),
    }
    inject.mix(shard="1/2", **options)
    with (tmp_path / "run" / ".lock.1-of-2").open("w") as own:
        fcntl.flock(own, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another mixsd process"):
            inject.mix(shard="01/02", **options)


def test_the_command_line_tells_what_a_shard_did(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "base", stops=[2, *range(8, 262, 12)])
    facts = tmp_path / "facts.jsonl"
    facts.write_text("".join(json.dumps({"question": f"What is {n}?", "answer": "a"}) + "\n" for n in range(6)))
    options = ["--model", str(tmp_path / "base"), "--output", str(tmp_path / "run"), "--max-new-tokens", "12", "--lam", "0.5"]
    options += ["--verifier", "regex:.", "--retries", "1"]
    for shard in ("1/2", "2/2"):
        assert run(["mix", str(facts), *options, "--shard", shard]) == 0
        assert f"shard {shard}: mixed" in capsys.readouterr().out
    assert run(["mix", str(facts), *options]) == 0
    assert "targets:" in capsys.readouterr().out
    # A plain model folder beside its base, in parts: nothing is reported before all are there.
    options = [
        "--facts",
        str(facts),
        "--model",
        str(tmp_path / "base"),
        "--output",
        str(tmp_path / "beside"),
        "--max-new-tokens",
        "8",
    ]
    options += ["--forgetting-prompts", "4", "--probe-questions", "4", "--paraphrases", "1", "--forgetting-tokens", "4"]
    tuned = str(save_tiny(tmp_path / "tuned", seed=1))
    for shard in ("1/2", "2/2"):
        assert run(["evaluate", tuned, *options, "--shard", shard]) == 0
        assert f"shard {shard}: evaluated" in capsys.readouterr().out
    assert run(["evaluate", tuned, *options]) == 0
    assert (tmp_path / "beside" / "report.json").is_file()


def test_a_shard_takes_the_base_replies_that_the_cache_has(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "base", stops=[2, *range(8, 262, 12)])
    options = {**SMALL, "model": str(tmp_path / "base")}
    inject.inject(output=str(tmp_path / "first"), **options)
    second = inject.mix(output=str(tmp_path / "second"), **options).folder
    inject.train(second)
    loaded = []
    monkeypatch.setattr(
        session.Session, "load_to_read", lambda self, folder=None: loaded.append(folder) or pytest.fail("a model was loaded")
    )
    with pytest.raises(pytest.fail.Exception):  # by the tuned model, and not before
        inject.evaluate(second, shard="1/2")
    assert [folder.name for folder in loaded] == ["model"]
