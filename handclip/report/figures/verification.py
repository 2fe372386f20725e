"""Figures of error rates: score densities, DET and ROC curves, open-set curves, reliability diagrams."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from handclip.metrics.calibration import Reliability
from handclip.report.figures.style import (
    BLUE,
    NEUTRAL,
    PALE,
    RED,
    legend_below,
    new_figure,
    panel_axes,
    series_style,
    styled,
)

Floats = NDArray[np.float64]
_Scale = Callable[[Floats], Floats]

_TICKS = (1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99)
_LEFTMOST = 1e-5
_BETWEEN = np.geomspace(_LEFTMOST, 1, 101)
"""False rates at which curves have a point, if they have none nearby."""


@dataclass(frozen=True, eq=False)
class ScoreDensities:
    """How the scores of one system are spread.

    Args:
        title: names the system.
        edges: (K + 1,) ends of K bins.
        genuine: (K,) density of genuine scores.
        impostor: (K,) density of impostor scores.
        threshold: where comparisons begin to be accepted, if that was fixed.
    """

    title: str
    edges: Floats
    genuine: Floats
    impostor: Floats
    threshold: float | None = None


@dataclass(frozen=True, eq=False)
class ErrorCurve:
    """One error rate against another, both as fractions; straight between its points.

    Args:
        label: names the system.
        style: number of its colour and dash.
        false: (K,) FMR or FPIR, falling.
        missed: (K,) FNMR or FNIR.
        band: (K,) lower and (K,) upper ends of the missed rate's interval.
    """

    label: str
    style: int
    false: Floats
    missed: Floats
    band: tuple[Floats, Floats] | None = None

    def with_points_between(self) -> "ErrorCurve":
        """Return it with so many points that it is right on axes that bend straight lines."""
        own = np.arange(len(self.false))
        places = np.union1d(own, np.interp(-_BETWEEN, -self.false, own))
        false, missed = (np.interp(places, own, rates) for rates in (self.false, self.missed))
        if self.band is None:
            return replace(self, false=false, missed=missed)
        low, high = (np.interp(places, own, ends) for ends in self.band)
        return replace(self, false=false, missed=missed, band=(low, high))


@styled
def score_densities_figure(panels: Sequence[ScoreDensities]) -> Figure:
    """Return the densities of genuine and impostor scores, a panel for each system."""
    columns = min(len(panels), 2)
    figure = new_figure(8 if columns == 1 else 9.5, 0.8 + 2.7 * -(-len(panels) // 2))
    for axes, panel in zip(panel_axes(figure, len(panels), columns), panels, strict=True):
        axes.stairs(panel.impostor, panel.edges, fill=True, color=PALE, label="impostor: two people")
        axes.stairs(panel.impostor, panel.edges, color=NEUTRAL, linewidth=1)
        axes.stairs(panel.genuine, panel.edges, color=BLUE, linewidth=2, label="genuine: the same person")
        if panel.threshold is not None:
            axes.axvline(panel.threshold, color=RED, linestyle="--", label="EER threshold of the validation split")
        axes.set(title=panel.title, xlabel="Similarity (cosine)", ylabel="Density")
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", nbins=5)
    legend_below(figure, columns=3)
    return figure


@styled
def error_tradeoff_figure(curves: Sequence[ErrorCurve], lowest_fmr: float) -> Figure:
    """Return DET curves, whose axes make normally distributed scores a straight line, beside ROC curves.

    Args:
        curves: FMR and FNMR of each system.
        lowest_fmr: false match rates below it are shaded, since too few pairs of people were compared to measure them.
    """
    figure = new_figure(9.8, 5.2 + 0.22 * -(-len(curves) // 2))
    det, roc = figure.subplots(1, 2)
    left = min(max((tick for tick in _TICKS if tick < lowest_fmr), default=_LEFTMOST), 0.01)
    for curve in curves:
        _draw_curve(det, curve, _probit, _probit)
        _draw_curve(roc, curve, _percent, lambda missed: 100 * (1 - missed))
    curves = [curve.with_points_between() for curve in curves]
    inside = np.concatenate(
        [curve.missed[(curve.missed > 0) & (curve.false < 0.6)] for curve in curves] or [np.ones(1)]
    )
    bottom = max((tick for tick in _TICKS if tick < inside.min(initial=0.05)), default=_LEFTMOST)
    missed_left = max((float(np.interp(-left, -curve.false, curve.missed)) for curve in curves), default=0.5)
    top = min((tick for tick in _TICKS if tick > missed_left), default=0.99)
    _normal_deviate(det, (left, 0.8), (min(bottom, 0.01), max(top, 0.6)))
    line = _probit(np.array([1e-6, 1 - 1e-6]))
    det.plot(line, line, color=NEUTRAL, linewidth=0.8, linestyle=":")
    det.set(title="DET: lower is better", xlabel="False match rate, FMR (%)", ylabel="False non-match rate, FNMR (%)")
    _logarithmic(roc, left)
    roc.set(title="ROC: higher is better", xlabel="False match rate, FMR (%)", ylabel="True match rate, 1 − FNMR (%)")
    for axes, scale in ((det, _probit), (roc, _percent)):
        _shade(axes, scale(np.array([left, lowest_fmr])), "too few pairs of people to measure")
    legend_below(figure)
    return figure


@styled
def open_set_figure(curves: Sequence[ErrorCurve], lowest_fpir: float) -> Figure:
    """Return FNIR against FPIR of open-set identification.

    Args:
        curves: FPIR and FNIR of each system.
        lowest_fpir: false positive identification rates below it are shaded, since too few people were searched for to
            measure them.
    """
    figure = new_figure(8, 4.4 + 0.22 * -(-len(curves) // 2))
    axes = figure.subplots()
    left = min(0.01, 10 ** np.floor(np.log10(lowest_fpir)))
    for curve in curves:
        _draw_curve(axes, curve, _percent, _percent)
    _logarithmic(axes, left)
    axes.set_xlabel("False positive identification rate, FPIR (%)")
    axes.set_ylabel("False negative identification rate,\nFNIR (%)")
    _shade(axes, _percent(np.array([left, lowest_fpir])), "rests on few people: read the band")
    legend_below(figure)
    return figure


@styled
def reliability_figure(panels: Mapping[str, Mapping[str, Reliability]]) -> Figure:
    """Return reliability diagrams: a panel for each system by its title, and a curve for each kind of predictions."""
    columns = min(len(panels), 2)
    figure = new_figure(8 if columns == 1 else 9, 0.8 + 3.6 * -(-len(panels) // 2))
    for axes, (title, curves) in zip(panel_axes(figure, len(panels), columns), panels.items(), strict=True):
        axes.plot([0, 100], [0, 100], color=NEUTRAL, linewidth=1, label="predictions come true as often as they say")
        for place, (name, curve) in enumerate(curves.items()):
            axes.plot(100 * curve.predicted, 100 * curve.observed, label=name, **series_style(place, markers=True))
        axes.set(xlim=(-3, 103), ylim=(-3, 103), aspect="equal", title=title)
        axes.set(xlabel="Predicted: same person (%)", ylabel="Observed: same person (%)")
    legend_below(figure, columns=1)
    return figure


def _draw_curve(axes: Axes, curve: ErrorCurve, across: _Scale, up: _Scale) -> None:
    """Draw a curve and its band on scales of their own."""
    curve = curve.with_points_between()
    style = series_style(curve.style)
    axes.plot(across(curve.false), up(curve.missed), label=curve.label, **style)
    if curve.band is not None:
        low, high = np.sort([up(ends) for ends in curve.band], axis=0)
        axes.fill_between(across(curve.false), low, high, color=style["color"], alpha=0.15, linewidth=0)


def _logarithmic(axes: Axes, left: float) -> None:
    """Let false rates be on a logarithmic axis, and what stands above them reach from 0 to 100 %."""
    axes.set_xscale("log")
    axes.set(xlim=(100 * left, 100), ylim=(0, 101))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _shade(axes: Axes, ends: Floats, why: str) -> None:
    """Hatch what lies between two places of the axis, from the left."""
    left, right = ends
    if right > left:
        axes.axvspan(left, right, facecolor="none", edgecolor=PALE, hatch="///", linewidth=0, label=why)


def _percent(rates: Floats) -> Floats:
    return 100 * rates


def _probit(rates: Floats) -> Floats:
    """Normal deviates of rates; those of 0 and 1 are moved off the axes."""
    normal = NormalDist()
    return np.array([normal.inv_cdf(rate) for rate in np.clip(rates, 1e-7, 1 - 1e-7).tolist()])


def _normal_deviate(axes: Axes, across: tuple[float, float], up: tuple[float, float]) -> None:
    for (low, high), axis, limit in ((across, axes.xaxis, axes.set_xlim), (up, axes.yaxis, axes.set_ylim)):
        ticks = [tick for tick in _TICKS if low <= tick <= high]
        axis.set_ticks(_probit(np.array(ticks)), [f"{100 * tick:g}" for tick in ticks])
        limit(*_probit(np.array([low, high])))
