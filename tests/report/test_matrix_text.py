import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_runs import ALL_ASPECTS, change_json, write_run
from rich.console import Console

from handclip.config.experiment import ExperimentConfig
from handclip.report.comparison import compare_runs
from handclip.report.matrix import Matrix, MatrixBlock
from handclip.report.matrix_text import differences_csv, legend, matrix_csv, matrix_latex, matrix_markdown
from handclip.report.screen import matrix_tables
from handclip.report.table import escape_latex

ONE_SETTING: dict[str, Any] = {"protocols": ["gallery"], "flips": ["sum"]}


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


def csv_lines(matrix: Matrix) -> list[dict[str, str]]:
    lines = list(csv.DictReader(io.StringIO(matrix_csv(matrix))))
    assert all(None not in line.values() and None not in line for line in lines)
    return lines


def percents(block: MatrixBlock) -> list[str]:
    """Each mean and interval of a block in percent."""
    scores = [score for row in block.rows for score in row.scores.values()]
    means = [f"{100 * score.mean:.1f} ± {100 * score.std:.1f}" for score in scores]
    return means + [f"[{100 * score.low:.1f}, {100 * score.high:.1f}]" for score in scores]


def said(block: MatrixBlock, words: str) -> list[str]:
    """The sentences of a legend that have these words."""
    return [sentence for sentence in legend(block) if words in sentence]


def test_the_screen_shows_one_flip_setting_and_no_parts_of_means(matrix: Matrix) -> None:
    text = screen(matrix)
    labels = re.findall(r"^\d+\. (11k.*?flip: \w+)", text, flags=re.MULTILINE | re.DOTALL)
    galleries = ["gallery (20, 20, 20, 20", "gallery_all (80, 80, 80, 80"]
    assert labels == [f"11k, mean of four aspects · {gallery} images) · flip: sum" for gallery in galleries]
    assert text.count("What the runs cost") == 1
    assert len(re.findall("flip: ", screen(matrix, every_block=True))) == len(matrix.blocks) == 20


def test_a_screen_of_100_columns_holds_every_number(matrix: Matrix) -> None:
    text = screen(matrix)
    assert max(map(len, text.splitlines())) <= 100
    machines = "Machine 1: cpu, Intel Xeon, 1 core. Machine 2: cpu, AMD EPYC"
    names = ["1 vit_small", "seed: 1", "ce + triplet + center"]
    for shown in (*percents(matrix.blocks[1]), *percents(matrix.blocks[3]), *names, "0.31", "1,234", machines):
        assert shown in text
    assert "…" not in text + screen(matrix, width=60)


def test_blocks_that_are_left_out_are_named_in_the_end(matrix: Matrix, tmp_path: Path) -> None:
    for has_all, told in (
        (True, "Blocks 1, 3 and 5 to 20 are in the files; --all shows them here."),
        (False, "Blocks 1, 3 and 5 to 20 are in comparison.md."),
    ):
        assert screen(matrix, has_all=has_all).splitlines()[-1] == told
        assert "Block" not in screen(matrix, has_all=has_all, every_block=True)
    one = compare_runs([write_run(tmp_path / "one", protocols=["gallery"])])
    assert screen(one, has_all=True).splitlines()[-1] == "Block 1 is in the files; --all shows it here."
    for flip in ("sum", "none"):
        alone = screen(compare_runs([write_run(tmp_path / flip, protocols=["gallery"], flips=[flip])]), has_all=True)
        assert "Block" not in alone and f"flip: {flip}" in alone


def costs(*runs: Path) -> str:
    """The table of costs."""
    return screen(compare_runs(runs, different_manifests=True), width=250).split("What the runs cost")[1]


def on_manifest(digit: str, folder: Path, **changes: Any) -> Path:
    trained_on = {"dataset": "11k", "aspect": "dorsal_r", "manifest_sha256": digit * 64}
    return write_run(folder, trained_on=trained_on, manifest_sha256=digit * 64, **changes)


