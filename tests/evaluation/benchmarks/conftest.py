"""An empty machine: no data of the user's, an empty cache of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where `datasets` would keep what it prepared."""
    cache = tmp_path / "hub-cache"
    monkeypatch.delenv("MIXSD_DATA", raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(cache))  # read when it was imported
    return cache
