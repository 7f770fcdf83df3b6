"""Which system calls judged code may not make: those that reach around namespaces and limits on resources.

Shared memory of System V and memory files escape the limit on memory, keyrings and sockets of a virtual machine's host (AF_VSOCK)
know no namespace that would hide them, and a nested user namespace could mount. A filter (seccomp) refuses them with an error; it
is set on x86-64 and ARM64, where the kernel lets us. The file is also sent into the sandbox as source: the standard library only.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from contextlib import suppress

_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
# By machine: the kernel's name for it, and the numbers of the calls.
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_REFUSED = {
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "open_by_handle_at": (304, 265),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
}
_SOCKET, _CLONE, _CLONE3 = (41, 198), (56, 220), (435, 435)
# Unix, the internet's two, and netlink, by which the C library lists interfaces.
_FAMILIES = (1, 2, 10, 16)
# Any of the flags CLONE_NEW*.
_NEW_NAMESPACE = 0x7E020000
_NUMBER, _MACHINE, _FIRST = 0, 4, 16  # places in `struct seccomp_data`
_X32 = 0x40000000
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def confine() -> bool:
    """Refuse the calls in this process and all that it starts, for good; whether that could be done."""
    with suppress(ImportError, OSError, ValueError, AttributeError):
        return _set(_program(os.uname().machine))
    return False


def _program(machine: str) -> bytes:
    """The filter, as the kernel's classic BPF: each test that holds is followed by its answer, each that does not jumps over it."""
    if machine not in _ARCHITECTURE or sys.maxsize < 1 << 32 or sys.platform != "linux":
        raise ValueError(f"no filter for {machine}")
    column = list(_ARCHITECTURE).index(machine)
    refuse = _ERROR | errno.EPERM
    lines = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, _ARCHITECTURE[machine]), (_RETURN, 0, 0, refuse), (_LOAD, 0, 0, _NUMBER)]
    lines += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, refuse)]
    for numbers in _REFUSED.values():
        lines += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, refuse)]
    # The C library takes clone instead, whose flags can be seen.
    lines += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    lines += [(_EQUAL, 0, 4, _CLONE[column]), (_LOAD, 0, 0, _FIRST), (_ANY_BIT, 0, 1, _NEW_NAMESPACE)]
    lines += [(_RETURN, 0, 0, refuse), (_RETURN, 0, 0, _ALLOW)]
    lines += [(_EQUAL, 1, 0, _SOCKET[column]), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _FIRST)]
    for family in _FAMILIES:
        lines += [(_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW)]
    lines += [(_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _set(program: bytes) -> bool:
    import ctypes

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))

    libc = ctypes.CDLL(None)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    given = Filter(len(program) // 8, program)
    return bool(libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(given), 0, 0) == 0)
