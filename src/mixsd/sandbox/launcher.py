"""Starts one worker in namespaces of its own, or without them, and leaves no process behind.

For root it can also hand over to bubblewrap as nobody, to whom it opens the way to an interpreter in root's home.

It is sent as source to a fresh interpreter (a process with threads cannot enter a user namespace), gets its orders as JSON
in its one argument, and stays as the worker's keeper: when it is told to end (SIGTERM, also when the process that started
it dies), or when the worker ends, everything that the worker started is killed and reaped before it leaves. Linux is
reached through ctypes, as the standard library lacks `mount` and, before 3.12, `unshare`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

NOBODY = 65534
# Above every user that a machine gives out; a process id is added.
_STRANGERS = 0x70000000
_LINUX = sys.platform == "linux"

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_NOSUID, _NODEV, _REMOUNT, _RDONLY, _BIND, _REC, _PRIVATE = 0x2, 0x4, 0x20, 0x1, 0x1000, 0x4000, 0x40000
_DETACH = 2
_MOUNT_SETATTR, _EMPTY_PATH, _RECURSIVE, _ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 442, 0x1000, 0x8000, 1, 2, 4
_PDEATHSIG, _DUMPABLE, _KEEPCAPS, _CAPBSET_DROP, _SUBREAPER, _NO_NEW_PRIVS, _CAP_AMBIENT = 1, 4, 8, 24, 36, 38, 47
_DAC_READ_SEARCH = 2
_CAPSET_VERSION = 0x20080522
_CAPSET = {"x86_64": 126, "aarch64": 91}
_FAILED = 125
# The sandbox's own, empty and small.
_TMP = "/tmp"  # noqa: S108


def main() -> NoReturn:
    """Start the worker that the argument describes and keep it; ends with the worker's status (128 + signal)."""
    orders = json.loads(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    try:
        _prctl(_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != orders["parent"]:
            os._exit(_FAILED)
        if orders["kind"] == "bubblewrap":
            _hand_over(orders)
        child = _namespaced(orders) if orders["kind"] == "namespaces" else _plain(orders)
    except BaseException as error:
        _fail(error)
    _shut(())
    _keep(child, alone=orders["kind"] == "namespaces")


def _fail(error: BaseException) -> NoReturn:
    os.write(2, f"{type(error).__name__}: {error}\n".encode())
    os._exit(_FAILED)


def _keep(child: int, *, alone: bool) -> NoReturn:
    """Wait for the end of the worker or for the order to end it, then end all that is left."""
    status: int | None = None
    while status is None:
        if signal.sigwait({signal.SIGTERM, signal.SIGCHLD}) == signal.SIGTERM:
            break
        status = _reap(child)
    if alone:
        # The first process of its namespace: the kernel ends the rest with it, and before it is reaped.
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    else:
        _end_all(child)
    os._exit(_FAILED if status is None else status)


def _reap(child: int) -> int | None:
    """Reap whatever has ended; the exit status of `child` if it is among them."""
    found: int | None = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            found = code if code >= 0 else 128 - code


def _end_all(child: int) -> None:
    """Kill the worker and its descendants. Orphans come to this process, so none is missed while it lives."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for pid in _descendants() or [child]:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def _descendants() -> list[int]:
    parents: dict[int, int] = {}
    try:
        entries = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    for name in entries:
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # The name, in parentheses, may hold anything.
                parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {os.getpid()})


def _hand_over(orders: dict[str, Any]) -> NoReturn:
    """Put what is to be shown where nobody can reach it, in a mount namespace of our own, and become bubblewrap."""
    _check(_libc().unshare(_NEWNS), "unshare")
    _mount(None, "/", None, _REC | _PRIVATE)
    opened = [os.open(path, os.O_PATH) for path in orders["shown"]]
    _mount("sandbox", orders["root"], "tmpfs", _NOSUID | _NODEV, "size=1m,nr_inodes=1k,mode=0755")
    for number, descriptor in enumerate(opened):
        place = f"{orders['root']}/{number}"
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            os.mkdir(place)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
        _mount(f"/proc/self/fd/{descriptor}", place, None, _BIND | _REC)
    _become(NOBODY)
    _execute(orders)


def _plain(orders: dict[str, Any]) -> int:
    _prctl(_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            _prctl(_NO_NEW_PRIVS, 1)
            if os.getuid() == 0:
                _become_stranger(orders)
            _prctl(_PDEATHSIG, signal.SIGKILL)
            os.chdir(orders["folder"])
            _execute(orders)
        except BaseException as error:
            _fail(error)
    return child


def _become_stranger(orders: dict[str, Any]) -> None:
    """Leave root for a user that no other process has: the limit on processes binds it, and it can signal none but its own.

    Where such a user cannot reach the interpreter, it keeps root's right to read, and only that.
    """
    keep = _LINUX and not orders["reachable"]
    if keep:
        _prctl(_KEEPCAPS, 1)
    for user in (_STRANGERS + os.getpid(), NOBODY):
        try:
            os.chown(orders["folder"], user, user)
            _become(user)
            break
        except OSError:
            # In a container the first may not exist.
            if user == NOBODY:
                raise
    if keep:
        mask = 1 << _DAC_READ_SEARCH
        header = (ctypes.c_uint32 * 2)(_CAPSET_VERSION, 0)
        data = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
        _check(_libc().syscall(_CAPSET[os.uname().machine], header, data), "capset")
        _check(_libc().prctl(_CAP_AMBIENT, 2, _DAC_READ_SEARCH, 0, 0), "ambient capability")


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _namespaced(orders: dict[str, Any]) -> int:
    uid, gid = os.getuid(), os.getgid()
    mapped = _mapper() if uid == 0 else None
    _check(_libc().unshare(_NEWUSER | _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS), "unshare")
    if mapped is not None:
        mapped()
    else:
        for name, line in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")):
            _write(f"/proc/self/{name}", line)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(writer)
            _first(orders, reader)
        except BaseException as error:
            _fail(error)
    os.close(reader)
    # The other end goes when this process goes: by that the child knows whether it was orphaned before it could watch.
    _Held.writer = writer
    return child


class _Held:
    writer = -1


def _mapper() -> Any:
    """Fork a helper that writes this process's id maps from outside, once it has its new namespace.

    With two users in it, root can set up the mounts and then leave for nobody. Where the machine knows no such user (a
    container with one), root is the only one, under the other name.
    """
    asked, ask = os.pipe()
    parent = os.getpid()
    helper = os.fork()
    if helper == 0:
        os.close(ask)
        code = 0
        try:
            os.read(asked, 1)
            try:
                _write(f"/proc/{parent}/uid_map", f"0 0 1\n{NOBODY} {NOBODY} 1")
                _write(f"/proc/{parent}/gid_map", f"0 0 1\n{NOBODY} {NOBODY} 1")
            except OSError:
                _write(f"/proc/{parent}/uid_map", f"{NOBODY} 0 1")
                _write(f"/proc/{parent}/gid_map", f"{NOBODY} 0 1")
        except BaseException as error:
            os.write(2, f"id maps: {error}\n".encode())
            code = 1
        os._exit(code)
    os.close(asked)

    def mapped() -> None:
        os.close(ask)
        if os.waitpid(helper, 0)[1]:
            raise OSError("the user map cannot be written")

    return mapped


def _first(orders: dict[str, Any], reader: int) -> NoReturn:
    """The first process of the namespace: builds the view, starts the worker, reaps what is orphaned."""
    _prctl(_PDEATHSIG, signal.SIGKILL)
    os.set_blocking(reader, False)
    try:
        os.read(reader, 1)
        os._exit(_FAILED)
    except BlockingIOError:
        pass
    os.setsid()
    _check(_libc().sethostname(b"sandbox", 7), "sethostname")
    with suppress(OSError):
        # A nested namespace would come with mounts of its own, outside every limit.
        _write("/proc/sys/user/max_user_namespaces", "0")
    _build(orders)
    worker = os.fork()
    if worker == 0:
        try:
            _prctl(_NO_NEW_PRIVS, 1)
            for capability in range(64):
                if _libc().prctl(_CAPBSET_DROP, capability, 0, 0, 0):
                    break
            if os.getuid() != NOBODY:
                _become(NOBODY)
            _execute(orders)
        except BaseException as error:
            _fail(error)
    _prctl(_DUMPABLE, 0)
    _shut(())
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == worker:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _build(orders: dict[str, Any]) -> None:
    """Make a root of read-only views and one small writable folder, and move into it."""
    _mount(None, "/", None, _REC | _PRIVATE)
    root = orders["root"]
    # Opened before the new root covers a folder that may be above them.
    shown = [(path, os.open(path, os.O_PATH), os.path.isdir(path)) for path in [*orders["shown"], *orders["devices"]]]
    _mount("sandbox", root, "tmpfs", _NOSUID | _NODEV, "size=1m,nr_inodes=1k,mode=0755")
    # Before the views, one of which may be inside it.
    os.mkdir(root + _TMP)
    size = f"size={orders['tmp_bytes']},nr_inodes=4k,mode=1777"
    _mount("sandbox", root + _TMP, "tmpfs", _NOSUID | _NODEV, size)
    for place, target in orders["links"]:
        os.makedirs(os.path.dirname(root + place), exist_ok=True)
        os.symlink(target, root + place)
    for path, descriptor, is_folder in shown:
        inside = root + path
        os.makedirs(inside if is_folder else os.path.dirname(inside), exist_ok=True)
        if not is_folder:
            os.close(os.open(inside, os.O_CREAT | os.O_WRONLY))
        _mount(f"/proc/self/fd/{descriptor}", inside, None, _BIND | _REC)
        _lock(inside, _ATTR_NOSUID if path in orders["devices"] else _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)
    _mount(None, root, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    os.chdir(root)
    # The old root is stacked on the new one, then let go.
    _check(_libc().pivot_root(b".", b"."), "pivot_root")
    _check(_libc().umount2(b".", _DETACH), "umount")
    os.chdir(_TMP)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    data = None if options is None else options.encode()
    _check(_libc().mount(*texts, ctypes.c_ulong(flags), data), f"mount {target}")


def _lock(path: str, attributes: int) -> None:
    """Set attributes of a mount and of all mounts below it."""
    request = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    descriptor = os.open(path, os.O_PATH)
    arguments = (_MOUNT_SETATTR, descriptor, b"", _EMPTY_PATH | _RECURSIVE, request, ctypes.sizeof(request))
    _check(_libc().syscall(*arguments), f"mount_setattr {path}")
    os.close(descriptor)


def _execute(orders: dict[str, Any]) -> NoReturn:
    keep = set(orders["fds"])
    _shut(keep)
    for descriptor in keep:
        os.set_inheritable(descriptor, True)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    os.execve(orders["command"][0], orders["command"], orders["environment"])  # noqa: S606


def _shut(keep: Any) -> None:
    """Close all descriptors but the standard ones, the given and the one that shows this process to be alive."""
    start = 3
    for descriptor in sorted({*keep, _Held.writer} - {-1}):
        os.closerange(start, descriptor)
        start = max(start, descriptor + 1)
    os.closerange(start, 1 << 16)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _LINUX:
        _check(_libc().prctl(option, value, 0, 0, 0), f"prctl {option}")


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
