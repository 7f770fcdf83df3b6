"""How every picture looks, and how it is saved: one style as a context, a sheet of panels and a legend; SVG, PNG and an element of a page.

Nothing is told apart by colour alone: marks differ in shape, lines in dash, bars in hatch. Nothing global is touched: no pyplot, and
the style holds within a `with` only. All sizes are in inches, and a picture is drawn for the width at which it is read: `WIDTH` for a
page or a column of text, `NARROW` for one of two columns or a phone.

The same picture gives the same bytes: no date, no version, ids made of the content. In a page every id carries a hash of its picture;
the ink takes the colour of the page's text and the paper that of the ground it lies on (`--card`), so a dark page needs no second one.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import unicodedata
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from matplotlib import colors
from matplotlib import style as styles
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mixsd.formats import known, printable
from mixsd.storage import write_bytes, write_text

WIDTH, NARROW = 7.2, 3.5
# In a page the ink becomes the text's colour and the paper that of the ground; the fixed two stay (a number on a coloured bar).
INK, PAPER = "#18212e", "#ffffff"
FIXED_BLACK, FIXED_WHITE = "#000000", "#fefefe"
# Okabe and Ito's colours, which most people tell apart; their yellow, too faint on paper, is darkened, their black a grey that
# a dark page shows as well.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d1f", "#56b4e9", "#e69f00", "#7a7a7a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">")
FILLS = ("full", "none", "left")
_DASHES = ((6, 2), (2, 1.6), (7, 2, 1.5, 2), (10, 3), (4, 1.5, 1.5, 1.5, 1.5, 1.5), (1, 2.6))
DASHES: tuple[Any, ...] = ("-", *((0, dash) for dash in _DASHES))
# Straight lines only: a dot is a path of four curves, and there are thousands of them.
HATCHES = ("", "////", "----", "xxxx", "||||", "\\\\\\\\", "++++", "//")
FONT_SIZE, LEGEND_SIZE = 9.0, 8.5

_STYLE = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "figure.edgecolor"), "none"),
    **dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize"), FONT_SIZE),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), LEGEND_SIZE),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.formatter.useoffset", "legend.frameon", "text.usetex"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow", "axes.unicode_minus"), True),
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: no font is looked for anywhere else
    "text.parse_math": False,  # a label is shown as it is, "$" and all
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.linewidth": 0.8,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.5,
    "hatch.linewidth": 0.7,
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # text stays text: it can be selected, searched and read out
    "svg.hashsalt": "mixsd",
}
_LEFT, _RIGHT, _HEAD, _FOOT = 0.72, 0.16, 0.1, 0.55
_ROW, _HANDLE = 0.2, 0.62

P = ParamSpec("P")
R = TypeVar("R")


class Picture(Figure):
    """A matplotlib figure that says what it shows: `title` in a few words, `description` with its main numbers."""

    title: str = ""
    description: str = ""


@contextmanager
def context() -> Iterator[None]:
    """Matplotlib's own defaults and this style on top, until the end of the block."""
    with styles.context(["default", _STYLE]):
        yield


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Make a function draw within `context`."""

    @wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with context():
            return draw(*args, **kwargs)

    return wrapped


def panels(
    title: str,
    description: str,
    count: int,
    height: float,
    *,
    narrow: bool = False,
    across: int = 2,
    entries: Sequence[tuple[Artist, str]] = (),
    left: float = _LEFT,
    head: float = _HEAD,
) -> tuple[Picture, list[Axes]]:
    """A picture of `count` panels, `height` inches each with its labels, `across` in a row unless it is narrow; its legend is below.

    `entries` are the legend's marks and texts; `left` is the room for what stands left of an axis, `head` for what stands above it.
    """
    width = NARROW if narrow else WIDTH
    columns = 1 if narrow else min(across, count)
    rows = math.ceil(count / columns)
    legend_columns = _legend_columns([text for _, text in entries], width)
    below = _ROW * math.ceil(len(entries) / legend_columns) + 0.08 if entries else 0.0
    whole = rows * height + below
    picture = Picture(figsize=(width, whole))
    picture.title, picture.description = title, description
    axes = []
    for index in range(count):
        row, column = divmod(index, columns)
        x, y = column * width / columns + left, whole - (row + 1) * height + _FOOT
        box = (x / width, y / whole, (width / columns - left - _RIGHT) / width, (height - _FOOT - head) / whole)
        axes.append(picture.add_axes(box))
    if entries:
        _legend(picture, entries, legend_columns, width, below / whole)
    return picture, axes


def share_axis(axis: Any) -> None:
    """Ticks of shares as percent, at round places."""
    round_ticks(axis, 5)
    axis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol="%"))


def round_ticks(axis: Any, most: int, *, whole: bool = False) -> None:
    """At most about so many ticks, at 1, 2, 2.5 or 5 times a power of ten; `whole`: at whole numbers only."""
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10], integer=whole))


def short(label: str, most: int) -> str:
    """A foreign label on one line, without control characters, its middle cut where it is longer than `most`: both ends tell."""
    text = printable(str(label), keep="")
    most = max(most, 4)
    if len(text) <= most:
        return text
    head = (most - 1) * 3 // 5
    return f"{text[:head].rstrip()}…{text[head + 1 - most :].lstrip()}"


def characters(inches: float, size: float = LEGEND_SIZE) -> int:
    """How many characters of ordinary text fit into so much room."""
    return max(1, int(inches / (0.6 * size / 72)))


def text_width(text: str, size: float = LEGEND_SIZE) -> float:
    """About how wide a text is, in inches; East Asian signs take two places."""
    places = sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)
    return places * 0.6 * size / 72


def look(index: int) -> dict[str, Any]:
    """Colour, mark and dash of the thing with this number; no two of the first forty are alike."""
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[index % len(MARKERS)],
        "fillstyle": FILLS[index // len(MARKERS) % len(FILLS)],
        "linestyle": DASHES[index % len(DASHES)],
    }


def mark(index: int, size: float, **other: Any) -> dict[str, Any]:
    """The look of the thing with this number as a mark without a line."""
    return {**look(index), "linestyle": "none", "markersize": size, "markerfacecoloralt": PAPER, **other}


def fill(index: int) -> dict[str, Any]:
    """Colour and hatch of the bar with this number."""
    hatch = HATCHES[index % len(HATCHES)]
    return {"facecolor": COLORS[index % len(COLORS)], "hatch": hatch, "edgecolor": FIXED_WHITE, "linewidth": 0.6}


def ends_of(values: Mapping[str, Any] | None, prefix: str = "") -> tuple[float, float] | None:
    """The ends of an interval, `low` and `high` after the prefix; None where it has none."""
    low, high = (values or {}).get(f"{prefix}low"), (values or {}).get(f"{prefix}high")
    return (float(low), float(high)) if known(low) and known(high) else None


def ink_on(color: str) -> str:
    """Black or white, whichever is easier to read on this colour."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colors.to_rgb(color)]
    light = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    return FIXED_WHITE if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else FIXED_BLACK


