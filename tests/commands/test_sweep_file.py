"""A sweep file: what it is expanded into, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixsd.commands.sweep import read_sweep
from mixsd.errors import UserError

ROOT = Path(__file__).parent.parent.parent
RUNS = [{"method": "sft"}, {"method": "mixsd", "lam": [0, 0.3, 0.5]}, {"method": "mixsd", "lam": [0.3, 0.5], "gate": 0.1}]
NAMES = ["sft", "mixsd-lam0", "mixsd-lam0.3", "mixsd-lam0.5", "mixsd-lam0.3-gate0.1", "mixsd-lam0.5-gate0.1"]


def asking(runs: Any, **changes: Any) -> dict[str, Any]:
    return {"output": "sweep", "settings": {"facts": "demo"}, "runs": runs, **changes}


def names(runs: Any, **changes: Any) -> list[str]:
    return [run.configuration for run in read_sweep(asking(runs, **changes)).runs]


def test_all_configurations_at_a_seed_before_the_next() -> None:
    planned = read_sweep(asking(RUNS, seeds=[3, 0]))
    assert [run.name for run in planned.runs] == [f"{name}-s{seed}" for seed in (3, 0) for name in NAMES]
    first, last = planned.runs[0].settings, planned.runs[-1].settings
    assert (first.method, first.seed, first.output) == ("sft", 3, "sweep/sft-s3")
    assert (last.method, last.lam, last.gate, last.seed, last.facts) == ("mixsd", 0.5, 0.1, 0, "demo")


def test_the_order_of_a_file_is_the_order_of_the_runs_but_no_part_of_their_names(tmp_path: Path) -> None:
    assert names([{"gate": [0, 0.1], "lam": [0.5, 0.3], "method": "mixsd"}]) == [
        "mixsd-lam0.5-gate0",
        "mixsd-lam0.3-gate0",
        "mixsd-lam0.5-gate0.1",
        "mixsd-lam0.3-gate0.1",
    ]
    assert names([{"lam": 0.0, "gate": 0}]) == names([{"gate": 0.0, "lam": 0}])


def test_an_entry_goes_before_the_settings_of_all(tmp_path: Path) -> None:
    planned = read_sweep(asking([{"epochs": 3}, {}], settings={"facts": "demo", "epochs": 5, "method": "sft"}), device="cpu")
    assert [(run.configuration, run.settings.epochs) for run in planned.runs] == [("sft-epochs3", 3), ("sft", 5)]
    assert {run.settings.device for run in planned.runs} == {"cpu"}
    assert read_sweep(asking([{}]), output=tmp_path / "x").runs[0].settings.output == str(tmp_path / "x" / "mixsd-s0")


def test_names_can_be_folders_and_tell_texts_apart() -> None:
    texts = ["a/b", "a_b", "a b", "../..", "", "x" * 300, "é", "a-lam0.5"]
    found = names([{"system": texts, "lam": 0.5}, {"retry": "from-break", "thinking": True, "lr": 1e-5, "system": None}])
    assert len(set(found)) == len(texts) + 1
    assert all(name.isascii() and "/" not in name and len(name) < 200 and not name.startswith(".") for name in found)
    assert found[1] == "mixsd-system-a_b-lam0.5"
    assert found[-1] == "mixsd-system-none-thinking-true-retry-from-break-lr1e-05"
    assert len(names([{"guidance": ["{answer} " + "y" * n for n in (200, 201)], "system": "z" * 90, "facts": "q" * 90}])) == 2


def test_a_setting_that_is_a_list_crosses_as_a_list_of_lists() -> None:
    (run,) = read_sweep(asking([{"suite": ["core", "in-domain"], "lr_grid": [1e-5, 1e-4]}])).runs
    assert (run.settings.suite, run.settings.lr_grid) == (["core", "in-domain"], [1e-5, 1e-4])
    planned = read_sweep(asking([{"require": [["memorization>=0.9"], []]}]))
    assert [run.settings.require for run in planned.runs] == [["memorization>=0.9"], []]


@given(
    entry=st.fixed_dictionaries(
        {},
        optional={
            "lam": st.lists(st.sampled_from([0, 0.1, 0.25, 0.5, 1]), min_size=1, unique=True),
            "gate": st.lists(st.sampled_from([0, 0.1, 0.5]), min_size=1, unique=True),
            "retries": st.lists(st.integers(0, 20), min_size=1, max_size=4, unique=True),
            "retry": st.lists(st.sampled_from(["restart", "from-break"]), min_size=1, unique=True),
            "epochs": st.integers(1, 9),
            "suite": st.lists(st.sampled_from(["core", "in-domain"])),
        },
    ),
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3, unique=True),
)
def test_every_combination_is_one_run(entry: dict[str, Any], seeds: list[int]) -> None:
    planned = read_sweep(asking([entry], seeds=seeds))
    crossed = {name: value if isinstance(value, list) and name != "suite" else [value] for name, value in entry.items()}
    assert len(planned.runs) == len(seeds) * math.prod(map(len, crossed.values()))
    assert len({run.name for run in planned.runs}) == len(planned.runs)
    assert len({json.dumps(run.settings.dump()) for run in planned.runs}) == len(planned.runs)
    for run in planned.runs:
        assert all(getattr(run.settings, name) in values for name, values in crossed.items())
    shuffled = dict(sorted(entry.items(), reverse=True))
    assert {run.name for run in read_sweep(asking([shuffled], seeds=seeds)).runs} == {run.name for run in planned.runs}


def test_the_recipe() -> None:
    planned = read_sweep(ROOT / "recipes" / "sweep-demo.yaml")
    assert len(planned.runs) == 8 * 3
    assert {run.settings.model for run in planned.runs} == {"smollm2-135m"}


# What is refused, in one line that names the file and the place.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "output: expected a folder"),
        ("runs: [{}]", "output: expected a folder"),
        ("output: 3\nruns: [{}]", "output: expected a folder"),
        ("output: o", "runs: expected a list of settings"),
        ("output: o\nruns: []", "runs: expected a list of settings"),
        ("output: o\nruns: {method: sft}", "runs: expected a list of settings"),
        ("output: o\nruns: [sft]", "runs: entry 1: expected settings, such as"),
        ("output: o\nruns: [{1: 2}]", "runs: entry 1: expected settings, such as"),
        ("output: o\nsettings: [demo]\nruns: [{}]", "settings: expected settings, such as"),
        ("output: o\nrun: [{}]", 'unknown key "run" (did you mean "runs"?); known: output, seeds, settings, runs'),
        ("output: o\nepochs: 3\nruns: [{}]", 'unknown key "epochs" (a setting: put it under settings)'),
        ("output: o\nsettings: {fcats: demo}\nruns: [{}]", 'settings: unknown key "fcats" (did you mean "facts"?)'),
        ("output: o\nsettings: {facts: demo}\nruns: [{lamb: [0, 1]}]", 'entry 1: unknown key "lamb" (did you mean "lam"?)'),
        ("output: o\nsettings: {facts: demo}\nruns: [{}, {lam: [0, 3]}]", "runs: entry 2: lam: input should be less than or"),
        (
            "output: o\nsettings: {facts: demo}\nruns: [{method: mixd}]",
            'runs: entry 1: method: no method "mixd" (did you mean "mixsd"?)',
        ),
        ("output: o\nsettings: {facts: demo}\nruns: [{lam: []}]", "runs: entry 1: lam: the list is empty"),
        ("output: o\nsettings: {facts: demo, lam: [0, 1]}\nruns: [{}]", "settings: lam: one value for all runs; a list of them"),
        ("output: o\nsettings: {facts: demo, seed: 1}\nruns: [{}]", "settings: seed: the seeds stand at the top of the file"),
        ("output: o\nruns: [{output: x}]", "runs: entry 1: output stands at the top of the file"),
        ("output: o\nruns: [{shard: 1/2}]", "runs: entry 1: shard: the runs of a sweep are done whole"),
        ("output: o\nruns: [{lam: 0.3}]", "runs: entry 1: no facts; name a file"),
        ("output: o\nseeds: 3\nruns: [{}]", "seeds: expected a list of whole numbers"),
        ("output: o\nseeds: []\nruns: [{}]", "seeds: expected a list of whole numbers"),
        ("output: o\nseeds: [0, -1]\nruns: [{}]", "seeds: seed: input should be greater"),
        ("output: o\nseeds: [true]\nruns: [{}]", "seeds: seed: expected a value, not true or false"),
        ("output: o\nseeds: [0, 1, 0]\nruns: [{}]", "seeds: 0 stands there twice"),
        ("output: o\noutput: p\nruns: [{}]", "line 2: output stands in line 1 already"),
        ("output: o\nruns:\n- lam: 0.3\n  gate: 0\n  lam: 0.5\n", "line 5: lam stands in line 3 already; keep one"),
        ("output: o\nsettings:\n  facts: demo\n  facts: x\nruns: [{}]", "line 4: facts stands in line 3 already"),
        ("output: o\nsettings: &a {facts: demo, meta: *a}\nruns: [{}]", 'unknown key "meta"'),
        ("output: o\nruns: [{}", "not valid YAML"),
        ("- 1", "expected a mapping"),
        (
            "output: o\nsettings: {facts: demo}\nruns: [{lam: 0.3}, {method: mixsd}]",
            "runs: entry 1 (mixsd-lam0.3) and entry 2 (mixsd) are the same configuration; keep one",
        ),
        (
            "output: o\nsettings: {facts: demo}\nruns: [{lam: [0.3, 0.3]}]",
            "entry 1 (mixsd-lam0.3) and entry 1 (mixsd-lam0.3) are the same configuration; keep one",
        ),
    ],
)
def test_a_bad_file_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_sweep(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_beside_the_file_say_how_to_run_only() -> None:
    for options, said in [
        ({"lam": 0.5}, "options: lam belongs in the file, under settings"),
        ({"shard": "1/2"}, "options: shard: the runs of a sweep are done whole"),
        ({"devise": "cpu"}, 'options: unknown key "devise" (did you mean "device"?)'),
    ]:
        with pytest.raises(UserError) as caught:
            read_sweep(asking([{}]), **options)
        assert said in str(caught.value)
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such config file"):
        read_sweep("nowhere.yaml")
