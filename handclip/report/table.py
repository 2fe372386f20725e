"""The one table of this package, and how it looks at a terminal, in Markdown and in LaTeX.

A `Table` is records, a mapping for each row, and the columns of them that are shown, in order. Everything else follows:

- **CSV** is `handclip.csv_files.csv_table(records)`: every key that a record has, values as they are, unrounded.
- **Everywhere else** there are `table.cells`: what each `Column` shows of each record. `screen_table` is for a terminal
  (by rich), `markdown_table` and `latex_table` return text, and the page of a report has its HTML in the template
  `page/report.html.j2`, which escapes it.

A column says by `show` how a value becomes text. A value that is a `Cell` is text already, which may stand out
(`strong`); None, and a key that a record lacks, is shown as `-`. In HTML and at a terminal a cell may have several
lines, which Markdown and LaTeX join.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as ScreenTable
from rich.text import Text


@dataclass(frozen=True)
class Cell:
    """Text in a table: `strong` where it is the best of its column; `style` is how a terminal sets it otherwise."""

    text: str
    strong: bool = False
    style: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table: its key in the records and in a CSV file, its title, and how a value is shown.

    `numeric` columns are set to the right.
    """

    key: str
    title: str
    show: Callable[[Any], str] = str
    numeric: bool = False

    def cell(self, record: Mapping[str, Any]) -> Cell:
        """Return what is shown of a record."""
        value = record.get(self.key)
        return value if isinstance(value, Cell) else Cell("-" if value is None else self.show(value))


def plain_columns(*titles: str) -> list[Column]:
    """Return columns of records that have the titles for keys."""
    return [Column(title, title) for title in titles]


@dataclass(frozen=True)
class Table:
    """Records, and which columns of them are shown; `csv` is the file that holds all of them, where there is one."""

    columns: Sequence[Column]
    records: Sequence[Mapping[str, Any]]
    caption: str = ""
    csv: Path | None = None

    @property
    def titles(self) -> list[str]:
        """The titles of the columns."""
        return [column.title for column in self.columns]

    @property
    def cells(self) -> list[list[Cell]]:
        """What is shown, row by row."""
        return [[column.cell(record) for column in self.columns] for record in self.records]


def screen_table(table: Table, **look: Any) -> ScreenTable:
    """Return a table for a terminal, without its caption; a narrow one may fold a cell, but never cut it off.

    Args:
        table: the table.
        look: options of rich's table that differ from a plain one with a line below its titles.
    """
    plain = {"box": SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0), "show_edge": False}
    shown = ScreenTable(**{**plain, **look})
    for column in table.columns:
        shown.add_column(Text(column.title), overflow="fold", justify="right" if column.numeric else "left")
    for cells in table.cells:
        shown.add_row(*(Text(cell.text, style="bold" if cell.strong else cell.style) for cell in cells))
    return shown


def markdown_table(table: Table) -> str:
    """Return a table as Markdown, without its caption."""
    rule = ["---:" if column.numeric else "---" for column in table.columns]
    rows = [[_markdown_cell(cell) for cell in cells] for cells in table.cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in (table.titles, rule, *rows))


def _markdown_cell(cell: Cell) -> str:
    """Return text that stays in its cell and brings no HTML; what stands between backticks is shown as it is."""
    text = f"**{cell.text}**" if cell.strong else cell.text
    *pairs, last = re.split(r"(`[^`]*`)", " ".join(text.split("\n")).replace("|", "\\|"))
    return "".join(part if part.startswith("`") and part else part.replace("<", "&lt;") for part in (*pairs, last))


def markdown_code(text: str) -> str:
    """Return text between backticks, of which it keeps none."""
    return f"`{text.replace('`', chr(39))}`"


def latex_table(table: Table, label: str) -> str:
    """Return a `table` that refers to itself by a label; it needs the packages `booktabs` and `graphicx`."""
    alignment = "".join("r" if column.numeric else "l" for column in table.columns)
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escape_latex(table.caption)}}}",
            rf"\label{{{label}}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            _latex_row(map(escape_latex, table.titles)),
            r"\midrule",
            *(_latex_row(map(_latex_cell, cells)) for cells in table.cells),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
        ]
    )


def _latex_row(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"


def _latex_cell(cell: Cell) -> str:
    text = escape_latex(" ".join(cell.text.split("\n")))
    return rf"\textbf{{{text}}}" if cell.strong else text


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "†": r"\textdagger{}",
    # At the start of a line, LaTeX would read a bracket as the option of `\\` before it.
    "[": "{[}",
}


def escape_latex(text: str) -> str:
    """Return text in which no character means anything to LaTeX but itself."""
    return re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], text)
