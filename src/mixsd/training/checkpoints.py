"""Checkpoints: plain model folders that appear whole or not at all, the newest with what it takes to go on.

    checkpoints/step-000040/            a Hugging Face folder in the training precision, LoRA already merged
    checkpoints/step-000040/trainer/    state.json, optimizer.safetensors, rng.safetensors, adapter.safetensors (LoRA)

`trainer/` is kept in the newest checkpoint only: it is two thirds of the disk space and of no use in the others. It is needed
whole: a run that went on without, say, its random state would look fine and be another run, so that is an error. No pickle.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixsd.errors import MixsdError, UserError
from mixsd.models.folder import load_model_folder, write_model_folder
from mixsd.storage import Journal, atomic_folder, read_json, write_json, write_jsonl
from mixsd.training.examples import Example

TRAINER = "trainer"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class TrainerState:
    """What a plain model folder does not hold of a training: all on any device, read back on the CPU.

    `identity` is what must be equal for a resume to mean the same run; `rng` is the state of each generator by name;
    `adapter` is None where all weights are trained (they are then in the folder itself).
    """

    step: int
    identity: dict[str, Any]
    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]
    adapter: dict[str, Tensor] | None


def checkpoint_folder(root: Path, step: int) -> Path:
    return root / f"step-{step:06d}"


def list_checkpoints(root: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint under `root`, oldest first."""
    if not root.is_dir():
        return []
    found = [(match, path) for path in root.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()]
    return sorted((int(match[1]), path) for match, path in found)


def write_checkpoint(root: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, state: TrainerState) -> Path:
    """Write one checkpoint of the plain `model`; return its folder. A full disk is a `UserError`."""
    folder = checkpoint_folder(root, state.step)
    with atomic_folder(folder) as building:
        write_model_folder(model, tokenizer, building)
        trainer = building / TRAINER
        trainer.mkdir()
        _save(state.optimizer, trainer / "optimizer.safetensors")
        _save(state.rng, trainer / "rng.safetensors")
        if state.adapter is not None:
            _save(state.adapter, trainer / "adapter.safetensors")
        write_json(trainer / "state.json", {"step": state.step, "identity": state.identity})
    return folder


def read_state(folder: Path) -> TrainerState:
    """Read a checkpoint's `trainer/`; anything missing or damaged is a `UserError` that names it."""
    trainer = folder / TRAINER
    if not (trainer / "state.json").is_file():
        raise _missing(trainer / "state.json")
    values = read_json(trainer / "state.json")
    if not isinstance(values, dict) or not isinstance(values.get("step"), int) or not isinstance(values.get("identity"), dict):
        raise UserError(f"{trainer / 'state.json'}: not the state of a training")
    return TrainerState(
        step=values["step"],
        identity=values["identity"],
        optimizer=_load(trainer / "optimizer.safetensors"),
        rng=_load(trainer / "rng.safetensors"),
        adapter=_load(trainer / "adapter.safetensors") if values["identity"].get("lora") else None,
    )


def check_identity(folder: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `UserError` naming the first field in which a checkpoint belongs to another training."""
    for name in [*wanted, *(name for name in saved if name not in wanted)]:
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"{folder}: made with {name} = {saved.get(name)}, now {wanted.get(name)}; "
                f"use the former, or another run folder, or delete {folder.parent}"
            )


def tidy(root: Path, keep: int, pinned: Collection[int] = ()) -> None:
    """Strip `trainer/` from all checkpoints but the newest and remove all but the newest `keep` (0: keep all) and the pinned.

    Safe to be killed in and to be repeated: the newest one is never touched.
    """
    found = list_checkpoints(root)
    for _, folder in found[:-1]:
        shutil.rmtree(folder / TRAINER, ignore_errors=True)
    for folder in [folder for step, folder in found[:-keep] if step not in pinned] if keep else []:
        # Renamed first, so that what a kill leaves behind does not look like a checkpoint.
        doomed = folder.with_name(f".{folder.name}.old")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


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


def _forked(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _rng_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        states["device"] = torch.get_device_module(device.type).get_rng_state()
    return states


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); delete {path.parents[2]} to train anew") from error


def _missing(path: Path) -> UserError:
    return UserError(f"{path}: missing, so the training cannot go on exactly; delete {path.parents[2]} to train anew")
