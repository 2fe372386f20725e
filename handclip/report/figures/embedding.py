"""How runs arrange the same photographs of the same people: t-SNE above, principal components below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from handclip.plurals import counted
from handclip.report.figures.names import person_labels
from handclip.report.figures.style import MOST_SERIES, new_figure, series_style, styled

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "p", ">", "h")
MOST_NAMED = len(MARKERS)
"""More people cannot be told apart by shape; colours repeat before."""
MOST_PANELS = 4

_OTHERS = "#BBBBBB"
_OTHER_POINT, _NAMED_POINT = 9, 36
_LEGEND_INCHES = 1.85
"""What a column of the legend takes, of which names have a part: seven digits, say."""
_NAME_INCHES = 0.7
_TITLE_LETTERS = {1: 60, 2: 34, 3: 28, 4: 22}


@dataclass(frozen=True, eq=False)
class Projections:
    """One run's arrangement of N images.

    Args:
        title: the run.
        tsne: (N, 2) coordinates by t-SNE.
        pca: (N, 2) coordinates along the first two principal components.
        explained: (2,) share of the variance along each of these.
        people: (N,) identity on each image.
    """

    title: str
    tsne: NDArray[np.floating]
    pca: NDArray[np.floating]
    explained: NDArray[np.floating]
    people: NDArray[np.integer]


@styled
def projection_figure(
    panels: Sequence[Projections], named: Sequence[int], names: Mapping[int, str] | None = None
) -> Figure:
    """Draw a column for each run, with the same people in the same colours and shapes in all of them.

    Args:
        panels: at least one run, and at most `MOST_PANELS`.
        named: identities that get a colour and a shape of their own, at most `MOST_NAMED`; all others are grey dots.
        names: what these are called, by default by their numbers.
    """
    columns = len(panels)
    figure = new_figure(min(10.0, 2.2 + 3.2 * columns), 7.2 if columns < 3 else 6.0)
    axes = figure.subplots(2, columns, squeeze=False)
    for panel, (above, below) in zip(panels, axes.T, strict=True):
        above.set_title(fill(panel.title, _TITLE_LETTERS[columns]), fontsize=10)
        _scatter(above, panel.tsne, panel.people, named)
        above.set(xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)")
        _scatter(below, panel.pca, panel.people, named)
        first, second = (f"{100 * share:.0f} %" for share in panel.explained)
        below.set(xlabel=f"PC 1 ({first} of variance)", ylabel=f"PC 2 ({second} of variance)")
        for ax in (above, below):
            ax.xaxis.label.set_size(10)
            ax.yaxis.label.set_size(10)
            ax.set_aspect("equal", adjustable="datalim")
            ax.margins(0.08)
        above.tick_params(labelbottom=False, labelleft=False, length=0)
        above.grid(False)
        below.tick_params(labelsize=9)
        below.locator_params(nbins=4)
    texts = person_labels({person: (names or {}).get(person, str(person)) for person in named}, _NAME_INCHES, 10)
    labels = [f"person {texts[person]}" for person in named]
    others = len({int(person) for panel in panels for person in panel.people} - set(named))
    fitting = int(figure.get_figwidth() / _LEGEND_INCHES)
    figure.legend(handles=_legend(labels, others), loc="outside lower center", ncols=fitting)
    return figure


def _scatter(ax: Axes, points: NDArray[np.floating], people: NDArray[np.integer], named: Sequence[int]) -> None:
    others = ~np.isin(people, named)
    ax.scatter(points[others, 0], points[others, 1], s=_OTHER_POINT, color=_OTHERS, linewidths=0, label="_others")
    for place, person in enumerate(named):
        own = people == person
        ax.scatter(
            points[own, 0],
            points[own, 1],
            s=_NAMED_POINT,
            color=_colour(place),
            marker=MARKERS[place],
            edgecolors="black",
            linewidths=0.4,
            label=f"person {person}",
        )


def _legend(labels: Sequence[str], others: int) -> list[Line2D]:
    handles = [
        Line2D(
            [], [], linestyle="", marker=MARKERS[place], color=_colour(place), markeredgecolor="black",
            markeredgewidth=0.4, markersize=6.5, label=label,
        )
        for place, label in enumerate(labels)
    ]  # fmt: skip
    if others:
        label = counted(others, "other")
        handles.append(Line2D([], [], linestyle="", marker="o", color=_OTHERS, markersize=3.5, label=label))
    return handles


def _colour(place: int) -> str:
    return str(series_style(place % MOST_SERIES)["color"])
