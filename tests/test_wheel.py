"""The wheel that a user installs holds everything the code needs at run time."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

USE = """
import json, pathlib, sys
import mixsd
from mixsd.facts import corpus
from mixsd.facts.prompts import frames
from mixsd.facts.records import bundled_records
from mixsd.reports import page as report_page
from tests_report_sample import report
page = report_page.render(report, [], [])
print(json.dumps({
    "where": mixsd.__file__,
    "facts": len(corpus.load_facts("demo").facts),
    "probe": len(bundled_records("probe.jsonl")),
    "general": len(bundled_records("general_prompts.jsonl")),
    "frames": len(frames()["report"]),
    "page": len(page),
}))
"""
SAMPLE = """
from mixsd.reports.schema import BaseRecord, Facts, Report
report = Report(run="x", created="", method="sft", settings={}, scores=[], base=BaseRecord(name="b", hash="0"),
                facts=Facts(asked=0, accepted=0, rejected=0, unusable=0))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode and "No matching distribution" in built.stderr:
        pytest.skip("the build back end cannot be had without the network")
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_data_and_templates_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("demo_facts.jsonl", "general_prompts.jsonl", "probe.jsonl", "frames.json"):
        assert f"mixsd/data/{name}" in names
    assert any(name.startswith("mixsd/reports/templates/") for name in names)
    assert "mixsd/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "bench/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_installed_wheel_finds_its_files(wheel, tmp_path):
    """Beside the libraries of this environment, in front of the checkout."""
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)], check=True
    )
    check_use([sys.executable], tmp_path, {"PYTHONPATH": f"{target}{os.pathsep}{tmp_path}"}, target)


@pytest.mark.slow
def test_installed_in_a_clean_environment(wheel, tmp_path):
    """One `pip install` of the wheel is enough (pitfall 36)."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *constraints, "torch==2.13.0"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *constraints, str(wheel)], check=True)
    check_use([str(python)], tmp_path, {"PYTHONPATH": str(tmp_path)}, environment)
    shown = subprocess.run([environment / "bin" / "mixsd", "--help"], capture_output=True, text=True, check=True)
    assert "inject" in shown.stdout


def check_use(python: list[str], folder: Path, extra: dict[str, str], inside: Path) -> None:
    (folder / "tests_report_sample.py").write_text(SAMPLE)
    done = subprocess.run(
        [*python, "-c", USE], cwd=folder, env={**os.environ, **extra}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["where"]).is_relative_to(inside)
    assert found["facts"] >= 24
    assert found["probe"] >= 200
    assert found["general"] >= 150
    assert found["frames"] == 10
    assert found["page"] > 5000