def _legend_columns(texts: Sequence[str], width: float) -> int:
    if not texts:
        return 1
    widest = _HANDLE + 0.15 + min(max(map(text_width, texts)), width)
    return max(1, min(len(texts), int((width - 0.1) / widest), 4))


def _legend(picture: Picture, entries: Sequence[tuple[Artist, str]], columns: int, width: float, top: float) -> None:
    most = characters(width / columns - _HANDLE - 0.15)
    made = picture.legend(
        [handle for handle, _ in entries],
        [str(index) for index in range(len(entries))],  # a label that begins with "_" would be left out
        loc="upper left",
        bbox_to_anchor=(0.08 / width, 0.0, 1 - 0.16 / width, top),
        borderaxespad=0.0,
        ncols=columns,
        columnspacing=1.5,
        handlelength=2.6,
        labelspacing=0.45,
    )
    for text, (_, label) in zip(made.get_texts(), entries, strict=True):
        text.set_text(short(label, most))


_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_LARGEST = 1.6  # pixels to a point: a little more than on paper, as pages have larger text
_LINES = "stroke-linejoin: round; stroke-linecap: butt"
_FAMILIES = "'DejaVu Sans', Verdana, system-ui, sans-serif"  # alike in width, for readers without the first


def save(figure: Figure | None, stem: Path) -> list[Path]:
    """Write `stem.svg` and `stem.png`, and be done with the figure; returns their paths, none where there is no figure.

    Raises:
        UserError: the folder cannot be written.
    """
    if figure is None:
        return []
    stem = stem.expanduser()
    scalable, drawn = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    write_text(scalable, svg(figure))
    write_bytes(drawn, png(figure))
    figure.clear()
    return [scalable, drawn]


