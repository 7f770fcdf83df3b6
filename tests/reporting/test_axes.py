"""Where values lie on axes, and what stands at the ticks."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd.reporting.axes import Axes, ticks


def test_values_lie_in_proportion_and_never_outside_the_frame() -> None:
    axes = Axes(500, 300, left=50.0, right=450.0, top=20.0, bottom=270.0, x_range=(10.0, 20.0), y_range=(-1.0, 1.0))
    assert [axes.x(value) for value in (10, 12.5, 20, 9, 1e9)] == [50, 150, 450, 50, 450]
    assert [axes.y(value) for value in (-1, 0.5, 1, -9, 9)] == [270, 82.5, 20, 270, 20]  # upwards is more
    ticked = axes.with_ticks([(10, "ten"), (20, "twenty")], [(0, "none")])
    assert (ticked.x_ticks, ticked.y_ticks) == (((50, "ten"), (450, "twenty")), ((145, "none"),))
    assert (axes.x_ticks, axes.y_ticks) == ((), ())


def test_the_only_value_lies_in_the_middle() -> None:
    axes = Axes(500, 300, left=50.0, right=450.0, top=20.0, bottom=270.0, x_range=(7.0, 7.0), y_range=(0.0, 1.0))
    assert axes.x(7) == 250


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_enclose_the_range(low: float, span: float) -> None:
    values = ticks(low, low + span, 4)
    slack = 1e-6 * max(1.0, abs(low), span)
    assert values[0] <= low + slack
    assert values[-1] >= low + span - slack
    assert 2 <= len(values) <= 12
