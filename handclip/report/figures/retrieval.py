"""Ranked galleries: how soon the right person is found, what stands first, and who is taken for whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator
from numpy.typing import NDArray

from handclip.report.figures.style import BLACK, NEUTRAL, RIGHT, WRONG, legend_below, new_figure, series_style, styled

_MARKED_RANKS = (1, 5, 10, 15, 20)
_TILE, _TILE_HEIGHT, _BETWEEN = 0.66, 0.6, 0.06
"""Room for one photograph and between two, in inches; text stands above and below."""
TILE_NAME_INCHES, PAIR_NAME_INCHES, TILE_NAME_SIZE = 0.69, 0.85, 9
"""Room for a person's name above a photograph of a rank list, and of a pair; the size of its letters in points."""
_FRAME = 2.6
_NEAR = 0.005
"""Scores of one list that all lie this near to each other are shown with more decimals."""


@dataclass(frozen=True, eq=False)
class CmcCurve:
    """Cumulative match characteristic of one run.

    Args:
        label: of the run.
        style: number of its colour, dash and marker.
        draws: (D, K) fraction of the queries whose person is among the first 1, 2, ..., K, in each draw.
    """

    label: str
    style: int
    draws: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tile:
    """One photograph.

    Args:
        photograph: (H, W, 3) 8-bit RGB; None where there is none, which gives a grey tile.
        person: whose hand it is.
        score: cosine similarity to the query; None for the query itself.
        right: whether it is of the query's person; None for the query itself.
    """

    photograph: NDArray[np.uint8] | None
    person: str
    score: float | None = None
    right: bool | None = None


@dataclass(frozen=True, eq=False)
class RankList:
    """A query and what was found, best first; `title` stands before it and `remark` behind."""

    title: str
    query: Tile
    found: Sequence[Tile]
    remark: str


@dataclass(frozen=True, eq=False)
class ConfusedPair:
    """A query and the photograph of somebody else that was taken for the same person; `remark` stands below."""

    query: Tile
    chosen: Tile
    remark: str


