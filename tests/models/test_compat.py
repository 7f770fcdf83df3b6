"""One door to private names: nothing but `models/compat.py` reaches for them (and lm-eval's own, which has its own door)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import mixsd
from mixsd.models import compat
from tests.tiny import tiny_model

pytestmark = pytest.mark.matrix

ROOT = Path(mixsd.__file__).parent
DOORS = ("models/compat.py", "evaluation/lm_eval")
LIBRARIES = ("torch", "transformers", "peft", "accelerate")
# Public by their spelling, and yet another thing in another release.
UNSTABLE = {
    *("activation_checkpointing_enable", "activation_checkpointing_disable"),
    *("gradient_checkpointing_enable", "gradient_checkpointing_disable"),
    *("hf_quantizer", "quantization_config", "torch_dtype", "GradientCheckpointingLayer"),
    *(
        "LoraLayer",
        "lora_A",
        "lora_B",
        "merged_adapters",
        "peft_config",
        "modeling_utils",
        "cache_utils",
        "key_cache",
        "value_cache",
    ),
}
OWN = {"self", "cls", "os", "sys"}  # Python's own are not meant


def private_names(file: Path) -> list[str]:
    """What a file takes of another's private names: `line: name`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    ours = {
        name.asname or name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mixsd")
        for name in node.names
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            mine = isinstance(node.value, ast.Name) and node.value.id in OWN | ours
            if (private and not mine) or node.attr in UNSTABLE:
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            parts = [*(node.module or "").split("."), *(name.name for name in node.names)]
            found += [f"{node.lineno}: {part}" for part in parts if part.startswith("_") or part in UNSTABLE]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1]
            named = name.value if isinstance(name, ast.Constant) else None
            own = isinstance(node.args[0], ast.Name) and node.args[0].id in OWN
            if isinstance(named, str) and not own and (named in UNSTABLE or named.startswith("_")):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_nothing_else_reaches_for_private_names() -> None:
    files = [file for file in ROOT.rglob("*.py") if not file.relative_to(ROOT).as_posix().startswith(DOORS)]
    assert len(files) > 50
    found = {file.relative_to(ROOT).as_posix(): names for file in files if (names := private_names(file))}
    assert not found


def test_the_search_finds_what_it_is_for(tmp_path: Path) -> None:
    file = tmp_path / "taken.py"
    file.write_text(
        "from transformers.modeling_layers import GradientCheckpointingLayer\n"
        "from torch._dynamo import config\n"
        "name = model.config._attn_implementation\n"
        "enable = getattr(model, 'activation_checkpointing_enable', None)\n"
        "torch.ops.mkldnn._linear_pointwise(x)\n"
        "self._own, model.layers, obj.__dict__\n"
    )
    assert [line.partition(":")[0] for line in sorted(private_names(file))] == ["1", "2", "3", "4", "5"]


def test_another_attention_is_put_back_also_after_an_error() -> None:
    model = tiny_model()
    usual = compat.attention_name(model)

    def fail() -> None:
        with compat.attention_of(model, "eager"):
            assert compat.attention_name(model) == "eager"
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert compat.attention_name(model) == usual


@pytest.mark.parametrize("stated", [torch.bfloat16, "bfloat16"])
@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
def test_the_stated_precision_has_had_two_names(field: str, stated: object) -> None:
    class Config:
        pass

    config = Config()
    assert compat.stated_dtype(config) is None
    setattr(config, field, stated)
    assert compat.stated_dtype(config) is torch.bfloat16
