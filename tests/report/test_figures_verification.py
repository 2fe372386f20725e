"""What figures of error rates hold."""

from statistics import NormalDist

import numpy as np
import pytest
from matplotlib.figure import Figure

from handclip.metrics.calibration import Reliability
from handclip.report.figures.verification import (
    ErrorCurve,
    ScoreDensities,
    error_tradeoff_figure,
    open_set_figure,
    reliability_figure,
    score_densities_figure,
)

FALSE = np.array([1, 0.5, 0.2, 0.05, 0.01, 0])
MISSED = np.array([0, 0.02, 0.05, 0.1, 0.3, 1])


def curve(number: int, *, band: bool = False) -> ErrorCurve:
    bands = (0.9 * MISSED, np.minimum(1.1 * MISSED, 1)) if band else None
    return ErrorCurve(f"run {number}", number, FALSE, MISSED, bands)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_densities_have_a_panel_for_each_system_and_one_legend():
    edges = np.linspace(0, 1, 5)
    genuine, impostor = np.array([0, 0, 1, 3.0]), np.array([3, 1, 0, 0.0])
    figure = score_densities_figure(
        [ScoreDensities("a", edges, genuine, impostor), ScoreDensities("b", edges, genuine, impostor, 0.4)]
    )
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    assert len(legend(figure)) == 3
    fill, _, line = figure.axes[0].patches
    assert (fill.get_fill(), line.get_fill()) == (True, False)
    np.testing.assert_array_equal(fill.get_data().values, impostor)
    np.testing.assert_array_equal(line.get_data().values, genuine)
    assert not figure.axes[0].lines
    assert figure.axes[1].lines[0].get_xdata()[0] == 0.4


@pytest.mark.parametrize("runs", [1, 8])
def test_det_axes_are_normal_deviates_and_roc_axes_percent(runs: int):
    figure = error_tradeoff_figure([curve(number, band=number == 0) for number in range(runs)], 30 / 870)
    det, roc = figure.axes
    assert legend(figure)[:runs] == [f"run {number}" for number in range(runs)]
    assert legend(figure)[runs:] == ["too few pairs of people to measure"]
    normal = NormalDist()
    drawn = dict(zip(roc.lines[0].get_xdata(), det.lines[0].get_xydata(), strict=True))
    for false, missed in zip(FALSE[1:5], MISSED[1:5], strict=True):
        np.testing.assert_allclose(drawn[100 * false], [normal.inv_cdf(false), normal.inv_cdf(missed)])
    np.testing.assert_allclose(np.interp(100 * FALSE, *roc.lines[0].get_xydata()[::-1].T), 100 * (1 - MISSED))
    assert len(det.lines) == runs + 1  # and the line of equal rates
    assert [tick.get_text() for tick in det.get_xticklabels()] == ["1", "5", "20", "40", "60", "80"]
    assert np.isfinite([line.get_xydata() for line in det.lines[:runs]]).all()
    assert len({(line.get_color(), str(line.get_linestyle())) for line in roc.lines}) == runs
    shaded = roc.patches[0].get_extents().transformed(roc.transData.inverted())
    assert shaded.xmax == pytest.approx(100 * 30 / 870)


def test_curves_are_straight_between_their_points_and_inside_their_bands():
    """Of a model that gives every comparison the same score, there are two points, one of them at an FMR of 0."""
    ends = np.array([1.0, 0.0])
    collapsed = ErrorCurve("collapsed", 0, ends, 1 - ends, (0.5 - ends / 2, 1 - ends / 2))
    for axes in (error_tradeoff_figure([collapsed], 0.1).axes[1], open_set_figure([collapsed], 0.1).axes[0]):
        false, missed = axes.lines[0].get_xydata().T
        np.testing.assert_allclose(missed if axes.get_xlabel().startswith("False match") else 100 - missed, false)
        assert ((false > 1) & (false < 10)).sum() > 10
        band = axes.collections[0].get_paths()[0]
        assert all(band.contains_point(point, radius=1e-6) for point in zip(false[1:-1], missed[1:-1], strict=True))


def test_nothing_is_shaded_where_everything_shown_can_be_measured():
    figure = error_tradeoff_figure([curve(0)], 0.01)
    left = figure.axes[1].get_xlim()[0]
    assert left < 1
    assert not error_tradeoff_figure([curve(0)], 1e-7).axes[1].patches


def test_open_set_curves_are_percent():
    figure = open_set_figure([curve(0, band=True), curve(3)], 0.1)
    axes = figure.axes[0]
    np.testing.assert_allclose(np.interp(100 * FALSE, *axes.lines[1].get_xydata()[::-1].T), 100 * MISSED)
    assert legend(figure) == ["run 0", "run 3", "rests on few people: read the band"]
    assert len(axes.collections) == 1


def test_reliability_diagrams_have_the_diagonal_and_a_line_for_each_prediction():
    predicted, observed = np.array([0.1, 0.5, 0.9]), np.array([0.2, 0.5, 0.8])
    counts = np.array([3, 3, 3])
    lines = {
        "after": Reliability(predicted, observed, counts, counts),
        "before": Reliability(predicted / 2, observed, counts, counts),
    }
    figure = reliability_figure({"a": lines, "b": lines, "c": {"after": lines["after"]}})
    assert [len(axes.lines) for axes in figure.axes] == [3, 3, 2]
    np.testing.assert_allclose(figure.axes[0].lines[1].get_xydata(), 100 * np.stack([predicted, observed], axis=1))
    after, before = figure.axes[0].lines[1:]
    assert after.get_marker() != before.get_marker()
    assert legend(figure)[1:] == ["after", "before"]
