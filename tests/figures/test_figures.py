"""What is drawn is what was given: lines, bars and marks lie where their numbers are, and nothing is drawn of nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mixsd.figures import style
from mixsd.figures.charts import MOST_BANDS, MOST_POINTS, alignment, curves, error_bars, loss, nll_cdf, pareto, steps_per_point


def legend(figure: Figure | None) -> list[str]:
    assert figure is not None
    return [text.get_text() for text in figure.legends[0].get_texts()] if figure.legends else []


def lines(axes: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(map(float, line.get_xdata())), list(map(float, line.get_ydata()))) for line in axes.lines]


def fits(figure: Figure) -> None:
    """No text reaches over the picture's edge by more than a hair."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.get_tightbbox(canvas.get_renderer())  # inches, of all that is drawn
    width, height = figure.get_size_inches()
    assert box.x0 > -0.02
    assert box.y0 > -0.02
    assert box.x1 < width + 0.02
    assert box.y1 < height + 0.02


def test_cdf() -> None:
    items = [
        {"label": "reference", "n": 4, "x": [1.0, 6.0, 9.0, 30.0], "y": [0.25, 0.5, 0.75, 1.0]},
        {"label": "_$x_1$", "n": 1234, "x": [0.0, 2.0], "y": [0.5, 1.0]},
    ]
    figure = nll_cdf(items, [5.0, 8.0])
    assert figure is not None
    (axes,) = figure.axes
    drawn = lines(axes)
    assert drawn[0] == ([0.0, 1.0, 6.0, 9.0, 30.0], [0.0, 0.25, 0.5, 0.75, 1.0])
    assert drawn[1] == ([0.0, 2.0], [0.5, 1.0])
    assert [line.get_drawstyle() for line in axes.lines[:2]] == ["steps-post"] * 2
    assert [x[0] for x, _ in drawn[2:]] == [5.0, 8.0]
    assert legend(figure) == ["reference (n 4)", "_$x_1$ (n 1,234)"]
    assert axes.get_xlim() == (0.0, 20.0)
    assert axes.get_xlabel() == "base NLL, nats (to 20; the highest is 30)"
    assert figure.description.startswith(
        "reference (n 4): 75.0% above 5 nats, 50.0% above 8 nats; _$x_1$ (n 1,234): 0.0% above 5"
    )
    unknown = nll_cdf([{"label": "a", "n": None, "x": [1.0], "y": [1.0]}])
    assert legend(unknown) == ["a"]
    assert unknown is not None
    assert unknown.axes[0].get_xlabel() == "base NLL, nats"
    assert nll_cdf([], [5.0]) is None
    assert nll_cdf([{"label": "a", "n": 0, "x": [], "y": []}]) is None


def rows() -> list[dict[str, Any]]:
    return [
        {"benchmark": "MMLU", "label": "base", "asked": 100, "counts": {"format": 10, "leakage": 0, "genuine": 30}},
        {"benchmark": "MMLU", "label": "sft", "asked": 100, "counts": {"format": 40, "leakage": 20, "genuine": 10}},
        {"benchmark": "GSM8K", "label": "base", "asked": 50, "counts": {"format": 0, "leakage": 0, "genuine": 0}},
        {"benchmark": "MATH", "label": "base", "asked": 0, "counts": {}},
    ]


