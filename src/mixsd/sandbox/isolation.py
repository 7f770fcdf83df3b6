"""Starts a worker in bubblewrap, or weakly, and tries whether bubblewrap works on this machine.

The weak kind, "none", has limits on time, memory, files and processes and an empty environment, and nothing more. In both kinds all
that was started is killed when `start` ends; in bubblewrap by the kernel, some milliseconds later, where the worker has ended by itself.
"""

import json
import os
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

# All that a child sees of an environment. A fixed hash seed: the same program gets the same verdict every time.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
# Isolated, but for PYTHONHASHSEED: no site-packages, no user folder, no script folder on the path, no bytecode written.
_FLAGS = ("-s", "-P", "-S", "-B")
# The worker gets its code and its job on standard input: the project is not visible in the sandbox.
_BOOT = """\
import json, sys, types
with open(0, encoding="utf-8", closefd=False) as file:
    job = json.load(file)
module = sys.modules["mixsd.sandbox.worker"] = types.ModuleType("mixsd.sandbox.worker")
exec(compile(job.pop("worker"), "<worker>", "exec", dont_inherit=True), module.__dict__)
module.main(job)
"""
_WORKER = Path(__file__).with_name("worker.py")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_STORES = ("/nix/store", "/gnu/store")  # where each package has a folder of its own
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
_TMP = "/tmp"  # noqa: S108  the sandbox's own, empty and small
_STAGE = "/sys"  # a folder that is everywhere and holds no interpreter; covered in an outer bubblewrap only
_NOBODY = 65534
_STRANGERS = 0x70000000  # above every user that a machine gives out
_COUNT = count()
_PATIENCE_S = 15.0


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
        """The size of the writable folder, where it is a file system of its own: four of the largest files."""
        return 4 * self.file_mb << 20

    def resources(self) -> dict[str, int]:
        """The limits that the kernel keeps, by the names that `resource` has for them."""
        return {
            "RLIMIT_AS": self.memory_mb << 20,
            "RLIMIT_CPU": self.cpu_seconds + 1,
            "RLIMIT_FSIZE": self.file_mb << 20,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_NOFILE": 64,
            **dict.fromkeys(("RLIMIT_CORE", "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE"), 0),
        }


DEFAULT = Limits()


@dataclass(frozen=True)
class Isolation:
    """What holds for judged code here: `network` is cut off, of `files` only a minimal read-only view is visible; `note` is for the user."""

    kind: str
    network: bool
    files: bool
    note: str


_LIMITED = "Isolated by bubblewrap: no network, no files but the interpreter's, limited time, memory, disk space and processes."
_OPEN = "No isolation: time, memory and processes are limited, but the code can read this user's files and use the network."
_STRONG, _WEAK = Isolation("bubblewrap", True, True, _LIMITED), Isolation("none", False, False, _OPEN)


def isolation() -> Isolation:
    """bubblewrap if it works here, else the weak kind; tried once per process."""
    return _STRONG if problem() is None else _WEAK


def check(allow_weak: bool) -> Isolation:
    """Return the isolation to judge code in.

    Raises `UserError`: if code cannot be isolated here and `allow_weak` is False, or cannot be judged on this system at all.
    """
    found = isolation()
    if sys.platform not in ("linux", "darwin"):
        raise UserError("model-written code is judged on Linux and macOS only; leave this benchmark out")
    if found is _WEAK and not allow_weak:
        raise UserError(
            f"model-written code cannot be isolated here ({problem()}): install bubblewrap 0.8 or newer on Linux (apt install bubblewrap) "
            "and allow user namespaces (docs/sandbox.md), or pass --allow-weak-sandbox to run it with limits only, free to read your "
            "files and use the network"
        )
    return found


@cache
def problem() -> str | None:
    """Why bubblewrap cannot be used here, in a few words; None if it can."""
    if sys.platform != "linux":
        return f"no sandbox for {sys.platform}"
    try:
        with start("bubblewrap", {"role": "trial", "fds": {}}, DEFAULT) as trial:
            return None if trial.status(_PATIENCE_S) == 0 else f"bubblewrap does not work: {trial.last_error() or 'no answer'}"
    except StartError as error:
        return str(error)


class StartError(Exception):
    """The sandbox could not be started; the text says why."""


