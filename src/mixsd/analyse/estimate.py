"""The diagonal empirical Fisher of a model (Eq. 7): how much the log-likelihood of reference replies hangs on each weight.

    F_i = 1/N sum_n (d log p(y_n | x_n) / d theta_i)^2

One example at a time, since the square of a sum is not the sum of squares. Memory is what decides which model this can be done
for, so gradients never exist side by side: a hook squares each one into an fp32 accumulator as soon as autograd has summed it (a
tied tensor's contributions are summed before the hook, so it is the square of the sum), and lets go of it.

Examples are taken in the order of their keys, whatever order they come in. Every so often the sums are written down with how many
examples are in them; a stopped estimate goes on from there, on CPU with the same bits as an undisturbed one. A finished estimate is a
folder in the cache, named by model, examples and precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixsd.errors import UserError
from mixsd.storage import atomic_folder, digest, read_json, sweep_leftovers, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VERSION = 1  # raised whenever the same examples come to give another estimate
_WEIGHTS, _RECORD = "fisher.safetensors", "fisher.json"
_SECONDS_BETWEEN_SAVES = 60.0
_SHARE_OF_SAVING = 20  # writing takes at most one part in so many of the time


@dataclass(frozen=True, slots=True)
class Reference:
    """One reference reply: `prompt_ids` are given, `target_ids` are what the log-likelihood is of. `key` is unique."""

    key: str
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]


@dataclass(frozen=True)
class Fisher:
    """An estimate as it lies on disk.

    `key` names it. `sums` are the sum of F and the number of weights, by parameter, summed in fp64. `aliases` are further names of
    tied parameters, each with the name that F goes by. `record` is all that was written beside the numbers.
    """

    key: str
    folder: Path
    sums: Mapping[str, tuple[float, int]]
    aliases: Mapping[str, str]
    record: Mapping[str, Any]

    @property
    def mean(self) -> float:
        """The mean of F over all weights."""
        return sum(total for total, _ in self.sums.values()) / sum(count for _, count in self.sums.values())

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The estimate's tensors, fp32, as safetensors gives them: `get_tensor(name)`, `get_slice(name)`."""
        with safe_open(self.folder / _WEIGHTS, framework="pt") as tensors:
            yield tensors


def fisher_key(references: Sequence[Reference], *, model_hash: str, precision: str) -> str:
    """The name of the estimate that these references give: hash of model, examples, precision and code version."""
    examples = [[item.prompt_ids, item.target_ids] for item in sorted(references, key=lambda item: item.key)]
    return digest([_VERSION, model_hash, precision, len(references), digest(examples)])


