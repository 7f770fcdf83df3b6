"""The second moment of a layer's keys: what its down_proj is used to being given.

For each layer the mean of k k^T over the tokens of some ordinary text, uncentred, summed in fp64 (on a device that has it): the
first token of a text is an attention sink whose key can be hundreds of times as long as the others, and in fp32 its rounding
alone would drown them. It counts like any other token, so that an edit leaves it in place too.

The text is cut into pieces of one length, each behind what a text begins with. Every layer's matrix is a folder of its own in the cache,
named by model, layer, the token ids read and their number: another run of the same model on the same text reads no token. A
torn one is made again.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixsd.decoding.engine import TOKENS_PER_PASS
from mixsd.editing.edits import start_ids
from mixsd.editing.parts import down_projection, read, reading
from mixsd.errors import UserError
from mixsd.models.loading import context_length
from mixsd.storage import atomic_folder, digest, sweep_leftovers, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PIECE = 512  # tokens of a piece of text, its beginning included
_VERSION = 1  # raised whenever the same text comes to give other matrices


@dataclass(frozen=True)
class Moments:
    """The second moments of some layers of one model, means over `tokens` keys; `text` is a hash of those tokens."""

    model_hash: str
    text: str
    tokens: int
    folders: dict[int, Path]

    def matrix(self, layer: int) -> Tensor:
        """The second moment of one layer's keys (d, d), fp64, read from disk."""
        return load_file(self.folders[layer] / "moment.safetensors")["moment"].double()


def paragraphs(path: Path) -> Iterator[str]:
    """The paragraphs of a text file, which blank lines separate, streaming; one that cannot be read is a `UserError`."""
    lines: list[str] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    lines.append(line)
                elif lines:
                    yield "".join(lines)
                    lines = []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    if lines:
        yield "".join(lines)


def second_moments(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    layers: Sequence[int],
    *,
    model_hash: str,
    numerics: str = "",
    cache: Path,
    tokens: int = 100_000,
    on_done: Callable[[int], None] = lambda count: None,
) -> Moments:
    """The second moments of these layers over the first `tokens` tokens of ordinary texts, from the cache where it has them.

    Args:
        model: the model, unedited.
        model_hash: identifies the model, see `mixsd.models.loading.model_hash`.
        numerics: what the numbers depend on besides the model, see `Session.numerics`.
        on_done: told the number of tokens just read.

    Raises:
        UserError: there is no text, or the model has no down_proj.
    """
    pieces = _pieces(tokenizer, texts, tokens, min(PIECE, context_length(model.config)))
    count = sum(map(len, pieces))
    text = hashlib.blake2b(b"|".join(piece.tobytes() for piece in pieces), digest_size=16).hexdigest()
    names = {layer: digest([_VERSION, model_hash, numerics, layer, text, count])[:20] for layer in layers}
    folders = {layer: cache / f"{name}-layer-{layer}" for layer, name in names.items()}
    if cache.is_dir():
        sweep_leftovers(cache, shared=True)
    if missing := [layer for layer in layers if not _is_whole(folders[layer], down_projection(model, layer).in_features)]:
        sums = _summed(model, pieces, missing, on_done)
        for layer in missing:
            # Each as soon as it is there, so that a kill loses no finished one.
            record = {"model_hash": model_hash, "layer": layer, "text": text, "tokens": count, "piece": len(pieces[0])}
            with atomic_folder(folders[layer]) as folder:
                save_file({"moment": (sums.pop(layer) / count).cpu()}, folder / "moment.safetensors")
                write_json(folder / "moment.json", record)
    else:
        on_done(count)
    return Moments(model_hash, text, count, folders)


def _pieces(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], tokens: int, length: int) -> list[array[int]]:
    """The first `tokens` tokens of the texts in pieces of `length`, each behind what a text begins with, which counts too."""
    ids = array("i")
    for text in texts:
        if len(ids) >= tokens:
            break
        ids.extend(tokenizer.encode(text, add_special_tokens=False, verbose=False))
    if not ids:
        raise UserError("memit: the text for the second moments is empty; name another")
    start = array("i", start_ids(tokenizer))
    body = length - len(start)
    return [start + ids[i : min(i + body, tokens)] for i in range(0, min(len(ids), tokens), body)]


def _summed(
    model: PreTrainedModel, pieces: list[array[int]], layers: list[int], on_done: Callable[[int], None]
) -> dict[int, Tensor]:
    """The sum of k k^T of each layer: one matrix per layer is all that is held."""
    dtype = torch.float32 if model.device.type == "mps" else torch.float64
    sums: dict[int, Tensor] = {}
    for batch in _batches(pieces):
        with reading(model, layers) as seen:
            read(model, batch)
        for layer in layers:
            keys = seen[layer].flatten(0, 1).to(dtype)
            sums[layer] = sums[layer].addmm_(keys.T, keys) if layer in sums else keys.T @ keys
        on_done(sum(map(len, batch)))
    return sums


def _batches(pieces: list[array[int]]) -> Iterator[list[array[int]]]:
    """Pieces of one length at a time (only the last can be shorter), so that nothing is padded."""
    batch: list[array[int]] = []
    for piece in pieces:
        if batch and (len(piece) != len(batch[0]) or (len(batch) + 1) * len(piece) > TOKENS_PER_PASS):
            yield batch
            batch = []
        batch.append(piece)
    yield batch


def _is_whole(folder: Path, size: int) -> bool:
    try:
        moment = load_file(folder / "moment.safetensors")["moment"]
    except (OSError, SafetensorError, KeyError):
        return False
    return moment.shape == (size, size) and bool(moment.isfinite().all())
