"""Data-parallel training by summing gradients, once per optimizer step, over the processes that accelerate (or torchrun) started.

Every process computes the same plan and takes every n-th microbatch of each step. The loss of a microbatch is already divided
by the supervised tokens of the whole step, so the sum of all gradients is the single process's gradient, however uneven the
shares. torch's DistributedDataParallel does not fit: it wants the model's own forward (the loss calls decoder and head) and
the same number of backward passes everywhere. The price: the sum is not overlapped with the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn


class Ranks:
    """The processes of this training; a single one where nothing launched more."""

    def __init__(self, requested: torch.device) -> None:
        """`requested` is where the training should run; among several processes on CUDA each gets its own device."""
        state = PartialState(cpu=requested.type == "cpu")
        self.count, self.index, self.is_main = state.num_processes, state.process_index, state.is_main_process
        own_gpu = self.count > 1 and requested.type == "cuda"
        self.device = torch.device("cuda", state.local_process_index) if own_gpu else requested
        self._state = state

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes, in place; one that had no microbatch counts as zero."""
        if self.count == 1:
            return
        pending = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            pending.append(torch.distributed.all_reduce(parameter.grad, async_op=True))
        for work in pending:
            work.wait()

    def gather(self, value: object) -> list[object]:
        """The `value` of every process, by rank, on every process."""
        gathered: list[object] = gather_object([value])
        return gathered

    def wait(self) -> None:
        """Return once every process is here."""
        self._state.wait_for_everyone()
