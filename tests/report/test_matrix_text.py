import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_runs import ALL_ASPECTS, write_run
from rich.console import Console

from handclip.config.experiment import ExperimentConfig
from handclip.report.comparison import compare_runs
from handclip.report.matrix import Matrix
from handclip.report.matrix_text import (
    differences_csv,
    legend,
    matrix_csv,
    matrix_latex,
    matrix_markdown,
)
from handclip.report.screen import matrix_tables
from handclip.report.table import escape_latex


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """Three runs on all aspects."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "one_run", aspects=ALL_ASPECTS, skill=0.2, stage="0")
    losses = ["cross_entropy", "triplet", "center"]
    write_run(folder / "two_run", aspects=ALL_ASPECTS, skill=0.7, losses=losses, seed=1)
    write_run(folder / "three_run", aspects=ALL_ASPECTS, skill=0.7, luck=1, stage="2")
    return compare_runs([folder])


def screen(matrix: Matrix, width: int = 100, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in matrix_tables(matrix, **options):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def percents(matrix: Matrix, block: int) -> list[str]:
    """Each mean and interval of a block in percent."""
    scores = [score for row in matrix.blocks[block].rows for score in row.scores.values()]
    means = [f"{100 * score.mean:.1f} ± {100 * score.std:.1f}" for score in scores]
    return means + [f"[{100 * score.low:.1f}, {100 * score.high:.1f}]" for score in scores]


def test_the_screen_shows_one_flip_setting_and_no_parts_of_means(matrix: Matrix) -> None:
    text = screen(matrix)
    labels = re.findall(r"^\d+\. (11k.*?flip: \w+)", text, flags=re.MULTILINE | re.DOTALL)
    galleries = ["gallery (20, 20, 20, 20", "gallery_all (80, 80, 80, 80"]
    assert labels == [f"11k, mean of four aspects · {gallery} images) · flip: sum" for gallery in galleries]
    assert text.count("What the runs cost") == 1
    assert len(re.findall("flip: ", screen(matrix, every_block=True))) == len(matrix.blocks) == 20


def test_a_screen_of_100_columns_holds_every_number(matrix: Matrix) -> None:
    text = screen(matrix)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 100
    for number in (*percents(matrix, 1), *percents(matrix, 3)):
        assert number in text
    for line in (
        "1 vit_small",
        "seed: 1",
        "ce + triplet + center",
        "0.31",
        "1,234",
        "Machine 1: cpu, Intel Xeon, 1 core. Machine 2: cpu, AMD EPYC",
    ):
        assert line in text
    assert "…" not in screen(matrix, width=60)


@pytest.mark.parametrize(
    ("has_all", "told"),
    [
        (True, "Blocks 1, 3 and 5 to 20 are in the files; --all shows them here."),
        (False, "Blocks 1, 3 and 5 to 20 are in comparison.md."),
    ],
)
def test_blocks_that_are_left_out_are_named_in_the_end(matrix: Matrix, has_all: bool, told: str) -> None:
    assert screen(matrix, has_all=has_all).splitlines()[-1] == told
    assert "Block" not in screen(matrix, has_all=has_all, every_block=True)


def test_one_block_that_is_left_out_is_named_and_none_is_not(tmp_path: Path) -> None:
    one = compare_runs([write_run(tmp_path / "one", protocols=["gallery"])])
    assert screen(one, has_all=True).splitlines()[-1] == "Block 1 is in the files; --all shows it here."
    alone = compare_runs([write_run(tmp_path / "two", protocols=["gallery"], flips=["sum"])])
    assert "Block" not in screen(alone, has_all=True)


def costs(*runs: Path) -> str:
    """The table of costs."""
    text = screen(compare_runs(runs, different_manifests=True), width=250)
    return text.split("What the runs cost")[1]


def on_manifest(digit: str, folder: Path, **changes: Any) -> Path:
    trained_on = {"dataset": "11k", "aspect": "dorsal_r", "manifest_sha256": digit * 64}
    return write_run(folder, trained_on=trained_on, manifest_sha256=digit * 64, **changes)


def test_runs_on_different_manifests_are_told_apart_where_they_share_the_table_of_costs(tmp_path: Path) -> None:
    """Also where both have one name, and by their options, too, where these differ."""
    mine, hers = on_manifest("a", tmp_path / "mine" / "run"), on_manifest("b", tmp_path / "hers" / "run", luck=1)
    text = costs(mine, hers)
    assert "differs by: manifest aaaaaaaa" in text and "differs by: manifest bbbbbbbb" in text
    assert "trained on" not in text
    shorter = on_manifest("a", tmp_path / "shorter", options={"epochs": 2})
    text = costs(shorter, on_manifest("b", tmp_path / "longer", luck=1, options={"epochs": 3}))
    assert "differs by: epochs 2, manifest aaaaaaaa" in text and "differs by: epochs 3, manifest bbbbbbbb" in text


def test_runs_that_only_their_names_tell_apart_are_named_where_their_costs_differ(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, luck=len(name), manifest_sha256=digit * 64) for name, digit in ("xa", "yb")]
    assert costs(*runs).count("1 vit_small") == 1
    cost = json.loads((runs[0] / "cost.json").read_text())
    cost["training"]["seconds"] = 700.0
    (runs[0] / "cost.json").write_text(json.dumps(cost))
    text = costs(*runs)
    assert "differs by: run x" in text and "differs by: run y" in text


def test_a_run_that_was_evaluated_on_other_data_too_is_trained_once(tmp_path: Path) -> None:
    here = on_manifest("a", tmp_path / "here")
    trained_on = json.loads((here / "metrics.json").read_text())["trained_on"]
    there = write_run(tmp_path / "there", dataset="hd", trained_on=trained_on, cross_domain=True)
    text = costs(here, there)
    assert text.count("1 vit_small") == 1 and "differs by" not in text


def test_flip_none_is_shown_where_there_is_no_other(tmp_path: Path) -> None:
    assert "flip: none" in screen(compare_runs([write_run(tmp_path / "one", flips=["none"])]))


def test_markdown_holds_a_table_a_legend_and_the_sources(matrix: Matrix) -> None:
    text = matrix_markdown(matrix)
    for number, block in enumerate(matrix.blocks):
        assert f"## {number + 1}. {block.protocol.label}\n\n| # | Stage | Model | Losses | Seed | Rank-1 |" in text
        assert all(score in text for score in percents(matrix, number))
        for row in block.rows:
            files = ", ".join(f"`{path}`" for path in row.files.values())
            [source] = [line for line in text.splitlines() if line.endswith(f" | `{row.run}` | {files} |")]
            assert f"{number + 1}.{row.number}" in source.split(" | ")[0].removeprefix("| ").split(", ")
    best = next(row for row in matrix.blocks[0].rows if "rank1" in row.best)
    assert f"| **{100 * best.scores['rank1'].mean:.1f} ± " in text
    assert "10,000 resamples of the 20 people with queries" in text
    assert "20,000 permutations that swap whole people; Holm's correction over 3 pairs" in text
    assert "multiplications and additions, each counted" in text
    widths = {line.count("|") for line in text.split("## Sources")[0].splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_rows_of_several_seeds_are_said_to_be_models(tmp_path: Path) -> None:
    sentence = "Each row is one trained model"
    for seed in (0, 1):
        write_run(tmp_path / f"seed{seed}", seed=seed, luck=seed)
    assert sentence in matrix_markdown(compare_runs([tmp_path]))
    assert sentence not in matrix_markdown(compare_runs([tmp_path / "seed0"]))


def test_few_people_are_said_to_be_permuted_exactly(tmp_path: Path) -> None:
    for run in ("one", "two"):
        write_run(tmp_path / run, people=5)
    assert "(all 32 permutations" in matrix_markdown(compare_runs([tmp_path]))


def test_columns_that_tell_rows_apart_appear_when_needed(tmp_path: Path) -> None:
    data = {"dataset": "11k", "aspect": "dorsal_r", "manifest_sha256": "f" * 64}
    write_run(tmp_path / "one", trained_on=data)
    assert "| Losses | Rank-1 |" in matrix_markdown(compare_runs([tmp_path]))
    write_run(tmp_path / "two", trained_on=data, options={"lr": 0.001})
    assert "| Losses | Differs by | Rank-1 |" in matrix_markdown(compare_runs([tmp_path]))
    write_run(tmp_path / "three", trained_on={**data, "aspect": "all"}, seed=1)
    text = matrix_markdown(compare_runs([tmp_path]))
    assert "| Losses | Seed | Trained on | Differs by | Rank-1 |" in text
    assert "| ce + triplet | 1 | 11k all | - |" in text


def test_rows_that_would_read_the_same_say_what_they_differ_by(tmp_path: Path) -> None:
    options = {"lr": 0.001, "neck": "hidden", "augmentation": {"flip": 0.5, "rotation": 0.0}}
    losses = [{"type": "cross_entropy"}, {"type": "triplet", "margin": 0.5}]
    write_run(tmp_path / "a", options=options)
    write_run(tmp_path / "b", options={**options, "relative_position": "intended", "losses": losses})
    write_run(tmp_path / "c", model="mbanet", options={"neck": "hidden"})
    matrix = compare_runs([tmp_path])
    other, first, second = matrix.blocks[0].rows
    assert other.differs_by == ""
    assert first.differs_by == "relative_position published, triplet.margin default"
    assert second.differs_by == "relative_position intended, triplet.margin 0.5"
    assert [row["differs_by"] for row in matrix.to_dict()["blocks"][0]["rows"]][1:] == [
        first.differs_by,
        second.differs_by,
    ]
    lines = list(csv.DictReader(io.StringIO(matrix_csv(matrix))))
    assert [line["differs_by"] for line in lines][:3] == ["", first.differs_by, second.differs_by]
    for row in (first, second):
        assert f"| {row.losses_text} | {row.differs_by} |" in matrix_markdown(matrix)
        assert escape_latex(row.differs_by) in matrix_latex(matrix)
        assert re.sub(r"\s", "", row.differs_by) in re.sub(r"\s", "", screen(matrix, width=200))


def test_an_option_of_a_section_is_named_with_it(tmp_path: Path) -> None:
    write_run(tmp_path / "a", options={"augmentation": {"flip": 0.5, "rotation": 0.0}, "weights": None})
    write_run(tmp_path / "b", options={"weights": True})
    rows = compare_runs([tmp_path]).blocks[0].rows
    assert [row.differs_by for row in rows] == [
        "augmentation.flip 0.5, weights none",
        "augmentation.flip 0, weights true",
    ]


def test_the_last_resort_is_the_name_of_the_run(tmp_path: Path) -> None:
    write_run(tmp_path / "a")  # as written before there were options
    write_run(tmp_path / "b", options={})
    write_run(tmp_path / "c", options={"epochs": 6})
    write_run(tmp_path / "d", options={"epochs": 6}, seed=1)
    rows = compare_runs([tmp_path]).blocks[0].rows
    default = ExperimentConfig.model_fields["epochs"].default
    assert [row.differs_by for row in rows] == [f"epochs {default}, run a", f"epochs {default}, run b", "epochs 6", ""]


def test_what_letters_and_few_people_cannot_show_is_said(tmp_path: Path) -> None:
    for number in range(4):
        write_run(tmp_path / f"run{number}", people=6, luck=number)
    matrix = compare_runs([tmp_path])
    # 6 pairs * 2 / 2^6
    assert "With 6 people and 6 pairs no difference can be significant." in matrix_markdown(matrix)
    one = matrix.blocks[0]
    assert "share a letter" in legend(one)[1]
    unlettered = [row.model_copy(update={"letters": {"rank1": row.letters["rank1"]}}) for row in one.rows]
    assert "mAP: too many letters to be read; differences.csv tests every pair." in legend(
        replace(one, rows=unlettered)
    )
    none = " ".join(legend(replace(one, rows=[row.model_copy(update={"letters": {}}) for row in one.rows])))
    assert "Rank-1 and mAP: too many letters to be read; differences.csv tests every pair (all 64 permutations" in none
    assert "share a letter" not in none


def test_more_permutations_for_many_pairs_are_named(tmp_path: Path) -> None:
    for number in range(8):
        write_run(tmp_path / f"run{number}", luck=number, protocols=["gallery"], flips=["sum"])
    text = " ".join(legend(compare_runs([tmp_path]).blocks[0]))
    assert "20,000 permutations, up to 28,000 where those leave it open, that swap whole people" in text
    assert "no difference can be significant" not in text


def test_published_rows_are_marked_and_not_bold(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"protocols": ["gallery"], "flips": ["none"], "gallery_images": 71, "queries": 971}
    write_run(tmp_path / "one", skill=0.1, **facts)
    write_run(tmp_path / "two", skill=0.2, **facts)
    matrix = compare_runs([tmp_path])
    for text in (matrix_markdown(matrix), matrix_latex(matrix)):
        line = next(line for line in text.splitlines() if "CLIP-FH stage 1 ViT-B/16" in line)
        assert "published, other draws" in line
        assert "**" not in line
        assert "textbf" not in line
    markdown = matrix_markdown(matrix)
    assert "| 93.69 | 98.02 | 99.38 | 95.58 | 94.64† |" in markdown
    assert re.search(r"CLIP-FH stage 2 v5 ViT-B/16 \[(\d)\].*\[\1\] An artefact", markdown, flags=re.DOTALL)
    assert "| 1 | CLIP-FH stage 1 ViT-B/16 | babupallam/CLIP-FH at c7c2f8d. Stopped early" in markdown
    shown = screen(matrix)
    assert "(published," in shown
    assert "…" not in shown


def test_csv_has_a_line_for_each_row_with_fractions(matrix: Matrix) -> None:
    lines = list(csv.DictReader(io.StringIO(matrix_csv(matrix))))
    rows = [row for block in matrix.blocks for row in block.rows]
    assert len(lines) == len(rows) == 60
    for line, row in zip(lines, rows, strict=True):
        assert None not in line.values()
        assert None not in line
        assert line["run"] == row.run
        for name in ("metrics", "per_query", "cost", "training"):
            assert line[f"{name}_file"] == row.files.get(name, "")
        assert line["training_hardware"] == ("" if row.stage == "0" else "cpu, AMD EPYC, 2 cores")
        assert line["evaluation_hardware"] == "cpu, Intel Xeon, 1 core"
        assert line["training_seconds"] == ("" if row.stage == "0" else "614.25")
        for metric, score in row.scores.items():
            for kind in ("mean", "std", "low", "high"):
                assert float(line[f"{metric}_{kind}"]) == getattr(score, kind)


def test_ties_are_beside_the_rates(tmp_path: Path) -> None:
    for number, name in enumerate(("tied", "untied")):
        path = write_run(tmp_path / name, luck=number, protocols=["gallery"], flips=["sum"]) / "metrics.json"
        metrics = json.loads(path.read_text())
        metrics["results"][0]["tied_queries"] = 1234 if name == "tied" else 0
        path.write_text(json.dumps(metrics))
    matrix = compare_runs([tmp_path], published=True)
    lines = list(csv.DictReader(io.StringIO(matrix_csv(matrix))))
    assert [(line["run"], line["tied_queries"]) for line in lines[:2]] == [("tied", "1234"), ("untied", "0")]
    assert {line["tied_queries"] for line in lines[2:]} == {""}
    assert lines[0]["queries"] == "50" and lines[0]["matched_queries"] == "50 50 50"
    (sentence,) = [one for one in legend(matrix.blocks[0]) if "Ties" in one]
    assert sentence.endswith("a wrong image scores the same as the best right one: 1,234 of row 1.")
    assert not [one for one in legend(replace(matrix.blocks[0], rows=matrix.blocks[0].rows[1:])) if "Ties" in one]


def test_an_evaluation_before_training_had_ended_is_told_from_the_others(tmp_path: Path) -> None:
    for number, ended in enumerate((True, False, None)):
        path = write_run(tmp_path / str(number), luck=number, protocols=["gallery"], flips=["sum"]) / "metrics.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "run": str(number), "training_ended": ended}))
    matrix = compare_runs([tmp_path])
    lines = list(csv.DictReader(io.StringIO(matrix_csv(matrix))))
    assert {line["run"]: line["training_ended"] for line in lines} == {"0": "True", "1": "False", "2": ""}
    (row,) = [line["row"] for line in lines if line["run"] == "1"]
    (sentence,) = [one for one in legend(matrix.blocks[0]) if "training had ended" in one]
    assert sentence.startswith(f"Evaluated before training had ended, by the best model until then: row {row}. ")
    others = [one for one in matrix.blocks[0].rows if one.run != "1"]
    assert not [one for one in legend(replace(matrix.blocks[0], rows=tuple(others))) if "training had ended" in one]


def test_csv_of_published_rows_has_as_many_columns(tmp_path: Path) -> None:
    matrix = compare_runs([write_run(tmp_path / "one")], published=True)
    lines = [line for line in csv.DictReader(io.StringIO(matrix_csv(matrix))) if line["row"] == ""]
    assert len(lines) == 85
    [mba] = [line for line in lines if line["model"] == "MBA-Net" and line["aspect"] == "palmar_l"]
    assert (mba["source"], mba["rank1_mean"]) == (
        "MBA-Net paper, ICPR 2022, by the notes of babupallam/CLIP-FH",
        "0.9742",
    )
    assert (mba["map_trapezoid_mean"], mba["map_mean"], mba["converted"]) == ("0.9784", "0.9826", "map")
    assert all(None not in line.values() and None not in line for line in lines)
    assert all(line["note"] for line in lines if "stage 2" in line["model"])


def test_differences_are_listed_by_pair_and_metric(matrix: Matrix) -> None:
    lines = list(csv.DictReader(io.StringIO(differences_csv(matrix))))
    assert len(lines) == 20 * 3 * 5
    first = matrix.blocks[0].differences[0]
    assert float(lines[0]["difference"]) == first.difference
    assert float(lines[0]["p_holm"]) == first.p_holm
    assert (lines[0]["first_run"], lines[0]["second_run"]) == ("one_run", "two_run")


def test_latex_means_what_it_says(matrix: Matrix) -> None:
    text = matrix_latex(matrix)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\toprule") == len(matrix.blocks)
    assert text.isascii()
    assert r"vit\_small" in text
    for line in text.splitlines()[1:]:
        assert not re.search(r"(?<!\\)[_#&%]", line.replace(" & ", "").replace("linewidth}{!}{%", "")), line
    [columns] = {line.count(" & ") for line in text.splitlines() if line.endswith(r"\\")}
    assert f"{{{'l' * 5}{'r' * (columns - 4)}}}" in text
