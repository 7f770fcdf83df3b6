"""Starts one sandboxed process of a kind and ends it, with everything that it started."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from mixsd.sandbox.launcher import NOBODY
from mixsd.sandbox.limits import Limits
from mixsd.sandbox.view import DEVICES, open_to_all, view

# All that a child sees of an environment. A fixed hash seed: the same program gets the same verdict every time.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
# Isolated, but for PYTHONHASHSEED: no site-packages, no user folder, no script folder on the path, no bytecode written.
_FLAGS = ("-s", "-P", "-S", "-B")
_BOOT = """\
import json, sys, types
with open(0, encoding="utf-8", closefd=False) as file:
    job = json.load(file)
for name, source in job.pop("modules"):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, "<" + name + ">", "exec", dont_inherit=True), module.__dict__)
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
module.main(job)
"""
_PATIENCE = 15.0
_LATE = 5.0


class StartError(Exception):
    """The sandbox could not be started; the text says why."""


class Started:
    """One running sandboxed process."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes], told: IO[bytes] | None, folder: str | None) -> None:
        self.process = process
        self._errors, self._told, self._folder = errors, told, folder
        self._ended = False

    def said(self) -> str:
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
        return code if code >= 0 else 128 - code

    def end(self) -> None:
        """Kill what still runs, reap it, and remove what it left; a second call does nothing."""
        if self._ended:
            return
        try:
            if self.process.poll() is None:
                self._kill()
            elif self._told is not None:
                # bubblewrap leaves as soon as the worker has, while the kernel still ends the rest.
                _end_inner(self._told, kill=False)
        finally:
            self._ended = True
            for file in (self._errors, self._told):
                if file is not None:
                    file.close()
            if self._folder is not None:
                _remove(self._folder)

    def _kill(self) -> None:
        try:
            if self._told is not None:
                _end_inner(self._told, kill=True)
            else:
                self.process.terminate()
            self.process.wait(_PATIENCE)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


def start(kind: str, job: dict[str, Any], limits: Limits) -> Started:
    """Start a worker of `kind` on a job; `job["fds"]` names the descriptors that it gets.

    Raises:
        StartError: if it cannot be started at all.
    """
    names = ("mixsd", "mixsd.sandbox", "mixsd.sandbox.values", "mixsd.sandbox.calls", "mixsd.sandbox.worker")
    modules = [(name, _source(name)) for name in names]
    resources = limits.resources()
    order = {**job, "modules": modules, "limits": resources, "most": limits.output_bytes, "hide": False}
    order["hide"] = kind == "none" and job["role"] == "tests"
    fds = tuple(job["fds"].values())
    errors = told = None
    folder: str | None = None
    try:
        errors = tempfile.TemporaryFile()  # noqa: SIM115
        with tempfile.TemporaryFile() as stdin:
            stdin.write(json.dumps(order).encode("ascii"))
            stdin.seek(0)
            if kind == "bubblewrap":
                told, telling = _pipe_files()
                with telling:
                    process = _bubblewrap(limits, fds, telling.fileno(), stdin, errors)
            else:
                folder = tempfile.mkdtemp(prefix="mixsd-sandbox-") if kind == "none" else None
                process = _launch({"kind": kind, "folder": folder}, limits, fds, stdin, errors)
        return Started(process, errors, told, folder)
    except BaseException as error:
        for file in (errors, told):
            if file is not None:
                file.close()
        if folder is not None:
            _remove(folder)
        if isinstance(error, OSError | subprocess.SubprocessError):
            raise StartError(f"{type(error).__name__}: {error}") from error
        raise


def _pipe_files() -> tuple[IO[bytes], IO[bytes]]:
    reader, writer = os.pipe()
    return os.fdopen(reader, "rb", 0), os.fdopen(writer, "wb", 0)


def _spawn(command: list[str], fds: tuple[int, ...], stdin: IO[bytes], errors: IO[bytes], **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603
        command,
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        pass_fds=fds,
        cwd="/",
        env=dict(_ENVIRONMENT),
        start_new_session=True,
        **more,
    )


