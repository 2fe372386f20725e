"""How training went, and what each run scores in the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from handclip.report.figures.style import (
    BLACK,
    BLUE,
    legend_below,
    new_figure,
    panel_axes,
    series_style,
    styled,
)

_PALE_BLUE = "#A9C8E2"
_BEST = "large, black edge: best epoch"
_BEST_MARKER: dict[str, Any] = {"linestyle": "none", "markersize": 10, "markeredgecolor": BLACK, "markeredgewidth": 1.6}


@dataclass(frozen=True)
class EpochCurve:
    """A quantity of one run by epoch.

    Args:
        label: of the run.
        style: number of its colour, dash and marker.
        epochs: counted from 1.
        values: at each epoch; None where it was not measured.
        best_epoch: is marked, where there is a value.
    """

    label: str
    style: int
    epochs: Sequence[float]
    values: Sequence[float | None]
    best_epoch: float | None = None

    @property
    def points(self) -> list[tuple[float, float]]:
        """Epochs that have a value, and it."""
        return [(epoch, value) for epoch, value in zip(self.epochs, self.values, strict=True) if value is not None]


@dataclass(frozen=True)
class EpochPanel:
    """One quantity of several runs.

    Args:
        title: above it.
        unit: name and unit of its axis.
        curves: of the runs.
        percent: values are fractions, drawn as percent.
        logarithmic: the axis is; all values are above 0.
    """

    title: str
    unit: str
    curves: Sequence[EpochCurve]
    percent: bool = False
    logarithmic: bool = False


@dataclass(frozen=True)
class ScoreBar:
    """A score with its interval, as fractions; `best`: no other run has more."""

    label: str
    value: float
    low: float
    high: float
    best: bool = False


@styled
def epochs_figure(panels: Sequence[EpochPanel]) -> Figure:
    """Return quantities by epoch, a panel for each, with the curves of all runs laid over each other.

    At its best epoch a curve's marker is large and has a black edge; a single curve has its value there as well.
    """
    columns = len(panels) if len(panels) <= 3 else 2 if len(panels) == 4 else 3
    rows = -(-len(panels) // columns)
    labels = {curve.label for panel in panels for curve in panel.curves}
    height = (3.2 if rows == 1 else 2.6) * rows + 0.24 * (len(labels) // 2 + 1)
    figure = new_figure(8.0 if columns < 3 else 9.5, height)
    for axes, panel in zip(panel_axes(figure, len(panels), columns), panels, strict=True):
        _draw_panel(axes, panel)
    legend_below(figure, last={_BEST: Line2D([], [], **{**_BEST_MARKER, "marker": "o", "color": "white"})})
    return figure


def _draw_panel(axes: Axes, panel: EpochPanel) -> None:
    scale = 100 if panel.percent else 1
    for curve in panel.curves:
        points = curve.points
        epochs, values = [epoch for epoch, _ in points], [scale * value for _, value in points]
        # One marker in about ten epochs tells dashes apart; the last epoch always has one.
        spacing = max(1, len(points) // 10)
        places = list(range(len(points) - 1, -1, -spacing))
        axes.plot(epochs, values, label=curve.label, markevery=places, **series_style(curve.style, markers=True))
        if curve.best_epoch in epochs:
            best = values[epochs.index(curve.best_epoch)]
            _mark_best(axes, curve.best_epoch, best, curve.style, annotate=len(panel.curves) == 1)
    last = max((epoch for curve in panel.curves for epoch in curve.epochs), default=1)
    axes.set(
        title=panel.title, xlabel="Epoch", ylabel=panel.unit, xlim=(max(0.4, 0.7 - 0.03 * last), 1.03 * last + 0.3)
    )
    axes.ticklabel_format(useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    if panel.logarithmic:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        # Over many decades, as where a run breaks away, labels between them would lie on each other.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.12)


def _mark_best(axes: Axes, epoch: float, value: float, style: int, *, annotate: bool) -> None:
    axes.plot([epoch], [value], label=_BEST, zorder=5, **{**series_style(style, markers=True), **_BEST_MARKER})
    if annotate:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        below: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "top"}
        text = f"{value:.1f} at epoch {epoch:.0f}"
        axes.annotate(text, (epoch, value), (0, -14), fontsize=9, bbox=box, zorder=6, **below)


@styled
def scores_figure(panels: Mapping[str, Sequence[ScoreBar]]) -> Figure:
    """Return horizontal bars with intervals, a panel for each metric by its name, the same runs in the same order.

    The best of each metric is darker, its value bold.
    """
    runs = [bar.label for bar in next(iter(panels.values()))]
    figure = new_figure(10.0, 1.3 + 0.3 * len(runs))
    shared: dict[str, Any] = {}
    for place, (name, bars) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place, **shared)
        _draw_bars(axes, bars)
        axes.set(title=name, xlabel=f"{name} (%)", xlim=(0, 118), xticks=range(0, 101, 20))
        axes.tick_params(axis="y", length=0, labelleft=not shared)
        shared = {"sharey": axes}
    axes.set(yticks=range(len(runs)), yticklabels=runs, ylim=(len(runs) - 0.4, -0.6))
    return figure


def _draw_bars(axes: Axes, bars: Sequence[ScoreBar]) -> None:
    places = range(len(bars))
    colours = [BLUE if bar.best else _PALE_BLUE for bar in bars]
    errors = [[100 * (bar.value - bar.low) for bar in bars], [100 * (bar.high - bar.value) for bar in bars]]
    whiskers = {"elinewidth": 1.3, "capsize": 3, "ecolor": BLACK}
    axes.barh(places, [100 * bar.value for bar in bars], 0.66, xerr=errors, color=colours, error_kw=whiskers)
    axes.grid(False, axis="y")
    for place, bar in zip(places, bars, strict=True):
        weight = "bold" if bar.best else "normal"
        axes.text(100 * bar.high + 2, place, f"{100 * bar.value:.1f}", va="center", fontsize=10, fontweight=weight)