def test_error_bars() -> None:
    figure = error_bars(rows(), ["format", "leakage", "genuine"])
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["MMLU", "GSM8K"]  # nothing was asked of the third
    mmlu = figure.axes[0]
    bars = [[(bar.get_x(), bar.get_width()) for bar in stack] for stack in mmlu.containers]
    assert np.allclose(bars, [[(0, 0.1), (0, 0.4)], [(0.1, 0), (0.4, 0.2)], [(0.1, 0.3), (0.6, 0.1)]])
    hatches = [stack[0].get_hatch() for stack in mmlu.containers]
    assert len(set(hatches)) == 3
    written = [text.get_text() for text in mmlu.texts]
    assert {"30", "40", "20", "40 of 100", "70 of 100"} <= set(written)
    assert "0" not in written
    assert [text.get_text() for text in mmlu.get_yticklabels()] == ["base", "sft"]
    assert mmlu.get_ylim()[0] > mmlu.get_ylim()[1]  # the first on top
    assert legend(figure) == ["format", "leakage", "genuine"]
    assert "MMLU, sft: format 40, leakage 20, genuine 10, of 100" in figure.description
    alike = [{**rows()[0], "label": f"MixSD lambda {lam}, gate 0.1"} for lam in (0.3, 0.5)]
    both = error_bars([*alike, *({**row, "benchmark": "GSM8K"} for row in alike)], ["format", "genuine"])
    assert both is not None
    for axes in both.axes:
        assert [text.get_text().replace("\n", " ") for text in axes.get_yticklabels()] == [row["label"] for row in alike]
    assert error_bars(rows()[3:], ["format"]) is None
    assert error_bars([], []) is None


def series(label: str, steps: int = 3, *, ends: bool = True) -> dict[str, Any]:
    points = []
    for step in range(1, steps + 1):
        point = {"step": 10 * step, "memorization": step / 4, "forgetting": step / 10}
        if ends:
            point |= {
                "memorization_low": step / 5,
                "memorization_high": step / 3,
                "forgetting_low": 0.0,
                "forgetting_high": step / 9,
            }
        points.append(point)
    return {"label": label, "points": points[::-1]}  # the order makes no difference


def test_curves() -> None:
    figure = curves([series("a"), series("b", 2, ends=False)], chosen=20)
    assert figure is not None
    memorization, forgetting = figure.axes
    assert lines(memorization)[:2] == [([10, 20, 30], [0.25, 0.5, 0.75]), ([10, 20], [0.25, 0.5])]
    assert lines(forgetting)[:2] == [([10, 20, 30], [0.1, 0.2, 0.3]), ([10, 20], [0.1, 0.2])]
    for axes in (memorization, forgetting):
        assert lines(axes)[2][0] == [20, 20]  # the chosen checkpoint
        (band,) = axes.collections  # of the one that has intervals
        assert band.get_paths()[0].get_extents().x1 == 30
    assert legend(figure) == ["a", "b", "the one that became the model"]
    assert figure.description == (
        "a: memorization 75.0% at step 30, forgetting +0.300 at step 30; b: memorization 50.0% at step 20, forgetting +0.200 at step 20"
    )


def test_curves_of_one_configuration_look_alike_and_many_bands_are_left_out() -> None:
    figure = curves([series(f"configuration {number // 3}") for number in range(9)])
    assert figure is not None
    axes = figure.axes[0]
    assert len({line.get_color() for line in axes.lines}) == 3
    assert legend(figure) == ["configuration 0", "configuration 1", "configuration 2"]
    assert MOST_BANDS < 9
    assert not axes.collections


def test_curves_with_validation_and_with_gaps() -> None:
    one = series("a")
    one["points"][0]["validation"] = 0.2  # at the last step only
    one["points"][1]["forgetting"] = None
    figure = curves([one])
    assert figure is not None
    assert lines(figure.axes[0])[1] == ([30], [0.2])
    assert lines(figure.axes[1])[0] == ([10, 30], [0.1, 0.3])
    assert legend(figure) == ["a", "validation wording"]
    only = curves([{"label": "a", "points": [{"step": 1, "memorization": 0.5}]}])
    assert only is not None
    assert [axes.get_ylabel() for axes in only.axes] == ["memorization"]
    assert curves([]) is None
    assert curves([{"label": "a", "points": [{"step": 1, "memorization": None}]}]) is None


def test_alignment() -> None:
    points = [{"label": "a", "x": 1.0, "y": 0.1}, {"label": "b", "x": 2.0, "y": 0.3}, {"label": "a", "x": 3.0, "y": 0.2}]
    points += [{"label": "c", "x": None, "y": 0.2}]
    figure = alignment(points, {"r": -0.5, "n": 3, "low": -0.9, "high": 0.2}, "ratio", "forgetting")
    assert figure is not None
    (axes,) = figure.axes
    assert lines(axes) == [([1.0, 3.0], [0.1, 0.2]), ([2.0], [0.3])]
    assert (axes.get_xlabel(), axes.get_ylabel(), legend(figure)) == ("ratio", "forgetting", ["a", "b"])
    assert axes.get_title(loc="left") == "Pearson's r = −0.50 (95%: −0.90 to 0.20), n 3"
    without = alignment(points, {"r": 0.5, "n": 3, "low": None, "high": None}, "x", "y")
    assert without is not None
    assert without.axes[0].get_title(loc="left") == "Pearson's r = 0.50, n 3"
    assert alignment([], None, "x", "y") is None
    assert alignment(points[3:], None, "x", "y") is None


def test_loss_falls_and_does_not_grow_with_the_log() -> None:
    log = [{"step": step, "loss": 3.0 / step} for step in range(1, 10_001)]
    figure = loss(log)
    assert figure is not None
    xs, ys = lines(figure.axes[0])[0]
    assert len(xs) <= MOST_POINTS
    each = steps_per_point(len(log))
    assert xs[0] == pytest.approx((1 + each) / 2)
    assert ys[0] == pytest.approx(sum(3.0 / step for step in range(1, each + 1)) / each)
    assert ys == sorted(ys, reverse=True)
    assert figure.description == "From 3 nats per token at step 1 to 0.0003 at step 10000"
    assert loss([{"step": 1, "loss": 0.0}]) is not None
    assert loss([{"step": 1, "loss": None}, {"step": 2, "loss": float("nan")}]) is None


def compared(count: int = 2, *, held_out: bool = False) -> dict[str, Any]:
    """What `mixsd.compare` returns, as far as it is drawn: configurations of two runs each."""
    configurations, runs = [], []
    for number in range(count):
        label = f"mixsd lam {number}"
        values = {"trained": 0.5 + 0.4 * number / max(count - 1, 1), "forgetting": 0.2 + 0.1 * number}
        if held_out:
            values["held_out_average"] = 0.3 - 0.01 * number
        ends = {name: {"value": value, "low": value - 0.05, "high": value + 5.0} for name, value in values.items()}
        configurations.append({"label": label, "seeds": [0, 1], "measures": ends, "optimal": number == 0})
        for seed in (0, 1):
            own = {name: {"value": value + 0.01 * (2 * seed - 1)} for name, value in values.items()}
            path = [{"memorization": 0.1 * step, "forgetting": 0.05 * step + 0.01 * seed} for step in range(3)]
            runs.append({"configuration": label, "seed": seed, "measures": own, "path": path})
    base = {"trained": {"value": 0.02}, "held_out_average": {"value": 0.31}}
    return {"configurations": configurations, "runs": runs, "base": {"measures": base}, "level": {"value": 0.4}}


def test_pareto_marks_lie_where_their_numbers_are() -> None:
    figure = pareto(compared())
    assert figure is not None
    (axes,) = figure.axes
    drawn = lines(axes)
    assert ([0.5], [0.2]) in drawn
    assert ([0.9], [pytest.approx(0.3)]) in drawn
    assert ([0.0, 0.1, 0.2], [0.01, pytest.approx(0.06), pytest.approx(0.11)]) in drawn  # a path
    assert ([pytest.approx(0.49), pytest.approx(0.51)], [pytest.approx(0.19), pytest.approx(0.21)]) in drawn  # runs as dots
    assert ([0.02], [0.0]) in drawn  # the base forgot nothing
    assert any(x == [0.4, 0.4] for x, _ in drawn)  # equal memorization
    assert drawn.count(([0.5], [0.2])) == 2  # its ring
    segments = [segment.tolist() for bars in axes.collections for segment in bars.get_segments()]
    assert np.isclose(segments, [[0.45, 0.2], [5.5, 0.2]]).all(axis=(1, 2)).any()
    # An interval that is many times wider than what was measured goes on beyond the picture.
    assert axes.get_xlim()[1] < 1.1
    assert axes.get_ylim()[1] < 0.5
    assert legend(figure) == ["mixsd lam 0", "mixsd lam 1", "Pareto-optimal", "the base model", "equal memorization, 40.0%"]
    assert figure.description.startswith("mixsd lam 0: memorization 50.0%, forgetting +0.200, 2 seeds; mixsd lam 1:")


def test_marks_at_the_same_place_are_all_seen() -> None:
    result = compared(3)
    for item in result["configurations"][:2]:
        item["measures"] = result["configurations"][2]["measures"]
    figure = pareto(result)
    assert figure is not None
    own = [line for line in figure.axes[0].lines if line.get_zorder() == 6]
    assert [line.get_markersize() for line in own] == [15.0, 11.0, 7.0]  # the last one drawn, on top, is the smallest


def test_pareto_with_held_out_benchmarks_has_a_second_panel() -> None:
    figure = pareto(compared(held_out=True))
    assert figure is not None
    forgetting, held_out = figure.axes
    assert ([0.5], [0.3]) in lines(held_out)
    assert ([0.02], [0.31]) in lines(held_out)
    assert forgetting.get_position().x1 < held_out.get_position().x0
    assert "held-out average" in held_out.get_ylabel()
    narrow = pareto(compared(held_out=True), narrow=True)
    assert narrow is not None
    assert narrow.axes[0].get_position().y0 > narrow.axes[1].get_position().y1  # below each other


def test_pareto_without_checkpoints_or_without_numbers() -> None:
    result = compared()
    for run in result["runs"]:
        run["path"] = []
    figure = pareto(result)
    assert legend(figure) == ["mixsd lam 0", "mixsd lam 1", "Pareto-optimal"]
    for item in result["configurations"]:
        del item["measures"]["forgetting"]
    assert pareto(result) is None
    assert pareto(result | {"configurations": []}) is None


@pytest.mark.parametrize("narrow", [False, True])
def test_thirty_configurations_are_legible(narrow: bool) -> None:
    figure = pareto(compared(30, held_out=True), narrow=narrow)
    assert len(set(legend(figure))) == 33
    assert figure is not None
    marks = [line for line in figure.axes[0].lines if line.get_markersize() == 7.0]
    assert len({(line.get_color(), line.get_marker(), line.get_fillstyle()) for line in marks}) == 30
    fits(figure)


@pytest.mark.parametrize("narrow", [False, True])
def test_no_text_leaves_the_picture(narrow: bool) -> None:
    long = "mixsd lam 0.3 gate 0.1 rehearse 1 guidance Here is what you need to know; answer in a few words"
    many = [{"benchmark": name, "label": label, "asked": 14042, "counts": {"format": 9000, "genuine": 4000}}
            for name in ("MMLU", "lm-eval:a-task-with-quite-a-long-name-and-then-some-more-of-it") for label in ("base", long)]  # fmt: skip
    points = [{"label": long + str(number), "x": number, "y": number} for number in range(5)]
    for figure in (
        error_bars(many, ["format", "genuine"], narrow=narrow),
        curves([series(long), series("b")], chosen=20, narrow=narrow),
        nll_cdf([{"label": long, "n": 10**7, "x": [1.0, 48.0], "y": [0.5, 1.0]}], [5, 8], narrow=narrow),
        alignment(points, {"r": -0.5, "n": 1000, "low": -0.9, "high": -0.2}, long, long, narrow=narrow),
        loss([{"step": step, "loss": 1.0} for step in range(1000)], narrow=narrow),
    ):
        assert figure is not None
        assert figure.get_figwidth() == (style.NARROW if narrow else style.WIDTH)
        fits(figure)
