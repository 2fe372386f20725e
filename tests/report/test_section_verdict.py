"""The verdict in words agrees with the numbers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import write_run
from section_parts import cells_of, data_of, notes, of_kind

from handclip.report.matrix import Difference
from handclip.report.report_data import ReportData
from handclip.report.report_writer import Heading, ReportWriter, Section, Text
from handclip.report.sections.verdict import verdict_section
from handclip.report.table import Table

CE = ["cross_entropy"]


def section_of(data: ReportData, folder: Path) -> Section:
    return verdict_section(data, ReportWriter(folder / "out"))


def verdict(folder: Path, change: Callable[[Difference], Difference] = lambda one: one) -> str:
    """The words on the runs in a folder, if the differences between them were others."""
    data = data_of(folder)
    block = replace(data.block, differences=[change(one) for one in data.block.differences])
    blocks = [block if one is data.block else one for one in data.matrix.blocks]
    section = section_of(replace(data, block=block, matrix=replace(data.matrix, blocks=blocks)), folder)
    return str(of_kind(section, Text)[0].text)


def write_good_and_bad(folder: Path) -> None:
    write_run(folder / "good", skill=0.95, people=40)
    write_run(folder / "bad", skill=0.1, people=40, stage="0")


def test_a_difference_is_called_one_where_the_corrected_p_says_so(tmp_path: Path) -> None:
    write_good_and_bad(tmp_path)
    text = verdict(tmp_path)
    assert "run 2 (vit_small, stage 1, ce + triplet) finds the right person first in" in text
    assert text.endswith(" It is significantly better than the other run.")
    assert verdict(tmp_path, lambda one: replace(one, p=0.001, p_holm=0.2)).endswith("no difference is shown.")


def test_those_that_do_not_differ_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "0", skill=0.05, people=40, stage="0")
    for luck in range(2):
        write_run(tmp_path / f"run{luck}", skill=0.9, luck=luck, people=40, options={"lr": 0.1 + luck})
    best = data_of(tmp_path).best.row.number
    other = ({2, 3} - {best}).pop()
    assert f"It is significantly better than 1 of the 2 other runs; between it and run {other} no" in verdict(tmp_path)


@pytest.mark.parametrize("best", [1, 2])
def test_the_sign_is_that_of_the_best_minus_the_other(tmp_path: Path, best: int) -> None:
    """Whichever of the two rows comes first in the matrix."""
    skills = {best: 0.9, 3 - best: 0.3}
    for number, skill in skills.items():
        write_run(tmp_path / f"run{number}", skill=skill, people=30, options={"lr": float(number)})
    data = data_of(tmp_path)
    table = of_kind(section_of(data, tmp_path), Table)[0]
    means = [row.scores["rank1"].mean for row in data.block.rows]
    found = next(one for one in data.block.differences if one.metric == "rank1")
    ends = sorted(abs(100 * end) for end in (found.low, found.high))
    assert cells_of(table)[0][2] == f"{100 * abs(means[0] - means[1]):+.1f} [{ends[0]:.1f}, {ends[1]:.1f}]"


def test_the_peer_and_the_other_stages_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "0", skill=0.2, stage="0", people=10)
    write_run(tmp_path / "1", skill=0.5, stage="1", losses=CE, people=10)
    write_run(tmp_path / "2", skill=0.9, stage="2", people=10)
    write_run(tmp_path / "peer", skill=0.4, stage="2", people=10, model="mbanet_small", family="mbanet")
    table = of_kind(section_of(data_of(tmp_path), tmp_path), Table)[0]
    against = [cells[0].split(":")[0] for cells in cells_of(table)]
    assert against[0] == "the next"
    assert set(against[1:]) <= {"the best of another model", "its own stage 1", "its own model untrained"}
    assert "mbanet_small" in " ".join(cells[0] for cells in cells_of(table))


def test_one_run_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "a", people=10)
    assert verdict(tmp_path).endswith("It is the only run here, so there is nothing to compare it with.")


def test_the_section_shows_the_matrix_and_its_files(tmp_path: Path) -> None:
    for luck in range(2):
        write_run(tmp_path / "runs" / f"run{luck}", luck=luck, people=10, options={"lr": 0.1 + luck})
    section = section_of(data_of(tmp_path / "runs"), tmp_path)
    assert isinstance(section.blocks[0], Text)
    tables = of_kind(section, Table)
    matrices = [table for table in tables if "mAP" in table.titles]
    assert len(matrices) == 2  # gallery and gallery_all
    assert tables[-1].titles[-1] == "Hardware"
    for table in matrices:
        rows = table.cells
        marked = {title for row in rows for title, cell in zip(table.titles, row, strict=True) if cell.strong}
        assert marked == {"Rank-1", "Rank-5", "Rank-10", "mAP", "mAP trapezoid"}
    assert any("gallery_all" in heading.text for heading in of_kind(section, Heading))
    assert (tmp_path / "out" / "tables" / "comparison.csv").is_file()
    cautions = " ".join(notes(section, "warning"))
    assert "Only 10 people" in cautions
    assert "with one seed" in cautions


@pytest.mark.parametrize("family", ["clip", "resnet"])
@pytest.mark.parametrize("difference", [0.0, -1e-17, 1e-17])
def test_no_difference_is_a_zero_without_a_minus(family: str, difference: float, tmp_path: Path) -> None:
    """Neither where the better run is the second of the two, nor where rounding is below zero."""
    for name, skill in (("clip", 0.8), ("resnet", 0.2)):
        stage = "1" if name == family else "2"
        write_run(tmp_path / name, skill=skill, people=10, model=f"{name}_small", family=name, stage=stage)
    text = verdict(tmp_path, lambda one: replace(one, difference=difference, low=difference, high=difference))
    assert "differ by +0.0 [0.0, 0.0] points" in text


def test_clip_is_held_against_the_cnn(tmp_path: Path) -> None:
    """Also where the best of all runs is beside another of its own kind."""
    write_run(tmp_path / "clip", skill=0.2, people=30, family="clip")
    for name, skill in (("mbanet", 0.9), ("resnet", 0.8)):
        write_run(tmp_path / name, skill=skill, people=30, model=f"{name}_small", family=name)
    sentence = verdict(tmp_path).partition("CLIP against the CNN: ")[2]
    rows = {row.run: row for row in data_of(tmp_path).block.rows}
    lead = 100 * (rows["clip"].scores["rank1"].mean - rows["mbanet"].scores["rank1"].mean)
    assert "run 3 (vit_small" in sentence and "run 1 (mbanet_small" in sentence
    assert f"differ by {lead:+.1f} [" in sentence
    assert sentence.endswith("a significant difference.")


def test_runs_with_the_same_scores_are_pointed_out(tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        write_run(tmp_path / f"lr{rate}", people=30, options={"lr": rate})
    told = notes(section_of(data_of(tmp_path), tmp_path))
    assert any(
        text.startswith("Runs 1 and 2 have the same scores to the last digit (11k dorsal_r: gall") for text in told
    )


def test_what_the_figures_are_about_comes_first(tmp_path: Path) -> None:
    write_run(tmp_path / "11k", people=10)
    for number in range(2):
        write_run(tmp_path / f"b{number}", people=10, luck=number, dataset="synthetic", seed=number)
    assert verdict(tmp_path).startswith("On synthetic")
