"""Stand-ins for saving figures, which takes most of a report's time and is the matter of other tests."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from handclip.report.figures.style import FigureFiles


def save_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each file of a figure hold one dot."""

    def save_dot(figure: Figure, folder: Path, name: str) -> FigureFiles:
        files = FigureFiles(folder / f"{name}.png", folder / f"{name}.svg")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(files.png)
        files.svg.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
        return files

    monkeypatch.setattr("handclip.report.report_writer.save_figure", save_dot)


def keep_figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Return the figures that will be made, by name; nothing is written."""
    made: dict[str, Figure] = {}

    def keep(figure: Figure, folder: Path, name: str) -> FigureFiles:
        made[name] = figure
        return FigureFiles(folder / f"{name}.png", folder / f"{name}.svg")

    monkeypatch.setattr("handclip.report.report_writer.save_figure", keep)
    return made
