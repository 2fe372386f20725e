"""What a report is made of: sections of sentences, tables and pictures, each picture and table also a file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from handclip.csv_files import csv_table
from handclip.files import write_text
from handclip.report.figures.style import FigureFiles, save_figure


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Note:
    """A sentence that must not be overlooked: a `warning`, or what is `missing`, why, and how to get it."""

    text: str
    kind: Literal["warning", "missing"] = "warning"


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Args:
        files: where it is.
        alt: what it shows, in words, for who cannot see it.
        caption: how to read it; stands below it.
        photographic: holds photographs or many points, so that it is embedded as PNG and not as SVG.
    """

    files: FigureFiles
    alt: str
    caption: str
    photographic: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table: its key in the rows and in the CSV file, its title on the page, and how a value is shown."""

    key: str
    title: str
    show: Callable[[Any], str] = str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """A table on the page: `cells` are the texts of its rows, `strong` the (row, column) of those that stand out."""

    titles: Sequence[str]
    numeric: Sequence[bool]
    cells: Sequence[Sequence[str]]
    caption: str
    csv: Path | None = None
    strong: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Commands:
    """Lines to be typed at a terminal."""

    lines: Sequence[str]


Block = Text | Note | Heading | Picture | Table | Commands


@dataclass(frozen=True)
class Section:
    """A part of the page: `question` is what it answers, in one sentence."""

    anchor: str
    title: str
    question: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class ReportWriter:
    """The folder of a report, into which its sections write `figures/` and `tables/`.

    Args:
        folder: the folder.
        labels: how the page calls a run, by its name; stands beside the name in every table.
        files: what was written so far.
    """

    folder: Path
    labels: Mapping[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def picture(self, name: str, figure: Figure, *, alt: str, caption: str, photographic: bool = False) -> Picture:
        """Save a figure as PNG and SVG and return its place on the page."""
        files = save_figure(figure, self.folder / "figures", name)
        self.files.extend((files.png, files.svg))
        return Picture(files, alt, caption, photographic)

    def table(self, name: str, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], caption: str) -> Table:
        """Save rows as CSV, with every key that any of them has, and return a table of the given columns.

        A value of None is an empty cell of the file and `-` on the page.
        """
        return make_table(columns, rows, caption, self.csv(name, rows))

    def csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Save rows as `tables/<name>.csv`, with every key that any of them has."""
        path = self.folder / "tables" / f"{name}.csv"
        rows = [self._labelled(row) for row in rows]
        write_text(path, csv_table(rows))
        self.files.append(path)
        return path

    def _labelled(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        label = self.labels.get(row.get("run", ""))
        return row if label is None else {"run": row["run"], "label": label, **row}


def make_table(
    columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], caption: str, csv: Path | None = None
) -> Table:
    """Return a table of the given columns of rows, whose numbers are in the file named; None is shown as `-`."""
    cells = [[_shown(column, row.get(column.key)) for column in columns] for row in rows]
    return Table([column.title for column in columns], [column.numeric for column in columns], cells, caption, csv)


def _shown(column: Column, value: Any) -> str:
    return "-" if value is None else column.show(value)


def percent(value: float) -> str:
    """Return a fraction as percent with one decimal, without the sign."""
    return f"{100 * value:.1f}"
