"""What runs inside the sandbox: the judged program in one process, its tests in another.

The program's process answers calls; the tests' process asks, and it alone holds the pipe on which a verdict is given. So
whatever the program does to its own process (leave it, print, patch builtins, read frames), all it can say is what its
function returned. A third role looks around and reports what the sandbox lets it see.

The parent sends this file, `calls.py` and `values.py` as source on standard input: the project is not visible in the sandbox.
"""

from __future__ import annotations

import builtins
import json
import os
import random
import socket
import sys
from types import ModuleType
from typing import Any, NoReturn

from mixsd.sandbox import calls, values

_REASON = 200


class _StopError(BaseException):
    """The program can give no more answers. No `Exception`, so that a test's `except Exception` does not swallow it."""

    def __init__(self, why: str, reason: str = "") -> None:
        super().__init__(why)
        self.why, self.reason = why, reason


def main(job: dict[str, Any]) -> NoReturn:
    """Take up the role that the job names, under its limits, and leave without running anything at exit."""
    roles = {"program": _program, "tests": _tests, "probe": _probe}
    _limit(job["limits"])
    if job["hide"]:
        _hide()
    _shut(set(job["fds"].values()))
    calls.confine()
    random.seed(0)
    roles[job["role"]](job)
    os._exit(0)


def _limit(limits: dict[str, int]) -> None:
    """Set the limits, soft and hard; one that is lower already stays."""
    import resource

    for name, value in limits.items():
        limit = getattr(resource, name, None)
        if limit is None:
            continue
        hard = resource.getrlimit(limit)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # A second between the two, so that an end by the soft CPU limit can be told from a kill.
        soft = max(most - 1, 1) if name == "RLIMIT_CPU" else most
        try:
            resource.setrlimit(limit, (soft, most))
        except (ValueError, OSError):
            # macOS knows the name RLIMIT_AS and refuses to set it.
            if sys.platform == "linux":
                raise


def _hide() -> None:
    """Bar processes of the same user from this one's memory and files; needed where they share a process table."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def _shut(keep: set[int]) -> None:
    """Point the standard streams at nothing and close every descriptor that the role does not need."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    start = 3
    for descriptor in sorted(keep):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, 1 << 16)


class _Channel:
    """Messages between the two processes: a length of four bytes, then a packed value."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.reader, self.writer, self.most = job["fds"]["read"], job["fds"]["write"], job["most"]

    def pack(self, message: Any) -> bytes:
        return values.pack(message, self.most)

    def send(self, message: Any) -> None:
        self.write(self.pack(message))

    def write(self, data: bytes) -> None:
        data = len(data).to_bytes(4, "big") + data
        while data:
            data = data[os.write(self.writer, data) :]

    def receive(self) -> Any:
        size = int.from_bytes(self._read(4), "big")
        if size > self.most:
            raise values.UnfitError("too large")
        return values.unpack(self._read(size))

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            block = os.read(self.reader, size - len(data))
            if not block:
                raise EOFError
            data += block
        return data


def _program(job: dict[str, Any]) -> None:
    """Load the judged program, then answer calls of its function until the other side hangs up."""
    channel = _Channel(job)
    own = os.getpid()
    # The program starts when the tests are known to stand, so that what stops before is never its doing.
    channel.send(["hello"])
    channel.receive()
    try:
        function = _load(job["code"], job["entry_point"])
        reply = channel.pack(["loaded"])
    except BaseException as error:
        reply = channel.pack(["raised", *_describe(error)])
    while True:
        # A fork made by the program comes back here, too.
        if os.getpid() != own:
            os._exit(0)
        channel.write(reply)
        number, args, kwargs = channel.receive()
        try:
            result = function(*args, **kwargs)
            try:
                reply = channel.pack(["returned", number, result])
            except values.UnfitError as error:
                reply = channel.pack(["unfit", number, str(error)])
        except BaseException as error:
            reply = channel.pack(["raised", *_describe(error), number])


def _load(code: str, entry_point: str) -> Any:
    module = ModuleType("program")
    sys.modules["program"] = module
    exec(compile(code, "<program>", "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    function = module.__dict__.get(entry_point)
    if not callable(function):
        raise _StopError("entry")
    return function


def _describe(error: BaseException) -> tuple[str, str]:
    """An exception's type and text; the text may be the program's own code and may fail itself."""
    if isinstance(error, _StopError):
        return "", error.why
    try:
        text = str(error)[:_REASON]
    except BaseException:
        text = ""
    return type(error).__name__[:80], text


def _tests(job: dict[str, Any]) -> None:
    """Run the tests against the program's function from afar and tell the parent how they ended."""
    _tell(job, *_outcome(job))


