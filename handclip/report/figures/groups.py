"""For whom a system works: rates by group, with intervals, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
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
        rates: (G,) NaN where it is not shown.
        low: (G,) lower ends of the intervals.
        high: (G,) upper ends.
        reference: (G,) the rate over everybody that each group is held against.
    """

    label: str
    style: int
    rates: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    reference: NDArray[np.float64]


@styled
def groups_figure(groups: Sequence[Group], panels: Sequence[tuple[str, Sequence[GroupRates]]]) -> Figure:
    """Draw a row for each group and a column for each rate; a line stands beside each at the rate over everybody.

    Args:
        groups: rows from top to bottom; those of one attribute follow each other, and share a reference.
        panels: for each rate its name, as on the axis, and the runs, the same ones in each.

    Raises:
        ValueError: there is no group or no panel, or a run does not have a rate for each group.
    """
    if not groups or not panels:
        raise ValueError("there is nothing to draw")
    if any(run.rates.shape != (len(groups),) for _, runs in panels for run in runs):
        raise ValueError(f"each run needs {len(groups)} rates")
    runs = panels[0][1]
    places, headings = _places(groups)
    height = 1.1 + (places[-1] + 1) * (_ROW_INCHES + _RUN_INCHES * (len(runs) - 1)) + 0.25 * _legend_rows(len(runs))
    figure = new_figure(min(10.0, 4.4 + 2.3 * len(panels)), max(3.0, height))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (name, rates) in zip(axes, panels, strict=True):
        _draw(ax, groups, places, rates)
        ax.set_xlabel(fill(name, 24))
    _name_rows(axes[0], groups, places, headings)
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


def _legend_rows(runs: int) -> int:
    return 1 if runs == 1 else runs // 2 + 1


def _places(groups: Sequence[Group]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the place of each row from the top, and that of each attribute's heading."""
    places: list[float] = []
    headings: list[tuple[float, str]] = []
    place = 0.0
    for attribute, rows in groupby(groups, key=lambda group: group.attribute):
        headings.append((place, attribute))
        for _ in rows:
            place += 1
            places.append(place)
        place += 1.3
    return places, headings


def _rows_by_attribute(groups: Sequence[Group]) -> list[list[int]]:
    by_attribute = groupby(range(len(groups)), key=lambda row: groups[row].attribute)
    return [list(rows) for _, rows in by_attribute]


def _name_rows(
    ax: Axes, groups: Sequence[Group], places: Sequence[float], headings: Sequence[tuple[float, str]]
) -> None:
    texts = [f"{group.value} ({counted(group.people, 'person', 'people')}, {group.queries} images)" for group in groups]
    ax.set_yticks([*places, *(place for place, _ in headings)], [*texts, *(name for _, name in headings)])
    for label in ax.get_yticklabels()[len(texts) :]:
        label.set_fontweight("bold")
    ax.set_ylim(places[-1] + 0.7, -0.6)


def _draw(ax: Axes, groups: Sequence[Group], places: Sequence[float], runs: Sequence[GroupRates]) -> None:
    offsets = np.linspace(-_SPREAD / 2, _SPREAD / 2, len(runs)) if len(runs) > 1 else np.zeros(1)
    small = np.array([group.small for group in groups])
    for run, offset in zip(runs, offsets, strict=True):
        style = series_style(run.style, markers=True)
        at = np.array(places) + offset
        line = series_style(run.style) if len(runs) > 1 else {"color": NEUTRAL, "linestyle": "--"}
        for rows in _rows_by_attribute(groups):
            span = [places[rows[0]] - 0.6, places[rows[-1]] + 0.6]
            ax.plot([100 * run.reference[rows[0]]] * 2, span, **line, linewidth=1)
        ends = np.array([run.rates - run.low, run.high - run.rates])
        ax.errorbar(
            100 * run.rates,
            at,
            xerr=100 * ends,
            fmt="none",
            ecolor=style["color"],
            elinewidth=1.6,
            capsize=2.5,
        )
        for chosen, face in ((~small, style["color"]), (small, "white")):
            ax.plot(
                100 * run.rates[chosen], at[chosen], marker=style["marker"], linestyle="", color=style["color"],
                markerfacecolor=face, markersize=6, label=f"_{run.label}",
            )  # fmt: skip
    for place in np.array(places)[np.isnan([run.rates for run in runs]).all(axis=0)]:
        ax.text(0.5, place, "not shown", transform=ax.get_yaxis_transform(), ha="center", va="center",
                fontsize=9, color=NEUTRAL, style="italic",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
