"""What of this machine's files a sandbox shows: the interpreter, its standard library and the libraries they load."""

from __future__ import annotations

import os
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
# Where such a distribution keeps every library, each in a folder of its own.
_STORES = ("/nix/store", "/gnu/store")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


@dataclass(frozen=True)
class View:
    """Paths shown read-only at their own place, and symbolic links (place, target) to make beside them."""

    interpreter: str
    shown: tuple[str, ...]
    links: tuple[tuple[str, str], ...]

    def shows(self, path: str) -> bool:
        """Whether a path, or something below it, is visible."""
        real = os.path.realpath(path)
        return any(_within(real, shown) or _within(shown, real) for shown in self.shown)


@cache
def view() -> View:
    """The view that the running interpreter needs (its base, not the virtual environment)."""
    interpreter = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    wanted = {interpreter}
    for prefix in {os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)}:
        wanted |= {os.path.join(prefix, name) for name in ("lib", "lib64")}
        wanted |= {store for store in _STORES if _within(prefix, store)}
    # Of the base: by default one of these two is the virtual environment's, with all that is installed there.
    base = {"installed_base": sys.base_prefix, "base": sys.base_prefix}
    base |= {"installed_platbase": sys.base_exec_prefix, "platbase": sys.base_exec_prefix}
    wanted |= {os.path.realpath(sysconfig.get_path(name, vars=base)) for name in ("stdlib", "platstdlib")}
    links = {path: os.readlink(path) for path in sorted({*wanted, *_LIBRARIES}) if os.path.islink(path)}
    shown: list[str] = []
    for path in sorted({*wanted, *_LIBRARIES} - set(links)):
        if os.path.exists(path) and not any(_within(path, above) for above in shown):
            shown.append(path)
    links = {path: target for path, target in links.items() if not any(_within(path, above) for above in shown)}
    return View(interpreter, tuple(shown), tuple(links.items()))


def open_to_all(path: str) -> bool:
    """Whether any user may reach a path: each folder above it can be passed."""
    return all(folder.stat().st_mode & 0o001 for folder in Path(path).parents)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
