"""How much one judged program may use."""

from __future__ import annotations

from dataclasses import dataclass

# The writable folder as a whole, in files of the largest allowed size.
_FILES = 4


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
