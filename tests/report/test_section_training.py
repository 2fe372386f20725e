import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_runs import ALL_ASPECTS, write_run
from matplotlib.figure import Figure
from quick_figures import keep_figures
from section_parts import cells_of, data_of, notes, pictures, rows_of, the, words

from handclip.report.report_writer import ReportWriter, Section
from handclip.report.sections.training import training_section
from handclip.report.table import Table


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that were made, by name; drawing them is the matter of other tests and takes long."""
    return keep_figures(monkeypatch)


def epoch(number: int, loss: float, **values: Any) -> dict[str, Any]:
    rates = {"lr_encoder": 1e-4, "lr_new": 1e-3}
    speed = {"images_per_second": 50.0, "seconds": 2.0, "peak_memory_mib": 700}
    return {"epoch": number, "loss_total": loss, "loss_cross_entropy": loss, **rates, **speed, **values}


VALIDATED = [
    epoch(1, 5.0, val_rank1="", val_map=""),
    epoch(2, 3.0, val_rank1=0.4, val_map=0.5, validation_images=1200),
    epoch(3, 1.0, val_rank1=0.3, val_map=0.4, validation_images=1200),
]


def write_training(study: Path, run: str, history: Sequence[dict[str, Any]], best_epoch: int = 2) -> None:
    folder = study / "train_logs" / run
    folder.mkdir(parents=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in history for key in row)))
        writer.writeheader()
        writer.writerows(history)
    cost = {"seconds": 6.5, "images_per_second": 48.0, "peak_memory_mib": 700, "peak_gpu_memory_mib": None}
    (folder / "result.json").write_text(json.dumps({"best_epoch": best_epoch, **cost}))


def section_of(study: Path) -> Section:
    return training_section(data_of(study), ReportWriter(study / "report"))


def table(study: Path, name: str) -> list[dict[str, str]]:
    return rows_of(study / "report" / "tables" / f"{name}.csv")


def test_every_epoch_is_in_the_table_and_each_part_has_its_figure(tmp_path: Path):
    write_run(tmp_path / "eval_logs" / "a")
    write_training(tmp_path, "a", VALIDATED)
    section = section_of(tmp_path)
    assert list(pictures(section)) == ["scores", "losses", "validation", "learning_rates"]
    rows = table(tmp_path, "training")
    assert [(row["run"], row["epoch"], row["loss_total"], row["val_map"]) for row in rows] == [
        ("a", "1.0", "5.0", ""), ("a", "2.0", "3.0", "0.5"), ("a", "3.0", "1.0", "0.4"),
    ]  # fmt: skip
    shown = the(section, Table)
    assert shown.titles == [
        "Run", "Epochs", "Best epoch", "Rank-1 there (%)", "mAP there (%)", "Seconds", "Images/s", "Peak memory (MiB)",
    ]  # fmt: skip
    assert cells_of(shown)[0][1:] == ["3", "2", "40.0", "50.0", "6", "48", "700"]
    captions = [shown.caption, pictures(section)["validation"].caption]
    assert all(caption.endswith(" Validation is of 1,200 images.") for caption in captions)
    assert not notes(section)
    assert "5 to 1" in pictures(section)["losses"].alt


def test_runs_without_validation_get_a_note_and_no_figure(tmp_path: Path):
    write_run(tmp_path / "eval_logs" / "a")
    write_training(tmp_path, "a", [epoch(1, 5.0), epoch(2, 3.0)])
    section = section_of(tmp_path)
    assert "validation" not in pictures(section)
    [note] = notes(section, "missing")
    assert note.startswith("Run 1 was trained without validation (train_split: train_all)")
    assert "Best epoch" not in the(section, Table).titles


def test_baselines_alone_say_that_nothing_was_trained(tmp_path: Path):
    write_run(tmp_path / "eval_logs" / "a", stage="0")
    section = section_of(tmp_path)
    assert list(pictures(section)) == ["scores"]
    assert "Nothing was trained" in words(section)
    assert not notes(section)


def test_lost_records_are_named_and_the_others_shown(tmp_path: Path):
    for name in ("a", "b", "c"):
        write_run(tmp_path / "eval_logs" / name, luck=ord(name))
    write_training(tmp_path, "b", VALIDATED)
    write_training(tmp_path, "c", VALIDATED)
    (tmp_path / "train_logs" / "c" / "metrics.csv").write_text("epoch,loss_total\n1,not a number\n")
    section = section_of(tmp_path)
    damaged, gone = notes(section)
    path = tmp_path / "train_logs" / "c" / "metrics.csv"
    assert damaged.startswith(f"The record of training of run 3 cannot be shown: {path}: is damaged")
    assert damaged.endswith(". Put the file back from a copy; only training once more could make it again.")
    assert gone.startswith("No record of training was found for 1 run: run 1. Training writes")
    assert {row["run"] for row in table(tmp_path, "training")} == {"b"}
    assert "losses" in pictures(section)


def test_more_runs_than_curves_can_be_told_apart_are_left_to_the_table(tmp_path: Path):
    for number in range(10):
        losses = ["cross_entropy", "triplet", "center"][: 1 + number % 3]
        name, model = f"run{number}", "vit_small" if number % 2 else "mbanet_small"
        write_run(tmp_path / "eval_logs" / name, luck=number, losses=losses, model=model, seed=number, people=6)
        write_training(tmp_path, name, VALIDATED)
    data = data_of(tmp_path)
    section = training_section(data, ReportWriter(tmp_path / "report"))
    assert f"10 runs were trained; the figures show {len(data.shown)} of them" in words(section)
    alt = pictures(section)["losses"].alt
    assert all((run.label in alt) == (run in data.shown) for run in data.runs)
    assert len({row["run"] for row in table(tmp_path, "training")}) == 10


def test_terms_of_several_branches_share_a_panel(tmp_path: Path, figures: dict[str, Figure]):
    write_run(tmp_path / "eval_logs" / "a")
    terms = {"loss_global/triplet": 0.5, "loss_channel/triplet": 0.3}
    write_training(tmp_path, "a", [epoch(1, 5.0, **terms), epoch(2, 4.0, **terms)])
    section = section_of(tmp_path)
    panels = {axes.get_title(loc="left"): axes for axes in figures["losses"].axes}
    assert set(panels) == {"Total", "Cross entropy", "Triplet"}
    assert panels["Triplet"].lines[0].get_ydata() == pytest.approx([0.4, 0.4])
    picture = pictures(section)["losses"]
    assert "averaged over the branches" in picture.caption
    assert table(tmp_path, "training")[0]["loss_channel/triplet"] == "0.3"


@pytest.mark.parametrize("aspects", [ALL_ASPECTS, ("dorsal_r",)])
def test_every_draw_and_the_averages_agree_with_the_evaluation(tmp_path: Path, aspects: Sequence[str]):
    folder = write_run(tmp_path / "eval_logs" / "a", aspects=aspects, stage="0")
    section_of(tmp_path)
    rows = {
        (row["aspect"], row["gallery_protocol"], row["flip"], row["draw"]): row for row in table(tmp_path, "evaluation")
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    parts = {metrics["aspect"]: metrics, **metrics.get("per_aspect", {})}
    assert len(rows) == len(parts) * 4 * 5  # galleries and flips; three draws, mean, std
    for aspect, part in parts.items():
        for entry in part["results"]:
            setting = (aspect, entry["gallery_protocol"], entry["flip"])
            wanted = {**{str(number): split for number, split in enumerate(entry["splits"])}}
            for draw, scores in {**wanted, "mean": entry["mean"], "std": entry["std"]}.items():
                for name, value in scores.items():
                    assert float(rows[*setting, draw][name]) == pytest.approx(value, abs=1e-12)
