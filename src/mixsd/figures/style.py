"""How every picture looks: one style as a context, colours, marks and dashes to tell things apart, a sheet of panels and a legend.

Nothing is told apart by colour alone: marks differ in shape, lines in dash, bars in hatch, so a picture survives a grey printer and a
reader who does not tell red from green. Nothing global is touched: no pyplot, and the style holds within a `with` only, so a user's
own matplotlibrc has no part in what is drawn. All sizes are in inches, and a picture is drawn for the width at which it is read:
`WIDTH` for a page or a column of text, `NARROW` for one of two columns or a phone.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from matplotlib import colors
from matplotlib import style as styles
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mixsd.formats import known, printable

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