def test_runs_on_different_manifests_are_told_apart_where_they_share_the_table_of_costs(tmp_path: Path) -> None:
    """Also where both have one name, and by their options, too, where these differ."""
    text = costs(on_manifest("a", tmp_path / "mine" / "run"), on_manifest("b", tmp_path / "hers" / "run", luck=1))
    assert "differs by: manifest aaaaaaaa" in text and "differs by: manifest bbbbbbbb" in text
    assert "trained on" not in text
    shorter = on_manifest("a", tmp_path / "shorter", options={"epochs": 2})
    text = costs(shorter, on_manifest("b", tmp_path / "longer", luck=1, options={"epochs": 3}))
    assert "differs by: epochs 2, manifest aaaaaaaa" in text and "differs by: epochs 3, manifest bbbbbbbb" in text


def test_runs_that_only_their_names_tell_apart_are_named_where_their_costs_differ(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, luck=len(name), manifest_sha256=digit * 64) for name, digit in ("xa", "yb")]
    assert costs(*runs).count("1 vit_small") == 1
    training = json.loads((runs[0] / "cost.json").read_text())["training"]
    change_json(runs[0] / "cost.json", training={**training, "seconds": 700.0})
    text = costs(*runs)
    assert "differs by: run x" in text and "differs by: run y" in text


def test_a_run_that_was_evaluated_on_other_data_too_is_trained_once(tmp_path: Path) -> None:
    here = on_manifest("a", tmp_path / "here")
    trained_on = json.loads((here / "metrics.json").read_text())["trained_on"]
    there = write_run(tmp_path / "there", dataset="hd", trained_on=trained_on, cross_domain=True)
    text = costs(here, there)
    assert text.count("1 vit_small") == 1 and "differs by" not in text


def test_markdown_holds_a_table_a_legend_and_the_sources(matrix: Matrix) -> None:
    text = matrix_markdown(matrix)
    for number, block in enumerate(matrix.blocks, start=1):
        assert f"## {number}. {block.protocol.label}\n\n| # | Stage | Model | Losses | Seed | Rank-1 |" in text
        assert all(score in text for score in percents(block))
        for row in block.rows:
            files = ", ".join(f"`{path}`" for path in row.files.values())
            [source] = [line for line in text.splitlines() if line.endswith(f" | `{row.run}` | {files} |")]
            assert f"{number}.{row.number}" in source.split(" | ")[0].removeprefix("| ").split(", ")
    best = next(row for row in matrix.blocks[0].rows if "rank1" in row.best)
    for part in (
        f"| **{100 * best.scores['rank1'].mean:.1f} ± ",
        "10,000 resamples of the 20 people with queries",
        "20,000 permutations that swap whole people; Holm's correction over 3 pairs",
        "multiplications and additions, each counted",
    ):
        assert part in text
    assert len({line.count("|") for line in text.split("## Sources")[0].splitlines() if line.startswith("|")}) == 1


def test_latex_has_a_table_for_each_block_and_needs_no_other_letters(matrix: Matrix) -> None:
    text = matrix_latex(matrix)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\toprule") == len(matrix.blocks)
    assert text.isascii()
    assert r"vit\_small" in text
    for line in text.splitlines()[1:]:
        assert not re.search(r"(?<!\\)[_#&%]", line.replace(" & ", "").replace("linewidth}{!}{%", "")), line
    [columns] = {line.count(" & ") for line in text.splitlines() if line.endswith(r"\\")}
    assert f"{{{'l' * 5}{'r' * (columns - 4)}}}" in text


def test_csv_has_a_line_for_each_row_with_fractions(matrix: Matrix) -> None:
    lines, rows = csv_lines(matrix), [row for block in matrix.blocks for row in block.rows]
    assert len(rows) == 60
    for line, row in zip(lines, rows, strict=True):
        trained = row.stage != "0"
        assert line["run"] == row.run
        for name in ("metrics", "per_query", "cost", "training"):
            assert line[f"{name}_file"] == row.files.get(name, "")
        assert line["training_hardware"] == ("cpu, AMD EPYC, 2 cores" if trained else "")
        assert line["evaluation_hardware"] == "cpu, Intel Xeon, 1 core"
        assert line["training_seconds"] == ("614.25" if trained else "")
        for metric, score in row.scores.items():
            for kind, value in vars(score).items():
                assert float(line[f"{metric}_{kind}"]) == value


