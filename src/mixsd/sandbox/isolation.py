"""Starts a worker in bubblewrap, or weakly, and tries whether bubblewrap works on this machine.

The weak kind, "none", has limits on time, memory, files and processes and an empty environment, and nothing more. In both kinds no
process that was started outlives `start`.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import IO, Any

from mixsd.errors import UserError
from mixsd.sandbox.limits import DEFAULT, Limits, interpreter, shown

# All that a child sees of an environment. A fixed hash seed: the same program gets the same verdict every time.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
# Isolated, but for PYTHONHASHSEED: no site-packages, no user folder, no script folder on the path, no bytecode written.
_FLAGS = ("-s", "-P", "-S", "-B")
# The worker gets its code and its job on standard input: the project is not visible in the sandbox.
_BOOT = """\
import json, sys, types
with open(0, encoding="utf-8", closefd=False) as file:
    job = json.load(file)
for name, source in job.pop("modules"):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, "<" + name + ">", "exec", dont_inherit=True), module.__dict__)
module.main(job)
"""
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
# The sandbox's own, empty and small.
_TMP = "/tmp"  # noqa: S108
# A folder that is everywhere and holds no interpreter; covered in an outer bubblewrap only.
_STAGE = "/sys"
_NOBODY = 65534
# Above every user that a machine gives out.
_STRANGERS = 0x70000000
_COUNT = count()
_PATIENCE = 15.0


@dataclass(frozen=True)
class Isolation:
    """What holds for judged code on this machine; `note` says it to the user in one sentence.

    `kind` is bubblewrap or none. `network`: it is cut off. `files`: only a minimal read-only view is visible, no home.
    """

    kind: str
    network: bool
    files: bool
    note: str


_STRONG = Isolation(
    *("bubblewrap", True, True),
    "Isolated by bubblewrap: no network, no files but the interpreter's, limited time, memory, disk space and processes.",
)
_WEAK = Isolation(
    *("none", False, False),
    "No isolation: time, memory and processes are limited, but the code can read this user's files and use the network.",
)


def isolation() -> Isolation:
    """bubblewrap if it works here, else the weak kind; tried once per process."""
    return _STRONG if problem() is None else _WEAK


def check(allow_weak: bool) -> Isolation:
    """Return the isolation to judge code in.

    Raises:
        UserError: if code cannot be isolated here and `allow_weak` is False, or cannot be judged on this system at all.
    """
    found = isolation()
    if sys.platform not in ("linux", "darwin"):
        raise UserError("model-written code is judged on Linux and macOS only; leave this benchmark out")
    if found.kind == "none" and not allow_weak:
        remedy = "run this part on Linux with bubblewrap"
        if sys.platform == "linux":
            remedy = "install bubblewrap 0.8 or newer (apt install bubblewrap) and allow user namespaces (docs/sandbox.md)"
        raise UserError(
            f"model-written code cannot be isolated here ({problem()}): {remedy}, or pass --allow-weak-sandbox "
            "to run it with limits only, free to read your files and use the network"
        )
    return found


@cache
def problem() -> str | None:
    """Why bubblewrap cannot be used here, in a few words; None if it can."""
    if sys.platform != "linux":
        return f"no sandbox for {sys.platform}"
    try:
        with start("bubblewrap", {"role": "trial", "fds": {}}, DEFAULT) as trial:
            return None if trial.status(_PATIENCE) == 0 else f"bubblewrap does not work: {trial.last_error() or 'no answer'}"
    except StartError as error:
        return str(error)


class StartError(Exception):
    """The sandbox could not be started; the text says why."""


class Sandboxed:
    """One running worker."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.process = process
        self._errors = errors

    def last_error(self) -> str:
        """The last line that was written to standard error before the worker took over."""
        self._errors.seek(0)
        lines = self._errors.read(65536).decode(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

    def status(self, patience: float) -> int | None:
        """The exit status, 128 + signal for a killed one, waiting for it at most so long."""
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            return None
        # What a weak worker left behind; at once, before its number can be another's.
        _kill_group(self.process)
        return code if code >= 0 else 128 - code


@contextmanager
def start(kind: str, job: dict[str, Any], limits: Limits) -> Iterator[Sandboxed]:
    """A running worker of `kind`; in the end all that it started is killed and reaped, and what it left is removed.

    `job["fds"]` names the descriptors that it gets.

    Raises:
        StartError: if it cannot be started at all.
    """
    weak = kind == "none"
    order = {**job, "weak": weak, "parent": os.getpid(), "limits": limits.resources(), "most": limits.output_bytes}
    order["modules"] = _modules()
    with ExitStack() as stack:
        try:
            stdin, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            stdin.write(json.dumps(order).encode("ascii"))
            stdin.seek(0)
            folder = tempfile.mkdtemp(prefix="mixsd-sandbox-") if weak else None
            if folder is not None:
                stack.callback(_remove, folder)
            ends = os.pipe()
            reader, writer = stack.enter_context(os.fdopen(ends[0], "rb", 0)), stack.enter_context(os.fdopen(ends[1], "wb"))
            before = _bubblewrap(limits, writer.fileno()) if folder is None else _weak(folder)
            process = subprocess.Popen(  # noqa: S603
                [*before, interpreter(), *_FLAGS, "-c", _BOOT],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[*job["fds"].values(), *([] if weak else [writer.fileno()])],
                cwd=folder or "/",
                env={**_ENVIRONMENT, "HOME": folder or _TMP, "TMPDIR": folder or _TMP},
                start_new_session=True,
            )
            stack.callback(_end, process, None)
            started = Sandboxed(process, errors)
            writer.close()
            if not weak:
                first = _first_process(reader, started)
                stack.callback(os.close, first)
                stack.callback(_end, process, first)
        except (OSError, subprocess.SubprocessError) as error:
            raise StartError(f"{type(error).__name__}: {error}") from error
        yield started


def _end(process: subprocess.Popen[bytes], first: int | None) -> None:
    """Kill a worker and all that it started; for bubblewrap by `first`, a descriptor (pidfd) of the first process inside.

    With that one the kernel ends all others of its namespace, and before it. bubblewrap leaves when its worker has, and does not wait.
    """
    if first is not None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(first, signal.SIGKILL)
        select.select([first], [], [], _PATIENCE)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
    # Once it is reaped, the number of its group may be another's.
    if process.returncode is None:
        _kill_group(process)
        process.wait()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _bubblewrap(limits: Limits, info: int) -> list[str]:
    """The beginning of a command that runs the rest in bubblewrap; `info` is where that tells which process it started."""
    program = shutil.which("bwrap")
    if program is None:
        raise StartError("bubblewrap is not installed")
    root = os.getuid() == 0
    # What nobody could reach is put where everyone can, by an outer bubblewrap.
    staged = {path: f"{_STAGE}/{number}" for number, path in enumerate(shown()) if root and not _is_open(path)}
    outermost = ["--die-with-parent", "--info-fd", str(info)]
    command = [program, "--unshare-all", "--unshare-user", "--disable-userns", "--new-session", "--hostname", "sandbox"]
    command += ["--die-with-parent"] if staged else outermost
    # Before what is shown, which may be inside it.
    command += ["--perms", "1777", "--size", str(limits.tmp_bytes), "--tmpfs", _TMP]
    for path in shown():
        command += ["--ro-bind", staged.get(path, path), path]
    for path in _DEVICES:
        command += ["--dev-bind", path, path]
    # No /proc: nothing that is judged needs one, and in many containers it cannot be mounted.
    command += ["--remount-ro", "/", "--chdir", _TMP, "--"]
    if root:
        command = [*_as_user(_NOBODY), *command]
    if staged:
        stage = [word for path, place in staged.items() for word in ("--ro-bind", path, place)]
        command = [program, *outermost, "--unshare-pid", "--dev-bind", "/", "/", "--tmpfs", _STAGE, *stage, "--", *command]
    return command


def _weak(folder: str) -> list[str]:
    """The beginning of a command that runs the rest without bubblewrap: for root as a user that no other process has.

    It can signal none but its own. Where it cannot reach the interpreter or its own folder, it keeps root's right to read.
    """
    if os.getuid() != 0:
        return []
    user = _STRANGERS + (os.getpid() << 8) + next(_COUNT) % 256
    try:
        os.chown(folder, user, user)
    except OSError:
        # In a container it may not exist.
        user = _NOBODY
        os.chown(folder, user, user)
    return _as_user(user, "-all" if all(map(_is_open, (*shown(), folder))) else "-all,+dac_read_search")


def _as_user(user: int, capabilities: str = "-all") -> list[str]:
    """For root, whom the limit on processes does not bind, nor what root becomes inside bubblewrap."""
    sets = [f"--{name}={capabilities}" for name in ("inh-caps", "ambient-caps", "bounding-set")]
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *sets, "--"]


