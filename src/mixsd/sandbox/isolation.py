"""What this machine can keep judged code away from, found by trying it.

Two kinds isolate: bubblewrap, and namespaces made by our own launcher. Each counts only if a sandbox of that kind starts
here and, from inside, a listening port of this machine, the user's files and this project are out of reach. Else the kind is
"none": limits on time, memory, files and processes, an empty environment, and nothing more.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mixsd.errors import UserError
from mixsd.sandbox.limits import DEFAULT
from mixsd.sandbox.starting import StartError, start
from mixsd.sandbox.view import view

KINDS = ("bubblewrap", "namespaces")
_OPTION = "--allow-weak-sandbox"
_PATIENCE = 30.0
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Isolation:
    """What holds for judged code on this machine."""

    kind: str
    """bubblewrap, namespaces or none"""
    network: bool
    """the network is cut off"""
    files: bool
    """only a minimal read-only view is visible, no home"""
    note: str
    """one sentence for the user: what holds, what does not"""


def isolation() -> Isolation:
    """The best kind that works here; tried once per process."""
    with _LOCK:
        return _best()


def check(allow_weak: bool) -> Isolation:
    """Return the isolation to judge code in.

    Raises:
        UserError: if code cannot be isolated here and `allow_weak` is False, or cannot be judged on this system at all.
    """
    found = isolation()
    if sys.platform not in ("linux", "darwin"):
        raise UserError("model-written code is judged on Linux and macOS only; leave this benchmark out")
    if found.kind == "none" and not allow_weak:
        raise UserError(
            f"model-written code cannot be isolated here ({_missing()}): {_remedy()}, or pass {_OPTION} "
            "to run it with limits only, free to read your files and use the network"
        )
    return found


def weak() -> Isolation:
    """The isolation of the kind "none"."""
    note = "No isolation: time, memory and processes are limited, but the code can read this user's files and use the network."
    return Isolation("none", False, False, note)


@cache
def _best() -> Isolation:
    for kind in KINDS:
        found = probe(kind)
        if isinstance(found, Isolation):
            return found
    return weak()


def _missing() -> str:
    if sys.platform != "linux":
        return f"no sandbox for {sys.platform}"
    installed = shutil.which("bwrap") is not None
    reasons = [str(probe(kind)) for kind in KINDS if kind != "bubblewrap" or installed]
    return "; ".join([*([] if installed else ["bubblewrap is not installed"]), *reasons])


def _remedy() -> str:
    if sys.platform != "linux":
        return "run this part on Linux with bubblewrap"
    return "install bubblewrap (apt install bubblewrap) or enable user namespaces (docs/sandbox.md)"


@cache
def probe(kind: str) -> Isolation | str:
    """Try a kind: what it gives, or in a few words why it cannot be had."""
    if sys.platform != "linux":
        return "Linux only"
    try:
        found = _look(kind)
    except StartError as error:
        return f"{kind}: {error}"
    if not (found["network"] and found["files"]):
        return f"{kind}: it starts, but the {'files' if found['network'] else 'network'} can be reached from inside"
    note = f"Isolated by {kind}: no network, no files but the interpreter's, limited time, memory and disk space"
    limited = ", and processes." if found["processes"] else "; the number of processes cannot be limited here."
    return Isolation(kind, True, True, note + limited)


def _look(kind: str) -> dict[str, bool]:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", 0) as answers, socket.create_server(("127.0.0.1", 0)) as server:
        job = {
            "role": "probe",
            "fds": {"verdict": writer},
            "port": server.getsockname()[1],
            "hidden": _hidden(),
            "unwritable": ["/", *view().shown],
        }
        try:
            started = start(kind, job, DEFAULT)
        finally:
            os.close(writer)
        try:
            ready, _, _ = select.select([answers], [], [], _PATIENCE)
            line = answers.readline() if ready else b""
            if not line:
                started.status(1.0)
                raise StartError(started.said() or "it does not answer")
            found: dict[str, bool] = json.loads(line)
            return found
        finally:
            started.end()


def _hidden() -> list[str]:
    """Files that exist and that a sandbox must not show: of the home folders, the project and the working folder."""
    folders = {Path.home(), Path("/root"), Path("/home"), Path(__file__).parent, Path.cwd()}
    found: set[str] = set()
    for folder in folders:
        found |= set(_attempt(lambda folder=folder: [str(path) for path in folder.iterdir()]))  # type: ignore[misc]
    return sorted(path for path in found if not view().shows(path))[:1000]


def _attempt(action: Callable[[], list[str]]) -> list[str]:
    try:
        return action()
    except OSError:
        return []
