import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from handclip.config.loading import parse_config
from handclip.engine.evaluation import Evaluation
from handclip.engine.study import Outcome
from handclip.engine.training import TrainingResult
from handclip.errors import HandCLIPError
from handclip.report.comparison import compare_outcomes, write_comparison
from handclip.report.tables import METRIC_TITLES, Comparison, ComparisonRow, evaluation_text

MEANS = {"rank1": 0.5, "rank5": 0.75, "rank10": 1.0, "map": 0.61234, "map_trapezoid": 0.55617}
STDS = {"rank1": 0.0125, "rank5": 0.02, "rank10": 0.0, "map": 0.03141, "map_trapezoid": 0.0271}
CELLS = ["50.0 ± 1.2", "75.0 ± 2.0", "100.0 ± 0.0", "61.2 ± 3.1", "55.6 ± 2.7"]


@pytest.fixture
def comparison() -> Comparison:
    worse = {name: value / 2 for name, value in MEANS.items()}
    return Comparison(
        "11k dorsal_r; gallery protocol: gallery",
        [
            ComparisonRow("0", "-", "baseline", worse, STDS),
            ComparisonRow("2", "ce + triplet", "run_ce_triplet", MEANS, STDS, 7, 1234.5, 98.76),
        ],
    )


def rendered(comparison: Comparison, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(comparison.to_rich())
    return file.getvalue()


def test_every_rendering_holds_the_same_numbers(comparison: Comparison, tmp_path: Path) -> None:
    write_comparison(comparison, tmp_path, "table")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.json", "table.md"]

    markdown = (tmp_path / "table.md").read_text()
    assert markdown.startswith("11k dorsal_r; gallery protocol: gallery\n\n| Stage | Losses | Rank-1 | ")
    last = markdown.splitlines()[-1]
    assert last == "| " + " | ".join(["2", "ce + triplet", *CELLS, "1,234", "99"]) + " |"
    assert markdown.splitlines()[-2].endswith("| - | - |")

    screen = next(line for line in rendered(comparison, 160).splitlines() if "ce + triplet" in line)
    assert re.findall(r"[\d.]+ ± [\d.]+", screen) == CELLS

    [baseline, trained] = csv.DictReader((tmp_path / "table.csv").open(newline=""))
    [_, plain] = json.loads((tmp_path / "table.json").read_text())["rows"]
    for name in METRIC_TITLES:
        assert float(trained[f"{name}_mean"]) == plain["mean"][name] == MEANS[name]
        assert float(trained[f"{name}_std"]) == plain["std"][name] == STDS[name]
    assert (trained["best_epoch"], trained["training_seconds"], trained["run"]) == ("7", "1234.5", "run_ce_triplet")
    assert (baseline["best_epoch"], baseline["training_seconds"]) == ("", "")
    assert plain["images_per_second"] == 98.76


def test_files_hold_fractions_and_the_screen_percent(comparison: Comparison) -> None:
    assert all(0 <= value <= 1 for row in comparison.to_dict()["rows"] for value in row["mean"].values())
    assert "61.2" in rendered(comparison, 160)
    assert "0.61234" in comparison.to_csv()


def test_a_narrow_screen_cuts_no_number_off(comparison: Comparison) -> None:
    text = rendered(comparison, 80)
    assert "…" not in text
    for number in ("50.0", "1.2", "100.0", "3.1", "1,234"):
        assert number in text


def test_one_evaluation_as_text() -> None:
    text = evaluation_text(metrics("run_a"), {"Config": "a.yml"})
    for line in (
        "Experiment run:   run_a",
        "Config:           a.yml",
        "Checkpoint:       none (baseline)",
        "Gallery protocol: gallery; flip: none; AP: plain and trapezoid",
        "  Split  1/1: Rank-1  50.00 %  Rank-5  75.00 %  Rank-10 100.00 %  mAP  61.23 %  mAP trapezoid  55.62 %",
        "  Std:         Rank-1   1.25 %",
        "  Left out: 2 queries without a relevant gallery image",
    ):
        assert line in text


def metrics(run: str, **changes: Any) -> dict[str, Any]:
    entry = {
        "gallery_protocol": "gallery",
        "flip": "none",
        "num_splits": 1,
        "mean": MEANS,
        "std": STDS,
        "splits": [MEANS],
        "gallery_images": [71],
        "unmatched_queries": 2,
    }
    facts = {"run": run, "dataset": "11k", "aspect": "dorsal_r", "model": "vitb16", "checkpoint": None}
    numbers = {"manifest_sha256": "0123456789abcdef", "distinct_images": 1234, "seconds": 1.5, "results": [entry]}
    return {**facts, **numbers, **changes}


def outcome(run: str, stage: str, **changes: Any) -> Outcome:
    values: dict[str, Any] = {"experiment": "e", "model": "vitb16", "dataset": "11k"}
    if stage == "0":
        values["variant"] = "baseline"
    if stage == "2":
        values |= {"resume_from": "a.pth", "losses": [{"type": "cross_entropy"}, {"type": "arcface"}]}
    here = Path()
    training = TrainingResult(run, here, here, here, 3, 5, 60.0, 10.0, True) if stage != "0" else None
    return Outcome(parse_config(values, "test"), training, Evaluation(run, here, metrics(run, **changes)))


def test_outcomes_of_the_stages_stand_side_by_side() -> None:
    table = compare_outcomes([outcome(stage, stage) for stage in "012"], flip="none")
    assert [(row.stage, row.losses) for row in table.rows] == [("0", "-"), ("1", "ce"), ("2", "ce + arcface")]
    assert [row.training_seconds for row in table.rows] == [None, 60.0, 60.0]
    assert table.protocol == (
        "11k dorsal_r; gallery protocol: gallery (71 images); flip: none; 1 draws, mean ± std; manifest 0123456789ab"
    )


def test_runs_on_different_manifests_are_not_compared() -> None:
    with pytest.raises(HandCLIPError, match="b and a were evaluated on different manifests"):
        compare_outcomes([outcome("a", "0"), outcome("b", "1", manifest_sha256="fedcba")], flip="none")
