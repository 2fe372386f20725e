import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from handclip.report.figures.groups import Group, GroupRates, groups_figure

GROUPS = [
    Group("Gender", "female", 30, 90),
    Group("Gender", "male", 12, 40),
    Group("Age", "under 20", 1, 3),
]
REFERENCE = np.array([0.45, 0.45, 0.6])


def rates(label: str, style: int = 0, shift: float = 0.0) -> GroupRates:
    values = np.array([0.5, 0.4, np.nan]) + shift
    return GroupRates(label, style, np.stack([values, values - 0.1, values + 0.2], axis=1), REFERENCE + shift)


def test_rows_name_groups_and_count_people() -> None:
    figure = groups_figure(GROUPS, {"Rank-1 (%)": [rates("a")]})
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [
        "female (30 people, 90 images)",
        "male (12 people, 40 images)",
        "under 20 (1 person, 3 images)",
        "Gender",
        "Age",
    ]
    low, high = figure.axes[0].get_ylim()
    assert low > high  # the first group is at the top


def test_dots_are_hollow_where_a_group_is_small_and_absent_where_there_is_no_rate() -> None:
    figure = groups_figure(GROUPS, {"Rank-1 (%)": [rates("a")]})
    [ax] = figure.axes
    filled, hollow = (line for line in ax.lines if line.get_label() == "_a")
    np.testing.assert_allclose(filled.get_xdata(), [50])
    np.testing.assert_allclose(hollow.get_xdata(), [40, np.nan])
    assert filled.get_markerfacecolor() != "white"
    assert hollow.get_markerfacecolor() == "white"
    places = {label.get_text().split(" (")[0]: label.get_position()[1] for label in ax.get_yticklabels()}
    assert [(text.get_text(), text.get_position()[1]) for text in ax.texts] == [("not shown", places["under 20"])]
    np.testing.assert_allclose(filled.get_ydata(), [places["female"]])


def test_intervals_and_the_rate_over_everybody_are_drawn() -> None:
    figure = groups_figure(GROUPS, {"Rank-1 (%)": [rates("a")]})
    [bars] = figure.axes[0].containers
    ends = bars.lines[2][0].get_segments()
    np.testing.assert_allclose([ends[0][0][0], ends[0][1][0]], [40, 70])
    # Each attribute has a line of its own beside its rows.
    lines = {tuple(line.get_xdata()): line.get_ydata() for line in figure.axes[0].lines if line.get_linestyle() == "--"}
    assert set(lines) == {(45, 45), (60, 60)}
    places = {label.get_text().split(" (")[0]: label.get_position()[1] for label in figure.axes[0].get_yticklabels()}
    (start, end), (next_start, next_end) = lines[45, 45], lines[60, 60]
    assert start < places["female"] < places["male"] < end < next_start < places["under 20"] < next_end


def test_several_runs_stand_beside_each_other_in_each_panel() -> None:
    runs = [rates("a"), rates("b", 3, 0.1)]
    figure = groups_figure(GROUPS, {"Rank-1 (%)": runs, "FNMR (%)": runs})
    assert [ax.get_xlabel() for ax in figure.axes] == ["Rank-1 (%)", "FNMR (%)"]
    for ax in figure.axes:
        first, second = (next(line for line in ax.lines if line.get_label() == name) for name in ("_a", "_b"))
        assert first.get_ydata()[0] < second.get_ydata()[0]
        assert first.get_marker() != second.get_marker()
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "hollow: fewer than 20 people"]


@pytest.mark.parametrize(("runs", "panels"), [(1, 1), (1, 3), (4, 2)])
def test_nothing_is_cut_off(runs: int, panels: int) -> None:
    several = [rates("12. stage 2 mbanet_small ce + triplet + center", run) for run in range(runs)]
    figure = groups_figure(GROUPS, {f"Rank-{panel} (%)": several for panel in range(panels)})
    FigureCanvasAgg(figure).draw()
    box = figure.legends[0].get_window_extent()
    labels = figure.axes[0].get_tightbbox()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert 0 <= box.y0 < box.y1 <= labels.y0
    assert labels.x0 >= 0
