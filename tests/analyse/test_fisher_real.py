"""The Fisher of the built-in model: what a step in no particular direction comes to, and what memory an estimate takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mixsd.analyse.base_fisher import base_fisher
from mixsd.analyse.displacement import displacement
from mixsd.models import loading
from tests.analyse.fisher_oracle import step_part

pytestmark = pytest.mark.real_model

_CHILD = """
import ctypes, json, resource, sys
import torch, transformers.models.llama.modeling_llama, tokenizers, peft
from mixsd.models import loading
from mixsd.analyse.base_fisher import diagonal_fisher, fisher_key
from mixsd.training.examples import Example
from mixsd.analyse import base_fisher
from pathlib import Path

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

folder = loading.locate("smollm2-135m").folder
loading.load_tokenizer(folder)
before = peak()
ctypes.CDLL(None).mallopt(-3, 2**20)  # as `base_fisher` does
model = loading.load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
items = [Example(str(n), tuple(range(100, 300)), tuple(range(300, 500))) for n in range(2)]
key = fisher_key(items, model_hash="m", precision="p")
diagonal_fisher(model, items, base_fisher.target_nll(model, items[0]), key=key, cache=Path(sys.argv[1]))
print(json.dumps({"before": before, "peak": peak()}))
"""


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, with the converted model of the real one; half a gigabyte that is not left behind."""
    folder = loading.locate(loading.BUILT_IN).folder
    (tmp_path / "cache" / "models").mkdir(parents=True)
    (tmp_path / "cache" / "models" / folder.name).symlink_to(folder)
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    shutil.rmtree(tmp_path / "cache" / "fisher", ignore_errors=True)


@pytest.mark.slow
def test_an_isotropic_step_has_ratio_one(empty_cache: Path) -> None:
    fisher, session = base_fisher(loading.BUILT_IN, reference="general", examples=2)
    generator = torch.Generator().manual_seed(0)

    def shapes() -> Any:
        with fisher.open() as known:
            for name in fisher.sums:
                yield name, known.get_tensor(name)

    found = step_part(fisher, ((name, torch.randn(f.shape, generator=generator)) for name, f in shapes()))
    assert found.count == 134_515_008
    assert found.alignment == pytest.approx(1.0, abs=0.02)
    high = step_part(fisher, ((name, (f > fisher.mean).float()) for name, f in shapes())).alignment
    low = step_part(fisher, ((name, (f <= fisher.mean).float()) for name, f in shapes())).alignment
    assert high is not None
    assert low is not None
    assert high > 2
    assert low < 1
    # The folder against itself: every name of the built-in model's file is known, and nothing moved.
    still = displacement(session.located.folder, session.located.folder, fisher)
    assert (still.total.squared, still.total.alignment, still.ignored) == (0.0, None, ())
    assert list(still.groups) == ["attention", "mlp", "norms", "embeddings"]
    assert len(still.layers) == 31


@pytest.mark.slow
def test_memory_is_that_of_weights_and_accumulator(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path)], capture_output=True, text=True, env=environment, check=True
    )
    shutil.rmtree(tmp_path)  # half a gigabyte
    told = json.loads(done.stdout.splitlines()[-1])
    weights, tokens, width, inner, layers, vocabulary = 134_515_008, 400, 576, 1536, 30, 49_152
    # The embedding is also the head: both contributions have to be there to be summed.
    gradients = 2 * vocabulary * width
    activations = tokens * (width * (layers + 1) + 10 * width + 4 * inner) + 2 * 2**23
    allowed = 1.2 * 4 * (weights + weights + gradients + activations)
    assert told["peak"] - told["before"] <= allowed
