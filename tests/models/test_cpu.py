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
        path = cpu.relayout(model)
        assert path == cpu.path(model)
        if dtype == torch.bfloat16 and path != "oneDNN":
            assert "needs the cpu support" in path
            assert count(model) == 0
            return
        assert path == "oneDNN"
        assert count(model) == sum(1 for _ in model.model.layers) * 7 + 1
        packed = model(ids).logits
    torch.testing.assert_close(packed, own, atol=atol, rtol=0)
    assert packed.dtype == dtype
    assert torch.equal(model.get_input_embeddings().weight, embeddings), "a tied head leaves the embeddings in place"


def count(model):
    return sum(isinstance(module, cpu.OneDNNLinear) for module in model.modules())


def test_a_bias_is_kept():
    linear = torch.nn.Linear(16, 5)
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(cpu.OneDNNLinear(linear)(x), linear(x), atol=1e-5, rtol=0)


def test_other_precisions_are_left_alone():
    model = tiny_model(dtype=torch.float64)
    assert cpu.relayout(model) == "torch"
    assert count(model) == 0


@pytest.mark.parametrize("wrong", ["missing", "different"])
def test_a_build_without_the_operation_or_with_another_one_is_left_alone(monkeypatch, wrong):
    def forward(self, x):
        if wrong == "missing":
            raise AttributeError("no such operation")
        return torch.zeros(*x.shape[:-1], self.out_features)

    monkeypatch.setattr(cpu.OneDNNLinear, "forward", forward)
    model = tiny_model(dtype=torch.float32)
    kinds = [type(module) for module in model.modules()]
    path = cpu.relayout(model)
    assert path.startswith("torch: ")
    assert ("no such operation" in path) == (wrong == "missing")
    assert cpu.path(model) == path
    assert [type(module) for module in model.modules()] == kinds


def test_what_fails_in_a_model_is_not_taken_for_a_build_without_the_operation(monkeypatch):
    usual = cpu.OneDNNLinear.forward

    def forward(self, x):
        if self.in_features != 15:  # the trial's
            raise RuntimeError("a fault")
        return usual(self, x)

    monkeypatch.setattr(cpu.OneDNNLinear, "forward", forward)
    with pytest.raises(RuntimeError, match="a fault"):
        cpu.relayout(tiny_model(dtype=torch.float32))