def _outcome(job: dict[str, Any]) -> tuple[str, str]:  # noqa: PLR0911
    namespace: dict[str, Any] = {"__name__": "tests"}
    entry_point = job["entry_point"]
    try:
        # The prompt defines helpers that some tests use; the function that it only begins is replaced by the program's.
        for name in ("prompt", "test"):
            exec(compile(job[name], f"<{name}>", "exec", dont_inherit=True), namespace)  # noqa: S102
        check = namespace["check"]
    except BaseException as error:
        return "unusable", _line(*_describe(error))
    channel = _Channel(job)
    try:
        channel.receive()
    except Exception:
        return "absent", ""
    _tell(job, "started")
    asked = _Asked(channel)
    namespace[entry_point] = asked
    try:
        channel.send(["go"])
        asked.expect("loaded")
        check(asked)
    except _StopError as stop:
        return stop.why, stop.reason
    except BaseException as error:
        if asked.stopped is not None:
            return asked.stopped.why, asked.stopped.reason
        if asked.raised is error:
            return "raised", asked.raised_line
        if isinstance(error, AssertionError):
            return "assertion", ""
        return "raised", _line(*_describe(error)) + " (in the tests)"
    if asked.stopped is not None:
        return asked.stopped.why, asked.stopped.reason
    return "passed", ""


class _Asked:
    """Stands for the program's function: sends the arguments over and returns what comes back."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel
        self._number = 0
        self.stopped: _StopError | None = None
        self.raised: BaseException | None = None
        self.raised_line = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.stopped is not None:
            raise self.stopped
        self._number += 1
        try:
            self._channel.send([self._number, list(args), kwargs])
        except OSError:
            self._stop("gone")
        return self.expect("returned")

    def expect(self, kind: str) -> Any:
        reply: Any = None
        try:
            reply = self._channel.receive()
        except (EOFError, OSError):
            self._stop("gone")
        except values.UnfitError as error:
            self._stop("garbage", str(error))
        match reply:
            case ["loaded"] if kind == "loaded":
                return None
            case ["returned", int(number), result] if kind == "returned" and number == self._number:
                return result
            case ["raised", str(name), str(text)] if kind == "loaded":
                self._stop("entry" if (name, text) == ("", "entry") else "raised", _line(name, text))
            case ["raised", str(name), str(text), int(number)] if kind == "returned" and number == self._number:
                raise self._same(name, text)
            case ["unfit", int(number), str(text)] if kind == "returned" and number == self._number:
                self._stop("unfit", text[:_REASON])
        return self._stop("garbage")

    def _stop(self, why: str, reason: str = "") -> NoReturn:
        self.stopped = _StopError(why, reason)
        raise self.stopped

    def _same(self, name: str, text: str) -> BaseException:
        """The built-in exception of that name, as a test may expect it; one that would end this process is another."""
        kind = getattr(builtins, name, None)
        error: BaseException
        try:
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise TypeError
            error = kind(text)
        except Exception:  # a stranger's name, or a class that wants other arguments
            error = type(name[:80].replace("\0", ""), (Exception,), {})(text)
        self.raised, self.raised_line = error, _line(name, text)
        return error


def _line(name: str, text: str) -> str:
    if name == "MemoryError":
        return "out of memory"
    return " ".join(f"{name}: {text}".split())[:_REASON].rstrip(": ")


def _tell(job: dict[str, Any], why: str, reason: str = "") -> None:
    os.write(job["fds"]["verdict"], json.dumps([why, reason]).encode("ascii") + b"\n")


def _probe(job: dict[str, Any]) -> None:
    """Report what can be reached from in here."""
    found = {
        "network": not _reaches(job["port"]),
        "files": not any(os.path.lexists(path) for path in job["hidden"]) and not any(map(_writes, job["unwritable"])),
        "processes": _forks(job["limits"]["RLIMIT_NPROC"]) <= job["limits"]["RLIMIT_NPROC"],
    }
    os.write(job["fds"]["verdict"], json.dumps(found).encode("ascii") + b"\n")


def _reaches(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return any(name != "lo" for _, name in socket.if_nameindex())
    return True


def _writes(folder: str) -> bool:
    path = os.path.join(folder, f".mixsd-probe-{os.getpid()}")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.unlink(path)
    except OSError:
        return False
    return True


def _forks(limit: int) -> int:
    """How many processes can stand at a time, this one included; stops a little above the limit."""
    import signal

    children: list[int] = []
    try:
        while len(children) <= limit + 8:
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    except OSError:
        pass
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return len(children) + 1