def stored_fisher(cache: Path, key: str) -> Fisher | None:
    """A finished estimate from the cache, or None where there is no whole one."""
    folder = cache / key[:20]
    try:
        record = read_json(folder / _RECORD)
        with safe_open(folder / _WEIGHTS, framework="pt") as tensors:
            names = set(tensors.keys())
        sums = {name: (float(total), int(count)) for name, (total, count) in record["sums"].items()}
        aliases = dict(record["aliases"])
    except (UserError, OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return Fisher(key, folder, sums, aliases, record) if names == set(sums) and record.get("key") == key else None


def diagonal_fisher(
    model: PreTrainedModel,
    references: Sequence[Reference],
    nll: Callable[[Reference], Tensor],
    *,
    key: str,
    cache: Path,
    record: Mapping[str, Any] | None = None,
    on_done: Callable[[int], None] = lambda count: None,
    seconds_between_saves: float = _SECONDS_BETWEEN_SAVES,
) -> Fisher:
    """Estimate the diagonal Fisher of a model, going on from where an earlier try was stopped.

    Args:
        model: its weights are not changed; all of them are differentiated.
        references: the examples.
        nll: the negative log-likelihood of an example's target under the model, in nats, summed: a scalar to differentiate.
        key: see `fisher_key`.
        cache: the folder of the cache.
        record: what else is to be written beside the numbers.
        on_done: told the number of examples just done.
        seconds_between_saves: at least so long passes between two saves of the sums.

    Returns:
        the estimate: one fp32 tensor per parameter, F >= 0.

    Raises:
        UserError: no reference, two of one key, or a log-likelihood or gradient that is not finite.
    """
    _check(references)
    cache.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(cache, shared=True)
    parameters = dict(model.named_parameters())
    partial = cache / f"{key[:20]}-partial"
    done, sums = _resumed(partial, parameters)
    on_done(done)
    pending = sorted(references, key=lambda item: item.key)[done:]
    saved, cost = time.monotonic(), 0.0
    with _squaring(parameters, sums):
        for item in pending:
            loss = nll(item)
            if not torch.isfinite(loss):
                raise UserError(f"the model's log-likelihood of {item.key} is not finite; its weights or --dtype may be at fault")
            loss.backward()  # type: ignore[no-untyped-call]
            done += 1
            on_done(1)
            began = time.monotonic()
            if done < len(references) and began - saved >= max(seconds_between_saves, _SHARE_OF_SAVING * cost):
                _save(partial, sums, {"done": done})
                saved = time.monotonic()
                cost = saved - began
    return _finish(cache, key, model, sums, len(references), record or {})


def _finish(cache: Path, key: str, model: PreTrainedModel, sums: dict[str, Tensor], n: int, record: Mapping[str, Any]) -> Fisher:
    """Write the means down as the finished estimate."""
    totals: dict[str, tuple[float, int]] = {}
    for name, tensor in sums.items():
        tensor.div_(n)
        total = float(tensor.sum(dtype=torch.float64 if tensor.device.type != "mps" else None))
        if not total < float("inf"):
            raise UserError(f"the squared gradient of {name} is not finite; its weights or --dtype may be at fault")
        totals[name] = (total, tensor.numel())
    found: dict[int, str] = {id(parameter): name for name, parameter in model.named_parameters()}
    aliases = {
        name: found[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if found[id(parameter)] != name
    }
    whole = {"key": key, "version": _VERSION, "examples": n, **record, "aliases": aliases, "sums": totals}
    folder, partial = cache / key[:20], cache / f"{key[:20]}-partial"
    _save(folder, sums, whole)
    if partial.exists():
        # By renaming: half a removed folder must not look like a state to go on from.
        partial.rename(doomed := partial.with_name(f".{partial.name}.0.tmp"))
        for file in doomed.iterdir():
            file.unlink()
        doomed.rmdir()
    return Fisher(key, folder, totals, aliases, whole)


@contextmanager
def _squaring(parameters: Mapping[str, torch.nn.Parameter], sums: Mapping[str, Tensor]) -> Iterator[None]:
    """While it lasts, a backward pass adds the square of each gradient to `sums` and keeps none of them."""

    def hook(name: str) -> Callable[[Tensor], None]:
        def square(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            parameter.grad = None
            gradient = gradient.float()
            sums[name].addcmul_(gradient, gradient)

        return square

    wanted = {name: parameter.requires_grad for name, parameter in parameters.items()}
    handles = []
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(True)
            parameter.grad = None
            handles.append(parameter.register_post_accumulate_grad_hook(hook(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in parameters.items():
            parameter.requires_grad_(wanted[name])
            parameter.grad = None


def _resumed(partial: Path, parameters: Mapping[str, torch.nn.Parameter]) -> tuple[int, dict[str, Tensor]]:
    """How many examples an earlier try did, and its sums; zeros where there was none."""
    try:
        done = int(read_json(partial / _RECORD)["done"])
        sums = load_file(partial / _WEIGHTS)
        if all(sums[name].shape == parameter.shape for name, parameter in parameters.items()):
            return done, {name: sums[name].to(parameter.device) for name, parameter in parameters.items()}
    except (UserError, OSError, SafetensorError, KeyError, TypeError, ValueError):
        pass  # none, or a torn one
    return 0, {
        name: torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device) for name, parameter in parameters.items()
    }


def _save(folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    with atomic_folder(folder) as building:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, building / _WEIGHTS)
        write_json(building / _RECORD, dict(record))


def _check(references: Sequence[Reference]) -> None:
    if not references:
        raise UserError("there is no reference example to estimate the Fisher on")
    keys = [item.key for item in references]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"two reference examples are called {twice}")
    if empty := next((item.key for item in references if not item.prompt_ids or not item.target_ids), None):
        raise UserError(f"reference example {empty} has an empty prompt or target")
