import numpy as np
import pytest
from matplotlib.patches import Rectangle

from handclip.report.figures.retrieval import (
    CmcCurve,
    ConfusedPair,
    RankList,
    Tile,
    cmc_figure,
    confused_pairs_figure,
    rank_list_figure,
)
from handclip.report.figures.style import RIGHT, WRONG

PHOTOGRAPH = np.full((30, 40, 3), 200, dtype=np.uint8)


def frames(figure) -> list[Rectangle]:
    return [patch for patch in figure.axes[0].patches if not patch.get_fill()]


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_cmc_is_the_mean_of_the_draws_with_a_band_from_lowest_to_highest():
    draws = np.array([[0.5, 0.7, 1.0], [0.7, 0.9, 1.0]])
    figure = cmc_figure({"gallery": [CmcCurve("one", 0, draws)]})
    (axes,) = figure.axes
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata() == pytest.approx([60, 80, 100])
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices
    assert {tuple(point) for point in edges.round(6)} >= {(1, 50), (1, 70), (2, 70), (2, 90)}


def test_cmc_axis_starts_near_the_lowest_value_and_says_so():
    (axes,) = cmc_figure({"gallery": [CmcCurve("one", 0, np.array([[0.85, 0.9]]))]}).axes
    assert axes.get_ylim()[0] == 80
    assert axes.get_ylabel() == "Rank-k (%, axis from 80 %)"
    (axes,) = cmc_figure({"gallery": [CmcCurve("one", 0, np.array([[0.05, 0.9]]))]}).axes
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylabel() == "Rank-k (%)"


def test_cmc_of_one_draw_has_no_band():
    (axes,) = cmc_figure({"gallery": [CmcCurve("one", 0, np.array([[0.5, 0.9]]))]}).axes
    assert not axes.collections


def test_each_gallery_has_a_panel_on_the_same_scale():
    curves = [CmcCurve(str(style), style, np.array([[0.5, 0.9]])) for style in range(3)]
    figure = cmc_figure({"gallery": curves, "gallery_all": curves})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["gallery", "gallery_all"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0", "1", "2"]
    assert len({line.get_marker() for line in figure.axes[0].lines}) == 3


def test_right_and_wrong_differ_in_colour_dash_and_sign():
    found = [Tile(PHOTOGRAPH, "8", 0.75, right=False), Tile(PHOTOGRAPH, "7", 0.5, right=True)]
    figure = rank_list_figure([RankList("worst", Tile(PHOTOGRAPH, "7"), found, "right one\nat rank 2")])
    _, wrong, right = frames(figure)
    assert (wrong.get_edgecolor()[:3], right.get_edgecolor()[:3]) == (rgb(WRONG), rgb(RIGHT))
    assert wrong.get_linestyle() != right.get_linestyle()
    assert {"worst", "7", "8", "✗ 0.750", "✓ 0.500", "right one\nat rank 2"} <= set(texts(figure))
    assert len(figure.axes[0].images) == 3


def rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))


def test_photographs_keep_their_aspect_ratio():
    tall = np.zeros((60, 20, 3), dtype=np.uint8)
    figure = rank_list_figure([RankList("best", Tile(tall, "1"), [Tile(PHOTOGRAPH, "1", 0.9, True)], "")])
    for image, ratio in zip(figure.axes[0].images, (3, 0.75), strict=True):
        left, right, bottom, top = image.get_extent()
        assert (bottom - top) / (right - left) == pytest.approx(ratio)


def test_without_photographs_there_are_grey_tiles_and_all_else():
    found = [Tile(None, str(person), 0.9 - person / 10, person == 1) for person in range(3)]
    figure = rank_list_figure([RankList("best", Tile(None, "1"), found, "right one\nat rank 2")])
    assert not figure.axes[0].images
    assert texts(figure).count("no photo") == 4
    assert "✓ 0.800" in texts(figure)
    assert len(frames(figure)) == 4


def test_scores_that_are_all_alike_have_more_decimals():
    found = [Tile(None, "1", 0.99991, True), Tile(None, "2", 0.99985, False)]
    assert "✓ 0.99991" in texts(rank_list_figure([RankList("best", Tile(None, "1"), found, "")]))


def test_everything_is_within_the_figure():
    found = [Tile(PHOTOGRAPH, "11001234", 0.123, False)] * 10
    figure = rank_list_figure([RankList("median\npalmar_r", Tile(None, "1"), found, "right one\nat rank 1234")] * 6)
    assert figure.get_figwidth() <= 10
    assert_inside(figure)


def test_lists_of_different_length_are_drawn():
    one = RankList("best", Tile(None, "1"), [Tile(None, "1", 0.9, True)], "")
    two = RankList("worst", Tile(None, "1"), [Tile(None, "2", 0.9, False), Tile(None, "1", 0.8, True)], "")
    assert len(frames(rank_list_figure([one, two]))) == 5


@pytest.mark.parametrize("count", [1, 2, 6])
def test_pairs_stand_beside_each_other_with_their_numbers(count: int):
    pair = ConfusedPair(Tile(PHOTOGRAPH, "query: 1"), Tile(None, "chosen: 2", 0.9, False), "7 of 160 searches (4.4 %)")
    figure = confused_pairs_figure([pair] * count)
    assert texts(figure).count("7 of 160 searches (4.4 %)") == count
    assert len(frames(figure)) == 2 * count
    assert_inside(figure)


def assert_inside(figure) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.bbox.size
    for text in figure.axes[0].texts:
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()
