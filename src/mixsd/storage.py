"""Files that are finished or absent, journals that survive a kill, and shards of the work.

Results are written under a temporary name and renamed; long work appends finished items to a `Journal`. A full disk and a folder that
cannot be written become a `UserError` that names the path. Everything is UTF-8; half of a surrogate pair (a file name that is not
UTF-8 can bring one) is written as its escape, `\udcff`, which JSON reads back as it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from mixsd.errors import UserError

_REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP), "choose another folder"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY), "something else has that name"),
}
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<kind>tmp|old)")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and the like, met while writing `path`, into a one-line `UserError`.

    An error that names a file elsewhere is not about `path` and stays what it is.
    """
    full = f"{path}: no space left on the disk; free some, then run the same command again"
    try:
        yield
    except OSError as error:
        if _is_about(error, path) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(full) from error
        if _is_about(error, path) and error.errno in _REMEDIES:
            raise UserError(f"{path}: cannot be written ({error.strerror}); {_REMEDIES[error.errno]}") from error
        raise
    except Exception as error:
        # safetensors reports a full disk as its own error type with the system's words inside.
        if "No space left" in str(error) or "StorageFull" in str(error):
            raise UserError(full) from error
        raise


def _is_about(error: OSError, path: Path) -> bool:
    if not isinstance(error.filename, str | os.PathLike):
        return True
    named, place = Path(error.filename).absolute(), path.absolute()
    return named.is_relative_to(place.parent) or place.is_relative_to(named)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


def _json_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically; parent folders are made."""
    _write(path, (text,))


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically; parent folders are made."""
    _write(path, (content,))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, streaming, atomically. `rows` may work as it goes: its errors pass unchanged, and no file is written."""
    _write(path, map(_json_line, rows))


def _write(path: Path, pieces: Iterable[str | bytes]) -> None:
    temporary = _beside(path, "tmp")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = temporary.open("wb")
        try:
            for piece in pieces:
                with disk_errors(path):
                    file.write(piece if isinstance(piece, bytes) else piece.encode("utf-8", "backslashreplace"))
        finally:
            with disk_errors(path):
                file.close()
        with disk_errors(path):
            os.replace(temporary, path)
    finally:
        with suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read one JSON file; a missing or broken one is a `UserError` naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {why}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a finished JSONL file; a line that is not a JSON object is a `UserError` with its number."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        for number, line in enumerate(file, 1):
            try:
                value = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"{path}: line {number}: not valid JSON ({error})") from error
            if not isinstance(value, dict):
                raise UserError(f"{path}: line {number}: expected a JSON object")
            yield value


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes `path` when the block ends without an error, replacing an old one.

    A kill between the two renames at the end leaves the old one under a name from which `sweep_leftovers` brings it back.
    """
    temporary, old = _beside(path, "tmp"), _beside(path, "old")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            if path.exists():
                os.replace(path, old)
            try:
                os.replace(temporary, path)
            except BaseException:
                if old.exists():
                    os.replace(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sweep_leftovers(folder: Path, *, shared: bool = False) -> None:
    """Remove what killed processes left unfinished in `folder`, and bring back what one was about to replace.

    In a `shared` folder, which no lock protects, what belongs to a running process stays.
    """
    for leftover in sorted(folder.glob(".*")):
        match = _LEFTOVER.fullmatch(leftover.name)
        if match is None or (shared and _is_running(int(match["pid"]))):
            continue
        path = leftover.with_name(match["name"])
        if match["kind"] == "old" and not path.exists():
            os.replace(leftover, path)
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    """Whether another process has this id (in a container, ids come back: our own is no sign of life)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


class Journal:
    """An append-only JSONL file of finished items; several processes may append to one, each line in one write to its end.

    `append` hands the line to the operating system before it returns, so a SIGKILL loses at most the item in hand; `read` skips the
    line that it tore.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (place, item) for the finished items in the order they were written; `at` takes a place."""
        if not self.path.exists():
            return
        place = 0
        with self.path.open("rb") as file:
            for line in file:
                value = None
                with suppress(json.JSONDecodeError, UnicodeDecodeError):
                    value = json.loads(line)
                if isinstance(value, dict):
                    yield place, value
                place += len(line)

    def at(self, place: int) -> dict[str, Any]:
        """Read the one item at a place."""
        with self.path.open("rb") as file:
            file.seek(place)
            value: dict[str, Any] = json.loads(file.readline())
            return value

    def append(self, row: dict[str, Any]) -> int:
        """Add one finished item; returns its place."""
        with disk_errors(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab+", buffering=0)
                if self._file.tell():
                    self._file.seek(-1, os.SEEK_END)
                    if self._file.read(1) != b"\n":
                        self._file.write(b"\n")
            line = _json_line(row).encode(errors="backslashreplace")
            if self._file.write(line) != len(line):
                # Opened anew, the journal ends this torn line before it adds another.
                self.close()
                raise OSError(errno.ENOSPC, "short write")
            # Asked for after the write: another process may have appended to a shared journal since ours.
            return self._file.tell() - len(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def digest(value: Any) -> str:
    """A stable hash (32 hex digits) of any JSON value; the order of an object's keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(errors="backslashreplace"), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's bytes, 32 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()


def cache_folder() -> Path:
    """Where converted models and base replies are kept: $MIXSD_CACHE, else $XDG_CACHE_HOME/mixsd, else ~/.cache/mixsd."""
    if own := os.environ.get("MIXSD_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixsd"


@dataclass(frozen=True)
class Shard:
    """Shard `number` (from 1) of `count`: a part of the facts and questions, for several processes or machines to share the work.

    It depends on nothing but an item's key and the count. Its finished items go to a journal of its own; the command without
    `--shard` takes them over and does what is still missing, so the merged result is the single run's.
    """

    number: int
    count: int

    @staticmethod
    def of(text: str | None) -> Shard | None:
        """Read a setting such as "2/8"; None where it is empty.

        Raises `UserError`: it is not of that form, or there is no such shard.
        """
        if not text:
            return None
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"--shard {text}: expected I/N with I from 1 to N, such as 2/8")
        return Shard(int(found[1]), int(found[2]))

    def holds(self, key: str) -> bool:
        return int(digest(["shard", key])[:12], 16) % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}-of-{self.count}"

    def beside(self, journal: Path) -> Path:
        """This shard's own journal, beside the one it will be merged into."""
        return journal.with_name(f"{journal.stem}.{self}{journal.suffix}")


def left_beside(journal: Path) -> list[Path]:
    """The journals that shards left beside the one they will be merged into."""
    return sorted(journal.parent.glob(f"{journal.stem}.*-of-*{journal.suffix}"))


def merge(files: Sequence[Path], into: Path, item: Callable[[dict[str, Any]], Any]) -> int:
    """Take the items of some journals, identified by `item`, over into another; returns how many were new to it. The files stay."""
    if not files:
        return 0
    taken = 0
    with Journal(into) as own:
        known = {item(row) for _, row in own.read()}
        for file in files:
            for _, row in Journal(file).read():
                if (name := item(row)) not in known:
                    known.add(name)
                    own.append(row)
                    taken += 1
    return taken
