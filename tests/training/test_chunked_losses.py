"""The chunked form equals the dense one, in value and gradient, whichever way the teacher is known; and it stays small."""

from __future__ import annotations

import math
import weakref
from itertools import product
from typing import Any

import pytest
import torch

from mixsd.errors import UserError
from mixsd.training.losses import (
    Divergence,
    States,
    TeacherTopK,
    chunked_divergence,
    decoder,
    logit_head,
    teacher_topk,
    token_divergence,
)
from tests.training.tiny import VOCABULARY, make_model

N, H, V = 11, 5, 13
KLS: list[dict[str, Any]] = [{"kl": "forward"}, {"kl": "reverse"}, {"kl": "jsd", "beta": 0.3}]
TAILS: list[dict[str, Any]] = [{"tail": "drop"}, {"tail": "drop", "renormalize": False}, {"tail": "bucket"}]
TEACHERS = [Divergence(**kl, k=4, **tail) for kl, tail in product(KLS, TAILS)]
STUDENTS = [Divergence(**kl, support="student", k=4, **tail) for kl, tail in product(KLS, TAILS)]
FULL = [Divergence(**kl, support="full") for kl in KLS]


def name(divergence: Divergence) -> str:
    return divergence.name


class Sides:
    """A student and a teacher: hidden states (N, H) and heads, all of which would take a gradient."""

    def __init__(self, *, rows: int = N, vocabulary: int = V, dtype: torch.dtype = torch.float64) -> None:
        numbers = torch.Generator().manual_seed(0)

        def tensor(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=numbers).to(dtype).requires_grad_()

        self.hidden, self.weight = tensor(rows, H), tensor(vocabulary, H)
        self.teacher_hidden, self.teacher_weight = tensor(rows, H), tensor(vocabulary, H)

    def head(self, rows: torch.Tensor) -> torch.Tensor:
        return rows @ self.weight.T

    def teacher_head(self, rows: torch.Tensor) -> torch.Tensor:
        return rows @ self.teacher_weight.T

    def teacher(self) -> States:
        return States(self.teacher_hidden, self.teacher_head, 1)

    def dense(self, divergence: Divergence) -> torch.Tensor:
        return token_divergence(self.head(self.hidden), self.teacher_head(self.teacher_hidden), divergence)

    def gradients(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Of a weighted sum, so that no position is like another."""
        weights = torch.linspace(0.5, 2, len(values), dtype=values.dtype)
        self.hidden.grad = self.weight.grad = None
        (values * weights).sum().backward()
        assert self.teacher_hidden.grad is None
        assert self.teacher_weight.grad is None
        assert self.hidden.grad is not None
        assert self.weight.grad is not None
        return [self.hidden.grad, self.weight.grad]


def assert_same(sides: Sides, values: torch.Tensor, divergence: Divergence, atol: float = 1e-10) -> None:
    expected = sides.dense(divergence)
    torch.testing.assert_close(values, expected, rtol=0, atol=atol)
    for found, wanted in zip(sides.gradients(values), sides.gradients(expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("chunk", [1, 2, 3, 11, 64])
@pytest.mark.parametrize("divergence", TEACHERS + STUDENTS + FULL, ids=name)
def test_chunked_equals_dense_in_value_and_gradient(divergence: Divergence, chunk: int) -> None:
    sides = Sides()
    assert_same(sides, chunked_divergence(sides.hidden, sides.head, sides.teacher(), divergence, chunk), divergence)


@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("divergence", TEACHERS, ids=name)
def test_the_remembered_top_k_equals_the_teacher_itself(divergence: Divergence, chunk: int) -> None:
    sides = Sides()
    kept = teacher_topk(sides.teacher_hidden, sides.teacher_head, divergence.k, chunk)
    kept.logprobs.requires_grad_()
    assert_same(sides, chunked_divergence(sides.hidden, sides.head, kept, divergence, chunk), divergence)
    assert kept.logprobs.grad is None


@pytest.mark.parametrize("k", [13, 64])
@pytest.mark.parametrize(("kl", "tail"), list(product(KLS, TAILS)), ids=str)
def test_a_top_k_of_the_whole_vocabulary_is_the_full_divergence(kl: dict[str, Any], tail: dict[str, Any], k: int) -> None:
    sides, divergence = Sides(), Divergence(**kl, k=k, **tail)
    full = Divergence(**kl, support="full")
    kept = teacher_topk(sides.teacher_hidden, sides.teacher_head, k, 3)
    for teacher in (sides.teacher(), kept):
        assert_same(sides, chunked_divergence(sides.hidden, sides.head, teacher, divergence, 4), full)


@pytest.mark.parametrize("divergence", TEACHERS, ids=name)
def test_what_is_kept_in_fp32_is_exact_enough(divergence: Divergence) -> None:
    sides = Sides(dtype=torch.float32)
    kept = teacher_topk(sides.teacher_hidden, sides.teacher_head, divergence.k, 3)
    assert (kept.ids.dtype, kept.logprobs.dtype) == (torch.int32, torch.float32)
    assert not kept.logprobs.requires_grad
    assert_same(sides, chunked_divergence(sides.hidden, sides.head, kept, divergence, 4), divergence, atol=1e-4)


def test_the_rest_of_the_whole_vocabulary_is_nothing_in_fp32_too() -> None:
    sides = Sides(dtype=torch.float32)
    kept = teacher_topk(sides.teacher_hidden, sides.teacher_head, V, 4)
    bucket = chunked_divergence(sides.hidden, sides.head, kept, Divergence(k=V, tail="bucket"), 4)
    torch.testing.assert_close(bucket, sides.dense(Divergence(support="full")), rtol=0, atol=2e-6)


@pytest.mark.parametrize("divergence", [each for each in TEACHERS if each.tail == "bucket"], ids=name)
def test_a_rest_that_fp32_cannot_hold_does_no_harm(divergence: Divergence) -> None:
    # A teacher so sure that its top 4 sum to more than one in fp32, or that all but the first are impossible.
    weight = torch.zeros(V, 3)
    weight[:4] = torch.tensor([[60.0, 30, 0], [59, 29, -math.inf], [58, 28, -math.inf], [57, 27, -math.inf]])
    weight[4:, 2] = -math.inf
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = weight.T.contiguous()
    kept = teacher_topk(teacher, lambda rows: rows, 4, 2)
    values = chunked_divergence(logits, lambda rows: rows, kept, divergence, 2)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    direct = token_divergence(logits, teacher, divergence)
    (wanted,) = torch.autograd.grad(direct.sum(), logits)
    assert values.isfinite().all()
    if divergence.kl != "reverse":  # whose value depends on how small the rest is, once it is small
        torch.testing.assert_close(values, direct, rtol=0, atol=1e-5)
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_teacher_topk_is_the_top_of_the_full_softmax(chunk: int) -> None:
    sides = Sides()
    ids, logprobs = teacher_topk(sides.teacher_hidden, sides.teacher_head, 4, chunk)
    expected = sides.teacher_head(sides.teacher_hidden).log_softmax(-1).sort(-1, descending=True)
    assert torch.equal(ids.long(), expected.indices[:, :4])
    torch.testing.assert_close(logprobs, expected.values[:, :4], rtol=0, atol=1e-12)
    assert not logprobs.requires_grad


def test_teacher_topk_by_hand() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0, 2.0], [7.0, 1.0, 1.0, 1.0]]).log()
    ids, logprobs = teacher_topk(logits, lambda rows: rows, 1, 1)
    assert ids.tolist() == [[1], [0]]
    assert logprobs.exp().tolist() == [[pytest.approx(0.5)], [pytest.approx(0.7)]]


def test_the_students_own_frozen_head_can_be_the_teachers() -> None:
    for divergence in (Divergence(k=4), Divergence(kl="reverse", support="full")):
        sides = Sides()
        teacher = States(sides.teacher_hidden, sides.head, 1)
        values = chunked_divergence(sides.hidden, sides.head, teacher, divergence, 4)
        expected = token_divergence(sides.head(sides.hidden), sides.head(sides.teacher_hidden).detach(), divergence)
        for found, wanted in zip(sides.gradients(values), sides.gradients(expected), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ["llama-tied", "gemma3", "cohere", "granite"])
def test_a_models_own_logits_are_what_is_compared(family: str) -> None:
    student, teacher = make_model(family, dtype=torch.float64), make_model(family, dtype=torch.float64, seed=1)
    ids = torch.arange(2 * 9).view(2, 9) * 7 % VOCABULARY
    expected = token_divergence(student(ids).logits.flatten(0, 1), teacher(ids).logits.flatten(0, 1), Divergence(k=8))
    hidden, teacher_hidden = (decoder(model)(ids).last_hidden_state.flatten(0, 1) for model in (student, teacher))
    states = States(teacher_hidden, logit_head(teacher), 1)
    kept = teacher_topk(teacher_hidden, logit_head(teacher), 8, 5)
    for side in (states, kept):
        values = chunked_divergence(hidden, logit_head(student), side, Divergence(k=8), 5)
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-10)


def test_the_divergence_is_fp32_under_bf16_autocast_and_the_shared_head_learns() -> None:
    numbers = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(16, 40, bias=False)
    hidden, teacher_hidden, weight = (torch.randn(rows, 16, generator=numbers) for rows in (9, 9, 40))
    head.weight.data.copy_(weight / 4)
    gradients = []
    for low in (True, False):
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            # All 40 tokens: in bf16 the eighth and the ninth can change places, which is another support, not an error.
            values = chunked_divergence(hidden, head, States(teacher_hidden, head, 1), Divergence(), 4)
        assert values.dtype == torch.float32
        values.sum().backward()
        assert head.weight.grad is not None
        gradients.append(head.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0.05 * gradients[1].abs().max().item())


def test_bf16_states_are_compared_in_fp32() -> None:
    sides = Sides(dtype=torch.bfloat16)
    values = chunked_divergence(sides.hidden, sides.head, sides.teacher(), Divergence(k=4), 4)
    assert values.dtype == torch.float32
    expected = token_divergence(
        sides.head(sides.hidden).float(), sides.teacher_head(sides.teacher_hidden).float(), Divergence(k=4)
    )
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
    assert teacher_topk(sides.hidden, sides.head, 4, 4).logprobs.dtype == torch.float32


# ---- Memory.


class Counter:
    """Heads that count the rows they make, and the rows of logits that are alive at once."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.most = 0
        self._alive: list[weakref.ref[torch.Tensor]] = []

    def count(self, logits: torch.Tensor) -> torch.Tensor:
        self._alive.append(weakref.ref(logits))
        self.rows.append(len(logits))
        self.most = max(self.most, sum(len(each) for ref in self._alive if (each := ref()) is not None))
        return logits


def counted(sides: Sides, *, remembered: int | None, divergence: Divergence, chunk: int) -> tuple[Counter, Counter, Counter]:
    """Count one forward and backward pass: the student's head, the teacher's, both together."""
    student, teacher, both = Counter(), Counter(), Counter()
    side: States | TeacherTopK = States(sides.teacher_hidden, lambda rows: both.count(teacher.count(sides.teacher_head(rows))), 1)
    if remembered is not None:
        side = teacher_topk(sides.teacher_hidden, sides.teacher_head, remembered, chunk)
    values = chunked_divergence(sides.hidden, lambda rows: both.count(student.count(sides.head(rows))), side, divergence, chunk)
    values.sum().backward()
    return student, teacher, both


@pytest.mark.parametrize("remembered", [None, 4])
@pytest.mark.parametrize("divergence", TEACHERS, ids=name)
def test_at_most_a_chunk_of_logits_on_the_teachers_support(divergence: Divergence, remembered: int | None) -> None:
    student, teacher, both = counted(Sides(rows=18), remembered=remembered, divergence=divergence, chunk=4)
    assert both.most == 4
    assert sum(student.rows) == 18 + 16  # forward, and all but the last chunk again in the backward pass
    assert sum(teacher.rows) == (0 if remembered else 18)  # the teacher's once


@pytest.mark.parametrize("divergence", STUDENTS + FULL, ids=name)
def test_at_most_a_chunk_of_logits_where_both_sides_are_needed_together(divergence: Divergence) -> None:
    student, teacher, both = counted(Sides(rows=18), remembered=None, divergence=divergence, chunk=8)
    assert both.most == 8
    assert student.rows == teacher.rows
    assert max(student.rows) == 4
    assert sum(student.rows) == 18 + 16


def test_teacher_topk_holds_a_chunk_of_logits_and_no_graph() -> None:
    sides, counter = Sides(rows=18), Counter()
    teacher_topk(sides.hidden, lambda rows: counter.count(sides.head(rows)), 4, 4)
    assert counter.rows == [4, 4, 4, 4, 2]
    assert counter.most == 4


@pytest.mark.parametrize("divergence", [TEACHERS[0], TEACHERS[2], TEACHERS[7], STUDENTS[5], *FULL], ids=name)
def test_what_waits_for_the_backward_pass_does_not_grow_with_the_vocabulary_times_the_positions(divergence: Divergence) -> None:
    def held(rows: int) -> int:
        """Elements of all tensors as wide as the vocabulary that autograd keeps after the forward pass."""
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.shape[-1:] == (999,) and tensor.shape != (H, 999):  # the head's own weight is no logits
                sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        sides = Sides(rows=rows, vocabulary=999)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            chunked_divergence(sides.hidden, sides.head, sides.teacher(), divergence, 8)
        return sum(sizes.values())

    assert held(64) == held(8 if divergence.support == "teacher" else 4)


# ---- Edges.


def test_no_position_gives_no_value() -> None:
    sides = Sides(rows=0)
    kept = teacher_topk(sides.teacher_hidden, sides.teacher_head, 4, 8)
    assert kept.ids.shape == kept.logprobs.shape == (0, 4)
    for teacher in (sides.teacher(), kept):
        values = chunked_divergence(sides.hidden, sides.head, teacher, Divergence(k=4), 8)
        assert values.shape == (0,)
        assert values.dtype == torch.float64


@pytest.mark.parametrize("divergence", STUDENTS[:1] + FULL[:1], ids=name)
def test_a_remembered_top_k_cannot_serve_another_support(divergence: Divergence) -> None:
    sides = Sides()
    kept = teacher_topk(sides.teacher_hidden, sides.teacher_head, 4, 8)
    with pytest.raises(UserError, match="cannot be computed from the teacher's top k alone"):
        chunked_divergence(sides.hidden, sides.head, kept, divergence, 8)


@pytest.mark.parametrize("kept_k", [3, 5, 13])
def test_a_remembered_top_k_of_another_k_is_refused(kept_k: int) -> None:
    sides = Sides()
    kept = teacher_topk(sides.teacher_hidden, sides.teacher_head, kept_k, 8)
    with pytest.raises(UserError, match=f"the teacher's top {kept_k} tokens were kept, and forward KL.* needs its top 4"):
        chunked_divergence(sides.hidden, sides.head, kept, Divergence(k=4), 8)


def test_sides_that_do_not_fit_are_refused() -> None:
    sides, other = Sides(), Sides(rows=N - 1)
    kept = teacher_topk(other.teacher_hidden, other.teacher_head, 4, 8)
    for teacher in (other.teacher(), kept):
        with pytest.raises(ValueError, match="11 positions of the student and 10 of the teacher"):
            chunked_divergence(sides.hidden, sides.head, teacher, Divergence(k=4), 8)
    wider = Sides(vocabulary=V + 1)
    for divergence in (Divergence(k=4), FULL[0]):
        with pytest.raises(ValueError, match="13"):
            chunked_divergence(sides.hidden, sides.head, wider.teacher(), divergence, 8)