def test_differences_are_listed_by_pair_and_metric(matrix: Matrix, tmp_path: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(differences_csv(matrix))))
    assert len(lines) == 20 * 3 * 5
    first = matrix.blocks[0].differences[0]
    assert (float(lines[0]["difference"]), float(lines[0]["p_holm"])) == (first.difference, first.p_holm)
    assert (lines[0]["first_run"], lines[0]["second_run"]) == ("one_run", "two_run")
    # Where there is nothing to compare with, the columns are there.
    alone = differences_csv(compare_runs([write_run(tmp_path / "alone")]))
    assert alone == differences_csv(matrix).splitlines(keepends=True)[0]


def test_rows_of_several_seeds_are_said_to_be_models(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"seed{seed}", seed=seed, luck=seed)
    for path, count in ((tmp_path, 1), (tmp_path / "seed0", 0)):
        assert len(said(compare_runs([path]).blocks[0], "Each row is one trained model")) == count


def test_columns_that_tell_rows_apart_appear_when_needed(tmp_path: Path) -> None:
    data = {"dataset": "11k", "aspect": "dorsal_r", "manifest_sha256": "f" * 64}
    for changes, columns in (
        ({"trained_on": data}, ""),
        ({"trained_on": data, "options": {"lr": 0.001}}, "Differs by | "),
        ({"trained_on": {**data, "aspect": "all"}, "seed": 1}, "Seed | Trained on | Differs by | "),
    ):
        write_run(tmp_path / str(len(columns)), **changes)
        text = matrix_markdown(compare_runs([tmp_path]))
        assert f"| Losses | {columns}Rank-1 |" in text
    assert "| ce + triplet | 1 | 11k all | - |" in text


def test_rows_that_would_read_the_same_say_what_they_differ_by(tmp_path: Path) -> None:
    options = {"lr": 0.001, "neck": "hidden", "augmentation": {"flip": 0.5, "rotation": 0.0}}
    losses = [{"type": "cross_entropy"}, {"type": "triplet", "margin": 0.5}]
    write_run(tmp_path / "a", options=options)
    write_run(tmp_path / "b", options={**options, "relative_position": "intended", "losses": losses})
    write_run(tmp_path / "c", model="mbanet", options={"neck": "hidden"})
    matrix = compare_runs([tmp_path])
    texts = [
        "",
        *(f"relative_position {one}" for one in ("published, triplet.margin default", "intended, triplet.margin 0.5")),
    ]
    rows = matrix.blocks[0].rows
    for found in (rows, matrix.blocks[0].to_dict()["rows"], csv_lines(matrix)[:3]):
        assert [one["differs_by"] if isinstance(one, dict) else one.differs_by for one in found] == texts
    for row in rows[1:]:
        assert f"| {row.losses_text} | {row.differs_by} |" in matrix_markdown(matrix)
        assert escape_latex(row.differs_by) in matrix_latex(matrix)
        assert re.sub(r"\s", "", row.differs_by) in re.sub(r"\s", "", screen(matrix, width=200))


def test_an_option_of_a_section_is_named_with_it_and_the_last_resort_is_the_name_of_the_run(tmp_path: Path) -> None:
    write_run(tmp_path / "a", options={"augmentation": {"flip": 0.5, "rotation": 0.0}, "weights": None})
    write_run(tmp_path / "b", options={"weights": True})
    for name, options in (("c", {}), ("d", {}), ("e", {"epochs": 6})):
        write_run(tmp_path / name, options=options, seed=1)
    write_run(tmp_path / "f", options={"epochs": 6}, seed=2)
    epochs = ExperimentConfig.model_fields["epochs"].default
    assert [row.differs_by for row in compare_runs([tmp_path]).blocks[0].rows] == [
        *("augmentation.flip 0.5, weights none", "augmentation.flip 0, weights true"),
        *(f"epochs {epochs}, run c", f"epochs {epochs}, run d", "epochs 6", ""),
    ]


def test_what_letters_and_few_people_cannot_show_is_said(tmp_path: Path) -> None:
    for number in range(4):
        write_run(tmp_path / f"run{number}", people=6, luck=number, **ONE_SETTING)
    [one] = compare_runs([tmp_path]).blocks

    def lettered(*metrics: str) -> MatrixBlock:
        letters = [{name: row.letters[name] for name in metrics} for row in one.rows]
        return replace(
            one, rows=[row.model_copy(update={"letters": some}) for row, some in zip(one.rows, letters, strict=True)]
        )

    assert said(one, "With 6 people and 6 pairs no difference can be significant.")  # 6 pairs * 2 / 2^6
    assert said(one, "share a letter") and not said(one, "too many letters")
    assert said(lettered("rank1"), "mAP: too many letters to be read; differences.csv tests every pair.")
    none = "Rank-1 and mAP: too many letters to be read; differences.csv tests every pair (all 64 permutations"
    assert said(lettered(), none) and not said(lettered(), "share a letter")


