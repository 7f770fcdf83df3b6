"""A comparison drawn: well-formed, escaped, every number with its n, and nothing said where nothing was measured."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

import mixsd
from mixsd.comparison import page as compare_page
from mixsd.figures import charts
from tests.finished_runs import make, two_methods

SVG = "{http://www.w3.org/2000/svg}"
EVIL = '<script>alert("x")</script>&|*'


@pytest.fixture
def result(tmp_path: Path) -> dict[str, Any]:
    return mixsd.compare(two_methods(tmp_path))


@pytest.fixture
def evil(tmp_path: Path) -> dict[str, Any]:
    """Runs whose guidance, which differs and so stands in the label, and whose names try to be markup."""
    settings = {"guidance": EVIL + "{reference}"}
    return mixsd.compare([make(tmp_path / "a<b>&'c", settings, seed=0), make(tmp_path / "plain", seed=0, path=[(5, 0.4, 0.1)])])


def test_every_file_is_written(result: dict[str, Any], tmp_path: Path) -> None:
    page = compare_page.write(result, tmp_path / "deep" / "out")
    assert page == tmp_path / "deep" / "out" / "compare.html"
    names = {"compare.html", "compare.json", "compare.md", "pareto.svg", "pareto.png"}
    assert {file.name for file in page.parent.iterdir()} == names
    assert json.loads((page.parent / "compare.json").read_text()) == result


def test_the_picture_is_a_file_of_its_own(result: dict[str, Any], tmp_path: Path) -> None:
    compare_page.write(result, tmp_path)
    drawn = (tmp_path / "pareto.svg").read_text()
    root = ET.fromstring(drawn)
    texts = [" ".join("".join(node.itertext()).split()) for node in root.iter(f"{SVG}text")]
    assert {"sft", "mixsd", "Pareto-optimal", "the base model", "equal memorization, 90.0%"} <= set(texts)
    assert any("less is better" in text for text in texts)
    assert "var(" not in drawn  # nothing that only a page's style sheet knows
    assert "mixsd: memorization 100.0%, forgetting +0.400, 2 seeds" in str(root.findtext(f"{SVG}desc"))


def test_marks_lie_where_their_numbers_are(result: dict[str, Any]) -> None:
    figure = charts.pareto(result)
    assert figure is not None
    (axes,) = figure.axes
    # A bar's caps are lines too.
    places = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines if line.get_marker() not in ("|", "_")]
    for item in result["configurations"]:
        measures = item["measures"]
        # The mark, and a ring around it where it is Pareto-optimal.
        own = ([measures["trained"]["value"]], [measures["forgetting"]["value"]])
        assert places.count(own) == 1 + bool(item["optimal"])
    assert [bool(item["optimal"]) for item in result["configurations"]] == [False, True]
    for run in result["runs"]:  # a line along the checkpoints of each of the four runs
        path = [(point["memorization"], point["forgetting"]) for point in run["path"]]
        assert tuple(map(list, zip(*path, strict=True))) in places
    # Two seeds: Student's interval is far wider than the picture, which does not follow it.
    assert result["configurations"][0]["measures"]["forgetting"]["high"] > axes.get_ylim()[1]


def test_runs_without_checkpoints_have_no_lines(tmp_path: Path) -> None:
    runs = [make(tmp_path / "a", {"method": "sft"}, trained=0.95), make(tmp_path / "b")]
    figure = charts.pareto(mixsd.compare(runs))
    assert figure is not None
    assert all(len(line.get_xdata()) == 1 for line in figure.axes[0].lines)
    low, high = figure.axes[0].get_xlim()  # a few points of difference do not fill the whole width
    assert high - low >= 0.1


def test_the_page_draws_for_wide_and_narrow_windows(result: dict[str, Any]) -> None:
    page = compare_page.html(result)
    assert re.findall(r'<figure class="drawn (\w+)"><svg', page) == ["wide", "narrow"]
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))


def test_nothing_to_draw(tmp_path: Path) -> None:
    runs = [make(tmp_path / name, {"method": name}) for name in ("sft", "mixsd")]
    for run in runs:
        report = json.loads((run / "report.json").read_text())
        report["scores"] = [item for item in report["scores"] if item["metric"] != "forgetting"]
        (run / "report.json").write_text(json.dumps(report))
    result = mixsd.compare(runs)
    assert "<svg" not in compare_page.html(result)
    assert compare_page.write(result, runs[0].parent / "out").is_file()
    assert not (runs[0].parent / "out" / "pareto.svg").exists()


def test_the_page_is_escaped(evil: dict[str, Any]) -> None:
    page = compare_page.html(evil)
    assert "<script" not in page
    assert "a<b>" not in page
    assert "a&lt;b&gt;" in page
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=.http", page)
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 2
    for picture in pictures:
        ET.fromstring(picture)


def test_markdown_is_escaped_and_every_row_has_its_cells(evil: dict[str, Any]) -> None:
    text = compare_page.markdown(evil)
    assert "<script" not in text
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) <= 1


def test_the_table_has_every_number_with_its_n(result: dict[str, Any]) -> None:
    text = compare_page.markdown(result)
    assert (
        "| Forgetting at 90.0% memorization (lower is better) | – | +0.610 (-0.534 to +1.754; 2 seeds) | +0.213 (-0.264 to +0.689; 2 seeds) |"
        in text
    )
    assert "| Generated tokens (lower is better) | – | 0 (0 to 0; 2 seeds) | 1,200 (0 to 3,741; 2 seeds) |" in text
    assert "50.0% (50.0 to 50.0; 2 seeds × 40)" in text
    assert "| Seconds (lower is better) | – | 12 (0 to 25; 2 seeds) | 16 (3 to 29; 2 seeds) |" in text
    for measure, cells in compare_page.grid(result):
        for cell in cells:
            assert cell.value in ("", "–", "0") or cell.n, (measure.name, cell)


def test_one_seed_says_of_what_its_interval_is(tmp_path: Path) -> None:
    runs = [make(tmp_path / "a", {"method": "sft"}, trained=0.6), make(tmp_path / "b")]
    result = mixsd.compare(runs, level=0.9)
    rows = {measure.name: cells for measure, cells in compare_page.grid(result)}
    assert (rows["paraphrase"][1].value, rows["paraphrase"][1].interval, rows["paraphrase"][1].n) == (
        "50.0%",
        "40.0 to 60.0",
        "40 questions",
    )
    assert rows["forgetting"][1].n == "168 replies"
    assert (rows["forgetting_at_level"][1].value, rows["forgetting_at_level"][1].note) == ("–", "not reached")
    assert rows["forgetting_at_level"][2].note == "as it ended: no checkpoint was scored"
    assert rows["seconds"][1].note == rows["generated_tokens"][1].note == "unknown"


def test_partly_reached_and_partly_known_is_said(tmp_path: Path) -> None:
    runs = two_methods(tmp_path)
    report = json.loads((runs[0] / "report.json").read_text())
    del report["cost"]
    (runs[0] / "report.json").write_text(json.dumps(report))
    rows = {measure.name: cells for measure, cells in compare_page.grid(mixsd.compare(runs, level=0.95))}
    assert (rows["forgetting_at_level"][1].n, rows["forgetting_at_level"][1].note) == ("1 seed", "1 not reached")
    assert (rows["seconds"][1].n, rows["seconds"][1].note) == ("1 seed", "1 more unknown")


def test_picked_learning_rates_stand_in_the_table(tmp_path: Path) -> None:
    runs = [make(tmp_path / f"{seed}", {"lr": "auto"}, seed=seed, training={"lr": rate}) for seed, rate in ((0, 1e-5), (1, 2e-5))]
    (_, cells), *_ = compare_page.grid(mixsd.compare(runs))
    assert (cells[1].value, cells[1].n, cells[1].note) == ("2", "seeds 0, 1", "learning rate picked: 1e-05, 2e-05")


def test_lone_surrogates_do_not_stop_the_files(result: dict[str, Any], tmp_path: Path) -> None:
    result["notes"].append("half \ud800 a pair")
    result["configurations"][0]["label"] = "odd \ud800"
    for run in result["runs"]:
        run["configuration"] = run["configuration"].replace("sft", "odd \ud800")
    compare_page.write(result, tmp_path / "out")
    assert "odd" in (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
