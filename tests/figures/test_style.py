"""What is told apart is told apart by more than colour, and labels of strangers are shown as they are."""

from __future__ import annotations

import itertools
import subprocess
import sys

import matplotlib as mpl
import pytest
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from mixsd.figures import style

# Deuteranopia, severity 1: Machado, Oliveira and Fernandes (2009), Table 1, applied to linear RGB.
DEUTERANOPIA = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))


def linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def lab(rgb: tuple[float, ...]) -> tuple[float, float, float]:
    """Linear RGB as CIE L*a*b* (D65)."""
    matrix = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    x, y, z = (sum(m * max(c, 0.0) for m, c in zip(row, rgb, strict=True)) for row in matrix)
    fx, fy, fz = (
        v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x / 0.95047, y, z / 1.08883)
    )  # fmt: skip
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def seen_by_a_deuteranope(color: str) -> tuple[float, float, float]:
    rgb = [linear(part) for part in to_rgb(color)]
    return lab(tuple(sum(m * c for m, c in zip(row, rgb, strict=True)) for row in DEUTERANOPIA))


def test_colours_differ_for_who_does_not_tell_red_from_green() -> None:
    def nearest(colors: tuple[str, ...]) -> float:
        return min(
            sum((a - b) ** 2 for a, b in zip(*map(seen_by_a_deuteranope, pair), strict=True)) ** 0.5
            for pair in itertools.combinations(colors, 2)
        )

    assert nearest(style.COLORS) > 8
    assert nearest(("#d62728", "#2ca02c", "#8c564b")) < 8  # red, green and brown do not pass


def test_forty_things_look_different_and_ten_do_without_any_colour() -> None:
    looks = [style.look(index) for index in range(40)]
    assert len({(look["color"], look["marker"], look["fillstyle"]) for look in looks}) == 40
    assert len({(look["marker"], look["fillstyle"]) for look in looks[:30]}) == 30
    assert len({(look["color"], str(look["linestyle"])) for look in looks}) == 40
    assert len({str(look["linestyle"]) for look in looks[:7]}) == 7
    assert len(set(style.HATCHES)) == len(style.HATCHES) >= len(style.COLORS)


@pytest.mark.parametrize("color", style.COLORS)
def test_counts_in_bars_can_be_read(color: str) -> None:
    ground, ink = (
        sum(w * linear(p) for w, p in zip((0.2126, 0.7152, 0.0722), to_rgb(c), strict=True)) for c in (color, style.ink_on(color))
    )
    assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) >= 4.5


def test_long_labels_keep_both_ends() -> None:
    assert style.short("mixsd lam 0.3 gate 0.1", 40) == "mixsd lam 0.3 gate 0.1"
    cut = style.short("mixsd " + "x" * 90 + " rehearse 1", 30)
    assert len(cut) <= 30
    assert cut.startswith("mixsd")
    assert cut.endswith("rehearse 1")
    assert style.short("two\nlines\x1b[2J \ud800", 40) == "two␊lines␛[2J �"


def test_the_legend_shows_labels_as_they_are() -> None:
    labels = ["$x_1$", "_hidden", "<script>", "a" * 300]
    with style.context():
        picture, _ = style.panels("t", "d", 1, 2.0, entries=[(Line2D([], []), label) for label in labels])
    shown = [text.get_text() for text in picture.legends[0].get_texts()]
    assert shown[:3] == labels[:3]
    assert len(shown[3]) < 150
    assert not any(text.get_parse_math() for text in picture.legends[0].get_texts())


def test_the_style_holds_inside_only_and_replaces_a_users_own() -> None:
    before = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 40.0, "axes.linewidth": 9.0, "lines.markersize": 33.0}):
        with style.context():
            assert (mpl.rcParams["font.size"], mpl.rcParams["lines.markersize"]) == (style.FONT_SIZE, 6.0)
        assert mpl.rcParams["font.size"] == 40.0
    assert dict(mpl.rcParams) == before


def test_no_pyplot_and_nothing_unless_it_is_drawn() -> None:
    probe = (
        "import sys, mixsd.figures, mixsd.reports.page, mixsd.comparison.page, mixsd.reports.pictures\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from mixsd.figures import style\nfrom mixsd.figures.charts import loss\n"
        "style.inline(loss([{'step': 1, 'loss': 1.0}]))\nassert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)
