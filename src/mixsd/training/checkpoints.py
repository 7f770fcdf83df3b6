"""Checkpoints: plain model folders that appear whole or not at all, the newest with what it takes to go on.

    checkpoints/step-000040/            a Hugging Face folder in the training precision, LoRA already merged
    checkpoints/step-000040/trainer/    state.json, optimizer.safetensors, rng.safetensors, adapter.safetensors (LoRA)

`trainer/` is kept in the newest checkpoint only: it is two thirds of the disk space. It is needed whole: a run that went on
without, say, its random state would look fine and be another run, so that is an error. No pickle.
"""

import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
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

TRAINER = "trainer"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class TrainerState:
    """What a plain model folder does not hold of a training: all on any device, read back on the CPU.

    `identity` is what must be equal for a resume to mean the same run; `rng` is the state of each process's generators as
    'name.rank'; `adapter` is None where all weights are trained (they are then in the folder itself).
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
    found = [(match, path) for path in root.glob("step-*") if (match := _NAME.fullmatch(path.name)) and path.is_dir()]
    return sorted((int(match[1]), path) for match, path in found)


def write_checkpoint(root: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, state: TrainerState) -> Path:
    """Write one checkpoint of the plain `model`; return its folder. A full disk is a `UserError`."""
    folder = checkpoint_folder(root, state.step)
    with atomic_folder(folder) as building:
        write_model_folder(model, tokenizer, building)
        trainer = building / TRAINER
        trainer.mkdir()
        for name in ("optimizer", "rng", "adapter"):
            if (tensors := getattr(state, name)) is not None:
                save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, trainer / f"{name}.safetensors")
        write_json(trainer / "state.json", {"step": state.step, "identity": state.identity})
    return folder


def read_state(folder: Path) -> TrainerState:
    """Read a checkpoint's `trainer/`; anything missing or damaged is a `UserError` that names it."""

    def read(name: str) -> Any:
        path = folder / TRAINER / name
        if not path.is_file():
            raise UserError(f"{path}: missing, so the training cannot go on exactly; delete {folder.parent} to train anew")
        try:
            return read_json(path) if path.suffix == ".json" else load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path}: damaged ({error}); delete {folder.parent} to train anew") from error

    state = read("state.json")
    try:
        adapter = read("adapter.safetensors") if state["identity"]["lora"] else None
        return TrainerState(**state, optimizer=read("optimizer.safetensors"), rng=read("rng.safetensors"), adapter=adapter)
    except (KeyError, TypeError):
        raise UserError(
            f"{folder / TRAINER / 'state.json'}: not a training's state; delete {folder.parent} to train anew"
        ) from None


def check_identity(folder: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `UserError` naming the first field in which a checkpoint belongs to another training."""
    for name in [*wanted, *(name for name in saved if name not in wanted)]:
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"{folder}: made with {name} = {saved.get(name)}, now {wanted.get(name)}; "
                f"use the former, or another run folder, or delete {folder.parent}"
            )


def put_back(tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor], folder: Path) -> None:
    """Copy what a checkpoint has saved of a training into its own tensors; other names or shapes are a `UserError`."""
    if {name: tensor.shape for name, tensor in tensors.items()} != {name: tensor.shape for name, tensor in saved.items()}:
        raise UserError(f"{folder}: its adapters or optimizer do not fit this model; delete {folder.parent} to train anew")
    for name, tensor in tensors.items():
        tensor.copy_(saved[name])


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Copy a checkpoint's weights into `model`, through transformers' own loader: it may store them under other names."""
    try:
        model.load_state_dict(load_model_folder(folder, like=model, dtype=model.dtype).state_dict())
    except (MixsdError, RuntimeError) as error:
        reason = str(error).splitlines()[0].removeprefix(f"{folder}: ")
        raise UserError(f"{folder}: the checkpoint is damaged: {reason}; delete {folder.parent} to train anew") from error


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


def trim_log(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`: they are taken again. Lines of other stages stay."""
    if path.exists():
        mine = ("step", "checkpoint")
        write_jsonl(path, (row for _, row in Journal(path).read() if row.get("event") not in mine or row["step"] <= step))


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


def own_rng_state(saved: Mapping[str, Tensor], names: Iterable[str], rank: int, folder: Path) -> dict[str, Tensor]:
    """One process's states among those of a checkpoint; a missing one is a `UserError`."""
    try:
        return {name: saved[f"{name}.{rank}"] for name in names}
    except KeyError as error:
        name = str(error.args[0]).rpartition(".")[0]
        raise UserError(
            f"{folder}: no random state of the {name} for process {rank}, so the training cannot go on exactly; "
            f"resume where it was started, or delete {folder.parent} to train anew"
        ) from error


def _forked(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _rng_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        states["device"] = torch.get_device_module(device.type).get_rng_state()
    return states
