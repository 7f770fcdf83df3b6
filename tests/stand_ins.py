"""Models of the paper in the hub's cache layout, in their true shape and without their weights: enough to plan with, offline.

A dry run counts weights on the meta device and needs a tokenizer for lengths; `weights` that are there are a single number. The tokenizer
is any folder's, so lengths in tokens are that tokenizer's, not the model's own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

# As their published config.json say.
_QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151_936,
          "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16"}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-1.7B": {
        **_QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-4B-Instruct-2507": {
        **_QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "tie_word_embeddings": True, "max_position_embeddings": 262_144,
    },
    "Qwen/Qwen3-8B": {
        **_QWEN3, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "meta-llama/Llama-3.2-1B-Instruct": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256,
        "max_position_embeddings": 131_072, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    },
}  # fmt: skip
# Billions of weights, a tied matrix once: what the shapes above must come to.
BILLIONS = {
    "Qwen/Qwen3-1.7B": 1.72, "Qwen/Qwen3-4B-Instruct-2507": 4.02, "Qwen/Qwen3-8B": 8.19, "meta-llama/Llama-3.2-1B-Instruct": 1.24
}  # fmt: skip


def fill_cache(hub: Path, tokenizer: Path) -> None:
    """Put a stand-in for each model into a hub cache (`$HF_HOME/hub`)."""
    import torch
    from safetensors.torch import save_file

    for name, shape in SHAPES.items():
        repository = hub / f"models--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
        (snapshot / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        save_file({"stand_in": torch.zeros(1, dtype=torch.bfloat16)}, snapshot / "model.safetensors")
        for file in tokenizer.iterdir():
            if file.suffix in (".json", ".jinja", ".txt") and file.name not in ("config.json", "model.safetensors.index.json"):
                shutil.copy(file, snapshot / file.name)


def recipe(path: Path, data: Path) -> dict[str, Any]:
    """A recipe's values, with files that are at hand under `data` in place of those that it would fetch, or that its user brings."""
    import yaml

    others = {
        "simpleqa": f"simpleqa:{data / 'simpleqa' / 'simple_qa_test_set.csv'}",
        "mquake:MQuAKE-CF-3k-v2.json": f"mquake:{data / 'mquake' / 'MQuAKE-2002.json'}",
        "wikitext-103-train.txt": str(data / "wikitext2" / "wikitext2_train_5k.txt"),
    }

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: replaced(own) for name, own in value.items()}
        if isinstance(value, list):
            return [replaced(own) for own in value]
        return others.get(value, value) if isinstance(value, str) else value

    return dict(replaced(yaml.safe_load(path.read_text(encoding="utf-8"))))
