from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from transformers import AutoModelForCausalLM, PreTrainedModel

from mixsd.errors import MixsdError, UserError
from mixsd.models.compat import adapted_layers
from mixsd.models.folder import logits_of, probe_ids
from mixsd.training.checkpoints import put_back
from mixsd.training.examples import collate
from mixsd.training.lora import Lora, check_same_logits, check_same_tensors, check_targets_moved
from tests.training.test_loop import run
from tests.training.tiny import batch_nll, make_examples, make_model, same_bits, weights

pytestmark = pytest.mark.matrix

ALL_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def trained_lora(kind: str = "llama-tied") -> tuple[Lora, PreTrainedModel]:
    """An adapter whose B is not zero, and the base that it is attached to."""
    base = make_model(kind)
    lora = Lora(base, rank=3, seed=1)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in lora.state().items():
        if "lora_B" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return lora, base


def test_every_linear_layer_is_a_target_and_nothing_else_trains() -> None:
    lora, base = trained_lora()
    layers = adapted_layers(base)
    assert {name.rsplit(".", 1)[1] for name in layers} == ALL_LINEAR
    assert len(layers) == 2 * len(ALL_LINEAR)
    assert {layer.scaling["default"] for layer in layers.values()} == {2.0}
    assert all(("lora_" in name) == parameter.requires_grad for name, parameter in lora.model.named_parameters())


def test_the_adapters_depend_on_the_seed_alone_and_start_as_no_change() -> None:
    state = torch.get_rng_state()
    one = Lora(make_model(), rank=3, seed=1)
    torch.manual_seed(9)
    two, three = Lora(make_model(), rank=3, seed=1), Lora(make_model(), rank=3, seed=2)
    assert same_bits(one.state(), two.state())
    assert not same_bits(one.state(), three.state())
    torch.set_rng_state(state)
    ids = probe_ids(make_model())
    assert torch.equal(logits_of(one.model, ids), logits_of(make_model(), ids))


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gemma3", "dropout"])
def test_a_merge_is_lent_and_taken_back_bit_for_bit(kind: str) -> None:
    lora, base = trained_lora(kind)
    before, names = weights(base), [name for name, _ in base.named_modules()]
    plain = make_model(kind)
    expected = logits_of(lora.model, probe_ids(base))
    with lora.merged() as merged:
        assert weights(merged).keys() == weights(plain).keys()
        assert not adapted_layers(merged)
        torch.testing.assert_close(logits_of(merged, probe_ids(merged)), expected, rtol=0, atol=1e-4)
    assert same_bits(weights(base), before)
    assert [name for name, _ in base.named_modules()] == names
    assert torch.equal(logits_of(lora.model, probe_ids(base)), expected)


def test_the_merged_weight_is_the_base_plus_twice_b_times_a() -> None:
    lora, base = trained_lora("llama")
    state = lora.state()
    a, b = (state[f"base_model.model.model.layers.1.mlp.up_proj.lora_{side}.default.weight"] for side in "AB")
    plain = lora.finish()
    expected = make_model("llama").state_dict()["model.layers.1.mlp.up_proj.weight"] + 2 * b @ a
    torch.testing.assert_close(plain.state_dict()["model.layers.1.mlp.up_proj.weight"], expected)
    assert plain is base
    assert not hasattr(plain, "peft_config")


def test_an_error_while_the_merge_is_lent_also_takes_it_back() -> None:
    lora, base = trained_lora()
    before = weights(base)
    with pytest.raises(KeyboardInterrupt), lora.merged():
        raise KeyboardInterrupt
    assert same_bits(weights(base), before)


def test_a_merge_that_leaves_a_target_as_it_was_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    lora, base = trained_lora()
    before = weights(base)
    real = Linear.merge
    skipped = adapted_layers(base)["model.layers.0.mlp.up_proj"]
    monkeypatch.setattr(Linear, "merge", lambda self, *args: None if self is skipped else real(self, *args))
    with pytest.raises(MixsdError, match=r"model\.layers\.0\.mlp\.up_proj is still the base's weight"):
        lora.finish()
    assert same_bits(weights(base), before)


def test_a_merge_with_the_wrong_scale_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    lora, _ = trained_lora()
    real = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: real(self, adapter) / 2)
    with pytest.raises(MixsdError, match="logits differ"), lora.merged():
        pass


def test_a_merge_that_changes_the_tensors_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    lora, base = trained_lora()
    real = type(base).state_dict

    def renamed(self: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        return {name.replace("up_proj", "up"): tensor for name, tensor in real(self, *args, **kwargs).items()}

    monkeypatch.setattr(type(base), "state_dict", renamed)
    with pytest.raises(MixsdError, match="tensors instead of"), lora.merged():
        pass


def test_each_check_alone() -> None:
    one, other = {"a": torch.zeros(2)}, {"a": torch.tensor([0.0, 1e-7])}
    check_targets_moved(one, other)
    with pytest.raises(MixsdError, match="a is still"):
        check_targets_moved(one, {"a": torch.zeros(2)})
    check_same_logits(torch.full((1, 2), 10.0), torch.full((1, 2), 10.001))
    for broken in (10.1, float("nan")):
        with pytest.raises(MixsdError, match="logits differ"):
            check_same_logits(torch.full((1, 2), 10.0), torch.full((1, 2), broken))
    shapes = {"a": torch.Size([2, 3])}
    check_same_tensors(shapes, dict(shapes))
    for bad in ({}, {**shapes, "b": torch.Size([1])}, {"a": torch.Size([3, 2])}):
        with pytest.raises(MixsdError, match="LoRA merge failed"):
            check_same_tensors(shapes, bad)


def test_an_adapter_that_is_still_zero_is_no_failed_merge() -> None:
    base = make_model()
    plain = Lora(base, rank=2, seed=0).finish()
    assert same_bits(weights(plain), weights(make_model()))


def test_adapters_of_another_rank_are_refused() -> None:
    with pytest.raises(UserError, match="do not fit"):
        put_back(Lora(make_model(), rank=2, seed=0).state(), trained_lora()[0].state(), Path("x"))


def test_chunked_loss_works_inside_a_peft_model_and_its_gradients_reach_the_adapters() -> None:
    lora, base = trained_lora("gemma3")
    batch = collate(make_examples(4))
    batch_nll(base, batch).backward()
    found = {name: parameter.grad for name, parameter in lora.model.named_parameters() if parameter.grad is not None}
    assert found.keys() == lora.state().keys()
    merged_loss = batch_nll(lora.finish(), batch).item()
    assert merged_loss == pytest.approx(batch_nll(trained_lora("gemma3")[1], batch).item(), abs=1e-4)


def test_a_lora_run_returns_a_plain_model_and_checkpoints_that_are_that_model(tmp_path: Path) -> None:
    base = make_model()
    start = weights(base)
    result = run(tmp_path, model=base, lora=4, lr=1e-2, epochs=8, checkpoint_every=100)
    assert result.losses[-1] < 0.7 * result.losses[0]
    assert weights(result.model).keys() == start.keys()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoints" / "step-000024", local_files_only=True)
    assert same_bits(weights(loaded), weights(result.model))
    moved = {name for name, tensor in weights(result.model).items() if not torch.equal(tensor, start[name])}
    assert {name.split(".")[-2] for name in moved} == ALL_LINEAR
