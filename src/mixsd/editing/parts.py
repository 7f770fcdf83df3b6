"""What editing reads of a model: its blocks, their down_proj, prompts through them, and the second moments of their keys.

Llama, Qwen, Gemma and whatever else has `layers[i].mlp.down_proj` under its decoder. MEMIT takes what down_proj gives to be added
to the residual stream as it is. Gemma 2 and 3 and OLMo 2 put a norm in between, which is reckoned with here; that nothing else is in
between is tried out once per layer (`check_path`), since an unknown factor would spoil every edit in silence.

The second moment of a layer's keys says what its down_proj is used to being given: the mean of k k^T over the tokens of some ordinary
text, uncentred, summed in fp64 (on a device that has it): the first token of a text is an attention sink whose key can be hundreds of
times as long as the others, and in fp32 its rounding alone would drown them. It counts too, so that an edit leaves it in place.

The text is cut into pieces of one length, each behind what a text begins with. Every layer's matrix is a folder of its own in the cache,
named by model, layer and the token ids read: another run of the same model on the same text reads no token. A torn one is made again.
"""

from __future__ import annotations

import copy
import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mixsd.decoding.engine import TOKENS_PER_PASS
from mixsd.decoding.requests import left_padded
from mixsd.editing.edits import EditPrompt, start_ids
from mixsd.errors import UserError
from mixsd.models.compat import text_config
from mixsd.models.loading import context_length
from mixsd.storage import atomic_folder, digest, sweep_leftovers, write_json
from mixsd.training.losses import decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PIECE = 512  # tokens of a piece of text, its beginning included
_VERSION = 1  # raised whenever the same text comes to give other matrices
_POST_NORM = "post_feedforward_layernorm"
# Gains of a norm below this share of their root mean square are not divided by: what they let through is next to nothing.
_SMALL_GAIN = 1e-2


def block(model: PreTrainedModel, layer: int) -> nn.Module:
    """One decoder layer; a model that is built in another way is a `UserError`."""
    layers = getattr(decoder(model), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UserError(f"memit: {type(model).__name__} has no decoder layers as Llama, Qwen and Gemma have; use another method")
    return layers[layer]


def down_projection(model: PreTrainedModel, layer: int) -> nn.Linear:
    """The matrix that is edited in one layer; none is a `UserError`, one not of plain fp32 or fp64 weights a `ValueError`."""
    found = getattr(getattr(block(model, layer), "mlp", None), "down_proj", None)
    if found is None or not hasattr(found, "in_features"):
        raise UserError(
            f"memit: layer {layer} of {type(model).__name__} has no mlp.down_proj, which MEMIT edits (Llama, Qwen and Gemma "
            "have it); use another method"
        )
    if type(found) is not nn.Linear or found.weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"editing needs plain fp32 weights, and layer {layer} has {type(found).__name__}; see load_model")
    return found


class StopReadingError(Exception):
    """What was wanted of a forward pass has been seen."""


@contextmanager
def reading(model: PreTrainedModel, layers: list[int], last: int | None = None) -> Iterator[dict[int | str, Tensor]]:
    """Note the inputs of these layers' down_proj (by layer) and, of layer `last`, what the block gives ('hidden').

    A forward pass inside goes no further than it needs to. Call the model through `read`.
    """
    seen: dict[int | str, Tensor] = {}
    end = max(layers) if last is None else last

    def note(name: int | str, tensor: Tensor, ends: bool) -> None:
        seen[name] = tensor.detach()
        if ends:
            raise StopReadingError

    with ExitStack() as hooks:
        for layer in layers:
            ends = layer == end and last is None
            key_hook = partial(lambda layer, ends, _, args: note(layer, args[0], ends), layer, ends)
            hooks.callback(down_projection(model, layer).register_forward_pre_hook(key_hook).remove)
        if last is not None:
            hidden_hook = block(model, last).register_forward_hook(lambda _, args, out: note("hidden", hidden_of(out), True))
            hooks.callback(hidden_hook.remove)
        yield seen


