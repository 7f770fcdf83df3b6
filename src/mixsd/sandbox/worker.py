"""What runs inside the sandbox: the judged program in one process, its tests in another, and plain values as JSON between them.

The tests' process alone holds the pipe on which a verdict is given. So whatever the program does to its own process (leave it,
print, patch builtins, read frames), all it can say is what its function returned. Never pickle, marshal or eval: what arrives is
built here, from the types named below, bounded in size and depth. A subclass degrades to its plain type; anything else arrives as a
`Foreign`. This file is sent into the sandbox as source, on standard input, so it needs the standard library only.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import json
import os
import random
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from types import ModuleType
from typing import Any, NoReturn

MAX_DEPTH = 64
# Integers below this are exact in every JSON reader and are written as they are; others as hex digits, read in linear time.
_SMALL = 1 << 53
_REASON = 200  # characters


class UnfitError(Exception):
    """A value that cannot cross (too large, too deep), or bytes that are no value."""


class Foreign:
    """What stands for a value of another type: equal to nothing, true or false as the value was, with the value's items if it has any."""

    def __init__(self, name: str, truth: bool, items: list[Any] | None) -> None:
        self._name, self._truth, self._items = name, truth, items

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return self._truth

    def __iter__(self) -> Iterator[Any]:
        if self._items is None:
            raise TypeError(f"'{self._name}' object is not iterable")
        return iter(self._items)


def pack(value: Any, most: int) -> bytes:
    """Write a value as at most `most` bytes of JSON; `UnfitError` if it does not fit."""
    data = json.dumps(_Encoder(most).encode(value, 0), separators=(",", ":")).encode("ascii")
    if len(data) > most:
        raise UnfitError("too large")
    return data


def unpack(data: bytes) -> Any:
    """Read what `pack` wrote; `UnfitError` for anything else."""
    try:
        return _decode(json.loads(data), 0)
    except Exception as error:  # whatever the bytes provoke, they are no value
        raise UnfitError("not a value") from error


_CONTAINERS: dict[str, Any] = {"l": list, "t": tuple, "s": set, "z": frozenset}
# How a scalar is written as text and read back; the methods of the plain types, not those of a subclass.
_SCALARS: dict[str, tuple[Any, Callable[[Any], str], Callable[[str], Any]]] = {
    "i": (int, lambda value: int.__format__(value, "x"), lambda digits: int(digits, 16)),
    "f": (float, float.hex, float.fromhex),
    "c": (complex, complex.__repr__, complex),
    "b": ((bytes, bytearray), lambda value: bytes(value).hex(), bytes.fromhex),
    "q": (
        Fraction,
        lambda value: "{:x}/{:x}".format(*Fraction.as_integer_ratio(value)),
        lambda digits: Fraction(*(int(part, 16) for part in digits.split("/"))),
    ),
    "m": (Decimal, Decimal.__str__, Decimal),
    # Two halves of a surrogate pair would come back from JSON as one character.
    "u": (
        str,
        lambda value: value.encode("utf-32-le", "surrogatepass").hex(),
        lambda digits: bytes.fromhex(digits).decode("utf-32-le", "surrogatepass"),
    ),
}


class _Encoder:
    """`left` bytes may still be written: each value costs the fewest that it can take."""

    def __init__(self, left: int) -> None:
        self.left = left

    def encode(self, value: Any, depth: int) -> Any:  # noqa: PLR0911
        if depth > MAX_DEPTH:
            raise UnfitError("nested too deeply")
        self._spend(2 + len(value) if isinstance(value, str) else 2)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value):
            return str.__str__(value)
        if isinstance(value, int) and -_SMALL < value < _SMALL:
            return int.__pos__(value)
        for tag, (kind, write, _) in _SCALARS.items():
            if isinstance(value, kind):
                text = write(value)
                self._spend(len(text))
                return [tag, text]
        self._spend(3)
        for tag, kind in _CONTAINERS.items():
            if isinstance(value, kind):
                return [tag, *[self.encode(item, depth + 1) for item in kind.__iter__(value)]]
        if isinstance(value, dict):
            return ["d", *[[self.encode(key, depth + 1), self.encode(item, depth + 1)] for key, item in dict.items(value)]]
        items = [self.encode(item, depth + 1) for item in value] if isinstance(value, Iterable) else None
        return ["x", type(value).__name__[:80], bool(value), items]

    def _spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise UnfitError("too large")


def _decode(node: Any, depth: int) -> Any:
    if node is None or isinstance(node, bool | int | str):
        return node
    tag, *rest = node
    if depth > MAX_DEPTH or not isinstance(node, list):
        raise UnfitError
    if tag in _CONTAINERS:
        return _CONTAINERS[tag](_decode(item, depth + 1) for item in rest)
    if tag == "d":
        return {_decode(key, depth + 1): _decode(value, depth + 1) for key, value in rest}
    if tag == "x":
        name, truth, items = rest
        return Foreign(name, truth, None if items is None else [_decode(item, depth + 1) for item in items])
    return _SCALARS[tag][2](*rest)


