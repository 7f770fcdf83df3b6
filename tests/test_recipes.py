"""Every recipe that is shipped resolves, to the last setting of its last run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

from mixsd.commands.sweep import Sweep, read_sweep
from mixsd.comparison import paper
from mixsd.settings import build

RECIPES = Path(__file__).parent.parent / "recipes"
SWEEPS = sorted(path for path in RECIPES.glob("*.yaml") if not path.name.startswith("demo-"))
RUNS = {1: 18, 2: 18, 3: 13, 4: 18, 10: 6, 11: 15, 12: 18}


def of_table(number: int) -> Sweep:
    return read_sweep(RECIPES / f"paper-table-{number:02}.yaml")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_every_run_of_a_sweep_resolves(path: Path) -> None:
    sweep = read_sweep(path)
    assert sweep.runs
    for run in sweep.runs:
        resolved = run.settings.resolved.dump()
        assert build(resolved, "again").resolved.dump() == resolved
        assert None not in (resolved["lr"], resolved["max_new_tokens"], resolved["micro_batch"])
    assert path.name in path.read_text(encoding="utf-8")  # its command is in it


@pytest.mark.parametrize("number", RUNS)
def test_a_table_has_a_run_for_each_of_its_rows(number: int) -> None:
    """Model, method and lambda of each row but the base's, as often as it stands there."""
    rows = Counter((row.model, row.method, row.lam) for row in paper.published_table(number) if row.method != "base")
    runs = Counter(
        (run.settings.model, run.settings.method, run.settings.lam if run.settings.method in ("mixsd", "mixsd-kl") else None)
        for run in of_table(number).runs
    )
    assert runs == rows
    assert sum(runs.values()) == RUNS[number]


@pytest.mark.parametrize("number", RUNS)
def test_a_table_is_about_its_corpus_and_trained_as_the_paper_says(number: int) -> None:
    steps = {"kgfunc": 10}
    for run in of_table(number).runs:
        settings = run.settings.resolved
        assert settings.facts.split(".")[0].startswith(paper.published_table(number)[0].corpus)
        assert (settings.batch_size, settings.warmup_steps, settings.retries, settings.max_new_tokens) == (16, 20, 10, 8192)
        assert (settings.answer_format, settings.choose, settings.lr, settings.train_dtype) == ("boxed", "paper", "auto", "bf16")
        assert settings.checkpoint_every == steps.get(settings.facts, 20)
        assert settings.epochs == (1 if settings.facts in ("kgfunc", "simpleqa") else 20)


def test_what_opsd_and_mixsd_kl_have_of_their_own() -> None:
    first = next(run.settings.resolved for run in of_table(1).runs if run.settings.method == "opsd")
    assert (first.samples, first.temperature, first.kl, first.kl_top_k) == (8, 1.0, "forward", 64)
    kinds = {(run.settings.samples, run.settings.temperature) for run in of_table(12).runs if run.settings.method == "mixsd-kl"}
    assert len(kinds) == 3


def test_no_recipe_is_forgotten() -> None:
    assert {path.name for path in RECIPES.glob("demo-*.yaml")} == {"demo-mixsd.yaml", "demo-sft.yaml"}
    for path in SWEEPS:
        assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) == {"output", "seeds", "settings", "runs"}
