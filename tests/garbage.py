"""Which objects are alive, found without harm to what other threads are making."""

import gc
import sys
from typing import TypeVar

T = TypeVar("T")


def alive(kind: type[T]) -> list[T]:
    """The objects of a kind that the collector knows.

    No other thread runs meanwhile: it could be filling a tuple, which Python refuses while somebody else refers to it; pebble's do.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        return [thing for thing in gc.get_objects() if isinstance(thing, kind)]
    finally:
        sys.setswitchinterval(interval)
