"""A plain Hugging Face folder, written and then proven: reloaded from disk and compared with the model in memory.

Writing can go wrong without an error: a tensor that is missing is drawn at random at the next load, a tie is lost, a cast overflows. The
check reloads the folder as any user would; it costs one more copy of the weights in main memory while it runs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixsd.errors import MixsdError, UserError, first_line
from mixsd.models.compat import text_config
from mixsd.models.loading import loaded
from mixsd.storage import disk_errors, write_json

_PROBE_TOKENS = 16
# Largest difference of logits, as a share of the largest logit: rounding alone in fp32, the cast's own rounding otherwise.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def write_model_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write weights (safetensors), configs and tokenizer into `folder`, cast to `dtype` where given; atomicity is the caller's."""
    with disk_errors(folder):
        other = dtype if dtype != model.dtype else None
        model.save_pretrained(folder, state_dict=_cast(model.state_dict(), other) if other else None)
        if other:
            # transformers writes the dtype of the model in memory, and a reader would load the folder in that one.
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            write_json(folder / "config.json", _with_dtype(config, str(other).removeprefix("torch.")))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def load_model_folder(folder: Path, *, like: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a folder from disk onto the CPU, in `dtype` or its own; missing, unexpected or misshapen tensors are a `MixsdError`.

    Code that came with the model is run only where the model in memory, `like`, runs it already.
    """
    try:
        model, report = loaded(folder, dtype=dtype or "auto", trust_remote_code=like.is_remote_code())
    except Exception as error:
        # Many kinds: safetensors, config and shape errors, each with its own type.
        raise MixsdError(f"{folder}: cannot be loaded again ({first_line(error)})") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := report.get(problem):
            raise MixsdError(f"{folder}: {problem.replace('_', ' ')} on disk, for one {sorted(map(str, names))[0]}")
    return model


def verify_model_folder(folder: Path, model: PreTrainedModel) -> None:
    """Reload `folder` and raise `MixsdError` naming the first thing in which it differs from `model`.

    Compared are the names and shapes of the tensors, their values (exactly, after the folder's cast), that all are finite,
    the tie of input and output embeddings, and the logits of a few ids (to rounding).
    """
    reloaded = load_model_folder(folder, like=model)
    wanted, found = model.state_dict(), reloaded.state_dict()
    if others := sorted(wanted.keys() ^ found.keys()):
        raise MixsdError(f"{folder}: the reloaded model has other tensors than the one in memory, for one {others[0]}")
    for name, tensor in found.items():
        expected = wanted[name]
        if tensor.shape != expected.shape:
            raise MixsdError(f"{folder}: {name} has shape {tuple(tensor.shape)} instead of {tuple(expected.shape)}")
        if not torch.isfinite(tensor).all():
            raise MixsdError(f"{folder}: {name} holds values that are not finite")
        if not torch.equal(tensor, expected.to("cpu", tensor.dtype)):
            raise MixsdError(f"{folder}: {name} is not what is in memory")
    if _tied(model) != _tied(reloaded):
        raise MixsdError(f"{folder}: input and output embeddings are tied in only one of disk and memory")
    ids, tolerance = probe_ids(model), _TOLERANCE[reloaded.dtype]
    # In the precision of the model in memory, so that only the rounding of the weights themselves is left.
    logits, again = logits_of(model, ids), logits_of(cast(nn.Module, reloaded).to(model.dtype), ids.cpu())
    tolerance *= max(1.0, logits.abs().max().item())
    if not (difference := (logits - again).abs().max().item()) <= tolerance:
        raise MixsdError(f"{folder}: logits differ by {difference:.3g} from the model in memory (tolerance {tolerance:.3g})")


def check_savable(model: PreTrainedModel) -> None:
    """Meet now what would fail the first checkpoint: a generation config that transformers refuses to write (`UserError`)."""
    if model.can_generate() and model.generation_config is not None:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                model.generation_config.save_pretrained(scratch)
            except ValueError as error:
                reason = " ".join(str(error).split())
                raise UserError(f"the model's generation_config.json cannot be saved again, mend it: {reason}") from error


def probe_ids(model: PreTrainedModel) -> Tensor:
    """A few ids spread over the vocabulary, int64 (1, T), on the model's device."""
    vocabulary = text_config(model.config).vocab_size
    return torch.linspace(0, vocabulary - 1, _PROBE_TOKENS, device=model.device).long()[None]


@torch.no_grad()
def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """The logits of `model` in evaluation mode for ids (1, T): float, (T, V), on the CPU. The mode is put back."""
    training = model.training
    model.eval()
    try:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
        return (logits if logits.dtype == torch.float64 else logits.float()).cpu()
    finally:
        model.train(training)


def _tied(model: PreTrainedModel) -> bool:
    into, out = model.get_input_embeddings(), model.get_output_embeddings()
    return into is not None and out is not None and into.weight is out.weight


def _cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Cast the floating tensors; those that share their memory (ties) go on sharing it."""
    done: dict[tuple[int, torch.Size], Tensor] = {}
    result = {}
    for name, tensor in state.items():
        place = tensor.data_ptr(), tensor.shape
        if tensor.is_floating_point() and place not in done:
            done[place] = tensor.to(dtype)
        result[name] = done.get(place, tensor)
    return result


def _with_dtype(config: dict[str, object], dtype: str) -> dict[str, object]:
    """The config, and the configs inside it, with another dtype."""
    inner = {key: _with_dtype(value, dtype) if isinstance(value, dict) else value for key, value in config.items()}
    return {**inner, **({"dtype": dtype} if "dtype" in config else {})}


_INDEX = "model.safetensors.index.json"
_BLOCK = 2**22  # numbers that are read at a time


class Weights:
    """The safetensors files of a model folder, opened for reading; none at all, or a damaged one, is a `UserError`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = ExitStack()
        self._opened: dict[str, Any] = {}
        try:
            for file in _files(folder):
                tensors = self._files.enter_context(safe_open(file, framework="pt"))
                self._opened |= dict.fromkeys(tensors.keys(), tensors)
        except (OSError, SafetensorError) as error:
            self._files.close()
            raise UserError(f"{folder}: its weights cannot be read ({' '.join(str(error).split())})") from error

    @property
    def names(self) -> list[str]:
        return sorted(self._opened)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._opened[name].get_slice(name).get_shape())

    def blocks(self, name: str) -> Iterator[Tensor]:
        """See `blocks`."""
        yield from blocks(self._opened[name], name)

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()


def blocks(tensors: Any, name: str) -> Iterator[Tensor]:
    """A tensor of an open safetensors file in consecutive parts along its first axis."""
    part = tensors.get_slice(name)
    shape = part.get_shape()
    if not shape:
        yield tensors.get_tensor(name)
        return
    rows = max(1, _BLOCK // max(1, prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield part[start : start + rows]


def _files(folder: Path) -> list[Path]:
    """The files of the model's weights: those that its index names, where it has one."""
    index = folder / _INDEX
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index}: is not the index of a model's weights") from error
        return sorted(folder / name for name in names)
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise UserError(f"{folder}: no .safetensors weights")
    return found
