"""What a sweep would take is the sum of what its runs would, as far as they are to be done; and the paper's recipes can be priced offline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mixsd.commands import dry_run
from mixsd.commands.sweep import State, read_sweep, survey
from tests.stand_ins import BILLIONS, SHAPES, fill_cache, recipe

DATA = Path(os.environ.get("MIXSD_DATA") or Path(__file__).parents[3] / "shared" / "data")
RECIPES = Path(__file__).parent.parent.parent / "recipes"


@pytest.fixture
def wanted(options: dict[str, Any], tmp_path: Path, own_cache: Path) -> dict[str, Any]:
    shared = {name: value for name, value in options.items() if name != "lam"}
    return {
        "output": str(tmp_path / "sweep"),
        "seeds": [0, 1],
        "settings": shared,
        "runs": [{"method": "sft"}, {"method": "mixsd", "lam": 0.3}],
    }


def test_the_sum_is_that_of_the_runs(wanted: dict[str, Any]) -> None:
    planned = read_sweep(wanted)
    states = survey(planned)
    found = dry_run.price(planned, states)
    assert list(found["runs"]) == [run.name for run in planned.runs]
    own = [dry_run.plan(run.settings) for run in planned.runs]
    total = found["total"]
    assert total["disk"] == sum(item["disk"]["total"] for item in own)
    assert total["decoded_tokens"] == sum(item["tokens"]["decoded"] for item in own) > 0
    assert total["trained_tokens"] == sum(item["training"]["tokens"] for item in own)
    assert total["memory"] == max(item["memory"]["peak"] for item in own)
    before = [sum(item["disk"]["total"] for item in own[:place]) for place in range(4)]
    assert total["disk_at_peak"] == max(start + item["disk"]["peak"] for start, item in zip(before, own, strict=True))


def test_what_is_done_costs_nothing(wanted: dict[str, Any]) -> None:
    planned = read_sweep(wanted)
    names = [run.name for run in planned.runs]
    states: dict[str, State] = {**dict.fromkeys(names, "done"), names[2]: "begun"}
    assert list(dry_run.price(planned, states)["runs"]) == [names[2]]
    assert list(dry_run.price(planned, states, only=[names[0]])["runs"]) == []
    assert dry_run.price(planned, dict.fromkeys(names, "done"))["total"]["disk_at_peak"] == 0


def test_too_little_memory_and_disk_are_said(wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    planned = read_sweep(wanted)
    states = survey(planned)
    assert dry_run.price(planned, states)["warnings"] == []
    monkeypatch.setattr(dry_run, "device_memory", lambda device: (0, 10**6))
    monkeypatch.setattr(dry_run, "free_disk", lambda folder: 10)
    memory, disk = dry_run.price(planned, states)["warnings"]
    assert memory.startswith("4 of 4 runs may need more than the 0.0 GB of memory")
    assert disk.startswith("the sweep needs ")


@pytest.fixture
def papers_models(tiny_folder: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's models under their names in a hub cache, in their true shapes; and the benchmarks' data, where a user has it."""
    if not DATA.is_dir():
        pytest.skip(f"no data in {DATA}; $MIXSD_DATA names another folder")
    monkeypatch.setenv("MIXSD_DATA", str(DATA))
    from huggingface_hub import constants

    fill_cache(tmp_path / "hub", tiny_folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for module in (constants, __import__("huggingface_hub._snapshot_download", fromlist=["constants"])):
        if hasattr(module, "HF_HUB_CACHE"):
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("name", SHAPES)
def test_stand_ins_have_the_size_of_their_models(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = dict(SHAPES[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.pop("model_type"), **shape))
    assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(BILLIONS[name], rel=0.01)


@pytest.mark.parametrize(
    "number", [10, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2, 3, 4, 11, 12))]
)  # fmt: skip
def test_a_recipe_of_the_paper_is_priced_offline(papers_models: None, tmp_path: Path, number: int) -> None:
    """Facts, tests, benchmarks, prompts and requirements of each run, as `mixsd sweep --dry-run` checks them."""
    planned = read_sweep(recipe(RECIPES / f"paper-table-{number:02}.yaml", DATA), output=tmp_path / "runs", offline=True)
    states = survey(planned)
    assert set(states.values()) == {"to do"}
    found = dry_run.price(planned, states)
    assert len(found["runs"]) == len(planned.runs)
    for run in planned.runs:
        assert (found["runs"][run.name]["trained_tokens"] > 0) is (run.settings.method != "memit")
    assert not (tmp_path / "runs").exists()