def svg(figure: Figure) -> str:
    """The figure as an SVG document on white ground."""
    root = _element(figure)
    root.set("style", _LINES)
    for place, (name, text) in enumerate(zip(("title", "desc"), _said(figure), strict=True)):
        node = ET.Element(f"{{{_SVG}}}{name}")
        node.text = text
        root.insert(place, node)
    root.insert(2, ET.Element(f"{{{_SVG}}}rect", {"width": "100%", "height": "100%", "style": f"fill: {PAPER}"}))
    return '<?xml version="1.0" encoding="utf-8"?>\n' + _text(root) + "\n"


def png(figure: Figure) -> bytes:
    """The figure as a PNG on white ground."""
    written = io.BytesIO()
    with context(), _foreign_signs():
        figure.savefig(written, format="png", metadata={"Software": None}, facecolor=PAPER)
    return written.getvalue()


def inline(figure: Figure) -> str:
    """The figure as one `<svg>` element for a page: as wide as there is room for, not much more than its own width, in the page's colours."""
    root = _element(figure)
    wide = float(root.attrib.pop("width").removesuffix("pt")) * _LARGEST
    root.attrib.pop("height")
    for node in root.iter():
        for attribute in ("style", "fill"):  # a hatch has its ground as an attribute
            if own := node.get(attribute):
                node.set(attribute, own.replace(INK, "currentColor").replace(PAPER, f"var(--card, {PAPER})"))
    root.set("style", f"width: 100%; max-width: {wide:g}px; height: auto; {_LINES}")
    title, description = _said(figure)
    root.set("aria-label", f"{title}. {description}" if description else title)
    return _text(root)


def _element(figure: Figure) -> ET.Element:
    """What matplotlib draws, with ids of its own where anything points to them, and no style sheet."""
    written = io.BytesIO()
    with context(), _foreign_signs():
        figure.savefig(written, format="svg", metadata=_NO_METADATA)
    source = written.getvalue().decode()
    root = ET.fromstring(source)  # noqa: S314 - what matplotlib has just written
    own = hashlib.sha256(source.encode()).hexdigest()[:8]
    wanted = set(re.findall(r"url\(#([^)]+)\)", source)) | set(re.findall(r'xlink:href="#([^"]+)"', source))
    for parent in list(root.iter()):
        for node in list(parent):
            # It would hold for the whole page.
            if node.tag == f"{{{_SVG}}}defs" and node.find(f"{{{_SVG}}}style") is not None:
                parent.remove(node)
    for node in root.iter():
        if (name := node.attrib.pop("id", None)) in wanted:
            node.set("id", f"{own}-{name}")
        if (name := node.get(f"{{{_XLINK}}}href")) is not None:
            node.set(f"{{{_XLINK}}}href", f"#{own}-{name.removeprefix('#')}")
        for attribute in ("clip-path", "style"):
            if (text := node.get(attribute)) is not None:
                node.set(attribute, text.replace("url(#", f"url(#{own}-").replace("'DejaVu Sans'", _FAMILIES))
    root.set("role", "img")
    return root


def _said(figure: Figure) -> tuple[str, str]:
    return getattr(figure, "title", "") or "Figure", getattr(figure, "description", "")


def _text(root: ET.Element) -> str:
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    return ET.tostring(root, encoding="unicode").strip()


@contextmanager
def _foreign_signs() -> Iterator[None]:
    """A sign that the font lacks is a box in the PNG, and the reader's own font's in the SVG; neither is worth a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield
