from __future__ import annotations

import gc
import itertools
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mixsd.analyse.base_fisher import Fisher, diagonal_fisher, fisher_key, stored_fisher, target_nll
from mixsd.errors import UserError
from mixsd.storage import read_json
from mixsd.training.examples import Example
from tests.analyse.fisher_oracle import dense_nll, oracle, references, tensors_of
from tests.tiny import tiny_model


def estimate(model: Any, items: list[Example], cache: Path, nll: Any = None, **options: Any) -> Fisher:
    key = fisher_key(items, model_hash="tiny", precision="cpu")
    return diagonal_fisher(model, items, nll or target_nll(model, items[0]), key=key, cache=cache, **options)


class Bigram(nn.Module):
    """log p(next | last) = log softmax of a row: the gradient is one-hot minus softmax, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor([[0.0, 1.0, -1.0], [0.5, 0.0, 2.0], [1.0, 1.0, 1.0]]))


def test_closed_form_of_a_bigram_model(tmp_path: Path) -> None:
    model = Bigram()
    items = [Example("a", (0,), (1, 2)), Example("b", (2,), (2, 2))]

    def nll(item: Example) -> Tensor:
        ids = [*item.prompt_ids, *item.target_ids]
        return -sum((model.rows[last].log_softmax(0)[following] for last, following in itertools.pairwise(ids)), torch.zeros(()))

    found = tensors_of(estimate(model, items, tmp_path, nll))["rows"]
    soft = model.rows.detach().softmax(1)
    one = torch.eye(3)
    first = torch.zeros(3, 3)
    first[0], first[1] = one[1] - soft[0], one[2] - soft[1]
    second = torch.zeros(3, 3)
    second[2] = 2 * (one[2] - soft[2])  # the same row twice: the square is of the sum
    torch.testing.assert_close(found, (first**2 + second**2) / 2)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])  # the first and the last are tied
def test_equals_autograd_per_example(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    items = references()
    expected = oracle(model, items)
    fisher = estimate(model, items, tmp_path)
    found = tensors_of(fisher)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.double(), expected[name], rtol=2e-5, atol=1e-10)
        assert fisher.sums[name] == pytest.approx((expected[name].sum().item(), expected[name].numel()), rel=1e-5)
    tied = model.config.tie_word_embeddings
    assert fisher.aliases == ({"lm_head.weight": "model.embed_tokens.weight"} if tied else {})
    total = sum(tensor.sum().item() for tensor in expected.values())
    assert fisher.mean == pytest.approx(total / sum(tensor.numel() for tensor in expected.values()), rel=1e-5)


def test_a_tied_tensor_gets_the_square_of_the_sum(tmp_path: Path) -> None:
    """Not the sum of the squares of its two uses, which untied copies would give."""
    tied = tiny_model("llama")
    apart = tiny_model("llama", tie_word_embeddings=False)
    apart.load_state_dict(tied.state_dict())
    items = references(2)
    found = tensors_of(estimate(tied, items, tmp_path / "tied"))["model.embed_tokens.weight"]
    two = tensors_of(estimate(apart, items, tmp_path / "apart"))
    separate = two["model.embed_tokens.weight"] + two["lm_head.weight"]
    assert not torch.allclose(found, separate, rtol=1e-3)
    torch.testing.assert_close(found.double(), oracle(tied, items)["model.embed_tokens.weight"], rtol=2e-5, atol=1e-10)


def test_the_order_of_the_examples_does_not_matter(tmp_path: Path) -> None:
    model, items = tiny_model(dtype=torch.float32), references()
    one = tensors_of(estimate(model, items, tmp_path / "one"))
    other = tensors_of(estimate(model, items[::-1], tmp_path / "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert fisher_key(items, model_hash="m", precision="p") == fisher_key(items[::-1], model_hash="m", precision="p")
    assert fisher_key(items, model_hash="m", precision="p") != fisher_key(items[:-1], model_hash="m", precision="p")


@pytest.mark.parametrize("killed_after", [1, 4])
def test_a_stopped_estimate_goes_on_with_the_same_bits(killed_after: int, tmp_path: Path) -> None:
    model, items = tiny_model(dtype=torch.float32), references()
    expected = tensors_of(estimate(model, items, tmp_path / "undisturbed"))
    nll, asked = target_nll(model, items[0]), []

    def stopping(item: Example) -> Tensor:
        if len(asked) == killed_after:
            raise KeyboardInterrupt
        asked.append(item.key)
        return nll(item)

    with pytest.raises(KeyboardInterrupt):
        estimate(model, items, tmp_path / "cache", stopping, seconds_between_saves=0.0)
    again: list[str] = []

    def counting(item: Example) -> Tensor:
        again.append(item.key)
        return nll(item)

    told: list[int] = []
    found = estimate(model, items, tmp_path / "cache", counting, on_done=told.append)
    # Saving is not done after every example where it takes long beside them.
    assert len(items) - killed_after <= len(again) < len(items)
    assert again == [item.key for item in items[-len(again) :]]
    assert sum(told) == len(items)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors_of(found).items())
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [found.key[:20]]


def test_a_finished_one_is_found_and_a_torn_one_is_not(tmp_path: Path) -> None:
    model, items = tiny_model(), references(2)
    made = estimate(model, items, tmp_path, record={"model": "tiny"})
    found = stored_fisher(tmp_path, made.key)
    assert found is not None
    assert (found.sums, found.aliases, found.record["model"]) == (dict(made.sums), made.aliases, "tiny")
    assert stored_fisher(tmp_path, "0" * 32) is None
    record = made.folder / "fisher.json"
    whole = record.read_text()
    for other in ("{}", "[]", '{"sums": [1]}', '{"sums": {"a": 1}, "aliases": {}}'):
        record.write_text(other)
        assert stored_fisher(tmp_path, made.key) is None
    record.write_text(whole)
    assert stored_fisher(tmp_path, made.key) is not None
    file = made.folder / "fisher.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert stored_fisher(tmp_path, made.key) is None


def test_no_gradient_outlives_its_hook(tmp_path: Path) -> None:
    """At most one decoder layer's gradients are alive at any time, and none between examples."""
    model, items = tiny_model(num_hidden_layers=6), references(3)
    alive: dict[int, Any] = {}
    most = 0
    for parameter in model.parameters():

        def seen(given: Tensor) -> None:
            nonlocal most
            assert given.grad is not None
            alive[id(given)] = weakref.ref(given.grad)
            most = max(most, sum(ref() is not None for ref in alive.values()))

        parameter.register_post_accumulate_grad_hook(seen)  # before ours, which lets go of it
    estimate(model, items, tmp_path)
    gc.collect()
    assert all(ref() is None for ref in alive.values())
    assert 1 <= most <= sum(1 for name, _ in model.named_parameters() if ".layers.0." in name)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_target_nll_is_the_dense_one_and_logits_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from mixsd.analyse import base_fisher

    model, items = tiny_model(), references()
    monkeypatch.setattr(base_fisher, "_LOGITS", 2 * 97)  # two rows of logits
    nll = target_nll(model, items[0])
    widest = 0

    def seen(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal widest
        widest = max(widest, output.shape[0])

    model.lm_head.register_forward_hook(seen)
    for item in items:
        assert nll(item).item() == pytest.approx(dense_nll(model, item).item(), rel=1e-12)
    assert 1 <= widest <= 2


def test_dropout_stays_off() -> None:
    from tests.training.tiny import make_model

    model, item = make_model("dropout"), references(1, vocab=64)[0]
    nll = target_nll(model, item)
    assert nll(item).item() == nll(item).item()
    assert not any(module.training for module in model.modules() if isinstance(module, nn.Dropout))


def test_what_cannot_be_estimated_is_said(tmp_path: Path) -> None:
    model, items = tiny_model(), references(2)
    with pytest.raises(UserError, match="no reference example"):
        diagonal_fisher(model, [], lambda item: torch.zeros(()), key="k", cache=tmp_path)
    with pytest.raises(UserError, match=r"occur twice: 1 example \(r00\)"):
        estimate(model, [items[0], items[0]], tmp_path, lambda item: torch.zeros(()))
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="log-likelihood of r00 is not finite"):
        estimate(model, items, tmp_path, lambda item: dense_nll(model, item))


def test_the_partial_sums_hold_what_was_done(tmp_path: Path) -> None:
    model, items = tiny_model(dtype=torch.float32), references(4)
    nll = target_nll(model, items[0])

    def stopping(item: Example) -> Tensor:
        if item is items[2]:
            raise KeyboardInterrupt
        return nll(item)

    with pytest.raises(KeyboardInterrupt):
        estimate(model, items, tmp_path, stopping, seconds_between_saves=0.0)
    partial = next(tmp_path.glob("*-partial"))
    done = read_json(partial / "fisher.json")["done"]
    assert 1 <= done <= 2
    expected = oracle(model.double(), items[:done])
    for name, tensor in load_file(partial / "fisher.safetensors").items():
        torch.testing.assert_close(tensor.double(), done * expected[name], rtol=1e-3, atol=1e-6)
