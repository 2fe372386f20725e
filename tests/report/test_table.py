"""One table, however it is shown."""

import csv
import io

import pytest
from rich.console import Console

from handclip.csv_files import csv_table
from handclip.report.table import Cell, Column, Table, escape_latex, latex_table, markdown_table, screen_table

TABLE = Table(
    columns=[
        Column("run", "Run"),
        Column("rate", "Rate %", lambda rate: f"{100 * rate:.1f}", numeric=True),
        Column("note", "Note"),
    ],
    records=[
        {"run": "a_b|c", "rate": 0.12345, "note": Cell("first\nbest", strong=True), "seed": 3},
        {"run": "<b>`<x>`", "rate": None},
    ],
    caption="50 % of R&D.",
)


def test_cells_are_what_columns_show() -> None:
    assert TABLE.titles == ["Run", "Rate %", "Note"]
    assert TABLE.cells == [
        [Cell("a_b|c"), Cell("12.3"), Cell("first\nbest", strong=True)],
        [Cell("<b>`<x>`"), Cell("-"), Cell("-")],
    ]


def test_csv_has_every_key_unrounded() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_table([{**record, "note": ""} for record in TABLE.records]))))
    assert [row["rate"] for row in rows] == ["0.12345", ""]
    assert rows[0]["seed"] == "3"


def test_markdown_keeps_text_in_its_cell_and_brings_no_html() -> None:
    assert markdown_table(TABLE).splitlines() == [
        "| Run | Rate % | Note |",
        "| --- | ---: | --- |",
        "| a_b\\|c | 12.3 | **first best** |",
        "| &lt;b>`<x>` | - | - |",
    ]


def test_latex_needs_no_mending() -> None:
    assert latex_table(TABLE, "tab:one").splitlines() == [
        r"\begin{table}",
        r"\caption{50 \% of R\&D.}",
        r"\label{tab:one}",
        r"\resizebox{\linewidth}{!}{%",
        r"\begin{tabular}{lrl}",
        r"\toprule",
        r"Run & Rate \% & Note \\",
        r"\midrule",
        r"a\_b|c & 12.3 & \textbf{first best} \\",
        r"<b>`<x>` & - & - \\",
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        (r"a_b & 5 % #1 {x}", r"a\_b \& 5 \% \#1 \{x\}"),
        (r"\y ~ ^ $", r"\textbackslash{}y \textasciitilde{} \textasciicircum{} \$"),
        ("75.0 ± 1.3 [71.2, 78.4] · 98.51†", r"75.0 $\pm$ 1.3 {[}71.2, 78.4] $\cdot$ 98.51\textdagger{}"),
    ],
)
def test_every_character_means_itself_in_latex(text: str, escaped: str) -> None:
    assert escape_latex(text) == escaped


@pytest.mark.parametrize("width", [80, 12])
def test_a_screen_folds_and_never_cuts_off(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(screen_table(TABLE))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    letters = "".join(text.split())
    assert all(letter in letters for letter in "a_b|c12.3firstbest")
    assert width < 80 or "a_b|c       12.3  first" in text
