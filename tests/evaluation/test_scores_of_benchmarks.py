"""Scores over benchmarks: what base and tuned said to the same items, against figures worked out by hand or another way."""

from __future__ import annotations

import itertools
import random
from math import comb

import numpy as np
import pytest

from mixsd import statistics
from mixsd.evaluation.scores import compare, held_out


def row(key, outcome, *, split="gsm8k", group=None, lenient=None, labels=(), truncated=False):
    return {
        "key": key,
        "split": split,
        "group": group or key,
        "labels": list(labels),
        "prompt_hash": f"hash of {key}",
        "outcome": outcome,
        "lenient": lenient or outcome,
        "truncated": truncated,
    }


def rows(outcomes, **options):
    return [row(str(place), outcome, **options) for place, outcome in enumerate(outcomes)]


def by_name(scores, suite=None):
    return {(item["split"], item["metric"], item["model"]): item for item in scores if suite is None or item["suite"] == suite}


C, W, U, E = "correct", "wrong", "unparseable", "error"


def test_how_replies_ended_is_told_apart():
    said = rows([C, W, W, U, E])
    said[3] |= {"lenient": C, "truncated": True}
    found = by_name(compare("gsm8k", said, None))
    value = {metric: found["gsm8k", metric, "base"]["value"] for metric in ("accuracy", "wrong_share", "unparseable_share")}
    assert value == {"accuracy": 1 / 4, "wrong_share": 2 / 4, "unparseable_share": 1 / 4}
    assert found["gsm8k", "accuracy_lenient", "base"]["value"] == 2 / 4
    assert found["gsm8k", "error_share", "base"]["value"] == found["gsm8k", "truncated_share", "base"]["value"] == 1 / 5
    assert {item["n"] for item in found.values()} == {4, 5}
    assert not [item for item in found.values() if item["model"] == "tuned"]


def test_paired_difference_is_a_bootstrap_over_items_and_has_a_p():
    base, tuned = rows([C] * 12 + [W] * 8), rows([C] * 6 + [W] * 6 + [C] + [W] * 7)
    found = by_name(compare("gsm8k", base, tuned))
    delta = found["gsm8k", "accuracy_delta", "tuned"]
    assert delta["value"] == pytest.approx(-5 / 20)
    # 6 lost, 1 gained of 20: twice the binomial tail.
    p = found["gsm8k", "mcnemar_p", "tuned"]
    assert p["value"] == pytest.approx(2 * (comb(7, 0) + comb(7, 1)) / 2**7)
    differences = np.array([-1] * 6 + [1] + [0] * 13)
    generator = np.random.default_rng(0)
    means = generator.choice(differences, size=(20_000, 20)).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert (delta["low"], delta["high"]) == pytest.approx((low, high), abs=0.051)  # the lattice has steps of 1/20


def test_an_item_that_failed_on_either_side_is_no_pair():
    found = by_name(compare("gsm8k", rows([C, E, W]), rows([W, C, E])))
    assert found["gsm8k", "accuracy_delta", "tuned"]["n"] == 1


def test_samples_of_one_problem_are_one_observation():
    """16 replies to one problem say little about other problems."""
    base = [row(f"{g}/{i}", C if g < 3 else W, group=str(g), split="aime24") for g in range(6) for i in range(16)]
    tuned = [row(f"{g}/{i}", C if g < 1 else W, group=str(g), split="aime24") for g in range(6) for i in range(16)]
    found = by_name(compare("aime24", base, tuned))
    delta = found["aime24", "accuracy_delta", "tuned"]
    per_problem = statistics.grouped_difference([1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], list("abcdef"))
    assert (delta["value"], delta["low"], delta["high"]) == (per_problem.value, per_problem.low, per_problem.high)
    assert delta["n"] == 96
    assert ("aime24", "mcnemar_p", "tuned") not in found


def test_no_change_at_all_is_not_certainty():
    same = rows([C, W, C])
    delta = by_name(compare("gsm8k", same, same))["gsm8k", "accuracy_delta", "tuned"]
    assert delta["value"] == 0
    assert delta["low"] < 0 < delta["high"]


def test_parts_are_scored_too():
    said = [row("a", C, labels=["algebra"]), row("b", W, labels=["algebra"]), row("c", C, labels=["logic"])]
    found = by_name(compare("gsm8k", said, said))
    assert found["gsm8k/algebra", "accuracy", "base"]["value"] == 0.5
    assert found["gsm8k/logic", "accuracy", "tuned"]["n"] == 1


SUITES = ("a", "b")


def test_held_out_average_is_the_unweighted_mean_and_its_drop():
    said = {"a": (rows([C] * 8 + [W] * 2), rows([C] * 4 + [W] * 6)), "b": (rows([C, W]), rows([W, W]))}
    found = {(item["metric"], item["model"]): item for item in held_out(said, SUITES)}
    assert {item["suite"] for item in found.values()} == {"held-out"}
    assert found["accuracy", "base"]["value"] == pytest.approx((0.8 + 0.5) / 2)
    assert found["accuracy", "tuned"]["value"] == pytest.approx((0.4 + 0.0) / 2)
    assert found["drop", "tuned"]["value"] == pytest.approx(0.45)
    assert found["retained", "tuned"]["value"] == pytest.approx(0.2 / 0.65)
    assert found["accuracy_delta", "tuned"]["value"] == pytest.approx(-0.45)
    drop, delta = found["drop", "tuned"], found["accuracy_delta", "tuned"]
    assert (drop["low"], drop["high"]) == pytest.approx((-delta["high"], -delta["low"]))
    assert drop["low"] < 0.45 < drop["high"]
    assert drop["n"] == 12


