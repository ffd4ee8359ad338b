"""Every dot, interval, line and band is drawn where its table says."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from plots.conftest import assert_drawn, rows, scored

from tokencutseg.plots import style
from tokencutseg.plots.charts import DIFFERENCE, SCORE, curves, dot_interval, line_band

LOOKS = {"a": style.Look("A", style.BLUE, "o"), "b": style.Look("B", style.RED, "s")}


@pytest.fixture
def axis():
    return style.make_figure(title="a title")[1][0, 0]


def test_dot_interval_draws_rows_from_the_top(axis):
    table = scored({"name": ["z", "a", "m"]})
    dot_interval(axis, table, "name", SCORE, "score")
    assert_drawn(axis, table)
    assert axis.collections[-1].get_offsets()[:, 1].tolist() == [0, 1, 2]
    assert rows(axis) == ["z", "a", "m"] and axis.get_ylim()[0] > axis.get_ylim()[1]
    assert [text.get_text() for text in axis.texts] == [f"{mean:.3f}" for mean in table["mean"]]


def test_differences_have_a_line_at_zero_and_missing_ones_leave_their_row_empty(axis):
    table = scored({"name": ["first", "second", "third"]})
    dot_interval(axis, table[::-1], "name", DIFFERENCE)
    assert_drawn(axis, table[::-1], DIFFERENCE)
    assert rows(axis) == ["third", "second", "first"]
    assert [set(line.get_xdata()) for line in axis.lines] == [{0}]
    assert [float(text.get_text().replace("−", "-")) for text in axis.texts] == [*table["diff"][:0:-1].round(3)]


def test_series_stand_side_by_side_in_their_colours(axis):
    table = scored({"name": ["x", "x", "y", "y"], "who": ["a", "b"] * 2}).assign(known=[0.1, np.nan, 0.2, np.nan])
    dot_interval(axis, table, "name", series="who", shown=LOOKS, crosses="known")
    points, crosses = axis.collections[1:]
    where = {
        x: (y, to_hex(colour).upper())
        for (x, y), colour in zip(points.get_offsets(), points.get_facecolors(), strict=True)
    }
    places = [where[mean] for mean in table["mean"]]
    assert [colour for _, colour in places] == [style.BLUE, style.RED] * 2
    assert [round(y) for y, _ in places] == [0, 0, 1, 1] and places[0][0] < places[1][0]
    np.testing.assert_allclose(crosses.get_offsets(), [[0.1, places[0][0]], [0.2, places[2][0]]])


def test_an_interval_need_not_hold_its_value(axis):
    table = pd.DataFrame({"name": ["x"], "mean": [0.5], "low": [0.6], "high": [0.7]})
    dot_interval(axis, table, "name")
    assert_drawn(axis, table)


def test_line_band_draws_each_series(axis):
    table = scored({"x": [2, 1, 1, 2], "who": ["a", "a", "b", "b"]})
    line_band(axis, table, "x", SCORE, "who", LOOKS)
    for name, line, band in zip("ab", axis.lines, axis.collections, strict=True):
        own = table[table["who"] == name].sort_values("x")
        np.testing.assert_allclose(line.get_xydata(), own[["x", "mean"]])
        corners = band.get_paths()[0].vertices[:, 1]
        assert (corners.min(), corners.max()) == pytest.approx((own["low"].min(), own["high"].max()))
        assert line.get_label() == LOOKS[name].label and line.get_color() == LOOKS[name].colour


def test_curves_leave_out_what_the_history_lacks(axis):
    history = pd.DataFrame({"epoch": [1, 2, 3], "train_b": [3.0, 2.0, 1.0], "train_a": [1.0, 1.5, 1.2]})
    curves(axis, history, {"train_a": ("A", style.BLUE), "train_x": ("X", style.SKY), "train_b": ("B", style.RED)})
    drawn = [line for line in axis.lines if len(line.get_xdata())]
    for line, column, colour in zip(drawn, ("train_a", "train_b"), (style.BLUE, style.RED), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), history[["epoch", column]])
        assert to_hex(line.get_color()).upper() == colour
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["A", "B"]