@torch.no_grad()
def read(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> None:
    """One forward pass of left-padded rows up to where `reading` has seen enough."""
    ids, mask, positions = left_padded(rows, model.device)
    try:
        decoder(model)(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    except StopReadingError:
        return


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block gives: itself, or the first of a tuple."""
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """What a block gives, with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@torch.no_grad()
def before_norm(model: PreTrainedModel, layer: int, outputs_NH: Tensor, residuals_NH: Tensor) -> Tensor:
    """How much down_proj's `outputs` must change for the block to give `residuals` more; without a norm in between, that much.

    A norm keeps the length, so behind one this is right to first order only; the next layer sees what is left.
    """
    norm = getattr(block(model, layer), _POST_NORM, None)
    if norm is None:
        return residuals_NH
    gain_H = norm(torch.ones_like(outputs_NH[:1]))
    floor = _SMALL_GAIN * gain_H.square().mean().sqrt()
    rms_N1 = outputs_NH.square().mean(dim=-1, keepdim=True).sqrt()
    return cast(Tensor, rms_N1 * residuals_NH * gain_H / (gain_H.square() + floor.square()))


@torch.no_grad()
def check_path(model: PreTrainedModel, layer: int) -> None:
    """Refuse a model that does more with down_proj's output than to add it, or its norm, to the residual stream (`UserError`)."""
    projection, whole = down_projection(model, layer), block(model, layer)
    norm = getattr(whole, _POST_NORM, None) or nn.Identity()
    seen: list[tuple[Tensor, Tensor]] = []
    given: list[Tensor] = []
    push = torch.zeros((), device=model.device)

    def push_output(output: Tensor) -> Tensor:
        given.append(output + push * output.abs().mean())
        return given[-1]

    with ExitStack() as hooks:
        hooks.callback(projection.register_forward_hook(lambda _, args, output: push_output(output)).remove)
        note = whole.register_forward_hook(lambda _, args, output: seen.append((given[-1], hidden_of(output))))
        hooks.callback(note.remove)
        ids = torch.arange(4, device=model.device)[None] % text_config(model.config).vocab_size
        for size in (0.0, 1.0):
            push = torch.tensor([size], device=model.device, dtype=model.dtype)
            decoder(model)(input_ids=ids, use_cache=False)
    (plain, before), (pushed, after) = seen
    wanted = norm(pushed) - norm(plain)
    # Behind the residual stream's own rounding, which is large where the stream is.
    allowed = 1e-2 * wanted.abs().max() + 1e-5 * before.abs().max()
    if not (after - before - wanted).abs().max() <= allowed:
        raise UserError(
            f"memit: layer {layer} of {type(model).__name__} does not add its MLP's output to its input as it is, so the update "
            "would not do what it is made for; use another method"
        )


class Reader:
    """Prompts with their targets, left-padded, read again and again with another hidden state at one place of one layer.

    What does not depend on it is read once: everything before the place (kept as keys and values), and behind it everything up to
    the layer; that is exact, since attention looks back only. The model's weights have to stay as they are meanwhile.
    `hidden` (R, H): what the layer gives at each row's place by itself.
    """

    def __init__(self, model: PreTrainedModel, layer: int, prompts: Sequence[EditPrompt]) -> None:
        self.model, self.layer = model, layer
        self.targets = [prompt.target for prompt in prompts]
        # The last id of a target is predicted and predicts nothing.
        rows = [[*prompt.ids, *prompt.target[:-1]] for prompt in prompts]
        self.ids, self.mask, self.positions = left_padded(rows, model.device)
        width = self.ids.shape[1]
        places = [width - len(row) + prompt.place for row, prompt in zip(rows, prompts, strict=True)]
        self.keep = max(1, *map(len, self.targets))
        # What logits are wanted of must not be read beforehand either.
        self.split = min(*places, width - self.keep)
        at = torch.tensor(places, device=model.device) - self.split
        self.at = torch.arange(width - self.split, device=model.device) == at[:, None]
        self._read_once()

    def logits(self, delta: Tensor | None) -> Tensor:
        """The logits (R, keep, V) at the rows' last positions, with delta (H,) added at their places; at least fp32."""
        hidden = self._below if delta is None else self._below + self.at[..., None] * delta
        with self._given(hidden):
            logits: Tensor = self._forward(slice(self.split, None), copy.deepcopy(self._cache)).logits
        return logits if logits.dtype == torch.float64 else logits.float()

    def target_logprobs(self, logits: Tensor) -> list[Tensor]:
        """For each row the log-probabilities (natural log) of its target's ids, none for a row without one."""
        logprobs = torch.log_softmax(logits, dim=-1)
        found = []
        for row, target in zip(logprobs, self.targets, strict=True):
            wanted = torch.tensor(target, dtype=torch.long, device=row.device)
            found.append(row[len(row) - len(target) :].gather(-1, wanted[:, None]).squeeze(-1))
        return found

    @torch.no_grad()
    def bare(self, delta: Tensor | None) -> tuple[float, bool]:
        """Of the first row: the summed log-probability of its target, and whether greedy decoding gives the whole of it."""
        logits = self.logits(delta)
        best = logits[0, len(logits[0]) - len(self.targets[0]) :].argmax(dim=-1).tolist()
        return self.target_logprobs(logits)[0].sum().item(), best == self.targets[0]

    @torch.no_grad()
    def _read_once(self) -> None:
        from transformers import DynamicCache

        self._cache: Any = DynamicCache(config=self.model.config)
        if self.split:
            self._forward(slice(0, self.split), self._cache, keep=1)
        seen: list[Any] = []
        with block(self.model, self.layer).register_forward_hook(lambda _, args, output: seen.append(output)):
            self._forward(slice(self.split, None), copy.deepcopy(self._cache))
        self._output = seen[0]
        self._below = hidden_of(self._output)
        self.hidden = self._below[self.at]

    @contextmanager
    def _given(self, hidden: Tensor) -> Iterator[None]:
        """The layer gives this, whatever it is given; those below it do nothing."""
        head = cast(Any, self.model).get_output_embeddings()
        with ExitStack() as undo:
            # The rows that the head is given are a slice, and a product with a slice takes torch's slow way.
            undo.callback(head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(),)).remove)
            for layer in range(self.layer + 1):
                own = block(self.model, layer).__dict__  # on the instance, so that the class's own comes back
                before = {name: own[name] for name in ("forward",) if name in own}
                undo.callback(own.update, before)
                undo.callback(own.pop, "forward")
                own["forward"] = lambda *args, **kwargs: with_hidden(self._output, hidden)
            yield

    def _forward(self, columns: slice, cache: Any, keep: int | None = None) -> Any:
        return self.model(
            input_ids=self.ids[:, columns],
            attention_mask=self.mask[:, : columns.stop],
            position_ids=self.positions[:, columns],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep or self.keep,
        )


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

    Raises `UserError`: there is no text, or the model has no down_proj.
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
