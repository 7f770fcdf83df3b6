from __future__ import annotations

import pytest
import torch
from torch import nn

from mixsd.models import cpu
from mixsd.models.cpu import fast_products, training_path

needs_onednn = pytest.mark.skipif(
    training_path(torch.device("cpu")) != "oneDNN", reason="this build of torch lacks oneDNN's linear operation"
)


def passes(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Output and gradients of a layer."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    output = layer(x)
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape))
    return output, [x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("shape", [(40,), (1, 40), (7, 40), (3, 5, 40), (0, 40)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_and_gradients_are_torchs_own(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 24, bias=bias), torch.randn(shape)
    wanted = passes(layer, x)
    with fast_products(layer):
        found = passes(layer, x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_layout_that_is_not_dense_and_a_gradient_of_one_number() -> None:
    torch.manual_seed(0)
    layer, wide = nn.Linear(6, 5), torch.randn(6, 9, requires_grad=True)
    layer(wide.t()).sum().backward()
    wanted, wide.grad = wide.grad, None
    with fast_products(layer):
        layer(wide.t()).sum().backward()
    torch.testing.assert_close(wide.grad, wanted)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_under_autocast_it_is_autocasts_product_without_a_copy_of_the_weight(bias: bool, given: torch.dtype) -> None:
    def saved(layer: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor | None], set[int]]:
        """As `passes`, and how many elements the bf16 tensors have that wait for the backward pass."""
        sizes: set[int] = set()

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dtype == torch.bfloat16:
                sizes.add(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
            return *passes(layer, x), sizes

    torch.manual_seed(0)
    layer, x = nn.Linear(40, 24, bias=bias), torch.randn(7, 40, dtype=given)
    output, grads, sizes = saved(layer)
    assert layer.weight.numel() in sizes
    with fast_products(layer):
        found, found_grads, found_sizes = saved(layer)
    assert layer.weight.numel() not in found_sizes
    assert found.dtype == output.dtype == torch.bfloat16
    torch.testing.assert_close(found, output)
    torch.testing.assert_close(found_grads, grads)


@needs_onednn
def test_only_inside_the_block_and_only_fp32_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    times = cpu._times
    monkeypatch.setattr(cpu, "_times", lambda one, other: calls.append(tuple(one.shape)) or times(one, other))
    layer, double = nn.Linear(6, 5), nn.Linear(6, 5, dtype=torch.float64)
    with fast_products(nn.ModuleList([layer, double])):
        double(torch.ones(2, 6, dtype=torch.float64))
        assert not calls
        layer(torch.ones(2, 6))
    assert len(calls) == 1
    layer(torch.ones(2, 6))
    assert len(calls) == 1
    assert "forward" not in vars(layer)


@needs_onednn
def test_a_frozen_weight_costs_no_product() -> None:
    layer = nn.Linear(6, 5).requires_grad_(False)
    with fast_products(layer):
        x = torch.ones(2, 6, requires_grad=True)
        layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(2, 6))


def test_twice_the_same_bits() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 48), torch.randn(33, 64)
    with fast_products(layer):
        one, other = passes(layer, x), passes(layer, x)
    assert torch.equal(one[0], other[0])
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True) if a is not None and b is not None)