def _is_open(path: str) -> bool:
    """Whether any user may reach a path."""
    return all(folder.stat().st_mode & 0o001 for folder in Path(path).parents)


def _first_process(info: IO[bytes], started: Sandboxed) -> int:
    """A descriptor (pidfd) of the first process in the namespace, with which all others end."""
    data = b""
    while not data.rstrip().endswith(b"}") and select.select([info], [], [], _PATIENCE)[0] and (block := info.read(4096)):
        data += block
    try:
        return os.pidfd_open(json.loads(data)["child-pid"])
    except (ValueError, KeyError, ProcessLookupError) as error:
        started.status(1.0)
        raise StartError(f"bubblewrap does not work: {started.last_error() or 'it does not start'}") from error


def _remove(folder: str) -> None:
    with suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        # The judged program took away its own rights, or nested folders deeper than Python goes.
        for command in (["/bin/chmod", "-R", "u+rwx"], ["/bin/rm", "-rf"]):
            subprocess.run([*command, folder], check=False, stderr=subprocess.DEVNULL)  # noqa: S603


@cache
def _modules() -> list[tuple[str, str]]:
    """Names and sources of what the worker is made of; the packages around it are empty."""
    files = {name: Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8") for name in ("values", "worker")}
    return [("mixsd", ""), ("mixsd.sandbox", ""), *[(f"mixsd.sandbox.{name}", source) for name, source in files.items()]]
