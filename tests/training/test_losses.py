from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from mixsd.training import states
from mixsd.training.examples import UNSUPERVISED, Batch, collate
from mixsd.training.losses import chunked_nll, inseparable
from tests.training.tiny import VOCABULARY, batch_nll, make_examples, make_model

pytestmark = pytest.mark.matrix

FAMILIES = ["llama", "llama-tied", "qwen3", "gemma3", "cohere", "granite"]


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def oracle_nll(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Dense cross-entropy over the model's own logits, one example at a time and without padding."""
    total = torch.zeros((), dtype=model.dtype)
    for row in range(len(batch.input_ids)):
        length = int(batch.attention_mask[row].sum())
        ids, labels = batch.input_ids[row : row + 1, :length], batch.labels[row, :length]
        logits = model(input_ids=ids).logits[0, :-1]
        total = total + functional.cross_entropy(logits, labels[1:], ignore_index=UNSUPERVISED, reduction="sum")
    return total


def test_three_tokens_by_hand() -> None:
    # Logits of row r are log(weights[r]), so the probabilities are the weights over their sum.
    weights = torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 4.0], [1.0, 1.0, 8.0]])
    nll = chunked_nll(weights.log(), lambda rows: rows, torch.tensor([1, 0, 2]), chunk=2)
    assert nll.tolist() == pytest.approx([-math.log(2 / 4), -math.log(3 / 8), -math.log(8 / 10)], abs=1e-6)


def dense_nll(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Cross-entropy over all the logits of the padded batch, by the model's own forward pass."""
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids)
    return functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_chunked_equals_dense_in_value_and_gradient(family: str, chunk: int) -> None:
    batch = collate(make_examples(5))
    model = make_model(family, dtype=torch.float64)
    assert inseparable(model, batch) is None
    expected = dense_nll(model, batch)
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()
    found = batch_nll(model, batch, chunk=chunk)
    found.backward()
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
    assert gradients(model).keys() == wanted.keys()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_its_examples_alone(family: str) -> None:
    # fp32 inside the families' norms sets the tolerance here.
    batch, model = collate(make_examples(5)), make_model(family, dtype=torch.float64)
    assert batch_nll(model, batch).item() == pytest.approx(oracle_nll(model, batch).item(), abs=1e-5)


@contextmanager
def rows_seen_by_head(model: PreTrainedModel) -> Iterator[list[int]]:
    seen: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(out.shape[:-1].numel()))
    yield seen
    hook.remove()


def test_the_head_never_sees_more_than_a_chunk_nor_an_unsupervised_row() -> None:
    model, batch = make_model(), collate(make_examples(8))
    supervised = int((batch.labels[:, 1:] != UNSUPERVISED).sum())
    with rows_seen_by_head(model) as seen:
        nll = batch_nll(model, batch, chunk=4)
        assert sum(seen) == supervised  # forward: each supervised row once, the prompt never
        nll.backward()
    assert max(seen) <= 4
    assert sum(seen) == supervised + (supervised - 1) // 4 * 4  # backward: all but the last chunk once more


def test_the_chunk_is_bounded_by_the_number_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "CHUNK_LOGITS", 3 * VOCABULARY + 5)
    model = make_model()
    with rows_seen_by_head(model) as seen:
        batch_nll(model, collate(make_examples(8))).backward()
    assert max(seen) == 3


def test_logits_held_for_the_backward_pass_do_not_grow_with_the_number_of_tokens() -> None:
    def saved_logits(rows: int) -> int:
        """Elements of all logit-shaped tensors that autograd keeps after the forward pass."""
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.shape[-1:] == (999,) and tensor.shape != (16, 999):  # the head's own weight is no logits
                sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        head = torch.nn.Linear(16, 999, bias=False)
        hidden = torch.randn(rows, 16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            chunked_nll(hidden, head, torch.zeros(rows, dtype=torch.long), chunk=8)
        return sum(sizes.values())

    assert saved_logits(64) == saved_logits(8) == 8 * 999


def test_cross_entropy_is_fp32_under_bf16_autocast() -> None:
    model, batch = make_model("llama"), collate(make_examples(4))
    with torch.autocast("cpu", torch.bfloat16):
        nll = batch_nll(model, batch, chunk=4)
    assert nll.dtype == torch.float32
    assert nll.item() == pytest.approx(batch_nll(model, batch).item(), rel=0.02)


def test_a_model_whose_head_does_more_than_we_know_is_noticed_and_trained_through_its_own_logits() -> None:
    model, batch = make_model("llama", dtype=torch.float64), collate(make_examples(4))
    forward = model.forward

    def odd(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    model.forward = odd  # type: ignore[method-assign]
    assert inseparable(model, batch)
    assert batch_nll(model, batch, dense=True).item() == pytest.approx(oracle_nll(model, batch).item(), abs=1e-9)
    assert batch_nll(model, batch).item() != pytest.approx(oracle_nll(model, batch).item(), rel=1e-3)


def test_the_check_leaves_the_mode_alone() -> None:
    model = make_model().train()
    inseparable(model, collate(make_examples(1)))
    assert model.training
    assert model.config.vocab_size == VOCABULARY
