"""Files that are finished or absent, and journals that survive a kill.

Results are written under a temporary name and renamed, so a reader never meets half of one. Long work appends finished
items to a `Journal`, one JSON line each; a line torn by a kill is skipped when the journal is read, so that item is done
again. A full disk and a folder that cannot be written become a `UserError` that names the path.

Everything is UTF-8. Half of a surrogate pair (a file name that is not UTF-8 can bring one) has no UTF-8 form and is written as
its escape, `\udcff`; in JSON that is the notation for it, so it is read back as it was.

Shards: a part of the facts and questions, chosen by their keys, for several processes or machines to share the work.

A shard depends on nothing but the key and the number of shards. Its finished items go to a journal of its own; the command without
`--shard` takes them over and does what is still missing, so the merged result is the single run's.
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
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mixsd.errors import UserError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
_NAME_TAKEN = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY)
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<kind>tmp|old)")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and the like, met while writing `path`, into a one-line `UserError`.

    An error that names a file elsewhere is not about `path` and stays what it is.
    """
    try:
        yield
    except OSError as error:
        if not _is_about(error, path):
            raise
        if error.errno in _NO_SPACE:
            raise UserError(f"{path}: no space left on the disk; free some, then run the same command again") from error
        if error.errno in _NOT_ALLOWED:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        if error.errno in _NAME_TAKEN:
            raise UserError(f"{path}: cannot be written ({error.strerror}); something else has that name") from error
        raise
    except Exception as error:
        # safetensors reports a full disk as its own error type with the system's words inside.
        if "No space left" in str(error) or "StorageFull" in str(error):
            raise UserError(f"{path}: no space left on the disk; free some, then run the same command again") from error
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
    """Write `text` (UTF-8) to `path` atomically; parent folders are made."""
    _write(path, (text,))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, streaming, atomically. What goes wrong in making a row is no error of the file."""
    _write(path, map(_json_line, rows))


def _write(path: Path, pieces: Iterable[str]) -> None:
    temporary = _beside(path, "tmp")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")
        try:
            for piece in pieces:
                with disk_errors(path):
                    file.write(piece)
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
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
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

    An old one stays what it was until then. A kill between the two renames at the end leaves it under its other name, from
    which `sweep_leftovers` brings it back.
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

    In a `shared` folder, which no lock keeps to one process, what belongs to a process that is still running stays.
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
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


class Journal:
    """An append-only JSONL file of finished items.

    `read` yields what was finished before; a torn line (the process was killed while writing it) is skipped. `append`
    hands the line to the operating system before it returns, so a SIGKILL loses at most the item in hand. Several processes
    may append to one journal: each line goes to its end in one write.
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
                try:
                    value = json.loads(line)
                except (json.JSONDecodeError, UnicodeDecodeError):
                    value = None
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
                self._file = self.path.open("ab", buffering=0)
                if self._file.tell() and not self._ends_with_newline():
                    self._file.write(b"\n")
            line = _json_line(row).encode(errors="backslashreplace")
            if self._file.write(line) != len(line):
                # Opened anew, the journal ends this torn line before it adds another.
                self.close()
                raise OSError(errno.ENOSPC, "short write")
            # Asked for after the write: another process may have appended to a shared journal since ours.
            return self._file.tell() - len(line)

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def digest(value: Any) -> str:
    """Return a short stable hash (32 hex digits) of any JSON value; the order of an object's keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(errors="backslashreplace"), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's bytes, 32 hex digits."""
    hasher = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            hasher.update(block)
    return hasher.hexdigest()


def cache_folder() -> Path:
    """Where converted models and base replies are kept: $MIXSD_CACHE, else $XDG_CACHE_HOME/mixsd, else ~/.cache/mixsd."""
    if own := os.environ.get("MIXSD_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixsd"


@dataclass(frozen=True)
class Shard:
    """Shard `number` (from 1) of `count`."""

    number: int
    count: int

    @staticmethod
    def parse(text: str) -> Shard:
        """Read "2/8".

        Raises:
            UserError: it is not of that form, or there is no such shard.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"--shard {text}: expected I/N with I from 1 to N, such as 2/8")
        return Shard(int(found[1]), int(found[2]))

    @staticmethod
    def of(text: str | None) -> Shard | None:
        """As `parse`, for a setting that may say nothing: then there are no shards."""
        return Shard.parse(text) if text else None

    def holds(self, key: str) -> bool:
        """Whether a key's item is this shard's."""
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
    """Take the items of some journals over into another; returns how many were new to it. The files stay.

    `item` identifies a row. Rows of one file keep their order.
    """
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
