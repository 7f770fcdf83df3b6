"""What one judged program gets of this machine: how much it may use, and which files it sees in bubblewrap."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache

# The writable folder as a whole, in files of the largest allowed size.
_FILES = 4
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
# Where such a distribution keeps every library, each in a folder of its own.
_STORES = ("/nix/store", "/gnu/store")


@dataclass(frozen=True)
class Limits:
    """The limits of one judgement, for each of its two processes; time is of the whole."""

    wall_seconds: float = 15.0
    cpu_seconds: int = 10
    memory_mb: int = 1024
    file_mb: int = 16
    processes: int = 32
    output_bytes: int = 1_000_000

    @property
    def tmp_bytes(self) -> int:
        """The size of the writable folder, where it is a file system of its own."""
        return _FILES * self.file_mb << 20

    def resources(self) -> dict[str, int]:
        """The limits that the kernel keeps, by the names that `resource` has for them."""
        return {
            "RLIMIT_AS": self.memory_mb << 20,
            "RLIMIT_CPU": self.cpu_seconds + 1,
            "RLIMIT_FSIZE": self.file_mb << 20,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
        }


DEFAULT = Limits()


@cache
def interpreter() -> str:
    """The running interpreter: its base, not the virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@cache
def shown() -> tuple[str, ...]:
    """What is shown read-only at its own place: the interpreter, its standard library and the libraries they load."""
    wanted = {interpreter(), *_LIBRARIES}
    for prefix in {os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)}:
        wanted |= {os.path.join(prefix, name) for name in ("lib", "lib64")}
        wanted |= {store for store in _STORES if _within(prefix, store)}
    found: list[str] = []
    for path in sorted(wanted):
        if os.path.exists(path) and not any(_within(path, above) for above in found):
            found.append(path)
    return tuple(found)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
