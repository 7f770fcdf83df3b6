"""What runs inside the sandbox: the judged program in one process, its tests in another.

The program's process answers calls; the tests' process asks, and it alone holds the pipe on which a verdict is given. So
whatever the program does to its own process (leave it, print, patch builtins, read frames), all it can say is what its
function returned.

The parent sends this file and `values.py` as source on standard input: the project is not visible in the sandbox.
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
from types import ModuleType
from typing import Any, NoReturn

from mixsd.sandbox import values

_REASON = 200
_FAILED = 125
_PDEATHSIG, _DUMPABLE, _SECCOMP, _NO_NEW_PRIVS = 1, 4, 22, 38
# By machine: the kernel's name for it, the number of `socket`, and those of shmget, semget, msgget, memfd_create, memfd_secret, add_key,
# request_key, keyctl, ptrace, process_vm_readv, process_vm_writev, userfaultfd, io_uring_setup, bpf, perf_event_open, setpgid, setsid.
_CALLS = {
    "x86_64": (0xC000003E, 41, (29, 64, 68, 319, 447, 248, 249, 250, 101, 310, 311, 323, 425, 321, 298, 109, 112)),
    "aarch64": (0xC00000B7, 198, (194, 190, 186, 279, 447, 217, 218, 219, 117, 270, 271, 282, 425, 280, 241, 154, 157)),
}
# Unix, the internet's two, and netlink, by which the C library lists interfaces.
_FAMILIES = (1, 2, 10, 16)
_NUMBER, _MACHINE, _FIRST = 0, 4, 16  # places in `struct seccomp_data`
_X32 = 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06


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


def _stand_alone(job: dict[str, Any]) -> None:
    """Without bubblewrap: keep a program from its tests' pipes, and leave a guard that ends all when mixsd dies."""
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    _control(_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != job["parent"]:
        os._exit(_FAILED)
    if child := os.fork():
        os.closerange(3, 1 << 16)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _control(_DUMPABLE, int(job["role"] == "program"))


def _control(option: int, *values: Any) -> bool:
    """Whether `prctl` did it; nothing happens on other systems."""
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(option, *[*values, 0, 0, 0, 0][:4]) == 0)


def _refuse_calls() -> None:
    """Refuse, for good, the system calls that no namespace and no resource limit holds, where the kernel has seccomp.

    Shared memory of System V and memory files escape the limit on memory; keyrings, and sockets to a virtual machine's host (AF_VSOCK),
    know no namespace; and without bubblewrap all that a program starts is ended as one process group, which it may not leave. The rest is
    wide ground for attacks on the kernel.
    """
    machine = os.uname().machine
    if not _control(_NO_NEW_PRIVS, 1) or machine not in _CALLS or sys.maxsize < 1 << 32:
        return
    program = _filter(*_CALLS[machine])

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))

    _control(_SECCOMP, 2, ctypes.byref(Filter(len(program) // 8, program)))


def _filter(machine: int, socket: int, refused: tuple[int, ...]) -> bytes:
    """The kernel's classic BPF: a test that does not hold jumps over the answer that follows it."""
    allow, refuse = (_RETURN, 0, 0, 0x7FFF0000), (_RETURN, 0, 0, 0x00050000 | errno.EPERM)
    lines = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, machine), refuse]
    lines += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), refuse]
    for number in refused:
        lines += [(_EQUAL, 0, 1, number), refuse]
    lines += [(_EQUAL, 1, 0, socket), allow, (_LOAD, 0, 0, _FIRST)]
    for family in _FAMILIES:
        lines += [(_EQUAL, 0, 1, family), allow]
    lines += [(_RETURN, 0, 0, 0x00050000 | errno.EAFNOSUPPORT)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


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


class _Channel:
    """Messages between the two processes, each a packed value on a line of its own."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._reader, self._writer = open(job["fds"]["read"], "rb"), open(job["fds"]["write"], "wb")  # noqa: SIM115
        self._most = job["most"]

    def pack(self, message: Any) -> bytes:
        return values.pack(message, self._most) + b"\n"

    def write(self, line: bytes) -> None:
        self._writer.write(line)
        self._writer.flush()

    def receive(self) -> Any:
        """The next message; `UnfitError` if it is none, `EOFError` if the other side has left."""
        line = self._reader.readline(self._most + 1)
        if not line.endswith(b"\n"):
            raise values.UnfitError("too large") if len(line) > self._most else EOFError
        return values.unpack(line)


def _program(job: dict[str, Any]) -> NoReturn:
    """Load the judged program when first called, then answer calls of its function until the other side hangs up."""
    channel = _Channel(job)
    own = os.getpid()
    function: Any = None
    # The program starts when the tests are known to stand, so that what stops before is never its doing.
    line = channel.pack("hello")
    while True:
        # A fork made by the program comes back here, too.
        if os.getpid() != own:
            os._exit(0)
        channel.write(line)
        number, args, kwargs = channel.receive()
        try:
            if function is None:
                function, result = _load(job), None
            else:
                result = function(*args, **kwargs)
            line = channel.pack(["returned", number, result])
        except values.UnfitError as error:
            line = channel.pack(["unfit", number, str(error)])
        except BaseException as error:
            line = channel.pack(["raised", number, *_describe(error)])


def _load(job: dict[str, Any]) -> Any:
    module = sys.modules["program"] = ModuleType("program")
    exec(compile(job["code"], "<program>", "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    function = module.__dict__.get(job["entry_point"])
    if not callable(function):
        raise values.UnfitError("no function")
    return function


def _describe(error: BaseException) -> tuple[str, str]:
    """An exception's type and text; the text may be the program's own code and may fail itself."""
    try:
        text = str(error)[:_REASON]
    except BaseException:
        text = ""
    return type(error).__name__[:80], text


def _verdict(job: dict[str, Any]) -> tuple[str, str]:
    """Run the tests against the program's function from afar.

    Returns:
        passed, wrong, gone (the program has left) or unusable (it was not even started); and why.
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
        if error is asked.raised:
            outcome = "wrong", asked.raised_reason
        elif isinstance(error, AssertionError):
            outcome = "wrong", "assertion failed"
        else:
            outcome = "wrong", f"{_reason(*_describe(error))} (in the tests)"
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
        reply: Any = None
        try:
            self._channel.write(line)
            reply = self._channel.receive()
        except (EOFError, OSError):
            self._stop("gone", "")
        except values.UnfitError:
            pass
        match reply:
            case ["returned", self._number, result]:
                return result
            case ["raised", self._number, str(name), str(text)]:
                raise self._same(name, text)
            case ["unfit", self._number, str(text)]:
                self._stop("wrong", f"a result is {text}"[:_REASON] if self._number else "the code does not define the function")
        return self._stop("wrong", "answered with something that is no result")

    def _stop(self, why: str, reason: str) -> NoReturn:
        self.stopped = why, reason
        raise _StopError

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
        self.raised, self.raised_reason = error, _reason(name, text)
        return error


def _reason(name: str, text: str) -> str:
    if name == "MemoryError":
        return "out of memory"
    return " ".join(f"{name}: {text}".split())[:_REASON].rstrip(": ") or "an exception without a name"


def _tell(job: dict[str, Any], why: str, reason: str = "") -> None:
    os.write(job["fds"]["verdict"], json.dumps([why, reason]).encode("ascii") + b"\n")
