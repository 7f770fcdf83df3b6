"""Files with the same bytes each time, elements that live beside each other in one page, and foreign text that stays text."""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from mixsd.errors import UserError
from mixsd.figures import style
from mixsd.figures.charts import alignment, error_bars, loss
from mixsd.figures.style import INK, Picture

SVG = "{http://www.w3.org/2000/svg}"
EVIL = '<script>alert("x")</script>&$x_1$'


def bars(label: str = "base", *, narrow: bool = False) -> Picture:
    rows = [{"benchmark": "MMLU", "label": label, "asked": 50, "counts": {"format": 20, "leakage": 9}}]
    figure = error_bars(rows, ["format", "leakage"], narrow=narrow)
    assert figure is not None
    return figure


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    written = [style.save(bars(), tmp_path / str(number) / "bars") for number in range(2)]
    assert [path.name for path in written[0]] == ["bars.svg", "bars.png"]
    for one, two in zip(*written, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == ["bars.png", "bars.svg"]
    assert style.inline(bars()) == style.inline(bars())
    text = written[0][0].read_text()
    assert "matplotlib" not in text.lower()
    assert not re.search(r"20\d\d-\d\d", text)


def test_the_png_is_a_picture(tmp_path: Path) -> None:
    _, path = style.save(bars(), tmp_path / "bars")
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    from PIL import Image

    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape[:2] == (height, width)
    assert width == 1440  # 7.2 inches at 200 dots
    assert (pixels[0, 0] == 255).all()
    assert (np.abs(pixels.astype(int) - (0x00, 0x72, 0xB2)).sum(axis=2) < 6).mean() > 0.01  # the bar of the first mode


def test_no_figure_no_file(tmp_path: Path) -> None:
    assert style.save(loss([]), tmp_path / "none") == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="taken"):
        style.save(bars(), tmp_path / "taken" / "bars")


def test_the_file_stands_alone() -> None:
    root = ET.fromstring(style.svg(bars()))
    assert root.get("role") == "img"
    assert [root[0].tag, root[1].tag, root[2].tag] == [f"{SVG}title", f"{SVG}desc", f"{SVG}rect"]
    assert root[1].text == "MMLU, base: format 20, leakage 9, of 50"
    assert "#ffffff" in str(root[2].get("style"))
    source = style.svg(bars())
    assert "var(" not in source
    assert "currentColor" not in source
    assert not re.search(r"(href|src)=.http", source)


def test_ids_of_two_figures_in_a_page_differ() -> None:
    page = [style.inline(figure) for figure in (bars("base"), bars("tuned"), bars("base", narrow=True))]
    names = [re.findall(r'\bid="([^"]+)"', element) for element in page]
    assert all(names)
    together = [name for own in names for name in own]
    assert len(set(together)) == len(together)
    for element, own in zip(page, names, strict=True):
        pointed = set(re.findall(r"url\(#([^)]+)\)", element)) | set(re.findall(r'href="#([^"]+)"', element))
        assert pointed == set(own)  # nothing points elsewhere, and no id is idle


def test_an_element_takes_the_pages_colours_and_width() -> None:
    element = style.inline(bars())
    root = ET.fromstring(element)
    assert element.startswith("<svg")
    assert (root.get("width"), root.get("height")) == (None, None)
    assert root.get("viewBox")
    assert "width: 100%" in str(root.get("style"))
    assert "currentColor" in element
    assert INK not in element
    assert "#ffffff" not in element.replace("var(--card, #ffffff)", "")
    assert root.find(f".//{SVG}style") is None  # a style sheet would hold for the whole page
    assert root.find(f".//{SVG}title") is None  # would pop up wherever one points
    assert root.get("aria-label") == "Wrong replies by what they are like. MMLU, base: format 20, leakage 9, of 50"


def test_foreign_labels_stay_text() -> None:
    figure = alignment([{"label": EVIL, "x": 1.0, "y": 2.0}, {"label": "日本\ud800\x1b", "x": 2.0, "y": 3.0}], None, EVIL, "y")
    assert figure is not None
    for source in (style.inline(figure), style.svg(figure)):
        root = ET.fromstring(source)
        assert "<script" not in source
        texts = ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]
        assert texts.count(EVIL) == 2  # the legend and the axis, "$" and all
        assert "日本�␛" in texts
        assert root.find(f".//{SVG}script") is None
    assert style.png(figure)
