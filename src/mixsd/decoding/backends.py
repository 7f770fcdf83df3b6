"""Engines other than transformers that mixing can decode on, by name; a new one is one new file and one line here.

A backend is a function (folder, *, device, dtype, trust_remote_code) that loads a model folder and returns `decode(take, sampling, *,
wants_logprobs, with_support, dropped)`, as in `mixsd.decoding.engine`; log-probabilities that it leaves out are measured afterwards on
transformers. `device` is a type such as "cuda", `dtype` "float32" or "bfloat16". It runs in a process of its own that has ended
before anything else is loaded.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from mixsd.errors import UserError, did_you_mean
from mixsd.plugins import is_function_name, load_function

TRANSFORMERS = "transformers"
BACKENDS = {"vllm": "mixsd.decoding.on_vllm:connect"}
_NEEDS = {"vllm": "vllm"}  # the module that must be there


def check_backend(name: str) -> None:
    """Raise a `UserError` for a name that is unknown or whose engine is not installed; nothing is imported."""
    if name == TRANSFORMERS or is_function_name(name):
        return
    if name not in BACKENDS:
        known = [TRANSFORMERS, *BACKENDS, "package.module:function"]
        raise UserError(f'--backend "{name}": unknown{did_you_mean(name, known)}; known: {", ".join(known)}')
    if name in _NEEDS and importlib.util.find_spec(_NEEDS[name]) is None:
        raise UserError(f"--backend {name}: {_NEEDS[name]} is not installed; pip install 'mixsd[{name}]'")


def get_backend(name: str) -> Any:
    """Import the backend of a name that `check_backend` has passed, other than transformers."""
    return load_function(BACKENDS.get(name, name), f"--backend {name}")
