import pytest

from handclip.report.figures.style import series_style
from handclip.report.figures.training import EpochCurve, EpochPanel, ScoreBar, epochs_figure, scores_figure


def curve(label: str = "one", style: int = 0, values=(1.0, None, 0.5), best: float | None = None) -> EpochCurve:
    return EpochCurve(label, style, range(1, len(values) + 1), values, best)


def lines_of(axes, label: str):
    return [line for line in axes.lines if line.get_label() == label]


def test_curve_leaves_out_what_was_not_measured():
    figure = epochs_figure([EpochPanel("Total", "Loss", [curve()])])
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [1, 3]
    assert list(line.get_ydata()) == [1.0, 0.5]


def test_there_is_a_panel_for_each_quantity_and_one_legend_entry_for_each_run():
    both = [curve("first"), curve("second", 3)]
    figure = epochs_figure([EpochPanel("A", "a (s)", both), EpochPanel("B", "b", both[:1]), EpochPanel("C", "c", both)])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["A", "B", "C"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["a (s)", "b", "c"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 1, 2]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["first", "second"]
    assert figure.axes[0].lines[1].get_color() == series_style(3)["color"]


def test_fractions_are_drawn_as_percent():
    figure = epochs_figure([EpochPanel("mAP", "mAP (%)", [curve(values=(0.25, 0.5))], percent=True)])
    assert list(figure.axes[0].lines[0].get_ydata()) == [25, 50]


def test_best_epoch_is_marked_at_its_value_with_the_marker_of_its_run():
    curves = [curve("a", 1, (0.1, 0.4, 0.3), best=2), curve("b", 2, (0.2, 0.3, 0.6), best=3)]
    figure = epochs_figure([EpochPanel("mAP", "mAP (%)", curves, percent=True)])
    marks = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    assert [(mark.get_xdata()[0], mark.get_ydata()[0]) for mark in marks] == [(2, 40), (3, 60)]
    assert [mark.get_marker() for mark in marks] == [series_style(style, markers=True)["marker"] for style in (1, 2)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "large, black edge: best epoch"]


def test_best_epoch_of_a_single_curve_has_its_value_beside_it():
    figure = epochs_figure([EpochPanel("mAP", "%", [curve(values=(0.1, 0.412, 0.3), best=2)], percent=True)])
    assert [text.get_text() for text in figure.axes[0].texts] == ["41.2 at epoch 2"]


def test_best_epoch_without_a_value_is_not_marked():
    figure = epochs_figure([EpochPanel("mAP", "%", [curve(best=2)])])
    assert len(figure.axes[0].lines) == 1


@pytest.mark.parametrize(("highest", "most"), [(20.0, 8), (3e9, 12)])
def test_a_logarithmic_axis_has_labels_that_do_not_lie_on_each_other(highest: float, most: int):
    figure = epochs_figure([EpochPanel("A", "a", [curve(values=(highest, 0.5))], logarithmic=True)])
    figure.draw_without_rendering()
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    assert 3 <= sum(low <= tick <= high for tick in axes.get_yticks()) <= most


def test_one_epoch_is_a_visible_point_on_an_axis_without_epoch_zero():
    figure = epochs_figure([EpochPanel("A", "a", [curve(values=(3.0,))])])
    (line,) = figure.axes[0].lines
    assert line.get_marker() == "o"
    assert list(line.get_markevery()) == [0]
    assert 0 < figure.axes[0].get_xlim()[0] < 1


@pytest.mark.parametrize("logarithmic", [True, False])
def test_axis_is_logarithmic_where_asked_for(logarithmic: bool):
    figure = epochs_figure([EpochPanel("A", "a", [curve(values=(100.0, 1.0))], logarithmic=logarithmic)])
    assert figure.axes[0].get_yscale() == ("log" if logarithmic else "linear")


def test_scores_are_bars_in_percent_with_their_intervals_in_the_given_order():
    bars = [ScoreBar("x", 0.5, 0.4, 0.7), ScoreBar("y", 0.8, 0.75, 0.9, best=True)]
    figure = scores_figure({"Rank-1": bars, "mAP": bars[::-1]})
    first, second = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["x", "y"]
    assert first.get_ylim()[0] > first.get_ylim()[1], "the first run stands at the top"
    assert [patch.get_width() for patch in first.patches] == [50, 80]
    assert [patch.get_width() for patch in second.patches] == [80, 50]
    (whiskers,) = first.collections
    assert [segment[:, 0].round(9).tolist() for segment in whiskers.get_segments()] == [[40, 70], [75, 90]]
    assert [text.get_text() for text in first.texts] == ["50.0", "80.0"]
    assert [text.get_fontweight() for text in first.texts] == ["normal", "bold"]
    assert first.patches[0].get_facecolor() != first.patches[1].get_facecolor()