def test_held_out_interval_is_that_of_every_way_to_draw():
    """Two items in each suite: all 16 draws can be listed, and the bootstrap's quantiles are theirs."""
    outcomes = {"a": ([C, C], [C, W]), "b": ([C, C], [W, W])}
    said = {name: (rows(base), rows(tuned)) for name, (base, tuned) in outcomes.items()}
    drop = next(item for item in held_out(said, SUITES) if item["metric"] == "drop")
    changes = {"a": [0, 1], "b": [1, 1]}
    draws = [
        np.mean([np.mean([changes["a"][i] for i in one]), np.mean([changes["b"][i] for i in two])])
        for one in itertools.product(range(2), repeat=2)
        for two in itertools.product(range(2), repeat=2)
    ]
    assert (drop["low"], drop["high"]) == (min(draws), max(draws)) == (0.5, 1.0)


def test_held_out_needs_every_benchmark():
    assert held_out({"a": (rows([C]), rows([C]))}, SUITES) == []


def test_held_out_of_one_model_has_no_drop():
    said = {"a": (rows([C, W]), None), "b": (rows([C]), None)}
    assert [(item["metric"], item["model"], item["value"]) for item in held_out(said, SUITES)] == [("accuracy", "base", 0.75)]


def test_errors_are_left_out_of_the_average():
    said = {"a": (rows([C, E, W]), rows([C, C, E])), "b": (rows([C]), rows([C]))}
    found = {(item["metric"], item["model"]): item["value"] for item in held_out(said, SUITES)}
    assert found["accuracy", "base"] == pytest.approx((0.5 + 1) / 2)
    assert found["accuracy", "tuned"] == 1


def test_a_base_that_knows_nothing_has_nothing_to_retain():
    said = {"a": (rows([W]), rows([C])), "b": (rows([W]), rows([W]))}
    found = {(item["metric"], item["model"]): item["value"] for item in held_out(said, SUITES)}
    assert found["retained", "tuned"] is None
    assert found["drop", "tuned"] == -0.5


def test_order_of_rows_does_not_matter_to_the_interval():
    outcomes = [random.Random(3).choice([C, W]) for _ in range(30)]
    after = [random.Random(4).choice([C, W]) for _ in range(30)]
    places = random.Random(5).sample(range(30), 30)
    one = compare("gsm8k", rows(outcomes), rows(after))
    base, tuned = rows(outcomes), rows(after)
    two = compare("gsm8k", [base[i] for i in places], [tuned[i] for i in places])
    assert one == two


def test_what_lm_eval_measured_is_taken_as_it_is():
    def sample(key, outcome, **metrics):
        return {**row(key, outcome, split="task"), "metrics": metrics}

    base = [sample("0", C, **{"acc,none": 1.0, "ppl,none": 2.0}), sample("1", W, **{"acc,none": 0.0, "ppl,none": None})]
    tuned = [sample("0", C, **{"acc,none": 1.0, "ppl,none": 4.0}), sample("1", C, **{"acc,none": 1.0, "ppl,none": 9.0})]
    found = by_name(compare("lm-eval:task", base, tuned, {"base": {"acc,none": 0.5, "ppl,none": 2.5}}))
    assert found["task", "acc,none", "base"]["value"] == 0.5
    assert found["task", "acc,none", "base"]["low"] is not None
    assert found["task", "acc,none_delta", "tuned"]["value"] == 0.5
    stated = found["task", "ppl,none", "base"]
    assert (stated["value"], stated["low"], stated["high"]) == (2.5, None, None), "not a mean, so no interval of ours"
    assert not any(metric == "accuracy" for _, metric, _ in found)


def test_changes_of_what_is_no_mean_and_of_what_no_sample_has():
    def sample(key):
        return {**row(key, None, split="wiki"), "metrics": {"ppl,none": -1.5}}

    results = {
        "base": {"wiki/ppl,none": 12.0, "wiki/ppl_stderr,none": 1.0, "wiki/words,none": 5.0, "group/acc,none": 0.25},
        "tuned": {"wiki/ppl,none": 14.0, "wiki/words,none": 6.0, "group/acc,none": 0.5},
    }
    said = [sample("0"), sample("1")]
    found = by_name(compare("lm-eval:group", said, said, results))
    value = {key: item["value"] for key, item in found.items()}
    assert value == {
        ("wiki", "ppl,none", "base"): 12.0,
        ("wiki", "ppl,none", "tuned"): 14.0,
        ("wiki", "ppl,none_delta", "tuned"): 2.0,
        ("wiki", "words,none", "base"): 5.0,
        ("wiki", "words,none", "tuned"): 6.0,
        ("wiki", "words,none_delta", "tuned"): 1.0,
        ("group", "acc,none", "base"): 0.25,
        ("group", "acc,none", "tuned"): 0.5,
        ("group", "acc,none_delta", "tuned"): 0.25,
    }
    assert {item["low"] for item in found.values()} == {None}
    assert {item["n"] for item in found.values()} == {2}


@pytest.mark.parametrize("groups", [["a"], ["a", "b", "c"]])
def test_a_group_for_each_pair(groups):
    with pytest.raises(ValueError, match="group"):
        statistics.grouped_difference([0, 1], [1, 1], groups)
