"""`compare`: how it groups runs, and its numbers against ones worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mixsd
from mixsd.comparison.compare import at_level
from mixsd.statistics import log_ratio_interval, seeds_interval
from tests.finished_runs import make, rows, score, two_methods

T_1 = 12.706204736  # Student's t, 95%, one degree of freedom


def points(*path: tuple[int, float, float]) -> list[dict[str, Any]]:
    return [{"step": s, "memorization": m, "forgetting": f, "scored": True} for s, m, f in path]


def by_label(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["label"]: item for item in result["configurations"]}


# Equal memorization.


def test_forgetting_is_interpolated_at_the_first_crossing() -> None:
    # Memorization falls back after its first crossing, and forgetting is not monotone either: neither matters.
    path = points((10, 0.2, 0.4), (20, 0.6, 0.2), (30, 1.0, 0.6), (40, 0.5, 0.1), (50, 1.0, 0.9))
    found = at_level(path, 0.9)
    assert found is not None
    assert found["how"] == "interpolated"
    assert found["forgetting"] == pytest.approx(0.2 + 0.75 * 0.4)
    assert found["step"] == pytest.approx(27.5)
    assert found["memorization"] == pytest.approx(0.9)


def test_a_level_that_is_met_exactly_takes_that_checkpoint() -> None:
    found = at_level(points((10, 0.3, 0.1), (20, 0.9, 0.5), (30, 1.0, 0.7)), 0.9)
    assert found is not None
    assert found["forgetting"] == pytest.approx(0.5)


def test_above_the_level_at_the_first_look_counts_as_it_was() -> None:
    found = at_level(points((10, 0.95, 0.4), (20, 1.0, 0.5)), 0.9)
    assert found is not None
    assert (found["how"], found["forgetting"]) == ("first", 0.4)


def test_never_reached() -> None:
    assert at_level(points((10, 0.2, 0.1), (20, 0.8, 0.5)), 0.9) is None
    assert at_level([], 0.5) is None


def test_the_level_is_the_highest_that_all_reach_in_whole_facts(tmp_path: Path) -> None:
    one = make(tmp_path / "a", {"method": "sft"}, trained=0.7, path=[(10, 0.3, 0.1), (20, 0.83, 0.2), (100, 0.7, 0.3)])
    two = make(tmp_path / "b", trained=1.0, path=[(10, 0.5, 0.1)])
    level = mixsd.compare([one, two])["level"]
    assert level["value"] == pytest.approx(16 / 20)  # 0.83 of 20 facts, rounded down
    assert "a goes no further" in level["why"]


def test_the_level_stops_before_the_last_few_facts(tmp_path: Path) -> None:
    level = mixsd.compare(two_methods(tmp_path), level=None)["level"]
    assert level["value"] == pytest.approx(0.9)  # sft-1 ends there
    runs = [make(tmp_path / "c", {"method": "sft"}), make(tmp_path / "d")]
    assert mixsd.compare(runs)["level"]["value"] == pytest.approx(0.95)


def test_a_run_that_memorizes_nothing_leaves_no_level(tmp_path: Path) -> None:
    result = mixsd.compare([make(tmp_path / "a", trained=0.0), make(tmp_path / "b", {"method": "sft"})])
    assert result["level"]["value"] is None
    assert any("a memorizes nothing" in note for note in result["notes"])


def test_without_checkpoints_the_final_model_counts_and_says_so(tmp_path: Path) -> None:
    result = mixsd.compare([make(tmp_path / "a", {"method": "sft"}, trained=0.8), make(tmp_path / "b")], level=0.9)
    found = by_label(result)
    assert found["mixsd"]["at_level"] == {"final": 1}
    assert found["mixsd"]["measures"]["forgetting_at_level"]["value"] == 0.5
    assert found["sft"]["at_level"] == {"not reached": 1}
    assert "forgetting_at_level" not in found["sft"]["measures"]


def test_seeds_that_never_reach_the_level_are_counted(tmp_path: Path) -> None:
    found = by_label(mixsd.compare(two_methods(tmp_path), level=0.95))["sft"]
    assert found["at_level"] == {"interpolated": 1, "not reached": 1}
    assert found["measures"]["forgetting_at_level"] == {
        "value": pytest.approx(0.2 + 0.9 * 0.4), "n": 1, "low": None, "high": None, "over": "seeds",
    }  # fmt: skip


def test_the_final_model_stands_at_its_own_step(tmp_path: Path) -> None:
    """The last checkpoint is the final model: it is not counted twice. A chosen one lies where it was chosen."""
    last = make(tmp_path / "a", {"method": "sft"}, steps=20, path=[(10, 0.4, 0.1), (20, 1.0, 0.5)])
    chosen = make(tmp_path / "b", trained=0.7, forgetting=0.2, training={"chosen": {"step": 15, "why": "paper"}},
                  path=[(10, 0.4, 0.1), (20, 1.0, 0.5)])  # fmt: skip
    runs = {run["name"]: run for run in mixsd.compare([last, chosen], level=0.7)["runs"]}
    assert [point["step"] for point in runs["a"]["path"]] == [10, 20]
    assert [point["step"] for point in runs["b"]["path"]] == [10, 15, 20]
    assert runs["b"]["at_level"]["forgetting"] == pytest.approx(0.2)
    assert runs["b"]["chosen"]["step"] == 15


def test_the_probe_that_is_kept_needs_checkpoint_scores(tmp_path: Path) -> None:
    path = [(10, 0.5, 0.1), (20, 1.0, 0.3)]
    one = make(tmp_path / "a", {"method": "sft"}, path=path, probes={10: 0.8, 20: 0.6})
    two = make(tmp_path / "b", path=path)
    found = by_label(mixsd.compare([one, two], level=0.75))
    assert found["sft"]["measures"]["probe_share_at_level"]["value"] == pytest.approx(0.7 / 0.8)
    assert "probe_share_at_level" not in found["mixsd"]["measures"]


# Numbers over seeds.


def test_means_and_intervals_over_seeds(tmp_path: Path) -> None:
    result = mixsd.compare([str(run) for run in two_methods(tmp_path)])
    found = by_label(result)
    assert list(found) == ["sft", "mixsd"]
    assert found["sft"]["seeds"] == [0, 1]
    forgetting = found["sft"]["measures"]["forgetting"]
    assert forgetting["value"] == pytest.approx(0.85)
    assert forgetting["high"] == pytest.approx(0.85 + T_1 * 0.05, rel=1e-6)  # sd 0.0707 / sqrt(2) = 0.05
    assert (forgetting["n"], forgetting["over"]) == (2, "seeds")
    # A share stays a share, whatever Student's t says of two seeds.
    trained = found["sft"]["measures"]["trained"]
    assert (trained["value"], trained["low"], trained["high"]) == (pytest.approx(0.95), pytest.approx(0.95 - T_1 * 0.05), 1.0)
    # sft-0 crosses 0.9 at 4/5 of the way from 0.2 to 0.6; sft-1 ends on it. mixsd: 3/4 of the way.
    assert found["sft"]["measures"]["forgetting_at_level"]["value"] == pytest.approx((0.52 + 0.7) / 2)
    assert found["mixsd"]["measures"]["forgetting_at_level"]["value"] == pytest.approx((0.175 + 0.25) / 2)
    assert found["mixsd"]["measures"]["generated_tokens"]["value"] == pytest.approx(1200)
    assert found["sft"]["measures"]["seconds"]["value"] == pytest.approx(12.0)  # without evaluation
    assert found["sft"]["measures"]["generated_tokens"]["value"] == 0


def test_one_seed_has_its_own_interval_over_questions(tmp_path: Path) -> None:
    found = by_label(mixsd.compare([make(tmp_path / "a", {"method": "sft"}), make(tmp_path / "b")]))["mixsd"]["measures"]
    assert found["paraphrase"] == {"value": 0.5, "n": 40, "low": 0.4, "high": 0.6, "over": "questions"}
    assert found["forgetting"]["n"] == 168
    assert "seconds" not in found  # an older report says nothing of what it cost
    assert "generated_tokens" not in found


def test_paired_over_common_seeds(tmp_path: Path) -> None:
    runs = [*two_methods(tmp_path), make(tmp_path / "mix-2", seed=2)]
    result = mixsd.compare(runs)
    assert result["baseline"] == "sft"
    paired = {pair["measure"]: pair for pair in result["paired"]}
    at = paired["forgetting_at_level"]
    assert (at["configuration"], at["against"], at["seeds"]) == ("mixsd", "sft", [0, 1])
    difference = seeds_interval([0.175 - 0.52, 0.25 - 0.7])
    assert at["difference"]["value"] == pytest.approx(difference.value)
    assert at["difference"]["low"] == pytest.approx(difference.low)
    assert at["difference"]["n"] == 2
    ratio = log_ratio_interval([0.175, 0.25], [0.52, 0.7])
    assert (at["ratio"]["value"], at["ratio"]["high"]) == (pytest.approx(ratio.value), pytest.approx(ratio.high))
    assert at["ratio"]["value"] == pytest.approx(((0.175 / 0.52) * (0.25 / 0.7)) ** 0.5)
    assert paired["trained"]["ratio"] is None


def test_a_ratio_needs_positive_numbers(tmp_path: Path) -> None:
    runs = [make(tmp_path / f"s{seed}", {"method": "sft"}, seed=seed, forgetting=0.4) for seed in (0, 1)]
    runs += [make(tmp_path / f"m{seed}", seed=seed, forgetting=0.1 - seed * 0.2) for seed in (0, 1)]
    pair = {pair["measure"]: pair for pair in mixsd.compare(runs)["paired"]}["forgetting"]
    assert pair["ratio"] is None
    assert pair["difference"]["value"] == pytest.approx(-0.4)


def test_paired_over_the_questions_of_one_seed(tmp_path: Path) -> None:
    one = make(tmp_path / "a", {"method": "sft"}, tuned_rows=rows(0, right=1, nll=20.0))
    two = make(tmp_path / "b", tuned_rows=rows(0, right=4, nll=12.0))
    paired = {pair["measure"]: pair for pair in mixsd.compare([one, two])["paired"]}
    assert paired["trained"]["difference"]["value"] == pytest.approx(0.75)
    assert (paired["trained"]["difference"]["n"], paired["trained"]["difference"]["over"]) == (4, "questions")
    assert paired["probe"]["p"] == pytest.approx(2 * 0.5**3)
    assert paired["paraphrase"]["p"] is None
    assert paired["forgetting"]["difference"]["value"] == pytest.approx(-16 / 21)
    assert "forgetting_at_level" not in paired


def test_no_common_seed_no_pair(tmp_path: Path) -> None:
    assert mixsd.compare([make(tmp_path / "a", {"method": "sft"}), make(tmp_path / "b", seed=1)])["paired"] == []


def test_pareto_optimal(tmp_path: Path) -> None:
    places = {0.1: (0.8, 0.2), 0.2: (1.0, 0.5), 0.3: (0.8, 0.3), 0.4: (0.9, 0.6), 0.5: (0.8, 0.2)}
    runs = [make(tmp_path / f"{lam}", {"lam": lam}, trained=m, forgetting=f) for lam, (m, f) in places.items()]
    found = mixsd.compare(runs)["configurations"]
    assert [item["optimal"] for item in found] == [True, True, False, False, True]


def test_splits_of_other_suites_that_all_were_asked(tmp_path: Path) -> None:
    def own(name: str, value: float) -> dict[str, Any]:
        return score(name, "accuracy", value, suite="in-domain")

    one = make(tmp_path / "a", {"method": "sft"}, extra=[own("two_hop", 0.3), own("two_hop/relation x", 0.1), own("test", 0.2)])
    two = make(tmp_path / "b", extra=[own("two_hop", 0.4), own("two_hop/relation x", 0.1)])
    result = mixsd.compare([one, two])
    assert [name for name in result["measures"] if "/" in name] == ["in-domain/two_hop"]
    assert by_label(result)["mixsd"]["measures"]["in-domain/two_hop"]["value"] == 0.4
    assert not any("/" in name for name in mixsd.compare([one, make(tmp_path / "c")])["measures"])


def test_the_result_is_json(tmp_path: Path) -> None:
    result = mixsd.compare(two_methods(tmp_path))
    assert json.loads(json.dumps(result, allow_nan=False)) == result


# Configurations.


def test_labels_name_what_differs(tmp_path: Path) -> None:
    runs = [
        make(tmp_path / "a", {"method": "sft", "lam": 0.9}),  # sft mixes nothing: its lambda says nothing
        make(tmp_path / "b", {"lam": 0.3, "gate": 0.1}),
        make(tmp_path / "c", {"lam": 0.5, "gate": 0.1}),
        make(tmp_path / "d", {"lam": 0.5, "gate": 0.1, "token_budget": 99, "facts": "other/name.jsonl"}, seed=1),
    ]
    result = mixsd.compare(runs)
    assert [item["label"] for item in result["configurations"]] == ["sft", "mixsd lam 0.3", "mixsd lam 0.5"]
    assert result["configurations"][2]["seeds"] == [0, 1]


def test_a_picked_learning_rate_is_told(tmp_path: Path) -> None:
    sft = {"method": "sft", "lr": "auto"}
    runs = [make(tmp_path / f"a{seed}", sft, seed=seed, training={"lr": rate}) for seed, rate in ((0, 1e-5), (1, 2e-5))]
    runs.append(make(tmp_path / "b", {"lr": 1e-4, "choose": "paper"}))
    found = by_label(mixsd.compare(runs))
    assert found["sft lr auto"]["lr"] == {"setting": "auto", "used": [1e-5, 2e-5]}
    assert found["mixsd lr 0.0001"]["lr"]["used"] == [1e-4]


def test_models_made_elsewhere_are_configurations_of_their_own(tmp_path: Path) -> None:
    runs = [make(tmp_path / name) for name in ("mine", "theirs", "ours")]
    for run, digest in zip(runs[:2], ("h1", "h2"), strict=True):
        (run / "log.jsonl").write_text(json.dumps({"event": "tuned", "hash": digest}) + "\n")
    result = mixsd.compare(runs)
    assert [item["label"] for item in result["configurations"]] == ["mine (evaluated only)", "theirs (evaluated only)", "mixsd"]


def test_a_run_of_an_earlier_version_has_the_defaults(tmp_path: Path) -> None:
    import yaml

    old = make(tmp_path / "old")
    manifest = yaml.safe_load((old / "run.yaml").read_text())
    del manifest["settings"]["retry"]
    (old / "run.yaml").write_text(yaml.safe_dump(manifest))
    assert len(mixsd.compare([old, make(tmp_path / "new", seed=1)])["configurations"]) == 1


def test_runs_of_the_pipeline_are_compared(options: dict[str, Any], own_cache: Path, tmp_path: Path) -> None:
    """What the stages write today is what `compare` reads."""
    small = {**options, "probe_questions": 4, "forgetting_prompts": 3, "forgetting_tokens": 6}
    folders = [tmp_path / f"{method}-{seed}" for method in ("sft", "mixsd") for seed in (0, 1)]
    for folder in folders:
        method, _, seed = folder.name.partition("-")
        mixsd.inject(**small, method=method, seed=int(seed), output=str(folder))
    result = mixsd.compare(folders)
    assert [(item["label"], item["seeds"]) for item in result["configurations"]] == [("sft", [0, 1]), ("mixsd", [0, 1])]
    assert {pair["measure"] for pair in result["paired"]} >= {"trained", "paraphrase", "probe", "forgetting"}
    assert by_label(result)["mixsd"]["measures"]["forgetting"]["n"] == 2


def test_a_label_leaves_out_what_is_not_used() -> None:
    from mixsd.comparison.compare import _labels

    configurations = [
        {"method": "mixsd", "lam": 0.3, "gate": 0.0, "rehearse": 0.0},
        {"method": "mixsd", "lam": 0.0, "gate": 0.1, "rehearse": 0.0},
        {"method": "sft", "rehearse": 1.0},
        {"method": "sft", "rehearse": 0.0},
    ]
    assert _labels(configurations) == ["mixsd lam 0.3", "mixsd lam 0 gate 0.1", "sft rehearse 1", "sft"]


def test_what_memit_does_not_use_is_in_no_label(tmp_path: Path) -> None:
    """It edits in fp32 whatever the precision of training."""
    runs = [
        make(tmp_path / "memit", {"method": "memit", "train_dtype": "auto", "lr": 1e-3}),
        make(tmp_path / "memit-1", {"method": "memit", "train_dtype": "bf16"}, seed=1),
        make(tmp_path / "sft", {"method": "sft", "train_dtype": "bf16"}),
    ]
    result = mixsd.compare(runs)
    assert [(item["label"], item["seeds"]) for item in result["configurations"]] == [("memit", [0, 1]), ("sft", [0])]