@dataclass(frozen=True)
class Sandboxed:
    """One running worker, and the file of its standard error."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    def last_error(self) -> str:
        """The last line that was written to standard error before the worker took over."""
        self.errors.seek(0)
        lines = self.errors.read(65536).decode(errors="replace").split("\n")
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
    """A running worker of `kind`; in the end all that it started is killed, and what it left is removed.

    `job["fds"]` names the descriptors that it gets.

    Raises `StartError`: if it cannot be started at all.
    """
    weak = kind == "none"
    order = {**job, "weak": weak, "parent": os.getpid(), "limits": limits.resources(), "most": limits.output_bytes}
    order["worker"] = _WORKER.read_text(encoding="utf-8")
    with ExitStack() as stack:
        try:
            stdin, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            stdin.write(json.dumps(order).encode("ascii"))
            stdin.seek(0)
            folder = tempfile.mkdtemp(prefix="mixsd-sandbox-") if weak else _TMP
            if weak:
                stack.callback(_remove, folder)
            process = subprocess.Popen(  # noqa: S603
                [*(_weak(folder) if weak else _bubblewrap(limits)), interpreter(), *_FLAGS, "-c", _BOOT],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[*job["fds"].values()],
                cwd=folder if weak else "/",
                env={**_ENVIRONMENT, "HOME": folder, "TMPDIR": folder},
                start_new_session=True,
            )
            stack.callback(_end, process)
        except (OSError, subprocess.SubprocessError) as error:
            raise StartError(f"{type(error).__name__}: {error}") from error
        yield Sandboxed(process, errors)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker and all that it started: in bubblewrap by its death signal and its process namespace, else by the group."""
    # Once it is reaped, the number of its group may be another's.
    if process.returncode is None:
        _kill_group(process)
        process.wait()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _bubblewrap(limits: Limits) -> list[str]:
    """The beginning of a command that runs the rest in bubblewrap."""
    program = shutil.which("bwrap")
    if program is None:
        raise StartError("bubblewrap is not installed")
    root = os.getuid() == 0
    # What nobody could reach is put where everyone can, by an outer bubblewrap.
    staged = {path: f"{_STAGE}/{number}" for number, path in enumerate(shown()) if root and not _is_open(path)}
    command = [program, "--unshare-all", "--unshare-user", "--disable-userns", "--new-session", "--die-with-parent"]
    command += ["--hostname", "sandbox"]
    # Before what is shown, which may be inside it.
    command += ["--perms", "1777", "--size", str(limits.tmp_bytes), "--tmpfs", _TMP]
    command += [word for path in shown() for word in ("--ro-bind", staged.get(path, path), path)]
    command += [word for path in _DEVICES for word in ("--dev-bind", path, path)]
    # No /proc: nothing that is judged needs one, and in many containers it cannot be mounted.
    command += ["--remount-ro", "/", "--chdir", _TMP, "--"]
    if root:
        command = [*_as_user(_NOBODY), *command]
    if staged:
        stage = [word for path, place in staged.items() for word in ("--ro-bind", path, place)]
        outer = [program, "--die-with-parent", "--unshare-pid", "--dev-bind", "/", "/", "--tmpfs", _STAGE]
        command = [*outer, *stage, "--", *command]
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


def _remove(folder: str) -> None:
    with suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    # The judged program took away its own rights, or nested folders deeper than Python goes.
    for command in (["/bin/chmod", "-R", "u+rwx"], ["/bin/rm", "-rf"]) if os.path.lexists(folder) else ():
        subprocess.run([*command, folder], check=False, stderr=subprocess.DEVNULL)  # noqa: S603


@cache
def interpreter() -> str:
    """The running interpreter: its base, not the virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@cache
def shown() -> tuple[str, ...]:
    """What is shown read-only at its own place: the interpreter, its standard library and the libraries they load."""
    prefixes = {os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)}
    stores = (store for store in _STORES if any(prefix.startswith(store) for prefix in prefixes))
    wanted = {
        interpreter(),
        *_LIBRARIES,
        *stores,
        *(os.path.join(prefix, name) for prefix in prefixes for name in ("lib", "lib64")),
    }
    found: list[str] = []
    for path in sorted(wanted):
        if os.path.exists(path) and not any(Path(path).is_relative_to(above) for above in found):
            found.append(path)
    return tuple(found)
