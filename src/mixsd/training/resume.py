"""The pieces of an exact resume: weights, random states, the log, and the identity of what is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixsd.errors import MixsdError, UserError
from mixsd.storage import Journal, write_jsonl
from mixsd.training.examples import Example
from mixsd.training.model_folder import load_model_folder


def logged_losses(path: Path, step: int) -> list[float]:
    """The losses that the log holds up to and with `step`."""
    return [row["loss"] for _, row in Journal(path).read() if row.get("event") == "step" and row["step"] <= step]


def checkpoint_is_logged(path: Path, step: int) -> bool:
    """Whether the log says that the checkpoint of `step` was checked and handed to the caller."""
    return any(row.get("event") == "checkpoint" and row["step"] == step for _, row in Journal(path).read())


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Copy a checkpoint's weights into `model`, through transformers' own loader: it may store them under other names."""
    try:
        model.load_state_dict(load_model_folder(folder, like=model, dtype=model.dtype).state_dict())
    except (MixsdError, RuntimeError) as error:
        reason = str(error).splitlines()[0].removeprefix(f"{folder}: ")
        raise UserError(f"{folder}: the checkpoint is damaged: {reason}; delete {folder.parent} to train anew") from error


def first_rng_state(device: torch.device, seed: int) -> dict[str, Tensor]:
    """The seeded state, by name, of each generator that a forward pass on `device` draws from; torch's own are left alone."""
    with _forked(device):
        torch.manual_seed(seed)
        return _rng_state(device)


@contextmanager
def own_randomness(device: torch.device, states: dict[str, Tensor]) -> Iterator[None]:
    """Let a block draw from the stream in `states`, which moves on in place; what others draw does not disturb it."""
    with _forked(device):
        torch.set_rng_state(states["cpu"])
        if "device" in states:
            torch.get_device_module(device.type).set_rng_state(states["device"])
        yield
        states.update(_rng_state(device))


def rng_state_of(saved: dict[str, Tensor], *, names: Sequence[str], rank: int, source: Path) -> dict[str, Tensor]:
    """One process's states among those of a checkpoint ('name.rank'); a missing one is a `UserError` naming `source`."""
    for name in names:
        if f"{name}.{rank}" not in saved:
            raise UserError(
                f"{source}: no random state of the {name} for process {rank}, so the training cannot go on exactly; "
                f"resume where it was started, or delete {source.parent} to train anew"
            )
    return {name: saved[f"{name}.{rank}"] for name in names}


def _forked(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _rng_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        states["device"] = torch.get_device_module(device.type).get_rng_state()
    return states


def trim_log(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`: they are taken again. Lines of other stages stay."""
    if path.exists():
        mine = ("step", "checkpoint")
        write_jsonl(path, (row for _, row in Journal(path).read() if row.get("event") not in mine or row["step"] <= step))


def examples_hash(examples: Sequence[Example]) -> str:
    """A hash of everything in the examples, order included."""
    state = hashlib.blake2b(digest_size=16)
    for example in examples:
        state.update(repr((example.key, example.prompt_ids, example.target_ids)).encode())
    return state.hexdigest()