def test_more_permutations_for_many_pairs_are_named(tmp_path: Path) -> None:
    for number in range(8):
        write_run(tmp_path / f"run{number}", luck=number, **ONE_SETTING)
    [one] = compare_runs([tmp_path]).blocks
    assert said(one, "20,000 permutations, up to 28,000 where those leave it open, that swap whole people")
    assert not said(one, "no difference can be significant")


def test_published_rows_are_marked_and_not_bold(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"protocols": ["gallery"], "flips": ["none"], "gallery_images": 71, "queries": 971}
    for name, skill in (("one", 0.1), ("two", 0.2)):
        write_run(tmp_path / name, skill=skill, **facts)
    matrix = compare_runs([tmp_path])
    markdown = matrix_markdown(matrix)
    for text in (markdown, matrix_latex(matrix)):
        line = next(line for line in text.splitlines() if "CLIP-FH stage 1 ViT-B/16" in line)
        assert "published, other draws" in line
        assert "**" not in line and "textbf" not in line
    assert "| 93.69 | 98.02 | 99.38 | 95.58 | 94.64† |" in markdown
    assert re.search(r"CLIP-FH stage 2 v5 ViT-B/16 \[(\d)\].*\[\1\] An artefact", markdown, flags=re.DOTALL)
    assert "| 1 | CLIP-FH stage 1 ViT-B/16 | babupallam/CLIP-FH at c7c2f8d. Stopped early" in markdown
    shown = screen(matrix)
    assert "(published," in shown and "…" not in shown


def test_csv_of_published_rows_has_as_many_columns(tmp_path: Path) -> None:
    matrix = compare_runs([write_run(tmp_path / "one")], published=True)
    lines = [line for line in csv_lines(matrix) if line["row"] == ""]
    assert len(lines) == 85
    [mba] = [line for line in lines if line["model"] == "MBA-Net" and line["aspect"] == "palmar_l"]
    assert mba["source"] == "MBA-Net paper, ICPR 2022, by the notes of babupallam/CLIP-FH"
    assert [mba[name] for name in ("rank1_mean", "map_trapezoid_mean", "map_mean")] == ["0.9742", "0.9784", "0.9826"]
    assert mba["converted"] == "map" and mba["tied_queries"] == ""
    assert all(line["note"] for line in lines if "stage 2" in line["model"])


@pytest.mark.promise("exact-similarities")
def test_ties_are_beside_the_rates(tmp_path: Path) -> None:
    for number, (name, tied) in enumerate({"tied": 1234, "untied": 0}.items()):
        path = write_run(tmp_path / name, luck=number, **ONE_SETTING) / "metrics.json"
        [result] = json.loads(path.read_text())["results"]
        change_json(path, results=[{**result, "tied_queries": tied}])
    matrix = compare_runs([tmp_path])
    [block] = matrix.blocks
    assert [line["tied_queries"] for line in csv_lines(matrix)] == ["1234", "0"]
    assert {(line["queries"], line["matched_queries"]) for line in csv_lines(matrix)} == {("50", "50 50 50")}
    (sentence,) = said(block, "Ties")
    assert sentence.endswith("a wrong image scores the same as the best right one: 1,234 of row 1.")
    assert not said(replace(block, rows=block.rows[1:]), "Ties")


@pytest.mark.promise("evaluation-before-the-end")
def test_an_evaluation_before_training_had_ended_is_told_from_the_others(tmp_path: Path) -> None:
    for number, ended in enumerate((True, False, None)):
        write_run(tmp_path / str(number), luck=number, training_ended=ended, **ONE_SETTING)
    matrix = compare_runs([tmp_path])
    [block] = matrix.blocks
    assert [line["training_ended"] for line in csv_lines(matrix)] == ["True", "False", ""]
    (sentence,) = said(block, "training had ended")
    assert sentence.startswith("Evaluated before training had ended, by the best model until then: row 2. ")
    assert not said(replace(block, rows=[block.rows[0], block.rows[2]]), "training had ended")
