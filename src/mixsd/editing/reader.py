"""Prompts with their targets, read again and again with another hidden state at one place of one layer.

What does not depend on it is read once: everything before the place (kept as keys and values), and behind it everything up to
the layer. A step then runs the layers above, over the few tokens from the subject's last one on. That is exact, since attention
looks back only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from mixsd.editing.parts import block, hidden_of, left_padded, with_hidden
from mixsd.editing.subjects import EditPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Reader:
    """Rows of prompts and targets, left-padded, over a model whose weights stay as they are meanwhile.

    `hidden` (R, H): what the layer gives at each row's place by itself.
    """

    def __init__(self, model: PreTrainedModel, layer: int, prompts: Sequence[EditPrompt]) -> None:
        self.model, self.layer = model, layer
        self.targets = [prompt.target for prompt in prompts]
        # The last id of a target is predicted and predicts nothing.
        rows = [[*prompt.ids, *prompt.target[:-1]] for prompt in prompts]
        self.ids, self.mask = left_padded(rows, model.device)
        self.positions = (self.mask.cumsum(dim=-1) - 1).clamp(min=0)
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
        hook = block(self.model, self.layer).register_forward_hook(lambda _, args, output: seen.append(output))
        try:
            self._forward(slice(self.split, None), copy.deepcopy(self._cache))
        finally:
            hook.remove()
        self._output = seen[0]
        self._below = hidden_of(self._output)
        self.hidden = self._below[self.at]

    @contextmanager
    def _given(self, hidden: Tensor) -> Iterator[None]:
        """The layer gives this, whatever it is given; those below it do nothing."""

        def give(*args: Any, **kwargs: Any) -> Any:
            return with_hidden(self._output, hidden)

        blocks = [block(self.model, layer) for layer in range(self.layer + 1)]
        before = [whole.__dict__.get("forward") for whole in blocks]
        # The rows that the head is given are a slice, and a product with a slice takes torch's slow way.
        together = (
            cast(Any, self.model).get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))
        )
        try:
            for whole in blocks:
                whole.forward = give
            yield
        finally:
            together.remove()
            for whole, own in zip(blocks, before, strict=True):
                if own is None:
                    whole.__dict__.pop("forward", None)
                else:
                    whole.forward = own

    def _forward(self, columns: slice, cache: Any, keep: int | None = None) -> Any:
        return self.model(
            input_ids=self.ids[:, columns],
            attention_mask=self.mask[:, : columns.stop],
            position_ids=self.positions[:, columns],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep or self.keep,
        )
