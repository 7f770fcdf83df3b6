"""Packed linear layers do what the layers did, and a model that cannot have them is left alone."""

import pytest
import torch

from mixsd.models import cpu
from tests.tiny import ARCHITECTURES, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.3)])
def test_logits_stay_what_they_were(architecture, dtype, atol):
    model = tiny_model(architecture, dtype=dtype)
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.inference_mode():
        own = model(ids).logits
        embeddings = model.get_input_embeddings().weight.clone()
        assert cpu.relayout(model) == sum(1 for _ in model.model.layers) * 7 + 1
        packed = model(ids).logits
    torch.testing.assert_close(packed, own, atol=atol, rtol=0)
    assert packed.dtype == dtype
    assert torch.equal(model.get_input_embeddings().weight, embeddings), "a tied head leaves the embeddings in place"


def test_a_bias_is_kept():
    linear = torch.nn.Linear(16, 5)
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(cpu.OneDNNLinear(linear)(x), linear(x), atol=1e-5, rtol=0)


def test_other_precisions_are_left_alone():
    assert cpu.relayout(tiny_model(dtype=torch.float64)) == 0


@pytest.mark.parametrize("wrong", ["missing", "different"])
def test_a_build_without_the_operation_or_with_another_one_is_left_alone(monkeypatch, wrong):
    def forward(self, x):
        if wrong == "missing":
            raise AttributeError("no such operation")
        return torch.zeros(*x.shape[:-1], self.out_features)

    monkeypatch.setattr(cpu.OneDNNLinear, "forward", forward)
    model = tiny_model(dtype=torch.float32)
    kinds = [type(module) for module in model.modules()]
    assert cpu.relayout(model) == 0
    assert [type(module) for module in model.modules()] == kinds