def main(job: dict[str, Any]) -> NoReturn:
    """Take up the role that the job names, under its limits, and leave without running anything at exit."""
    if job["weak"]:
        _stand_alone(job)
    _limit(job["limits"])
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    _refuse_calls()
    random.seed(0)
    if job["role"] == "program":
        _program(job)
    elif job["role"] == "tests":
        _tell(job, *_verdict(job))
    os._exit(0)


_PDEATHSIG, _DUMPABLE, _SECCOMP, _NO_NEW_PRIVS = 1, 4, 22, 38


def _control(option: int, *values: Any) -> bool:
    """Whether `prctl` did it; nothing happens on other systems."""
    return sys.platform == "linux" and ctypes.CDLL(None).prctl(option, *[*values, 0, 0, 0, 0][:4]) == 0


def _stand_alone(job: dict[str, Any]) -> None:
    """Without bubblewrap: keep a program from its tests' pipes, and leave a guard that ends all when mixsd dies."""
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    _control(_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != job["parent"]:
        os._exit(1)
    if child := os.fork():
        os.closerange(3, 1 << 16)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _control(_DUMPABLE, int(job["role"] == "program"))


def _limit(limits: dict[str, int]) -> None:
    """Set the limits, soft and hard; one that is lower already stays."""
    import resource

    for name, value in limits.items():
        limit = getattr(resource, name, None)
        if limit is None:
            continue
        hard = resource.getrlimit(limit)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            # A second between the two, so that an end by the soft CPU limit can be told from a kill.
            resource.setrlimit(limit, (max(most - 1, 1) if name == "RLIMIT_CPU" else most, most))
        except (ValueError, OSError):
            # macOS knows the name RLIMIT_AS and refuses to set it.
            if sys.platform == "linux":
                raise


# By machine: the kernel's name for it, the number of `socket`, and those of shmget, semget, msgget, memfd_create, memfd_secret, add_key,
# request_key, keyctl, ptrace, process_vm_readv, process_vm_writev, userfaultfd, io_uring_setup, bpf, perf_event_open, setpgid, setsid.
_CALLS = {
    "x86_64": (0xC000003E, 41, (29, 64, 68, 319, 447, 248, 249, 250, 101, 310, 311, 323, 425, 321, 298, 109, 112)),
    "aarch64": (0xC00000B7, 198, (194, 190, 186, 279, 447, 217, 218, 219, 117, 270, 271, 282, 425, 280, 241, 154, 157)),
}
_FAMILIES = (1, 2, 10, 16)  # Unix, the internet's two, and netlink, by which the C library lists interfaces
_NUMBER, _MACHINE, _FIRST = 0, 4, 16  # places in `struct seccomp_data`
_X32 = 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = (_RETURN, 0, 0, 0x7FFF0000), (_RETURN, 0, 0, 0x50000 | errno.EPERM)


def _refuse_calls() -> None:
    """Refuse, for good, the system calls that no namespace and no resource limit holds, where the kernel has seccomp.

    Without this a program in bubblewrap reads the user's keyring and reaches a virtual machine's host (AF_VSOCK), and shared memory of
    System V and memory files escape the limit on memory. Without bubblewrap all that a program starts is ended as one process group,
    which it may not leave. The rest is wide ground for attacks on the kernel.
    """
    machine = os.uname().machine
    if not _control(_NO_NEW_PRIVS, 1) or machine not in _CALLS or sys.maxsize < 1 << 32:
        return
    name, socket, refused = _CALLS[machine]
    # The kernel's classic BPF: a test that does not hold jumps over the answer that follows it.
    lines = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, name), _REFUSE, (_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), _REFUSE]
    lines += [line for number in refused for line in ((_EQUAL, 0, 1, number), _REFUSE)]
    lines += [(_EQUAL, 1, 0, socket), _ALLOW, (_LOAD, 0, 0, _FIRST)]
    lines += [line for family in _FAMILIES for line in ((_EQUAL, 0, 1, family), _ALLOW)]
    lines += [(_RETURN, 0, 0, 0x50000 | errno.EAFNOSUPPORT)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    _control(_SECCOMP, 2, struct.pack("HP", len(lines), ctypes.addressof(program)))


class _Channel:
    """Messages between the two processes, each a packed value on a line of its own."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._reader, self._writer = open(job["fds"]["read"], "rb"), open(job["fds"]["write"], "wb")  # noqa: SIM115
        self._most = job["most"]

    def pack(self, message: Any) -> bytes:
        return pack(message, self._most) + b"\n"

    def write(self, line: bytes) -> None:
        self._writer.write(line)
        self._writer.flush()

    def receive(self) -> Any:
        """The next message; `UnfitError` if it is none, `EOFError` if the other side has left."""
        line = self._reader.readline(self._most + 1)
        if not line.endswith(b"\n"):
            raise UnfitError("too large") if len(line) > self._most else EOFError
        return unpack(line)


def _program(job: dict[str, Any]) -> NoReturn:
    """Load the judged program when first called, then answer calls of its function until the other side hangs up."""
    channel = _Channel(job)
    own = os.getpid()
    module = sys.modules["program"] = ModuleType("program")
    function: Any = None
    # The program starts when the tests are known to stand, so that what stops before is never its doing.
    line = channel.pack("hello")
    while True:
        # A fork made by the program comes back here, too.
        if os.getpid() != own:
            os._exit(0)
        channel.write(line)
        number, args, kwargs = channel.receive()
        result = None
        try:
            if function is not None:
                result = function(*args, **kwargs)
            else:
                exec(compile(job["code"], "<program>", "exec", dont_inherit=True), module.__dict__)  # noqa: S102
                function = module.__dict__.get(job["entry_point"])
                if not callable(function):
                    raise UnfitError("no function")
            line = channel.pack(["returned", number, result])
        except UnfitError as error:
            line = channel.pack(["unfit", number, str(error)])
        except BaseException as error:
            line = channel.pack(["raised", number, *_describe(error)])


def _describe(error: BaseException) -> tuple[str, str]:
    """An exception's type and text; the text may be the program's own code and may fail itself."""
    try:
        text = str(error)[:_REASON]
    except BaseException:
        text = ""
    return type(error).__name__[:80], text


def _verdict(job: dict[str, Any]) -> tuple[str, str]:
    """Run the tests against the program's function from afar.

    Returns passed, wrong, gone (the program has left) or unusable (it was not even started); and why.
    """
    namespace: dict[str, Any] = {"__name__": "tests"}
    try:
        # The prompt defines helpers that some tests use; the function that it only begins is replaced by the program's.
        for name in ("prompt", "test"):
            exec(compile(job[name], f"<{name}>", "exec", dont_inherit=True), namespace)  # noqa: S102
        check = namespace["check"]
    except BaseException as error:
        return "unusable", f"the tests cannot be loaded: {_reason(*_describe(error))}"
    channel = _Channel(job)
    try:
        channel.receive()
    except Exception:
        return "unusable", ""
    _tell(job, "started")
    asked = namespace[job["entry_point"]] = _Asked(channel)
    outcome = "passed", ""
    try:
        asked()  # loads the program
        check(asked)
    except BaseException as error:
        reason = "assertion failed" if isinstance(error, AssertionError) else f"{_reason(*_describe(error))} (in the tests)"
        outcome = "wrong", asked.raised_reason if error is asked.raised else reason
    # Whatever its tests made of that, a program that gives no more answers does not pass.
    return asked.stopped or outcome


class _StopError(BaseException):
    """The program can give no more answers. No `Exception`, so that a test's `except Exception` does not swallow it."""


class _Asked:
    """Stands for the program's function: sends the arguments over and returns what comes back. The first call loads the program."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel
        self._number = -1
        self.stopped: tuple[str, str] | None = None
        self.raised: BaseException | None = None
        self.raised_reason = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.stopped is not None:
            raise _StopError
        self._number += 1
        line = self._channel.pack([self._number, list(args), kwargs])
        self.stopped = "wrong", "answered with something that is no result"
        try:
            self._channel.write(line)
            reply = self._channel.receive()
        except (EOFError, OSError):
            self.stopped = "gone", ""
            raise _StopError from None
        except UnfitError:
            raise _StopError from None
        match reply:
            case ["returned", self._number, result]:
                self.stopped = None
                return result
            case ["raised", self._number, str(name), str(text)]:
                self.stopped = None
                self.raised, self.raised_reason = _same(name, text), _reason(name, text)
                raise self.raised
            case ["unfit", 0, _]:
                self.stopped = "wrong", "the code does not define the function"
            case ["unfit", self._number, str(text)]:
                self.stopped = "wrong", f"a result is {text}"[:_REASON]
        raise _StopError


def _same(name: str, text: str) -> Exception:
    """The built-in exception of that name, as a test may expect it; one that would end this process is another."""
    kind = getattr(builtins, name, None)
    with suppress(Exception):  # a class that wants other arguments
        if isinstance(kind, type) and issubclass(kind, Exception):
            return kind(text)
    return Exception(text)


def _reason(name: str, text: str) -> str:
    if name == "MemoryError":
        return "out of memory"
    return " ".join(f"{name}: {text}".split())[:_REASON].rstrip(": ") or "an exception without a name"


def _tell(job: dict[str, Any], why: str, reason: str = "") -> None:
    os.write(job["fds"]["verdict"], json.dumps([why, reason]).encode("ascii") + b"\n")
