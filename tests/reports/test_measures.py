"""What a metric is, also one that is not ours."""

from __future__ import annotations

import pytest

from mixsd.reports.rows import MEASURES, measure_of


@pytest.mark.parametrize(
    ("metric", "unit", "signed", "better", "change"),
    [
        ("acc,none", "share", False, "higher", "acc,none_delta"),
        ("acc_norm,none", "share", False, "higher", "acc_norm,none_delta"),
        ("acc,none_delta", "share", True, "higher", None),
        ("exact_match,flexible-extract", "share", False, "higher", "exact_match,flexible-extract_delta"),
        ("perplexity,none", "number", False, "lower", "perplexity,none_delta"),
        ("word_perplexity,none", "number", False, "lower", "word_perplexity,none_delta"),
        ("byte_perplexity,none_delta", "number", True, "lower", None),
        ("bits_per_byte,none", "number", False, "lower", "bits_per_byte,none_delta"),
        ("bleu,none", "number", False, "", "bleu,none_delta"),
        ("accident", "number", False, "", "accident_delta"),
        ("", "number", False, "", "_delta"),
    ],
)
def test_metrics_that_are_not_ours(metric: str, unit: str, signed: bool, better: str, change: str | None) -> None:
    found = measure_of(metric)
    assert (found.unit, found.signed, found.better, found.change) == (unit, signed, better, change)


def test_what_the_task_says_goes_before_the_name() -> None:
    assert measure_of("bleu,none", True).better == "higher"
    assert measure_of("acc,none", False).better == "lower"
    assert measure_of("accuracy", False) is MEASURES["accuracy"]
    assert measure_of("bleu,none").way == ""
    assert measure_of("accuracy").way == "higher is better"
