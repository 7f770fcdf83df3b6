"""Several processes that train together, as torchrun or accelerate start them; where there is one, every call here does nothing.

Of a command's processes rank 0 does the work: it alone holds the run folder, mixes, scores and reports. The others wait until it
orders a training, take part in that, and end with it (`joined`, `order`, `orders`). Orders go through the launcher's own store, since a
collective that waits for hours would run into its time limit.

Gradients are summed once per optimizer step. Every process computes the same plan and takes every n-th example of each step. The
loss is already divided by the supervised tokens of the whole step, so the sum is the single process's gradient, however uneven the
shares. torch's DistributedDataParallel wants the model's own forward and the same number of backward passes everywhere.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, distributed, nn

from mixsd.errors import MixsdError
from mixsd.killable import LAUNCHED

_PATIENCE = timedelta(days=365)  # rank 0 may mix or score for as long as it likes
_POLL = 0.05  # seconds


class Ranks:
    """The processes of this training, which should run on `requested`; among several on CUDA each gets its own device."""

    def __init__(self, requested: torch.device) -> None:
        with _crew.environment() if _crew else nullcontext():
            state = PartialState(cpu=requested.type == "cpu", **({"timeout": _PATIENCE} if is_launched() else {}))
        self.count, self.index, self.is_main = state.num_processes, state.process_index, state.is_main_process
        own_gpu = self.count > 1 and requested.type == "cuda"
        self.device = torch.device("cuda", state.local_process_index) if own_gpu else requested
        self._state = state

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.count > 1:
            with _peers_needed():
                distributed.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes, in place; one that had no microbatch counts as zero."""
        if self.count == 1:
            return
        pending = []
        with _peers_needed():
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                pending.append(distributed.all_reduce(parameter.grad, async_op=True))
            for work in pending:
                work.wait()

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every process, by rank, on every process."""
        with _peers_needed():
            return list(gather_object([value]))

    def wait(self) -> None:
        """Return once every process is here."""
        with _peers_needed():
            self._state.wait_for_everyone()


@contextmanager
def _peers_needed() -> Iterator[None]:
    """Say that a process is gone where a collective fails; its own error comes first, and from itself (see `joined`)."""
    try:
        yield
    except RuntimeError as error:  # of gloo and NCCL alike; they have no type of their own in common
        if not distributed.is_initialized():
            raise
        first = str(error).strip().splitlines()[0]
        raise MixsdError(f"another process of this training has ended ({first}); the same command goes on from here") from error


class _Crew:
    """This command's processes and the store that they share. `orders` counts those that were given or taken."""

    def __init__(self) -> None:
        store, self.rank, self.count = next(distributed.rendezvous("env://"))
        store.set_timeout(_PATIENCE)
        self.store = distributed.PrefixStore("mixsd", store)
        self.orders = 0
        self.launched = {name: value for name, value in os.environ.items() if LAUNCHED.fullmatch(name)}
        for name in self.launched:
            del os.environ[name]

    @contextmanager
    def environment(self) -> Iterator[None]:
        """What the launcher has said, for the time in which the processes find each other."""
        os.environ.update(self.launched)
        try:
            yield
        finally:
            for name in self.launched:
                os.environ.pop(name, None)

    def failures(self, more: int) -> int:
        """How many processes have failed, `more` of them now; 2 where the store went with one of them."""
        try:
            return int(self.store.add("failed", more))
        except RuntimeError:
            return 2

    def send(self, work: dict[str, Any] | None) -> None:
        """Give the next order; None is the last."""
        self.orders += 1
        self.store.set(f"order {self.orders}", json.dumps(work))


_crew: _Crew | None = None


def is_launched() -> bool:
    """Whether this process is one of several."""
    return _crew is not None or (int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ)


@contextmanager
def joined() -> Iterator[bool]:
    """For the length of a command, be one of its processes; yields whether this is rank 0, which does the work.

    Whichever process fails first raises its error; the others end in silence (`SystemExit`), since that was said.
    """
    global _crew
    _crew = crew = _Crew()
    leads = crew.rank == 0
    if not leads and threading.current_thread() is threading.main_thread():
        # It holds nothing that has to be put in order, and must not speak when it is told to end.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield leads
    except KeyboardInterrupt:
        if crew.failures(0):
            raise SystemExit(1) from None
        raise
    except Exception as error:
        if crew.failures(1) > 1:
            raise SystemExit(1) from error
        raise
    finally:
        if leads:
            with suppress(RuntimeError):  # the store may have gone with whoever failed
                crew.send(None)
        _crew = None
    if distributed.is_initialized():
        distributed.destroy_process_group()


def order(**work: Any) -> None:
    """As rank 0, have the other processes do some work (JSON values), and wait until all are at it."""
    if _crew is None or _crew.rank:
        return
    _crew.send(work)
    while _crew.store.add(f"ready {_crew.orders}", 0) < _crew.count - 1:
        time.sleep(_POLL)  # and not in the store, where no signal would be heard


def orders() -> Iterator[dict[str, Any]]:
    """As another process than rank 0, the work that is ordered, until the command ends. Asking for the next says that the last is done."""
    assert _crew is not None
    while (work := json.loads(_crew.store.get(f"order {_crew.orders + 1}"))) is not None:
        _crew.orders += 1
        yield work


def ready() -> None:
    """As another process than rank 0, say that what was ordered begins."""
    if _crew is not None:
        _crew.store.add(f"ready {_crew.orders}", 1)


def follows() -> bool:
    """Whether this process takes orders, so that another one keeps the run's folder and log."""
    return _crew is not None and _crew.rank > 0


def local_rank() -> int:
    """This process's number on its machine."""
    return int(_crew.launched.get("LOCAL_RANK", _crew.rank)) if _crew else 0
