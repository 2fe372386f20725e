import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from handclip.report.figures.embedding import MARKERS, MOST_NAMED, Projections, projection_figure


def panel(title: str, people: list[int], seed: int = 0) -> Projections:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(2, len(people), 2))
    return Projections(title, points[0], points[1], np.array([0.336, 0.1]), np.array(people))


def drawn(figure: Figure, place: int) -> dict[str, tuple[int, str]]:
    """How many points of each person an axes shows, and in what colour."""
    return {
        str(points.get_label()): (len(points.get_offsets()), to_hex(points.get_facecolor()[0]))
        for points in figure.axes[place].collections
        if len(points.get_offsets())
    }


def test_each_person_looks_the_same_in_every_panel() -> None:
    people = [1, 1, 2, 2, 2, 3, 4]
    figure = projection_figure([panel("a", people), panel("b", people, 1)], [1, 2])
    assert len(figure.axes) == 4
    everywhere = [drawn(figure, place) for place in range(4)]
    assert all(one == everywhere[0] for one in everywhere)
    assert {label: count for label, (count, _) in everywhere[0].items()} == {"person 1": 2, "person 2": 3, "_others": 2}
    assert len({colour for _, colour in everywhere[0].values()}) == 3


def test_axes_say_what_they_show() -> None:
    figure = projection_figure([panel("7. stage 1 vit", [1, 1, 2, 3])], [1])
    above, below = figure.axes
    assert above.get_title(loc="left") == "7. stage 1 vit"
    assert "no unit" in above.get_xlabel()
    assert below.get_xlabel() == "PC 1 (34 % of variance)"
    assert below.get_ylabel() == "PC 2 (10 % of variance)"
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["person 1", "2 others"]


def test_points_stand_where_they_were_projected_to() -> None:
    one = panel("a", [5, 5, 6])
    figure = projection_figure([one], [5])
    for ax, points in zip(figure.axes, (one.tsne, one.pca), strict=True):
        by_label = {str(found.get_label()): found.get_offsets() for found in ax.collections}
        np.testing.assert_allclose(by_label["person 5"], points[:2])
        np.testing.assert_allclose(by_label["_others"], points[2:])


def test_people_of_one_colour_have_different_shapes() -> None:
    people = list(range(MOST_NAMED))
    figure = projection_figure([panel("a", people)], people)
    [legend] = figure.legends
    assert len({(line.get_color(), line.get_marker()) for line in legend.get_lines()}) == MOST_NAMED
    for ax in figure.axes:
        shapes = [points.get_paths()[0].vertices.tobytes() for points in ax.collections if len(points.get_offsets())]
        assert len(set(shapes)) == len(MARKERS) == MOST_NAMED


def test_long_titles_are_broken_and_the_page_is_not_left() -> None:
    long = "12. stage 2 mbanet_small ce + triplet + center"
    figure = projection_figure([panel(long, [1, 1, 2])] * 4, [1])
    assert figure.get_size_inches()[0] <= 10
    assert "\n" in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_the_legend_is_not_cut_off(columns: int) -> None:
    people = [*range(1_000_000, 1_000_000 + MOST_NAMED), 5]
    figure = projection_figure([panel("a", people)] * columns, people[:-1])
    FigureCanvasAgg(figure).draw()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert 0 <= box.y0 < box.y1 <= min(ax.get_tightbbox().y0 for ax in figure.axes)
