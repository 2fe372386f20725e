"""For whom a system works: rates by group, with intervals, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from handclip.metrics.uncertainty import FEW_PEOPLE
from handclip.plurals import counted
from handclip.report.figures.style import NEUTRAL, new_figure, series_style, styled

_ROW_INCHES, _RUN_INCHES = 0.24, 0.11
_SPREAD = 0.56
"""How much of a row's height the dots of several runs take."""


@dataclass(frozen=True)
class Group:
    """A row: an attribute, one of its values, and how many there are of it.

    Args:
        attribute: such as `Gender`.
        value: such as `female`.
        people: whose images were searched for.
        queries: different images of them that were searched for.
    """

    attribute: str
    value: str
    people: int
    queries: int

    @property
    def small(self) -> bool:
        """Whether it has fewer than `FEW_PEOPLE`; its dots are hollow."""
        return self.people < FEW_PEOPLE


@dataclass(frozen=True, eq=False)
class GroupRates:
    """One run's rate in each of G groups, as fractions.

    Args:
        label: the run.
        style: number of its colour and marker.
        rates: (G, 3) the rate and the ends of its interval; NaN where it is not shown.
        reference: (G,) the rate over everybody that each group is held against.
    """

    label: str
    style: int
    rates: NDArray[np.float64]
    reference: NDArray[np.float64]


@styled
def groups_figure(groups: Sequence[Group], panels: Mapping[str, Sequence[GroupRates]]) -> Figure:
    """Draw a row for each group and a column for each rate; a line stands beside each at the rate over everybody.

    Args:
        groups: rows from top to bottom; those of one attribute follow each other, and share a reference.
        panels: by each rate's name, as on the axis, the runs, the same ones in each.
    """
    runs = next(iter(panels.values()))
    places = _places(groups)
    legend_rows = 1 if len(runs) == 1 else len(runs) // 2 + 1
    height = 1.1 + (places[-1][-1] + 1) * (_ROW_INCHES + _RUN_INCHES * (len(runs) - 1)) + 0.25 * legend_rows
    figure = new_figure(min(10.0, 4.4 + 2.3 * len(panels)), max(3.0, height))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (name, rates) in zip(axes, panels.items(), strict=True):
        _draw(ax, groups, places, rates)
        ax.set_xlabel(fill(name, 24))
    _name_rows(axes[0], groups, places)
    handles = _legend(runs, any(group.small for group in groups))
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(runs) > 1 else 3)
    return figure


def _legend(runs: Sequence[GroupRates], some_small: bool) -> list[Line2D]:
    if len(runs) > 1:
        handles = [
            Line2D([], [], **series_style(run.style, markers=True), linewidth=1, markersize=6, label=run.label)
            for run in runs
        ]
        hollow = {"color": "black", "marker": "o"}
    else:
        handles = [Line2D([], [], color=NEUTRAL, linestyle="--", linewidth=1, label="rate over everybody")]
        hollow = series_style(runs[0].style, markers=True)
    if some_small:
        look: dict[str, Any] = {**hollow, "linestyle": "", "markerfacecolor": "white", "markersize": 6}
        handles.append(Line2D([], [], **look, label=f"hollow: fewer than {FEW_PEOPLE} people"))
    return handles


def _places(groups: Sequence[Group]) -> list[list[float]]:
    """Return the places of the rows of each attribute, from the top; its heading is one above the first."""
    places: list[list[float]] = []
    heading = 0.0
    for _, rows in groupby(groups, key=lambda group: group.attribute):
        places.append([heading + number for number, _ in enumerate(rows, start=1)])
        heading = places[-1][-1] + 1.3
    return places


def _name_rows(ax: Axes, groups: Sequence[Group], places: Sequence[Sequence[float]]) -> None:
    texts = [f"{group.value} ({counted(group.people, 'person', 'people')}, {group.queries} images)" for group in groups]
    headings = [attribute for attribute, _ in groupby(group.attribute for group in groups)]
    ax.set_yticks([*chain(*places), *(rows[0] - 1 for rows in places)], [*texts, *headings])
    for label in ax.get_yticklabels()[len(texts) :]:
        label.set_fontweight("bold")
    ax.set_ylim(places[-1][-1] + 0.7, -0.6)


def _draw(ax: Axes, groups: Sequence[Group], places: Sequence[Sequence[float]], runs: Sequence[GroupRates]) -> None:
    offsets = np.linspace(-_SPREAD / 2, _SPREAD / 2, len(runs)) if len(runs) > 1 else np.zeros(1)
    small = np.array([group.small for group in groups])
    rows = np.array([*chain(*places)])
    for run, offset in zip(runs, offsets, strict=True):
        style = series_style(run.style, markers=True)
        line = series_style(run.style) if len(runs) > 1 else {"color": NEUTRAL, "linestyle": "--"}
        for of_attribute in places:
            reference = 100 * run.reference[rows == of_attribute[0]]
            ax.plot([*reference, *reference], [of_attribute[0] - 0.6, of_attribute[-1] + 0.6], **line, linewidth=1)
        rates, low, high = 100 * run.rates.T
        whiskers: dict[str, Any] = {"fmt": "none", "ecolor": style["color"], "elinewidth": 1.6, "capsize": 2.5}
        ax.errorbar(rates, rows + offset, xerr=[rates - low, high - rates], **whiskers)
        for chosen, face in ((~small, style["color"]), (small, "white")):
            dots: dict[str, Any] = {**style, "linestyle": "", "markerfacecolor": face, "markersize": 6}
            ax.plot(rates[chosen], (rows + offset)[chosen], label=f"_{run.label}", **dots)
    for place in rows[np.isnan([run.rates[:, 0] for run in runs]).all(axis=0)]:
        ax.text(0.5, place, "not shown", transform=ax.get_yaxis_transform(), ha="center", va="center",
                fontsize=9, color=NEUTRAL, style="italic",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
