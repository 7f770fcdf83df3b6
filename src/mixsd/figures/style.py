"""How every picture looks, and how it is saved: one style as a context, a sheet of panels and a legend; SVG, PNG and an element of a page.

Nothing is told apart by colour alone: marks differ in shape, lines in dash, bars in hatch. Nothing global is touched: no pyplot. All
sizes are in inches, and a picture is drawn for the width at which it is read, `WIDTH` or `NARROW`. The same picture gives the same bytes:
no date, no version, ids made of the content. In a page every id carries a hash of its picture; the ink takes the colour of the page's
text and the paper that of the ground it lies on (`--card`), so a dark page needs no second one.
"""

import hashlib
import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import colors
from matplotlib import style as styles
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.cells import cell_len

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
_LEFT, _RIGHT, _HEAD, _FOOT, _ROW, _HANDLE = 0.72, 0.16, 0.1, 0.55, 0.2, 0.62


class Picture(Figure):
    """A matplotlib figure that says what it shows: `title` in a few words, `description` with its main numbers."""

    title: str
    description: str


@contextmanager
def context() -> Iterator[None]:
    """Matplotlib's own defaults and this style on top, within a block or, as a decorator, a function."""
    with styles.context(["default", _STYLE]):
        yield


def panels(
    title: str,
    description: str,
    count: int,
    height: float,
    *,
    narrow: bool = False,
    entries: Sequence[tuple[Artist, str]] = (),
    left: float = _LEFT,
    head: float = _HEAD,
) -> tuple[Picture, list[Axes]]:
    """A picture of `count` panels, `height` inches each with its labels, two in a row unless it is narrow; its legend is below.

    `entries` are the legend's marks and texts; `left` is the room for what stands left of an axis, `head` for what stands above it.
    """
    width, columns = (NARROW, 1) if narrow else (WIDTH, min(2, count))
    rows = math.ceil(count / columns)
    widest = _HANDLE + 0.15 + min(max((text_width(text) for _, text in entries), default=0.0), width)
    legend_columns = max(1, min(len(entries), int((width - 0.1) / widest), 4))
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
        legend = picture.legend(
            [handle for handle, _ in entries],
            [str(index) for index in range(len(entries))],  # a label that begins with "_" would be left out
            loc="upper left",
            bbox_to_anchor=(0.08 / width, 0.0, 1 - 0.16 / width, below / whole),
            borderaxespad=0.0,
            ncols=legend_columns,
            columnspacing=1.5,
            handlelength=2.6,
            labelspacing=0.45,
        )
        for text, (_, label) in zip(legend.get_texts(), entries, strict=True):
            text.set_text(short(label, characters(width / legend_columns - _HANDLE - 0.15)))
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
    return cell_len(text) * 0.6 * size / 72


def look(index: int) -> dict[str, Any]:
    """Colour, mark and dash of the thing with this number; no two of the first forty are alike."""
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[index % len(MARKERS)],
        "fillstyle": FILLS[index // len(MARKERS) % len(FILLS)],
        "linestyle": DASHES[index % len(DASHES)],
        "markerfacecoloralt": PAPER,
    }


def mark(index: int, size: float, **other: Any) -> dict[str, Any]:
    """The look of the thing with this number as a mark without a line."""
    return {**look(index), "linestyle": "none", "markersize": size, **other}


def fill(index: int) -> dict[str, Any]:
    """Colour and hatch of the bar with this number."""
    own = {"facecolor": COLORS[index % len(COLORS)], "hatch": HATCHES[index % len(HATCHES)]}
    return {**own, "edgecolor": FIXED_WHITE, "linewidth": 0.6}


def ends_of(values: Mapping[str, Any] | None, prefix: str = "") -> tuple[float, float] | None:
    """The ends of an interval, `low` and `high` after the prefix; None where it has none."""
    low, high = ((values or {}).get(f"{prefix}{end}") for end in ("low", "high"))
    return (float(low), float(high)) if known(low) and known(high) else None


def ink_on(color: str) -> str:
    """Black or white, whichever is easier to read on this colour: by its relative luminance."""
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colors.to_rgb(color))
    return FIXED_WHITE if (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) ** 2 < 1.05 * 0.05 else FIXED_BLACK


_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_LARGEST = 1.6  # pixels to a point: a little more than on paper, as pages have larger text
_LINES = "stroke-linejoin: round; stroke-linecap: butt"
_FAMILIES = "'DejaVu Sans', Verdana, system-ui, sans-serif"  # alike in width, for readers without the first


def save(picture: Picture | None, stem: Path) -> list[Path]:
    """Write `stem.svg` and `stem.png`, and be done with the picture; returns their paths, none where there is no picture.

    Raises `UserError` where the folder cannot be written.
    """
    if picture is None:
        return []
    stem = stem.expanduser()
    scalable, drawn = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    write_text(scalable, svg(picture))
    write_bytes(drawn, png(picture))
    picture.clear()
    return [scalable, drawn]


def svg(picture: Picture) -> str:
    """The picture as an SVG document on white ground."""
    root = _element(picture)
    root.set("style", _LINES)
    for place, (name, text) in enumerate((("title", picture.title), ("desc", picture.description))):
        node = ET.Element(f"{{{_SVG}}}{name}")
        node.text = text
        root.insert(place, node)
    root.insert(2, ET.Element(f"{{{_SVG}}}rect", {"width": "100%", "height": "100%", "style": f"fill: {PAPER}"}))
    return '<?xml version="1.0" encoding="utf-8"?>\n' + _text(root) + "\n"


def png(picture: Picture) -> bytes:
    """The picture as a PNG on white ground."""
    return _drawn(picture, format="png", metadata={"Software": None}, facecolor=PAPER)


def inline(picture: Picture) -> str:
    """The picture as one `<svg>` element for a page: as wide as there is room for, not much more than its own width, in the page's colours."""
    root = _element(picture)
    wide = float(root.attrib.pop("width").removesuffix("pt")) * _LARGEST
    root.attrib.pop("height")
    for node in root.iter():
        for attribute in ("style", "fill"):  # a hatch has its ground as an attribute
            if own := node.get(attribute):
                node.set(attribute, own.replace(INK, "currentColor").replace(PAPER, f"var(--card, {PAPER})"))
    root.set("style", f"width: 100%; max-width: {wide:g}px; height: auto; {_LINES}")
    root.set("aria-label", f"{picture.title}. {picture.description}")
    return _text(root)


def _drawn(picture: Picture, **options: Any) -> bytes:
    written = io.BytesIO()
    with context(), warnings.catch_warnings():
        # A sign that the font lacks is a box in the PNG, and the reader's own font's in the SVG; neither is worth a warning.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        picture.savefig(written, **options)
    return written.getvalue()


def _element(picture: Picture) -> ET.Element:
    """What matplotlib draws, with ids of its own where anything points to them, and no style sheet."""
    source = _drawn(picture, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))).decode()
    root = ET.fromstring(source)  # noqa: S314 - what matplotlib has just written
    own = hashlib.sha256(source.encode()).hexdigest()[:8]
    wanted = set(re.findall(r"""(?:url\(|xlink:href=")#([^")]+)""", source))
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


def _text(root: ET.Element) -> str:
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    return ET.tostring(root, encoding="unicode").strip()
