"""What the tests of the Fisher compare with: per-example gradients by autograd, dense and in float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mixsd.analyse.base_fisher import Fisher
from mixsd.analyse.displacement import WeightSums
from mixsd.randomness import uniforms
from mixsd.storage import write_json
from mixsd.training.examples import Example


def references(count: int = 6, *, vocab: int = 97, seed: int = 0) -> list[Example]:
    made = []
    for number in range(count):
        draws = uniforms(seed, "evaluation", f"reference {number}", n=24)
        ids = [3 + int(draw * (vocab - 3)) for draw in draws]
        prompt, target = 2 + int(draws[20] * 7), 1 + int(draws[21] * 8)
        made.append(Example(f"r{number:02}", tuple(ids[:prompt]), (*ids[prompt : prompt + target], 2)))
    return made


def dense_nll(model: torch.nn.Module, item: Example) -> Tensor:
    """The summed NLL straight from the model's own logits."""
    ids = torch.tensor([[*item.prompt_ids, *item.target_ids]])
    logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
    places = range(len(item.prompt_ids), ids.shape[1])
    return -torch.stack([logprobs[place - 1, ids[0, place]] for place in places]).sum()


def oracle(model: torch.nn.Module, items: Sequence[Example]) -> dict[str, Tensor]:
    """Eq. 7 by its letter: the gradient of each example alone, squared, the mean over examples."""
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for item in items:
        gradients = torch.autograd.grad(-dense_nll(model, item), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            total[name] += gradient**2
    return {name: value / len(items) for name, value in total.items()}


def tensors_of(fisher: Fisher) -> dict[str, Tensor]:
    with fisher.open() as known:
        return {name: known.get_tensor(name) for name in fisher.sums}


def made_fisher(folder: Path, tensors: Mapping[str, Tensor], aliases: Mapping[str, str] | None = None) -> Fisher:
    """A Fisher with numbers of the test's own."""
    folder.mkdir(parents=True)
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, folder / "fisher.safetensors")
    sums = {name: (float(tensor.double().sum()), tensor.numel()) for name, tensor in tensors.items()}
    write_json(folder / "fisher.json", {})
    return Fisher("made", folder, sums, dict(aliases or {}), {"examples": 1})


def step_part(fisher: Fisher, deltas: Iterable[tuple[str, Tensor]]) -> WeightSums:
    """The sums of a step through all of the weights; its `alignment` is Eq. 11 in that direction."""
    total = WeightSums()
    with fisher.open() as known:
        for name, delta in deltas:
            squared, weights = delta.double().square(), known.get_tensor(name).double()
            total += WeightSums(float(squared.sum()), float((squared * weights).sum()), float(weights.sum()), delta.numel())
    return total