def _launch(
    orders: dict[str, Any], limits: Limits, fds: tuple[int, ...], stdin: IO[bytes], errors: IO[bytes]
) -> subprocess.Popen[bytes]:
    shown = view()
    home = orders["folder"] or "/tmp"  # noqa: S108
    orders = {
        "parent": os.getpid(),
        "fds": fds,
        "command": [shown.interpreter, *_FLAGS, "-c", _BOOT],
        "environment": {**_ENVIRONMENT, "HOME": home, "TMPDIR": home},
        "reachable": _reachable() and open_to_all(home),
        "shown": shown.shown,
        "links": shown.links,
        "devices": DEVICES,
        "root": _covered(),
        "tmp_bytes": limits.tmp_bytes,
        **orders,
    }
    source = _source("mixsd.sandbox.launcher") + "\nmain()\n"
    return _spawn([shown.interpreter, *_FLAGS, "-c", source, json.dumps(orders)], fds, stdin, errors)


def _bubblewrap(
    limits: Limits, fds: tuple[int, ...], telling: int, stdin: IO[bytes], errors: IO[bytes]
) -> subprocess.Popen[bytes]:
    program = shutil.which("bwrap")
    if program is None:
        raise StartError("bwrap is not installed")
    shown = view()
    # The limit on processes does not bind root, nor what root becomes inside: bubblewrap itself runs as nobody, who may
    # need help to reach the interpreter.
    root = os.getuid() == 0
    helped = root and not _reachable()
    command = [program, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    command += ["--hostname", "sandbox", "--info-fd", str(telling), "--clearenv"]
    for name, value in {**_ENVIRONMENT, "HOME": "/tmp", "TMPDIR": "/tmp"}.items():  # noqa: S108
        command += ["--setenv", name, value]
    # Before the views, one of which may be inside it.
    command += ["--perms", "1777", "--size", str(limits.tmp_bytes), "--tmpfs", "/tmp"]  # noqa: S108
    for number, path in enumerate(shown.shown):
        command += ["--ro-bind", f"{_covered()}/{number}" if helped else path, path]
    for place, target in shown.links:
        command += ["--symlink", target, place]
    for path in DEVICES:
        command += ["--dev-bind", path, path]
    # No /proc: nothing that is judged needs one, and in many containers it cannot be mounted.
    command += ["--remount-ro", "/"]
    command += ["--chdir", "/tmp", "--", shown.interpreter, *_FLAGS, "-c", _BOOT]  # noqa: S108
    fds = (*fds, telling)
    if helped:
        return _launch({"kind": "bubblewrap", "command": command, "folder": None}, limits, fds, stdin, errors)
    user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if root else {}
    return _spawn(command, fds, stdin, errors, **user)


def _end_inner(told: IO[bytes], *, kill: bool) -> None:
    """Kill the first process of the sandbox, or see it killed, and wait for its end: all others have ended before it.

    bubblewrap, its parent, then leaves. Where that has left already, the kernel kills it (and its id may be another's).
    """
    data = b""
    while not data.rstrip().endswith(b"}") and select.select([told], [], [], _PATIENCE)[0]:
        block = told.read(4096)
        if not block:
            break
        data += block
    try:
        inner = os.pidfd_open(json.loads(data)["child-pid"])
    except (ValueError, KeyError, OSError):
        return
    try:
        if kill:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(inner, signal.SIGKILL)
        select.select([inner], [], [], _PATIENCE if kill else _LATE)
    finally:
        os.close(inner)


def _remove(folder: str) -> None:
    # The judged program may have taken away its own rights, or nested folders deeper than rmtree goes.
    for path, _, _ in os.walk(folder):
        for name in os.listdir(path):
            inside = os.path.join(path, name)
            if os.path.isdir(inside) and not os.path.islink(inside):
                os.chmod(inside, 0o700)
    with suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        subprocess.run(["/bin/rm", "-rf", folder], check=False, stderr=subprocess.DEVNULL)  # noqa: S603


@cache
def _reachable() -> bool:
    return all(open_to_all(path) for path in view().shown)


def _covered() -> str:
    """A folder that exists, for a new root to be mounted over; in the sandbox's own namespace only."""
    return next(path for path in ("/tmp", "/var/tmp", "/mnt", "/usr") if os.path.isdir(path))  # noqa: S108


@cache
def _source(name: str) -> str:
    if name in ("mixsd", "mixsd.sandbox"):
        return ""
    return (Path(__file__).parent / f"{name.rpartition('.')[2]}.py").read_text(encoding="utf-8")
