"""Names that mean something to a spreadsheet, a browser, Markdown, LaTeX or a figure stay text in all of them."""

import csv
import html
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from made_runs import write_run
from matplotlib.figure import Figure
from PIL import Image
from quick_figures import save_dots
from tiny_study import baseline_config, read_table

from handclip.csv_files import csv_rows, plain
from handclip.datasets.prepare import prepare
from handclip.report.comparison import compare_runs, write_matrix
from handclip.report.figures.attention import Maps, attention_figure
from handclip.report.figures.style import new_figure, save_figure, styled
from handclip.report.html import render_page
from handclip.report.report import write_report
from handclip.report.report_writer import Commands, Heading, Note, Section, Text
from handclip.report.table import Table, plain_columns
from handclip.runs.artifacts import read_explanations
from handclip.runs.evaluate import evaluate

pytestmark = pytest.mark.promise("markup")

PEOPLE = (
    "=cmd|' C calc'!A0",
    "@x",
    "-x",
    "+1",
    "<img src=x onerror=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "$x^{$",
    "`a`|b",
    "\na\nb\r\x1b[31m\u202e",
)
FORMULA = ("=", "+", "-", "@")


def hostile_hands(root: Path) -> Path:
    random = np.random.default_rng(0)
    for name in PEOPLE:
        (root / name).mkdir(parents=True)
        for image in ("+1.jpg", "@2.jpg", "=3.jpg"):
            pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / image)
    return root


def formulas_in(table: Path) -> list[str]:
    """The cells that a spreadsheet would run."""
    with table.open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row if cell.startswith(FORMULA)]
    return [cell for cell in cells if not re.fullmatch(r"[+-][\d.]+(e[+-]?\d+)?", cell)]


@pytest.mark.promise("hostile-people", "formulas")
def test_names_of_a_data_set_stay_text_from_the_folder_to_the_page(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = hostile_hands(here / "hands")
    prepare("folder", root, here / "manifests")
    config = baseline_config(
        here / "manifests", dataset="folder", data_root=str(root), aspect="hand", flip_settings=["none"],
        num_splits=2, explained_images=4,
    )  # fmt: skip
    folder = evaluate(config).folder
    save_dots(monkeypatch)
    page = write_report([folder], here / "report").page.read_text(encoding="utf-8")
    tables = [*folder.glob("*.csv"), *(here / "report" / "tables").glob("*.csv"), *(here / "manifests").glob("*.csv")]
    assert len(tables) > 10
    for table in tables:
        assert formulas_in(table) == [], table
    # What is read back is what stands in the folder.
    shown = {row["image"] for row in read_table(folder / "per_query.csv")}
    assert all((root / plain(image)).is_file() for image in shown)
    assert any(image.startswith("'") for image in shown)
    with (folder / "per_query.csv").open(newline="") as file:
        header, *rows = csv_rows(file)
    assert {row[4] for row in rows} == {plain(image) for image in shown}
    # Whose image it is stands beside the number that stands for it.
    assert header[5:7] == ["identity", "name"]
    numbers = {number: name for _, _, _, _, _, number, name, *_ in rows}
    assert len(numbers) > 2 and set(numbers.values()) <= set(PEOPLE)
    assert all(row[4].startswith(f"{row[6]}/") for row in rows)
    for table in ("rank_lists", "projections"):
        with (here / "report" / "tables" / f"{table}.csv").open(newline="", encoding="utf-8") as file:
            header, *rows = csv_rows(file)
        person, name = header.index("person"), header.index("name")
        assert {(row[person], row[name]) for row in rows} <= set(numbers.items())
    assert all((root / one.image).is_file() for one in read_explanations(folder))
    assert "could not be made" not in page
    assert "<img src=x" not in page and "\x1b" not in page and "\u202e" not in page


SCRIPT = "<script>alert(1)</script>"


def test_a_page_shows_names_and_runs_none_of_them() -> None:
    names = [SCRIPT, '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "'\"&"]
    table = Table(
        plain_columns(*names), [dict(zip(names, names, strict=True))], names[1], Path("tables") / f"{SCRIPT}.csv"
    )
    blocks = [*map(Text, names), *map(Note, names), *map(Heading, names), Commands(names), table]
    sections = [Section("a", name, name, blocks) for name in names]
    page = render_page(SCRIPT, names, sections, made={SCRIPT: names[1]})
    assert "<script" not in page and "<img" not in page
    assert "49" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    for name in names:
        assert name in html.unescape(page)


def test_labels_of_runs_stay_text_in_every_table(tmp_path: Path) -> None:
    write_run(tmp_path / "eval" / "a`b|c", model=SCRIPT)
    write_run(tmp_path / "eval" / "=1+1", model="=1+1\\input{x}|$y$")
    files = {path.name: path for path in write_matrix(compare_runs([tmp_path / "eval"]), tmp_path / "out")}
    for name in ("comparison.csv", "differences.csv"):
        assert formulas_in(files[name]) == []
        assert "=1+1" in {plain(cell) for row in csv.reader(io.StringIO(files[name].read_text())) for cell in row}
    markdown, latex = files["comparison.md"].read_text(), files["comparison.tex"].read_text()
    assert "<script" not in re.sub(r"`[^`]*`", "", markdown) and "&lt;script>alert(1)" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    widths = {len(re.split(r"(?<!\\)\|", row)) for row in rows if "Files" not in row and "comparison" not in row}
    assert len(widths) <= 2, widths  # of the scores, and of the sources
    assert r"\input" not in latex and r"=1+1\textbackslash{}input\{x\}|\$y\$" in latex


@pytest.mark.parametrize("name", [r"$\frac{$", "$x^2$ and $", "<script>alert(1)</script>", "a & b -- <!-- c -->"])
def test_a_figure_draws_any_name_as_it_is(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings(action="error"):
        files = save_figure(styled(figure_of)(name), tmp_path, "any")
    svg = files.svg.read_text()
    assert "<script" not in svg
    assert files.png.stat().st_size > 1000
    maps = [Maps("", "Grad-CAM", [np.ones((2, 2), np.float32)])]
    save_figure(attention_figure([(name, np.zeros((8, 8, 3), np.uint8))], maps), tmp_path, "maps")


def figure_of(name: str) -> Figure:
    figure = new_figure()
    axes = figure.subplots()
    axes.plot([1, 2], [1, 2], label=f"1. {name}")
    axes.set_title(name)
    figure.legend()
    return figure
