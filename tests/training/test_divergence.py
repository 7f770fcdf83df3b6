"""Divergences against hand-worked numbers, plain Python and TRL.

p is the teacher's distribution, q the student's, m the mixture; logits are log-probabilities unless a test says otherwise.
With z the student's logits, S the support, D the value, and a hat for "renormalized on S":

    forward   dD/dz_j = q̂_j - p̂_j                    not renormalized: q_j p(S) - p_j [j in S]
    reverse   dD/dz_j = q̂_j (ln q̂_j/p̂_j - D)         not renormalized: q_j ((ln q_j/p_j + 1) [j in S] - D - q(S))
    jsd       dD/dz_j = (1 - beta) q̂_j (ln q̂_j/m_j - KL(q̂ || m));  not renormalized: the same with q_j, [j in S] at the ln

A bucket is one outcome with a logit of its own, and its gradient is shared among its tokens in proportion to q.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from mixsd.training.losses import Divergence
from tests.training.divergences import FULL, MODES, TOP_K, Mode, logs, random_logits, value_and_gradient

THREE_P, THREE_Q = (1 / 2, 3 / 8, 1 / 8), (1 / 4, 1 / 4, 1 / 2)
FIVE_P, FIVE_Q = (0.5, 0.2, 0.15, 0.1, 0.05), (0.1, 0.4, 0.05, 0.15, 0.3)

# ---- By hand.

# Three tokens, all of them: p = 1/2 3/8 1/8, q = 1/4 1/4 1/2; for jsd m = 3/8 5/16 5/16, with beta 1/4 m = 5/16 9/32 13/32.
THREE_FULL: list[tuple[dict[str, Any], float, list[float]]] = [
    # 1/2 ln 2 + 3/8 ln 3/2 + 1/8 ln 1/4 = 0.3465736 + 0.1520494 - 0.1732868; q - p
    ({"kl": "forward"}, 0.3253362, [-0.25, -0.125, 0.375]),
    # 1/4 ln 1/2 + 1/4 ln 2/3 + 1/2 ln 4 = -0.1732868 - 0.1013663 + 0.6931472
    # 1/4 (-0.6931472 - D), 1/4 (-0.4054651 - D), 1/2 (1.3862944 - D)
    ({"kl": "reverse"}, 0.4184941, [-0.2779103, -0.2059898, 0.4839001]),
    # KL(p || m) = 1/2 ln 4/3 + 3/8 ln 6/5 + 1/8 ln 2/5 = 0.1438410 + 0.0683706 - 0.1145363 = 0.0976753
    # KL(q || m) = 1/4 ln 2/3 + 1/4 ln 4/5 + 1/2 ln 8/5 = -0.1013663 - 0.0557859 + 0.2350018 = 0.0778497; D is their mean
    # 1/8 (-0.4054651 - 0.0778497), 1/8 (-0.2231436 - 0.0778497), 1/4 (0.4700036 - 0.0778497)
    ({"kl": "jsd"}, 0.0877625, [-0.0604143, -0.0376242, 0.0980385]),
    # KL(p || m) = 1/2 ln 8/5 + 3/8 ln 4/3 + 1/8 ln 4/13 = 0.1955507; KL(q || m) = 1/4 ln 4/5 + 1/4 ln 8/9 + 1/2 ln 16/13 =
    # 0.0185880; D = 1/4 * 0.1955507 + 3/4 * 0.0185880; gradient 3/4 q_j (ln q_j/m_j - 0.0185880)
    ({"kl": "jsd", "beta": 0.25}, 0.0628287, [-0.0453247, -0.0255696, 0.0708943]),
]

# The same on the teacher's top 2, tokens 0 and 1: p̂ = 4/7 3/7, q̂ = 1/2 1/2, p(S) = 7/8, q(S) = 1/2.
THREE_TOP_2: list[tuple[str, Mode, float, list[float]]] = [
    # 4/7 ln 8/7 + 3/7 ln 6/7 = 0.0763036 - 0.0660645; q̂ - p̂ = -1/14 1/14
    ("forward", "renormalized", 0.0102391, [-0.0714286, 0.0714286, 0]),
    # 1/2 ln 2 + 3/8 ln 3/2; 1/4 7/8 - 1/2, 1/4 7/8 - 3/8, 1/2 7/8
    ("forward", "raw", 0.4986230, [-0.28125, -0.15625, 0.4375]),
    # The bucket holds one token, so it is the full KL.
    ("forward", "bucket", 0.3253362, [-0.25, -0.125, 0.375]),
    # 1/2 ln 7/8 + 1/2 ln 7/6 = -0.0667657 + 0.0770753; 1/2 (ln 7/8 - D), 1/2 (ln 7/6 - D)
    ("reverse", "renormalized", 0.0103096, [-0.0719205, 0.0719205, 0]),
    # 1/4 ln 1/2 + 1/4 ln 2/3; 1/4 (-0.6931472 + 1 - D - 1/2), 1/4 (-0.4054651 + 1 - D - 1/2), 1/2 (-D - 1/2)
    ("reverse", "raw", -0.2746531, [0.0203765, 0.0922970, -0.1126735]),
    ("reverse", "bucket", 0.4184941, [-0.2779103, -0.2059898, 0.4839001]),
    # m = 15/28 13/28: KL(p̂ || m) = 4/7 ln 16/15 + 3/7 ln 12/13 = 0.0025751, KL(q̂ || m) = 1/2 ln 14/15 + 1/2 ln 14/13 =
    # 0.0025576; 1/4 (ln 14/15 - 0.0025576), 1/4 (ln 14/13 - 0.0025576)
    ("jsd", "renormalized", 0.0025663, [-0.0178876, 0.0178876, 0]),
    # 1/2 (0.1438410 + 0.0683706) + 1/2 (-0.1013663 - 0.0557859); sum of q ln q/m on S: -0.1571522;
    # 1/8 (-0.4054651 + 0.1571522), 1/8 (-0.2231436 + 0.1571522), 1/4 * 0.1571522
    ("jsd", "raw", 0.0275297, [-0.0310391, -0.0082489, 0.0392880]),
    ("jsd", "bucket", 0.0877625, [-0.0604143, -0.0376242, 0.0980385]),
]

# Five tokens: p = 0.5 0.2 0.15 0.1 0.05, q = 0.1 0.4 0.05 0.15 0.3.
FIVE_TOP_2: list[tuple[str, str, Mode, float, list[float]]] = [
    # The teacher's top 2, tokens 0 and 1: p̂ = 5/7 2/7, q̂ = 1/5 4/5; p(S) = 0.7, q(S) = 0.5; the bucket has p 0.3, q 0.5.
    # 5/7 ln 25/7 + 2/7 ln 5/14 = 0.9092611 - 0.2941769; 1/5 - 5/7
    ("teacher", "forward", "renormalized", 0.6150842, [-0.5142857, 0.5142857, 0, 0, 0]),
    # 0.5 ln 5 + 0.2 ln 1/2 = 0.8047190 - 0.1386294; 0.1 0.7 - 0.5, 0.4 0.7 - 0.2, then 0.7 q
    ("teacher", "forward", "raw", 0.6660895, [-0.43, 0.08, 0.035, 0.105, 0.21]),
    # 0.6660895 + 0.3 ln 3/5; 0.1 - 0.5, 0.4 - 0.2, and (0.5 - 0.3) shared 0.05 : 0.15 : 0.3
    ("teacher", "forward", "bucket", 0.5128418, [-0.4, 0.2, 0.02, 0.06, 0.12]),
    # 1/5 ln 7/25 + 4/5 ln 14/5 = -0.2545931 + 0.8236955; 1/5 (ln 7/25 - D)
    ("teacher", "reverse", "renormalized", 0.5691024, [-0.3684136, 0.3684136, 0, 0, 0]),
    # 0.1 ln 1/5 + 0.4 ln 2 = -0.1609438 + 0.2772589;
    # 0.1 (-1.6094379 + 1 - D - 0.5), 0.4 (0.6931472 + 1 - D - 0.5), then q (-D - 0.5)
    ("teacher", "reverse", "raw", 0.1163151, [-0.1225753, 0.4307328, -0.0308158, -0.0924473, -0.1848945]),
    # 0.1163151 + 0.5 ln 5/3; 0.1 (-1.6094379 - D), 0.4 (0.6931472 - D), and 0.5 (0.5108256 - D) = 0.0695489 shared 1 : 3 : 6
    ("teacher", "reverse", "bucket", 0.3717279, [-0.1981166, 0.1285677, 0.0069549, 0.0208647, 0.0417293]),
    # m = 16/35 19/35: KL(p̂ || m) = 5/7 ln 25/16 + 2/7 ln 10/19 = 0.1353897, KL(q̂ || m) = 1/5 ln 7/16 + 4/5 ln 28/19 =
    # 0.1448767; 1/10 (ln 7/16 - 0.1448767)
    ("teacher", "jsd", "renormalized", 0.1401332, [-0.0971555, 0.0971555, 0, 0, 0]),
    # m = 0.3 0.3: 1/2 (0.5 ln 5/3 + 0.2 ln 2/3) + 1/2 (0.1 ln 1/3 + 0.4 ln 4/3) = 1/2 0.1743198 + 1/2 0.0052116;
    # 0.05 (-1.0986123 - 0.0052116), 0.2 (0.2876821 - 0.0052116), then -q/2 0.0052116
    ("teacher", "jsd", "raw", 0.0897657, [-0.0551912, 0.0564941, -0.0001303, -0.0003909, -0.0007817]),
    # the bucket's m = 0.4: + 1/2 0.3 ln 3/4 + 1/2 0.5 ln 5/4; KL(q || m) = 0.0052116 + 0.1115718 = 0.1167834;
    # 0.05 (-1.0986123 - 0.1167834), 0.2 (0.2876821 - 0.1167834), and 0.25 (0.2231436 - 0.1167834) shared 1 : 3 : 6
    ("teacher", "jsd", "bucket", 0.1023993, [-0.0607698, 0.0341797, 0.0026590, 0.0079770, 0.0159540]),
    # The student's top 2, tokens 1 and 4: p̂ = 4/5 1/5, q̂ = 4/7 3/7; p(S) = 0.25, q(S) = 0.7; the bucket has p 0.75, q 0.3.
    # 4/5 ln 7/5 + 1/5 ln 7/15 = 0.2691778 - 0.1524280; 4/7 - 4/5
    ("student", "forward", "renormalized", 0.1167498, [0, -0.2285714, 0, 0, 0.2285714]),
    # 0.2 ln 1/2 + 0.05 ln 1/6 = -0.1386294 - 0.0895880; 0.25 q, less p at 1 and 4
    ("student", "forward", "raw", -0.2282174, [0.025, -0.1, 0.0125, 0.0375, 0.025]),
    # -0.2282174 + 0.75 ln 5/2; q - p at 1 and 4, and (0.3 - 0.75) shared 0.1 : 0.05 : 0.15
    ("student", "forward", "bucket", 0.4590006, [-0.15, 0.2, -0.075, -0.225, 0.25]),
    # 4/7 ln 5/7 + 3/7 ln 15/7 = -0.1922698 + 0.3266314; 4/7 (ln 5/7 - D)
    ("student", "reverse", "renormalized", 0.1343616, [0, -0.2690479, 0, 0, 0.2690479]),
    # 0.4 ln 2 + 0.3 ln 6 = 0.2772589 + 0.5375278; q (-D - 0.7), with ln q/p + 1 inside at 1 and 4
    ("student", "reverse", "raw", 0.8147867, [-0.1514787, 0.0713442, -0.0757393, -0.2272180, 0.3830918]),
    # 0.8147867 + 0.3 ln 2/5; 0.4 (ln 2 - D), 0.3 (ln 6 - D), and 0.3 (ln 2/5 - D) shared 2 : 1 : 3
    ("student", "reverse", "bucket", 0.5398995, [-0.1456190, 0.0612991, -0.0728095, -0.2184285, 0.3755580]),
    # m = 24/35 11/35: KL(p̂ || m) = 0.0329235, KL(q̂ || m) = 4/7 ln 5/6 + 3/7 ln 15/11 = 0.0287398; 2/7 (ln 5/6 - 0.0287398)
    ("student", "jsd", "renormalized", 0.0308317, [0, -0.0603032, 0, 0, 0.0603032]),
    # m = 0.3 0.175: 1/2 (0.2 ln 2/3 + 0.05 ln 2/7) + 1/2 (0.4 ln 4/3 + 0.3 ln 12/7) = 1/2 (-0.1437312) + 1/2 0.2767718
    ("student", "jsd", "raw", 0.0665203, [-0.0138386, 0.0021821, -0.0069193, -0.0207579, 0.0393337]),
    # the bucket's m = 0.525: KL(p || m) = -0.1437312 + 0.75 ln 10/7 = 0.1237750, KL(q || m) = 0.2767718 + 0.3 ln 4/7 = 0.1088870
    ("student", "jsd", "bucket", 0.1163310, [-0.0334251, 0.0357590, -0.0167126, -0.0501377, 0.0645164]),
]


def check(p: Sequence[float], q: Sequence[float], divergence: Divergence, value: float, gradient: Sequence[float]) -> None:
    # Logits of another scale than log-probabilities: every row may be moved by a constant.
    for move in (0.0, -7.0, 300.0):
        values, gradients = value_and_gradient(logs(q) + move, logs(p) - move, divergence)
        assert values.tolist() == pytest.approx([value], abs=1e-7)
        assert gradients[0].tolist() == pytest.approx(gradient, abs=1e-7)


@pytest.mark.parametrize(("settings", "value", "gradient"), THREE_FULL)
def test_three_tokens_full_vocabulary_by_hand(settings: dict[str, Any], value: float, gradient: list[float]) -> None:
    check(THREE_P, THREE_Q, Divergence(support="full", **settings), value, gradient)


@pytest.mark.parametrize(("kl", "mode", "value", "gradient"), THREE_TOP_2)
def test_three_tokens_teachers_top_2_by_hand(kl: Any, mode: Mode, value: float, gradient: list[float]) -> None:
    check(THREE_P, THREE_Q, Divergence(kl=kl, k=2, **MODES[mode]), value, gradient)


@pytest.mark.parametrize(("support", "kl", "mode", "value", "gradient"), FIVE_TOP_2)
def test_five_tokens_top_2_by_hand(support: Any, kl: Any, mode: Mode, value: float, gradient: list[float]) -> None:
    check(FIVE_P, FIVE_Q, Divergence(kl=kl, support=support, k=2, **MODES[mode]), value, gradient)


def test_the_default_is_the_papers_and_rows_are_independent() -> None:
    # Renormalized on the teacher's top 64 with the tail dropped, here with k = 2.
    assert Divergence() == Divergence("forward", "teacher", 64, "drop", True, 0.5)
    student, teacher = logs(FIVE_Q, FIVE_P, FIVE_Q), logs(FIVE_P, FIVE_P, FIVE_P)
    values, gradient = value_and_gradient(student, teacher, Divergence(k=2))
    assert values.tolist() == pytest.approx([0.6150842, 0, 0.6150842], abs=1e-7)
    assert gradient[1].abs().max() < 1e-12
    assert torch.equal(gradient[0], gradient[2])


# ---- Against plain Python, with gradients by finite differences.


def oracle(student: list[float], teacher: list[float], divergence: Divergence) -> float:
    def softmax(logits: list[float]) -> list[float]:
        weights = [math.exp(logit - max(logits)) for logit in logits]
        return [weight / math.fsum(weights) for weight in weights]

    q, p = softmax(student), softmax(teacher)
    leader = {"teacher": p, "student": q, "full": p}[divergence.support]
    size = len(p) if divergence.support == "full" else divergence.k
    support = sorted(range(len(p)), key=lambda token: -leader[token])[:size]
    sides = []
    for side in (p, q):
        kept = [side[token] for token in support]
        mass = math.fsum(kept)
        if divergence.tail == "bucket":
            kept.append(1 - mass)
        elif divergence.renormalize:
            kept = [probability / mass for probability in kept]
        sides.append(kept)
    p, q = sides

    def kl(of: list[float], to: list[float]) -> float:
        return math.fsum(a * math.log(a / b) for a, b in zip(of, to, strict=True))

    if divergence.kl == "forward":
        return kl(p, q)
    if divergence.kl == "reverse":
        return kl(q, p)
    m = [divergence.beta * a + (1 - divergence.beta) * b for a, b in zip(p, q, strict=True)]
    return divergence.beta * kl(p, m) + (1 - divergence.beta) * kl(q, m)


@pytest.mark.parametrize("divergence", TOP_K + FULL, ids=lambda divergence: divergence.name)
def test_values_and_gradients_equal_plain_python(divergence: Divergence) -> None:
    student, teacher = random_logits(4, 7), random_logits(4, 7, seed=1)
    values, gradient = value_and_gradient(student, teacher, divergence)
    for row in range(len(student)):
        q, p = student[row].tolist(), teacher[row].tolist()
        assert values[row].item() == pytest.approx(oracle(q, p, divergence), abs=1e-12)
        for token in range(len(q)):
            up, down = ([*q[:token], q[token] + step, *q[token + 1 :]] for step in (1e-5, -1e-5))
            slope = (oracle(up, p, divergence) - oracle(down, p, divergence)) / 2e-5
            assert gradient[row, token].item() == pytest.approx(slope, abs=1e-8)


# ---- Against TRL.


def test_trls_divergences_where_conventions_meet() -> None:
    # TRL 1.16.0, torch 2.13.0; alpha (SDFT) and beta (GKD) are 0 for forward, 1 for reverse, else our beta. Printed by
    #   from trl.experimental.sdft.loss_utils import compute_full_logit_self_distillation_loss as full
    #   from trl.experimental.sdft.loss_utils import compute_topk_self_distillation_loss as top  # the student's top k
    #   full(s, t, distillation_alpha=a)
    #   top(s, t, distillation_topk=3, distillation_alpha=a, distillation_add_tail=tail)
    # with the float64 logits below; GKDTrainer.generalized_jsd_loss(s, t, beta=a, reduction="none").sum(-1) equals `full`.
    student = torch.tensor([[3 * math.sin(3 * row + 5 * token) for token in range(7)] for row in range(3)], dtype=torch.float64)
    teacher = torch.tensor([[3 * math.cos(2 * row + 7 * token) for token in range(7)] for row in range(3)], dtype=torch.float64)
    kls: list[dict[str, Any]] = [{"kl": "forward"}, {"kl": "reverse"}, {"kl": "jsd"}, {"kl": "jsd", "beta": 0.3}]
    full = [
        [3.2600778723, 0.9543566504, 0.3401340771],
        [4.7594650356, 2.2670264932, 0.2002863130],
        [0.5706163590, 0.2405417977, 0.0582209578],
        [0.4862156764, 0.1916313034, 0.0542350333],
    ]
    dropped = [
        [3.0585031154, 0.7269507445, 0.0157778845],
        [4.5064187256, 2.1573976298, 0.0208866378],
        [0.5744129243, 0.2200926557, 0.0043623678],
        [0.4900544849, 0.1676028388, 0.0035007347],
    ]
    bucket = [
        [2.4897891195, 0.7729631333, 0.3188890705],
        [4.6295254507, 2.1968778538, 0.1969833557],
        [0.5304321377, 0.2185314665, 0.0567991736],
        [0.4426268585, 0.1696424206, 0.0525529753],
    ]
    bucket_gradients = [  # of the first row
        [-0.5905940542, -0.0185191049, -0.0642969622, 0.2812949554, 0.6301648197, -0.2210790807, -0.0169705730],
        [-0.3009711844, -0.0157179814, -0.0545716688, -0.2223020415, 0.7956061207, -0.1876395705, -0.0144036741],
        [-0.0528324516, -0.0024079877, -0.0083603552, 0.0277636930, 0.0667900361, -0.0287462981, -0.0022066364],
        [-0.0538131951, -0.0023114528, -0.0080251932, 0.0282578057, 0.0656040842, -0.0275938751, -0.0021181736],
    ]
    for number, kl in enumerate(kls):
        values, _ = value_and_gradient(student, teacher, Divergence(support="full", **kl))
        assert values.tolist() == pytest.approx(full[number], abs=1e-9)
        values, _ = value_and_gradient(student, teacher, Divergence(support="student", k=3, **kl))
        assert values.tolist() == pytest.approx(dropped[number], abs=1e-9)
        values, gradient = value_and_gradient(student, teacher, Divergence(support="student", k=3, tail="bucket", **kl))
        assert values.tolist() == pytest.approx(bucket[number], abs=1e-9)
        assert gradient[0].tolist() == pytest.approx(bucket_gradients[number], abs=1e-9)


@pytest.mark.parametrize(("kl", "alpha"), [({"kl": "forward"}, 0.0), ({"kl": "reverse"}, 1.0), ({"kl": "jsd", "beta": 0.3}, 0.3)])
def test_trl_itself_on_random_logits_with_gradients(kl: dict[str, Any], alpha: float) -> None:
    """Over the full vocabulary with GKD's and SDFT's functions, over the student's top k with SDFT's."""
    loss_utils = pytest.importorskip("trl.experimental.sdft.loss_utils", reason="trl is not installed")
    gkd = pytest.importorskip("trl.experimental.gkd", reason="trl is not installed").GKDTrainer.generalized_jsd_loss
    student, teacher = random_logits(6, 11, seed=2), random_logits(6, 11, seed=3)
    theirs: list[tuple[Divergence, Callable[[torch.Tensor], torch.Tensor]]] = [
        (Divergence(support="full", **kl), lambda s: gkd(s, teacher, beta=alpha, reduction="none").sum(-1)),
        (
            Divergence(support="full", **kl),
            lambda s: loss_utils.compute_full_logit_self_distillation_loss(s, teacher, distillation_alpha=alpha),
        ),
        *(
            (
                Divergence(support="student", k=4, tail="bucket" if tail else "drop", **kl),
                lambda s, tail=tail: loss_utils.compute_topk_self_distillation_loss(
                    s, teacher, distillation_topk=4, distillation_alpha=alpha, distillation_add_tail=tail
                ),
            )
            for tail in (False, True)
        ),
    ]
    for divergence, compute in theirs:
        logits = student.clone().requires_grad_(True)
        expected = compute(logits)
        (wanted,) = torch.autograd.grad(expected.sum(), logits)
        values, gradient = value_and_gradient(student, teacher, divergence)
        torch.testing.assert_close(values, expected.detach(), rtol=0, atol=1e-9)
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-9)
