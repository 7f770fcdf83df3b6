"""What holds of every divergence: its laws, what it makes of impossible and extreme logits, and which settings have a meaning."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixsd.errors import UserError
from mixsd.training.losses import Divergence, token_divergence
from tests.training.divergences import FULL, KLS, MODES, TOP_K, Mode, logs, random_logits, value_and_gradient

# ---- Laws.


@pytest.mark.parametrize("k", [7, 64])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("support", ["teacher", "student"])
@pytest.mark.parametrize("kl", KLS, ids=str)
def test_top_k_with_the_whole_vocabulary_is_the_full_divergence(kl: dict[str, Any], support: Any, mode: Mode, k: int) -> None:
    student, teacher = random_logits(5, 7), random_logits(5, 7, seed=1)
    values, gradient = value_and_gradient(student, teacher, Divergence(**kl, support=support, k=k, **MODES[mode]))
    expected, wanted = value_and_gradient(student, teacher, Divergence(**kl, support="full"))
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("divergence", TOP_K + FULL, ids=lambda divergence: divergence.name)
def test_equal_distributions_give_nothing(divergence: Divergence) -> None:
    logits = random_logits(5, 9)
    values, gradient = value_and_gradient(logits + 3, logits, divergence)
    assert values.abs().max() < 1e-12
    partial_sum = divergence.tail == "drop" and not divergence.renormalize
    if divergence.kl == "jsd" or not partial_sum or divergence.support == "full":
        assert gradient.abs().max() < 1e-12


def test_only_the_student_gets_a_gradient() -> None:
    for divergence in TOP_K + FULL:
        student, teacher = (random_logits(3, 6, seed=seed).requires_grad_() for seed in (0, 1))
        token_divergence(student, teacher, divergence).sum().backward()
        assert teacher.grad is None
        assert student.grad is not None


ROWS = st.lists(st.floats(-30, 30), min_size=6, max_size=6)


@given(ROWS, ROWS, st.integers(2, 6))
def test_whole_distributions_are_never_nearer_than_equal(student: list[float], teacher: list[float], k: int) -> None:
    q, p = torch.tensor([student], dtype=torch.float64), torch.tensor([teacher], dtype=torch.float64)
    for kl, support, tail in product(["forward", "reverse", "jsd"], ["teacher", "student"], ["drop", "bucket"]):
        divergence = Divergence(kl=kl, support=support, k=k, tail=tail)  # type: ignore[arg-type]
        assert token_divergence(q, p, divergence).item() >= -1e-12


@given(ROWS, ROWS, st.integers(2, 6), st.sampled_from(sorted(MODES)))
def test_jensen_shannon_is_symmetric_and_at_most_ln_2(student: list[float], teacher: list[float], k: int, mode: Mode) -> None:
    q, p = torch.tensor([student], dtype=torch.float64), torch.tensor([teacher], dtype=torch.float64)
    one = token_divergence(q, p, Divergence("jsd", "teacher", k, **MODES[mode])).item()
    other = token_divergence(p, q, Divergence("jsd", "student", k, **MODES[mode])).item()
    assert one == pytest.approx(other, abs=1e-12)
    assert -1e-12 <= one <= math.log(2) + 1e-12
    full = Divergence("jsd", "full")
    assert token_divergence(q, p, full).item() == pytest.approx(token_divergence(p, q, full).item(), abs=1e-12)


@given(ROWS, ROWS, st.integers(2, 6), st.sampled_from(sorted(MODES)))
def test_forward_and_reverse_are_one_another_with_the_sides_swapped(
    student: list[float], teacher: list[float], k: int, mode: Mode
) -> None:
    q, p = torch.tensor([student], dtype=torch.float64), torch.tensor([teacher], dtype=torch.float64)
    forward = token_divergence(q, p, Divergence("forward", "teacher", k, **MODES[mode])).item()
    assert token_divergence(p, q, Divergence("reverse", "student", k, **MODES[mode])).item() == pytest.approx(forward, abs=1e-12)


# ---- Impossible tokens, extreme logits, precision.


@pytest.mark.parametrize("mask", [-math.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("divergence", TOP_K + FULL, ids=lambda divergence: divergence.name)
def test_a_token_that_both_sides_mask_is_as_if_it_were_not_there(divergence: Divergence, mask: float) -> None:
    student, teacher = random_logits(4, 6), random_logits(4, 6, seed=1)
    expected, wanted = value_and_gradient(student, teacher, divergence)
    column = torch.full((4, 2), mask, dtype=torch.float64)
    values, gradient = value_and_gradient(torch.cat([column, student], -1), torch.cat([column, teacher], -1), divergence)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient[:, 2:], wanted, rtol=0, atol=1e-12)
    assert gradient[:, :2].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", TOP_K + FULL, ids=lambda divergence: divergence.name)
def test_impossible_and_extreme_logits_stay_finite(divergence: Divergence, dtype: torch.dtype) -> None:
    no = -math.inf
    rows = [
        [0.0, 1.0, 2.0, 3.0, 4.0],
        [4.0, 3.0, no, no, no],  # fewer possible tokens than k
        [no, no, 2.0, no, no],  # certain
        [no, no, 0.0, 5000.0, no],
        [no, 5000.0, no, no, -5000.0],
        [1e4, -1e4, 0.0, 1e4, -1e4],
        [-1e4, 1e4, 1e30, 0.0, 0.0],
        [-5000.0, no, no, no, -5001.0],
    ]
    logits = torch.tensor(rows, dtype=dtype)
    pairs = torch.cartesian_prod(torch.arange(len(rows)), torch.arange(len(rows)))  # some with no possible token in common
    values, gradient = value_and_gradient(logits[pairs[:, 0]], logits[pairs[:, 1]], divergence)
    assert values.dtype == dtype
    assert values.isfinite().all()
    assert gradient.isfinite().all()
    same = pairs[:, 0] == pairs[:, 1]
    assert values[same].abs().max() < 1e-5


def test_what_only_one_side_makes_impossible_counts_as_e_to_the_minus_100() -> None:
    half, one = torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([[0.0, -math.inf, -math.inf]])
    # p = 1/2 1/2 0, q = 1 0 0: 1/2 ln 1/2 + 1/2 (ln 1/2 + 100)
    assert token_divergence(one, half, Divergence(support="full")).item() == pytest.approx(50 - math.log(2), abs=1e-4)
    # p = 1 0 0, q = 1/2 1/2 0: the same in reverse
    reverse = Divergence(kl="reverse", support="full")
    assert token_divergence(half, one, reverse).item() == pytest.approx(50 - math.log(2), abs=1e-4)


def test_finite_logits_are_taken_as_they_are() -> None:
    # p is certain of token 0; q gives it e^-5000.
    student, teacher = torch.tensor([[-5000.0, 0.0]]), torch.tensor([[0.0, -5000.0]])
    values, gradient = value_and_gradient(student, teacher, Divergence(support="full"))
    assert values.item() == 5000
    assert gradient.tolist() == [[-1, 1]]


def test_a_small_rest_keeps_its_size_in_fp32() -> None:
    # The rest of the teacher has probability 1e-12 twice, which one minus the support's mass could not hold.
    student, teacher = logs((0.9, 0.1, 1e-9), dtype=torch.float32), logs((0.5, 0.5, 2e-12), dtype=torch.float32)
    found = token_divergence(student, teacher, Divergence(kl="reverse", k=2, tail="bucket")).item()
    # 0.9 ln 1.8 + 0.1 ln 0.2 + 1e-9 ln 500; what matters is the gradient at the rest: 1e-9 (ln 500 - D)
    assert found == pytest.approx(0.3680642, abs=1e-6)
    _, gradient = value_and_gradient(student, teacher, Divergence(kl="reverse", k=2, tail="bucket"))
    assert gradient[0, 2].item() == pytest.approx(1e-9 * (math.log(500) - 0.3680642), rel=1e-3)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("divergence", TOP_K + FULL, ids=lambda divergence: divergence.name)
def test_low_precision_logits_are_compared_in_fp32(divergence: Divergence, low: torch.dtype) -> None:
    student, teacher = random_logits(4, 40).to(low), random_logits(4, 40, seed=1).to(low)
    values = token_divergence(student, teacher, divergence)
    assert values.dtype == torch.float32
    assert torch.equal(values, token_divergence(student.float(), teacher.float(), divergence))
    exact = token_divergence(student.double(), teacher.double(), divergence)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(values.double(), exact, rtol=1e-5, atol=1e-6)


def test_two_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match=r"student logits \(2, 5\), teacher logits \(2, 6\)"):
        token_divergence(torch.zeros(2, 5), torch.zeros(2, 6), Divergence(k=2))


# ---- Settings.


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "forward KL, teacher's top 64, renormalized, tail dropped"),
        ({"kl": "reverse", "renormalize": False}, "reverse KL, teacher's top 64, not renormalized, tail dropped"),
        ({"support": "student", "k": 100, "tail": "bucket"}, "forward KL, student's top 100, tail in a bucket"),
        ({"kl": "jsd"}, "Jensen-Shannon (beta 0.5), teacher's top 64, renormalized, tail dropped"),
        ({"kl": "jsd", "beta": 0.1, "support": "full"}, "Jensen-Shannon (beta 0.1), full vocabulary"),
        ({"kl": "reverse", "support": "full"}, "reverse KL, full vocabulary"),
        ({"k": 1, "tail": "bucket"}, "forward KL, teacher's top 1, tail in a bucket"),
    ],
)
def test_the_name_says_all_settings(settings: dict[str, Any], name: str) -> None:
    assert Divergence(**settings).name == name


def test_names_are_distinct() -> None:
    assert len({divergence.name for divergence in TOP_K + FULL}) == len(TOP_K + FULL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl": "forwards"}, "kl is one of forward, reverse, jsd, not 'forwards' (did you mean \"forward\"?)"),
        ({"support": "both"}, "support is one of teacher, student, full"),
        ({"tail": "keep"}, "tail is one of drop, bucket"),
        ({"k": 0}, "at least 1, not 0"),
        ({"kl": "jsd", "beta": 0.0}, "beta lies between 0 and 1"),
        ({"kl": "jsd", "beta": 1.0}, "beta lies between 0 and 1"),
        ({"kl": "jsd", "beta": math.nan}, "beta lies between 0 and 1"),
        ({"kl": "forward", "beta": 0.3}, "beta (0.3) weighs the two sides of the Jensen-Shannon divergence; kl is 'forward'"),
        ({"support": "full", "tail": "bucket"}, "nothing for a bucket"),
        ({"support": "full", "k": 8}, "k (8) has no meaning on the full vocabulary"),
        ({"k": 1}, "always 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Divergence(**settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("support", ["teacher", "full"])
def test_renormalizing_what_sums_to_one_changes_nothing(support: Any) -> None:
    student, teacher = random_logits(4, 70), random_logits(4, 70, seed=1)
    tail: Any = "drop" if support == "full" else "bucket"
    one, other = (Divergence(support=support, tail=tail, renormalize=renormalize) for renormalize in (True, False))
    assert torch.equal(token_divergence(student, teacher, one), token_divergence(student, teacher, other))
    assert one.name == other.name
