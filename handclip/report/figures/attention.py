"""Where models look: maps laid over photographs."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from handclip.report.figures.style import new_figure, styled

HALF = 0.5
"""The line drawn into each map is at this share of its largest value."""

_WIDEST, _NARROWEST, _TALLEST, _WIDEST_CELL = 10.0, 4.2, 8.0, 2.6
"""Inches: of the figure's width, of the height of its photographs together, and of a photograph's width."""
_SMALLEST_TEXT = 9
_LETTER = 0.075
"""Width of a letter of the smallest text, in inches, on average."""
_GREY = "#5A5A5A"


@dataclass(frozen=True, eq=False)
class Maps:
    """A column: where one run looks in each of N photographs, by one method.

    Args:
        label: the run; empty for none.
        method: name of the method.
        values: N maps, (h, w) each, of the whole photograph, from 0 to 1.
    """

    label: str
    method: str
    values: Sequence[NDArray[np.float32]]


@styled
def attention_figure(hands: Sequence[tuple[str, NDArray[np.uint8]]], maps: Sequence[Maps]) -> Figure:
    """Draw the hands in rows, the photograph first, and one column for each run and method.

    Args:
        hands: aspect of each of N hands, and its (H, W, 3) photograph, RGB.
        maps: columns, with a map for each hand.
    """
    columns = len(maps) + 1
    tallest = max(photograph.shape[0] / photograph.shape[1] for _, photograph in hands)
    cell = min(_WIDEST_CELL, _WIDEST / columns, max(_NARROWEST / columns, _TALLEST / (len(hands) * tallest)))
    titles = ["photograph", *(_title(one.label, one.method, cell) for one in maps)]
    lines = max(title.count("\n") + 1 for title in titles)
    height = len(hands) * cell * tallest * 1.03 + 0.17 * lines + 0.65
    figure = new_figure(cell * columns, height)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0.0, hspace=0.0)
    grid = figure.subplots(len(hands), columns, squeeze=False)
    for row, (aspect, photograph) in zip(grid, hands, strict=True):
        row[0].imshow(photograph)
        row[0].set_ylabel(aspect.replace("_r", " right").replace("_l", " left"), fontsize=_SMALLEST_TEXT)
    for axes, one in zip(grid.T[1:], maps, strict=True):
        for place, (_, photograph), values in zip(axes, hands, one.values, strict=True):
            _overlay(place, photograph, values)
    for place, title in zip(grid[0], titles, strict=True):
        place.set_title(title, fontsize=_SMALLEST_TEXT, fontweight="normal", loc="center", pad=4)
    for place in grid.flat:
        place.set(xticks=[], yticks=[])
        place.grid(False)
        place.spines[:].set_visible(False)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), _COLOURS),
        ax=grid,
        location="bottom",
        aspect=40,
        shrink=min(1.0, 4.5 / figure.get_figwidth()),
        pad=0.01,
    )
    bar.ax.set_facecolor(_GREY)
    bar.ax.grid(False)
    bar.set_label("share of the map's largest value (line: one half)", fontsize=_SMALLEST_TEXT)
    bar.ax.tick_params(labelsize=_SMALLEST_TEXT)
    return figure


def laid_over(photograph: NDArray[np.uint8], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an (H, W, 3) photograph in dark grey under the colours of an (h, w) map, RGB within [0, 1]."""
    # Dark, so that what stands out is the map, in grey print too.
    grey = 0.05 + 0.5 * np.asarray(Image.fromarray(photograph).convert("L"), np.float32) / 255
    colours = _COLOURS(_stretched(values, photograph))
    opacity = colours[..., 3:]
    mixed: NDArray[np.float32] = (opacity * colours[..., :3] + (1 - opacity) * grey[..., None]).astype(np.float32)
    return mixed


def _stretched(values: NDArray[np.float32], photograph: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a map of a whole photograph at the photograph's own size, smoothly, within [0, 1]."""
    height, width = photograph.shape[:2]
    stretched = Image.fromarray(np.ascontiguousarray(values, np.float32)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.asarray(stretched, np.float32).clip(0, 1)


def _overlay(axes: Axes, photograph: NDArray[np.uint8], values: NDArray[np.float32]) -> None:
    axes.imshow(laid_over(photograph, values))
    if not values.any():
        height, width = photograph.shape[:2]
        axes.text(width / 2, height / 2, "nothing\nabove 0", color="white", ha="center", va="center", fontsize=9)
    stretched = _stretched(values, photograph)
    if stretched.min() < HALF < stretched.max():
        axes.contour(stretched, levels=[HALF], colors="white", linewidths=1.0)


def _title(label: str, method: str, width: float) -> str:
    letters = max(8, int(width / _LETTER) - 1)
    parts = (label, *method.replace(" (", "\n(").split("\n"))
    return "\n".join(line for part in parts for line in textwrap.wrap(part, letters))


def _transparent_where_small() -> ListedColormap:
    """Return inferno, which is as monotonous in grey as in colour, over what it lies on: the less, the smaller."""
    colours = colormaps["inferno"](np.linspace(0.2, 1, 256))
    colours[:, 3] = np.linspace(0, 0.85, 256)
    return ListedColormap(colours)


_COLOURS = _transparent_where_small()
