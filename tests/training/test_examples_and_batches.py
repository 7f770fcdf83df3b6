from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd.errors import UserError
from mixsd.training.examples import UNSUPERVISED, Example, collate, microbatches, plan_epoch, steps_per_epoch, usable
from tests.training.tiny import make_examples


def test_labels_are_masked_by_length_so_an_eos_that_is_also_the_pad_is_supervised() -> None:
    # 0 is what we pad with and the target's last id here, and it also occurs inside the prompt.
    batch = collate([Example("a", (5, 0), (7, 0)), Example("b", (5,), (0,))])
    assert batch.input_ids.tolist() == [[5, 0, 7, 0], [5, 0, 0, 0]]
    assert batch.labels.tolist() == [[UNSUPERVISED, UNSUPERVISED, 7, 0], [UNSUPERVISED, 0, UNSUPERVISED, UNSUPERVISED]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert batch.labels.dtype == batch.input_ids.dtype == torch.int64


@given(st.lists(st.tuples(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1)), min_size=1))
@settings(max_examples=30, deadline=None)
def test_collate_keeps_every_id_and_supervises_exactly_the_targets(pairs: list[tuple[list[int], list[int]]]) -> None:
    batch = collate([Example(str(n), tuple(prompt), tuple(target)) for n, (prompt, target) in enumerate(pairs)])
    for row, (prompt, target) in enumerate(pairs):
        kept = batch.attention_mask[row].bool()
        assert batch.input_ids[row][kept].tolist() == prompt + target
        assert batch.labels[row][batch.labels[row] != UNSUPERVISED].tolist() == target


@pytest.mark.parametrize("example", [Example("odd", (1, 2), ()), Example("odd", (), (1, 2))])
def test_no_supervised_token_is_an_error_that_names_the_example(example: Example) -> None:
    with pytest.raises(UserError, match=r"no supervised token.*odd"):
        usable([*make_examples(2), example], None)


def test_overlong_examples_are_named_or_dropped_and_returned_but_never_cut() -> None:
    examples = [Example("fits", (1, 2), (3,)), Example("long", (1, 2), (3, 4)), Example("longer", (1, 2, 3), (3, 4))]
    with pytest.raises(UserError, match=r"context of 3 tokens in 2 examples \(long, longer\).*--drop-overlong"):
        usable(examples, 3)
    assert usable(examples, 3, drop_overlong=True) == ([examples[0]], ("long", "longer"))
    with pytest.raises(UserError, match="leaves nothing"):
        usable(examples, 2, drop_overlong=True)
    with pytest.raises(UserError, match="no target"):
        usable([], 2)


def test_equal_keys_are_an_error() -> None:
    with pytest.raises(UserError, match="same"):
        usable([Example("same", (1,), (2,)), Example("same", (1,), (3,))], None)


def test_a_plan_covers_every_key_once_and_keeps_the_partial_last_step() -> None:
    plan = plan_epoch(0, 1, [example.key for example in make_examples(11)], batch_size=4)
    assert [len(step) for step in plan] == [4, 4, 3]
    assert len(plan) == steps_per_epoch(11, 4)
    assert sorted(index for step in plan for index in step) == list(range(11))


def test_microbatches_hold_each_example_once_longest_first() -> None:
    examples = make_examples(11)
    cut = microbatches(examples, 3)
    assert [len(batch) for batch in cut] == [3, 3, 3, 2]
    assert sorted(example.key for batch in cut for example in batch) == sorted(example.key for example in examples)
    lengths = [len(example) for batch in cut for example in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_a_step_s_composition_depends_on_seed_epoch_and_keys_only() -> None:
    keys = [example.key for example in make_examples(12)]

    def composition(seed: int, epoch: int, order: list[str]) -> list[set[str]]:
        return [{order[index] for index in step} for step in plan_epoch(seed, epoch, order, 4)]

    reference = composition(0, 0, keys)
    assert composition(0, 0, keys[::-1]) == reference
    assert composition(0, 1, keys) != reference
    assert composition(1, 0, keys) != reference
