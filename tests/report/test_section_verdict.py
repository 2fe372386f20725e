"""The verdict in words agrees with the numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import write_run
from test_selection import CE, gathered

from handclip.report.matrix import MatrixBlock as Block
from handclip.report.report_writer import Heading, Note, ReportWriter, Table, Text
from handclip.report.sections.verdict import verdict, verdict_section


def block_of(folder: Path) -> Block:
    return gathered(folder).block


def test_a_real_difference_is_called_one(tmp_path: Path) -> None:
    write_run(tmp_path / "good", skill=0.95, people=40)
    write_run(tmp_path / "bad", skill=0.1, people=40, stage="0")
    first, second = verdict(block_of(tmp_path))
    assert "run 2 (vit_small, stage 1, ce + triplet) finds the right person first in" in first
    assert second == "It is significantly better than the other run."


def test_chance_is_not_called_a_difference(tmp_path: Path) -> None:
    for luck in range(2):
        write_run(tmp_path / f"run{luck}", luck=luck, people=20, options={"lr": 0.1 + luck})
    assert list(verdict(block_of(tmp_path)))[1].endswith("no difference is shown.")


def test_those_that_do_not_differ_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "0", skill=0.05, people=40, stage="0")
    for luck in range(2):
        write_run(tmp_path / f"run{luck}", skill=0.9, luck=luck, people=40, options={"lr": 0.1 + luck})
    block = block_of(tmp_path)
    best = max(block.rows, key=lambda row: (row.scores["rank1"].mean, row.scores["map"].mean))
    other = ({2, 3} - {best.number}).pop()
    text = list(verdict(block))[1]
    assert text.startswith(f"It is significantly better than 1 of the 2 other runs; between it and run {other} no")


@pytest.mark.parametrize("best", [1, 2])
def test_the_sign_is_that_of_the_best_minus_the_other(tmp_path: Path, best: int) -> None:
    """Whichever of the two rows comes first in the matrix."""
    skills = {best: 0.9, 3 - best: 0.3}
    for number, skill in skills.items():
        write_run(tmp_path / f"run{number}", skill=skill, people=30, options={"lr": float(number)})
    data = gathered(tmp_path)
    table = next(b for b in verdict_section(data, ReportWriter(tmp_path / "out")).blocks if isinstance(b, Table))
    means = [row.scores["rank1"].mean for row in data.block.rows]
    found = next(one for one in data.block.differences if one.metric == "rank1")
    ends = sorted(abs(100 * end) for end in (found.low, found.high))
    assert table.cells[0][2] == f"{100 * abs(means[0] - means[1]):+.1f} [{ends[0]:.1f}, {ends[1]:.1f}]"


def test_the_peer_and_the_other_stages_are_named(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "0", skill=0.2, stage="0", people=10)
    write_run(runs / "1", skill=0.5, stage="1", losses=CE, people=10)
    write_run(runs / "2", skill=0.9, stage="2", people=10)
    write_run(runs / "peer", skill=0.4, stage="2", people=10, model="mbanet_small", family="mbanet")
    table = next(
        b for b in verdict_section(gathered(runs), ReportWriter(tmp_path / "out")).blocks if isinstance(b, Table)
    )
    against = [cells[0].split(":")[0] for cells in table.cells]
    assert against[0] == "the next"
    assert set(against[1:]) <= {"the best of another model", "its own stage 1", "its own model untrained"}
    assert "mbanet_small" in " ".join(cells[0] for cells in table.cells)


def test_one_run_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "a", people=10)
    assert list(verdict(block_of(tmp_path)))[-1].startswith("It is the only run")


def test_the_section_shows_the_matrix_and_its_files(tmp_path: Path) -> None:
    for luck in range(2):
        write_run(tmp_path / "runs" / f"run{luck}", luck=luck, people=10, options={"lr": 0.1 + luck})
    data = gathered(tmp_path / "runs")
    section = verdict_section(data, ReportWriter(tmp_path / "out"))
    assert isinstance(section.blocks[0], Text)
    tables = [block for block in section.blocks if isinstance(block, Table)]
    matrices = [table for table in tables if "mAP" in table.titles]
    assert len(matrices) == 2  # gallery and gallery_all
    assert tables[-1].titles[-1] == "Hardware"
    for table in matrices:
        assert "Rank-1" in table.titles
        marked = {table.titles[column] for _, column in table.strong}
        assert marked == {"Rank-1", "Rank-5", "Rank-10", "mAP", "mAP trapezoid"}
    headings = [block.text for block in section.blocks if isinstance(block, Heading)]
    assert any("gallery_all" in text for text in headings)
    assert (tmp_path / "out" / "tables" / "comparison.csv").is_file()
    cautions = " ".join(block.text for block in section.blocks if isinstance(block, Note))
    assert "Only 10 people" in cautions
    assert "with one seed" in cautions


def test_a_significant_difference_needs_the_corrected_p(tmp_path: Path) -> None:
    write_run(tmp_path / "good", skill=0.95, people=40)
    write_run(tmp_path / "bad", skill=0.1, people=40, stage="0")
    block = block_of(tmp_path)
    doubtful = [replace(one, p=0.001, p_holm=0.2) for one in block.differences]
    assert "no difference is shown" in list(verdict(replace(block, differences=doubtful)))[1]


@pytest.mark.parametrize("family", ["clip", "resnet"])
@pytest.mark.parametrize("difference", [0.0, -1e-17, 1e-17])
def test_no_difference_is_a_zero_without_a_minus(family: str, difference: float, tmp_path: Path) -> None:
    """Neither where the better run is the second of the two, nor where rounding is below zero."""
    for name, skill in (("clip", 0.8), ("resnet", 0.2)):
        stage = "1" if name == family else "2"
        write_run(tmp_path / name, skill=skill, people=10, model=f"{name}_small", family=name, stage=stage)
    block = block_of(tmp_path)
    same = [replace(one, difference=difference, low=difference, high=difference) for one in block.differences]
    assert "differ by +0.0 [0.0, 0.0] points" in list(verdict(replace(block, differences=same)))[-1]


def test_clip_is_held_against_the_cnn(tmp_path: Path) -> None:
    """Also where the best of all runs is beside another of its own kind."""
    write_run(tmp_path / "clip", skill=0.2, people=30, family="clip")
    for name, skill in (("mbanet", 0.9), ("resnet", 0.8)):
        write_run(tmp_path / name, skill=skill, people=30, model=f"{name}_small", family=name)
    block = block_of(tmp_path)
    sentence = list(verdict(block))[-1]
    clip, cnn = (next(row for row in block.rows if row.run == name) for name in ("clip", "mbanet"))
    lead = 100 * (clip.scores["rank1"].mean - cnn.scores["rank1"].mean)
    assert "run 3 (vit_small" in sentence and "run 1 (mbanet_small" in sentence
    assert f"differ by {lead:+.1f} [" in sentence
    assert sentence.endswith("a significant difference.")


def test_runs_with_the_same_scores_are_pointed_out(tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        write_run(tmp_path / "runs" / f"lr{rate}", people=30, options={"lr": rate})
    section = verdict_section(gathered(tmp_path / "runs"), ReportWriter(tmp_path / "out"))
    notes = [block.text for block in section.blocks if isinstance(block, Note)]
    assert any(text.startswith("Runs 1 and 2 have the same scores") for text in notes)


def test_what_the_figures_are_about_comes_first(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "11k", people=10)
    for number in range(2):
        write_run(tmp_path / "runs" / f"b{number}", people=10, luck=number, dataset="synthetic", seed=number)
    section = verdict_section(gathered(tmp_path / "runs"), ReportWriter(tmp_path / "out"))
    first = section.blocks[0]
    assert isinstance(first, Text) and first.text.startswith("On synthetic")