@styled
def cmc_figure(panels: Mapping[str, Sequence[CmcCurve]]) -> Figure:
    """Return the mean CMC over the draws, with a band from the lowest to the highest draw; a panel for each gallery."""
    labels = {curve.label for curves in panels.values() for curve in curves}
    figure = new_figure(8.0 if len(panels) == 1 else 9.5, 4.0 + 0.24 * -(-len(labels) // 2))
    lowest = min(float(curve.draws.min()) for curves in panels.values() for curve in curves)
    start = max(0, 10 * floor(10 * lowest - 0.2))
    axes: Axes | None = None
    for place, (title, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place, sharey=axes)
        for curve in curves:
            _draw_cmc(axes, curve)
        starts = f", axis from {start} %" if start else ""
        most = max(curve.draws.shape[1] for curve in curves)
        ticks = FixedLocator([rank for rank in _MARKED_RANKS if rank <= most])
        axes.set(title=title, xlabel="Rank k", ylabel=f"Rank-k (%{starts})", ylim=(start, 101))
        axes.xaxis.set_major_locator(ticks)
    legend_below(figure)
    return figure


def _draw_cmc(axes: Axes, curve: CmcCurve) -> None:
    ranks = np.arange(1, curve.draws.shape[1] + 1)
    style = series_style(curve.style, markers=True)
    places = [rank - 1 for rank in _MARKED_RANKS if rank <= len(ranks)]
    axes.plot(ranks, 100 * curve.draws.mean(axis=0), label=curve.label, markevery=places, **style)
    if len(curve.draws) > 1:
        low, high = 100 * curve.draws.min(axis=0), 100 * curve.draws.max(axis=0)
        axes.fill_between(ranks, low, high, color=style["color"], alpha=0.13, linewidth=0)


@styled
def rank_list_figure(lists: Sequence[RankList]) -> Figure:
    """Return a row for each query, and behind it what was found, best first.

    The person stands above each photograph and the cosine similarity below. What is right has a solid green frame and
    a tick, what is wrong a dashed red frame and a cross.
    """
    most = max(len(one.found) for one in lists)
    before, behind, gap, row = 0.85, 1.02, 0.2, _TILE_HEIGHT + 0.56
    width = before + _TILE + gap + most * (_TILE + _BETWEEN) + behind
    figure, axes = _canvas(width, 0.42 + row * len(lists))
    spans = [max(scores) - min(scores) for one in lists if len(scores := [tile.score or 0 for tile in one.found]) > 1]
    decimals = 5 if any(span < _NEAR for span in spans) else 3
    left = before + _TILE + gap
    axes.text(before + _TILE / 2, 0.16, "Query", ha="center", va="center", fontweight="bold")
    axes.text(left, 0.16, "Found, best first", va="center", fontweight="bold")
    for place, one in enumerate(lists):
        top = 0.3 + row * place + 0.26
        middle = top + _TILE_HEIGHT / 2
        axes.text(0.02, middle, one.title, va="center", fontsize=10)
        _draw_tile(axes, one.query, before, top)
        for number, tile in enumerate(one.found):
            _draw_tile(axes, tile, left + number * (_TILE + _BETWEEN), top, decimals=decimals)
        axes.text(left + len(one.found) * (_TILE + _BETWEEN) + 0.06, middle, one.remark, va="center", fontsize=10)
    return figure


@styled
def confused_pairs_figure(pairs: Sequence[ConfusedPair], columns: int = 3) -> Figure:
    """Return the photographs of each pair beside each other, twice as large as in a rank list."""
    columns = min(columns, len(pairs))
    scale, gap, between = 1.9, 0.12, 0.36
    wide, high = 2 * scale * _TILE + gap, scale * _TILE_HEIGHT
    row = high + 0.86
    rows = -(-len(pairs) // columns)
    figure, axes = _canvas(columns * (wide + between), rows * row)
    for place, pair in enumerate(pairs):
        x = place % columns * (wide + between) + between / 2
        top = place // columns * row + 0.28
        _draw_tile(axes, pair.query, x, top, scale)
        _draw_tile(axes, pair.chosen, x + scale * _TILE + gap, top, scale)
        axes.text(x + wide / 2, top + high + 0.24, pair.remark, ha="center", va="top", fontsize=10)
    return figure


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with one invisible axes whose unit is the inch, from the top left corner."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def _draw_tile(axes: Axes, tile: Tile, x: float, y: float, scale: float = 1.0, decimals: int = 3) -> None:
    """Draw a photograph in its own aspect ratio into the middle of its room, whose top left corner is given."""
    room_width, room_height = scale * _TILE, scale * _TILE_HEIGHT
    height, width = (3, 4) if tile.photograph is None else tile.photograph.shape[:2]
    zoom = min(room_width / width, room_height / height)
    width, height = zoom * width, zoom * height
    left, top = x + (room_width - width) / 2, y + (room_height - height) / 2
    frame: dict[str, Any] = {"fill": False, "edgecolor": BLACK, "linewidth": 1.2}
    if tile.right is not None:
        style = "-" if tile.right else (0, (3, 1.5))
        frame |= {"edgecolor": RIGHT if tile.right else WRONG, "linewidth": _FRAME, "linestyle": style}
    if tile.photograph is None:
        axes.add_patch(Rectangle((left, top), width, height, facecolor="#DDDDDD", linewidth=0))
        axes.text(
            x + room_width / 2, y + room_height / 2, "no photo", ha="center", va="center", fontsize=9, color=NEUTRAL
        )
    else:
        extent = (left, left + width, top + height, top)
        limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
        axes.imshow(tile.photograph, extent=extent, aspect="auto", interpolation="lanczos", zorder=1)
        axes.set(**limits)  # which a picture would move
    axes.add_patch(Rectangle((left, top), width, height, zorder=2, **frame))
    centre = x + room_width / 2
    axes.text(centre, y - 0.05, tile.person, ha="center", va="bottom", fontsize=TILE_NAME_SIZE)
    if tile.score is not None:
        sign = "" if tile.right is None else "✓ " if tile.right else "✗ "
        axes.text(centre, y + room_height + 0.05, f"{sign}{tile.score:.{decimals}f}", ha="center", va="top", fontsize=9)
