"""`mixsd table`: which row a run is in, and whether the published number lies in our interval."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mixsd.comparison import paper
from mixsd.errors import UserError
from mixsd.reports.schema import Score
from mixsd.settings import Settings
from mixsd.statistics import Estimate, seeds_interval

QWEN = "Qwen/Qwen3-1.7B"


def run(
    name: str = "r", *, seed: int = 0, evaluated: str | None = None, scores: dict[str, float] | None = None, **settings: Any
) -> Any:
    """A finished run as `comparable.read` gives it; scores of the tuned model by column, with an interval of five points."""
    values = {**Settings().dump(), "facts": "kgfact:small", "model": QWEN, "seed": seed, **settings}
    found = {}
    for column, value in (scores or {}).items():
        suite, split, metric = paper._SCORES[column]
        for model in ("base", "tuned"):
            number = value if model == "tuned" else 0.1
            found[suite, split, metric, model, None] = Score(
                suite=suite, split=split, metric=metric, model=model,
                value=number, n=100, low=max(0.0, number - 0.05), high=min(1.0, number + 0.05),
            )  # fmt: skip
    return SimpleNamespace(folder=Path(name), settings=values, seed=seed, evaluated=evaluated, scores=found)


@pytest.fixture
def tabled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`table` on runs made up in the test."""

    def make(number: int, *runs: Any) -> dict[str, Any]:
        by_folder = {str(item.folder): item for item in runs}
        monkeypatch.setattr(paper, "read", lambda folder: by_folder[str(folder)])
        return paper.table(number, list(by_folder))

    return make


def rows(found: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in found["rows"] if all(row[name] == value for name, value in wanted.items())]


@pytest.mark.parametrize("number", paper.ACCURACY_TABLES)
def test_without_runs_it_is_the_published_table(number: int) -> None:
    found = paper.table(number)
    assert [row["published"] for row in found["rows"]] == [row.values for row in paper.published_table(number)]
    assert {verdict for row in found["rows"] for verdict in row["verdict"].values()} == {"not measured"}
    assert not any(row["ours"] or row["runs"] for row in found["rows"])


def test_a_run_is_in_the_row_of_its_model_method_and_lambda(tabled: Any) -> None:
    found = tabled(1, run(method="mixsd", lam=0.3, scores={"train": 0.98, "gsm8k": 0.2}))
    assert len(found["rows"]) == len(paper.published_table(1))
    (row,) = rows(found, model=QWEN, method="mixsd", **{"lambda": 0.3})
    assert row["published"]["train"] == 100.0
    assert row["ours"]["train"] == {"value": 98.0, "n": 100, "low": pytest.approx(93.0), "high": 100.0, "over": "questions"}
    assert (row["verdict"]["train"], row["verdict"]["gsm8k"], row["verdict"]["mmlu"]) == ("match", "differs", "not measured")
    (base,) = rows(found, model=QWEN, method="base")
    assert base["ours"]["train"]["value"] == pytest.approx(10.0)
    assert sum(bool(row["runs"]) for row in found["rows"]) == 2


def test_seeds_are_averaged(tabled: Any) -> None:
    values = [0.90, 0.96, 0.99]
    runs = [run(f"r{seed}", seed=seed, method="sft", scores={"train": value}) for seed, value in enumerate(values)]
    (row,) = rows(tabled(1, *runs), model=QWEN, method="sft")
    interval = seeds_interval(values)
    assert row["ours"]["train"]["value"] == pytest.approx(95.0)
    assert row["ours"]["train"]["low"] == pytest.approx(100 * interval.low)
    assert row["ours"]["train"]["high"] == 100.0  # cut to where a share can lie
    assert (row["ours"]["train"]["n"], row["seeds"]) == (3, [0, 1, 2])


def test_one_seed_that_lacks_a_score_leaves_the_column_out(tabled: Any) -> None:
    both = [run("a", method="sft", scores={"train": 0.9}), run("b", seed=1, method="sft", scores={"train": 0.9, "mmlu": 0.5})]
    (row,) = rows(tabled(1, *both), model=QWEN, method="sft")
    assert set(row["ours"]) == {"train"}


@pytest.mark.parametrize(
    ("settings", "shown"), [({"gate": 0.1}, "gate 0.1"), ({"rehearse": 1.0}, "rehearse 1"), ({"lora": 16}, "lora 16")]
)
def test_what_the_paper_has_not_stands_below(tabled: Any, settings: dict[str, Any], shown: str) -> None:
    found = tabled(1, run(method="mixsd", lam=0.3, scores={"train": 0.5}, **settings))
    (row,) = rows(found, published=None, method="mixsd")
    assert row["settings"] == shown
    assert row["ours"]["train"]["value"] == 50.0
    assert row["verdict"] == {}


def test_another_model_and_another_size_are_ours_only(tabled: Any) -> None:
    found = tabled(1, run(model="tiny", facts="kgfact:3x8", method="sft", scores={"train": 0.5}))
    assert [(row["model"], row["corpus"], row["method"]) for row in rows(found, published=None)] == [
        ("tiny", "kgfact:3x8", "base"), ("tiny", "kgfact:3x8", "sft"),
    ]  # fmt: skip


def test_every_run_of_a_recipe_has_its_row(tabled: Any) -> None:
    from mixsd.commands.sweep import read_sweep

    recipes = Path(__file__).parent.parent.parent / "recipes"
    for number in paper.ACCURACY_TABLES:
        planned = read_sweep(recipes / f"paper-table-{number:02}.yaml").runs
        made = [run(item.name, scores={"train": 0.5}, **_own(item.settings.resolved.dump())) for item in planned]
        found = tabled(number, *made)
        assert rows(found, published=None) == [], number
        assert sorted(folder for row in found["rows"] if row["method"] != "base" for folder in row["runs"]) == sorted(
            item.name for item in planned
        )


def _own(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "seed"}


def test_rounding_is_allowed_for() -> None:
    (row,) = [row for row in paper.published_table(1) if (row.model, row.method) == (QWEN, "sft")]
    assert row.values["gsm8k"] == 9.8
    assert paper._verdict(row, "gsm8k", Estimate(low=9.84, high=12.0)) == "match"
    assert paper._verdict(row, "gsm8k", Estimate(low=9.86, high=12.0)) == "differs"
    assert paper._verdict(row, "gsm8k", Estimate(low=1.0, high=9.74)) == "differs"
    assert paper._verdict(row, "gsm8k", Estimate(low=None, high=None)) == "no interval"


@pytest.mark.parametrize(
    ("number", "settings", "message"),
    [
        (2, {}, "was made on kgfact:small"),
        (1, {"evaluated": "abc"}, "only evaluates a model"),
        (7, {"facts": "demo"}, "was made on demo, table 7 is about kgfact:small, kgfact:large, simpleqa, kgfunc"),
        (13, {}, "tables 1 to 12"),
    ],
)
def test_bad_input(tabled: Any, number: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tabled(number, run(**settings))
