"""The built-in model's targets of 48 KGFact facts: the paper's order of high-NLL shares (Table 8), from SFT to lambda 0.5."""

from __future__ import annotations

from pathlib import Path

import pytest

import mixsd
from mixsd.analyse import nll
from mixsd.models import loading

RUNS = {"sft": {"method": "sft"}, "0": {"lam": 0.0}, "0.3": {"lam": 0.3}, "0.5": {"lam": 0.5}}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.real_model
@pytest.mark.skipif(loading.built_in_gguf() is None, reason=f"the wheel {loading.BUILT_IN_WHEEL} is not installed")
def test_a_larger_lambda_leaves_fewer_improbable_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nll, "_draw", lambda rows, levels, stem: None)
    for name, own in RUNS.items():
        mixsd.mix(facts="kgfact:4x8", model="smollm2-135m", max_new_tokens=48, output=str(tmp_path / name), **own)
    found = mixsd.analyze_nll([tmp_path / name for name in RUNS], output=tmp_path / "out", check=True)
    assert found["check"]["largest_difference"] < 1e-3
    for block in found["blocks"].values():
        shares = [row["above"][1]["share"]["value"] for row in block["rows"]]
        assert shares == sorted(shares, reverse=True)
        assert len(set(shares)) == 4
        sft, mixed = block["rows"][0]["above"][1]["share"], [row["above"][1] for row in block["rows"][1:]]
        # Each is clearly below SFT; lambda 0.3 and 0.5 lie too near each other to be told apart on so few facts.
        assert all(item["difference"]["high"] < 0 for item in mixed)
        assert mixed[1]["share"]["high"] < sft["low"]
    overlaps = [row["overlap"]["mean"]["value"] for row in found["blocks"]["common"]["rows"][1:]]
    assert min(overlaps) > 0.9
