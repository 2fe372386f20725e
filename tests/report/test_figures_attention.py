import numpy as np
import pytest
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from handclip.report.figures.attention import Maps, attention_figure, laid_over

LONG_LABEL = "12. stage 2 mbanet_small ce + triplet + center, seed 3"


def photograph(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*(shape or (60, 80)), 3), dtype=np.uint8)


def peak(row: int, column: int, floor: float = 0.0) -> np.ndarray:
    values = np.full((6, 8), floor, np.float32)
    values[row, column] = 1
    return values


def cells(figure: Figure, columns: int) -> list[list[AxesImage]]:
    """The picture of each cell, by row."""
    pictures = [axes.images[0] for axes in figure.axes if axes.images]
    return [pictures[start : start + columns] for start in range(0, len(pictures), columns)]


def test_the_map_stands_where_it_belongs_on_the_photograph() -> None:
    figure = attention_figure([("dorsal_r", photograph())], [Maps("run", "Grad-CAM", [peak(1, 6)])])
    [[plain, overlaid]] = cells(figure, 2)
    np.testing.assert_array_equal(np.asarray(plain.get_array()), photograph())
    picture = np.asarray(overlaid.get_array())
    assert picture.shape == (60, 80, 3)
    saturation = picture.max(axis=2) - picture.min(axis=2)
    rows, columns = np.nonzero(saturation > 0.3)
    assert 10 <= rows.min() <= rows.max() < 20  # row 1 of six, of 60 pixels
    assert 60 <= columns.min() <= columns.max() < 70


def test_where_the_map_is_zero_the_photograph_is_grey() -> None:
    picture = laid_over(photograph(), np.zeros((3, 4), np.float32))
    assert np.ptp(picture, axis=2).max() < 1e-6
    assert (picture >= 0.05 - 1e-6).all()
    assert (picture <= 0.55 + 1e-6).all()
    assert np.corrcoef(picture[..., 0].ravel(), (photograph() @ [0.299, 0.587, 0.114]).ravel())[0, 1] > 0.99


def test_a_larger_value_is_brighter_in_grey_print() -> None:
    white = np.full((8, 256, 3), 255, np.uint8)
    for plain in (white, white * 0):
        ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
        grey = laid_over(plain, ramp)[4] @ [0.299, 0.587, 0.114]
        assert grey[-1] > 0.8
        assert (np.diff(grey[80:]) > -1e-3).all()
        assert grey[:80].max() < 0.6


def test_a_line_is_drawn_at_half_and_only_where_there_is_one() -> None:
    maps = [peak(2, 2), peak(2, 2, floor=0.9), np.zeros((6, 8), np.float32)]
    figure = attention_figure([("dorsal_r", photograph())] * 3, [Maps("", "Grad-CAM", maps)])
    overlaid = [axes for axes in figure.axes if axes.images][1::2]
    lines = [[one for one in axes.collections if isinstance(one, ContourSet)] for axes in overlaid]
    assert [len(one) for one in lines] == [1, 0, 0]
    assert list(lines[0][0].levels) == [0.5]
    assert [[text.get_text() for text in axes.texts] for axes in overlaid] == [[], [], ["nothing\nabove 0"]]


@pytest.mark.parametrize(("methods", "hands"), [(1, 1), (1, 6), (3, 4), (6, 4)])
def test_titles_and_bar_neither_overlap_nor_leave_the_page(methods: int, hands: int) -> None:
    names = [f"spatial attention (gamma -0.00{number})" for number in range(methods)]
    shown = [(aspect, photograph()) for aspect in ("dorsal_r", "palmar_l") * 3][:hands]
    figure = attention_figure(shown, [Maps(LONG_LABEL, name, [peak(1, 1)] * hands) for name in names])
    assert figure.get_figwidth() <= 10
    assert figure.get_figheight() <= 11.5
    figure.draw_without_rendering()
    rows = cells(figure, methods + 1)
    assert len(rows) == hands
    titles = [image.axes.title for image in rows[0]]
    assert titles[0].get_text() == "photograph"
    for title, name in zip(titles[1:], names, strict=True):
        assert title.get_text().replace("\n", " ") == f"{LONG_LABEL} {name}"
    boxes = [title.get_window_extent() for title in titles]
    boxes += [image.axes.get_window_extent() for row in rows for image in row]
    bar = figure.axes[-1]
    assert bar.get_xlabel() == "share of the map's largest value (line: one half)"
    boxes.append(bar.get_tightbbox())  # type: ignore[arg-type]
    for number, box in enumerate(boxes):
        assert figure.bbox.padded(0.5).contains(box.x0, box.y0)
        assert figure.bbox.padded(0.5).contains(box.x1, box.y1)
        assert not any(box.padded(-0.5).overlaps(other) for other in boxes[:number])
    texts = [*titles, bar.xaxis.label, *bar.get_xticklabels(), *(row[0].axes.yaxis.label for row in rows)]
    assert all(float(text.get_fontsize()) >= 9 for text in texts)
    labels = [row[0].axes.get_ylabel() for row in rows]
    assert labels == (["dorsal right", "palmar left"] * 3)[:hands]


def test_photographs_of_any_shape_fit() -> None:
    shown = [("dorsal_r", photograph(*shape)) for shape in ((80, 20), (20, 80))]
    figure = attention_figure(shown, [Maps("run", "Grad-CAM", [peak(0, 0)] * 2)])
    figure.draw_without_rendering()
    for row in cells(figure, 2):
        for image in row:
            height, width = np.asarray(image.get_array()).shape[:2]
            box = image.axes.get_window_extent()
            assert box.height / box.width == pytest.approx(height / width, rel=0.01)
