"""The look that all figures share, and how they are saved.

Figures are made without pyplot, which would keep every one of them in memory. Colours are those of Okabe and Ito
(2008), which the colour-blind tell apart; curves differ in dash and marker as well, for print in grey.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from handclip.files import replacing

BLUE, ORANGE, GREEN, PURPLE, RED, SKY, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000",
)  # fmt: skip
RIGHT, WRONG, NEUTRAL = GREEN, RED, "#767676"
"""What is right, what is wrong, and what is neither; never told by colour alone."""
PALE = "#BBBBBB"
"""What stands behind the rest."""

_COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK, "#8C6D1F")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2)), (0, (3, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MOST_SERIES = len(_COLOURS)
"""More curves in one figure cannot be told apart."""

FONT = "DejaVu Sans"

_RC: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    # A dollar sign in the name of a model or of a photograph begins no formula.
    "text.parse_math": False,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "savefig.dpi": 160,
    # The same figure gives the same file, and letters are drawn, since a page cannot count on a font.
    "svg.hashsalt": "handclip",
    "svg.fonttype": "path",
}

_Arguments = ParamSpec("_Arguments")


def styled(make: Callable[_Arguments, Figure]) -> Callable[_Arguments, Figure]:
    """Let a function make its figure in the common style; the process's own settings of matplotlib are left alone."""

    @wraps(make)
    def make_styled(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Figure:
        with mpl.rc_context(_RC):
            return make(*args, **kwargs)

    return make_styled


def new_figure(width: float = 8.0, height: float = 4.5) -> Figure:
    """Return an empty figure of a size in inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), layout="constrained")


def panel_axes(figure: Figure, count: int, columns: int) -> list[Axes]:
    """Return the axes of so many panels, in rows of so many columns."""
    rows = -(-count // columns)
    return [figure.add_subplot(rows, columns, place) for place in range(1, count + 1)]


def legend_below(figure: Figure, columns: int = 2, last: Mapping[str, Artist] | None = None) -> None:
    """Explain below a figure what has a label in any of its panels; what `last` has samples for comes last."""
    drawn: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        drawn |= dict(zip(labels, handles, strict=True))
    samples = {label: sample for label, sample in (last or {}).items() if label in drawn}
    shown = {label: handle for label, handle in drawn.items() if label not in samples} | samples
    figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=min(columns, len(shown)))


def series_style(number: int, *, markers: bool = False) -> dict[str, Any]:
    """Return colour, dash and, if asked for, marker of the curve of a number, as arguments of `Axes.plot`."""
    place = number % MOST_SERIES
    style: dict[str, Any] = {"color": _COLOURS[place], "linestyle": _DASHES[place]}
    return {**style, "marker": _MARKERS[place]} if markers else style


@dataclass(frozen=True)
class FigureFiles:
    """One figure in both formats."""

    png: Path
    svg: Path


def save_figure(figure: Figure, folder: Path, name: str) -> FigureFiles:
    """Write `<name>.png` and `<name>.svg` into a folder, each atomically; the same figure gives the same bytes.

    Raises:
        HandCLIPError: they cannot be written.
    """
    files = FigureFiles(folder / f"{name}.png", folder / f"{name}.svg")
    metadata: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    for kind, path in (("png", files.png), ("svg", files.svg)):
        with replacing(path) as temporary, mpl.rc_context(_RC):
            figure.savefig(temporary, format=kind, metadata=metadata[kind])
        # The parts have found their places, which takes as long as drawing; they need not look for them twice.
        figure.set_layout_engine("none")
    return files
