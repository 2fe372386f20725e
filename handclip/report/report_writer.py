"""What a report is made of: sections of sentences, tables and pictures, each picture and table also a file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from handclip.csv_files import csv_table
from handclip.files import write_text
from handclip.report.figures.style import FigureFiles, save_figure
from handclip.report.prose import Prose
from handclip.report.table import Column, Table


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

    def csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Save rows as `tables/<name>.csv`, with every key that any of them has."""
        path = self.folder / "tables" / f"{name}.csv"
        rows = [self._labelled(row) for row in rows]
        write_text(path, csv_table(rows))
        self.files.append(path)
        return path

    def section(self, anchor: str, **values: Any) -> "SectionWriter":
        """Begin a section, whose texts may all speak of some values."""
        return SectionWriter(self, anchor, Prose(anchor, **values))

    def _labelled(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        label = self.labels.get(row.get("run", ""))
        return row if label is None else {"run": row["run"], "label": label, **row}


@dataclass(frozen=True)
class SectionWriter:
    """A section while it is written, from top to bottom, with the words that its template has for it.

    Args:
        writer: of the report.
        anchor: of the section, which names its template too.
        prose: its words.
        blocks: what was written so far.
    """

    writer: ReportWriter
    anchor: str
    prose: Prose
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        """Go on with blocks."""
        self.blocks.extend(blocks)

    def words(self, name: str, /, **values: Any) -> None:
        """Go on with the headings, paragraphs and notes of a text."""
        self.add(*map(_as_block, self.prose.paragraphs(name, **values)))

    def picture(self, name: str, figure: Figure, *, photographic: bool = False, **values: Any) -> None:
        """Go on with a figure, which is saved; it is told of by the texts `<name>_alt` and `<name>_caption`."""
        alt, caption = (self.prose.text(f"{name}_{what}", **values) for what in ("alt", "caption"))
        self.add(self.writer.picture(name, figure, alt=alt, caption=caption, photographic=photographic))

    def csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Save rows as `tables/<name>.csv`."""
        return self.writer.csv(name, rows)

    def table(
        self,
        name: str,
        columns: Sequence[Column],
        rows: Sequence[Mapping[str, Any]],
        csv: Path | None = None,
        **values: Any,
    ) -> None:
        """Go on with a table, and name the file that holds its numbers; `<name>_table` tells how it is read."""
        self.add(Table(columns, rows, self.prose.text(f"{name}_table", **values), csv))

    def finished(self) -> Section:
        """Return the section."""
        return Section(self.anchor, self.prose.text("title"), self.prose.text("question"), self.blocks)


_MARKS: Mapping[str, Callable[[str], Block]] = {
    "### ": Heading,
    "Missing: ": lambda text: Note(text, "missing"),
    "Caution: ": Note,
}
"""What a paragraph of a template begins with that is no plain text."""


def _as_block(paragraph: str) -> Block:
    for mark, make in _MARKS.items():
        if paragraph.startswith(mark):
            return make(paragraph.removeprefix(mark))
    return Text(paragraph)
