"""`evaluate`, `compare`, `report`, `project` and `verify` on results that are possible and of no use."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_study import baseline_values, tiny_values, write_config

from handclip.engine import feature_table
from handclip.engine.features import extract_features

Handclip = Callable[..., Any]
FIGURES = {
    *("scores", "losses", "validation", "learning_rates"),
    *("cmc", "rank_lists", "confused_pairs", "embedding_space", "attention"),
    *("score_densities", "det_roc", "open_set", "reliability", "groups", "groups_of_runs"),
}


def collapse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every model see the same in all images."""

    def all_alike(*arguments: Any, **options: Any) -> Any:
        return tuple(np.broadcast_to(rows[:1], rows.shape) for rows in extract_features(*arguments, **options))

    monkeypatch.setattr(feature_table, "extract_features", all_alike)


def require_that_intervals_hold_their_values(folder: Path) -> int:
    """Check every interval in the tables and the comparison below a folder; return how many there are."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.rglob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows += csv.DictReader(file)
    for path in folder.rglob("comparison.json"):
        for block in json.loads(path.read_text())["blocks"]:
            rows += [score for row in block["rows"] for score in row["scores"].values()] + block["differences"]
    found = 0
    for row in rows:
        for key in row:
            prefix = key.removesuffix("low")
            if prefix + "high" in row and row[key] not in ("", None):
                value = next(row[one] for one in (prefix[:-1], f"{prefix}mean", "difference") if one in row)
                assert float(row[key]) <= float(value) <= float(row[prefix + "high"]), row
                found += 1
    return found


def test_a_collapsed_model_is_evaluated_compared_and_reported(
    manifests: Path, here: Path, handclip: Handclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    collapse(monkeypatch)
    every = {"aspect": "all", "num_splits": 10}
    trained = write_config(here / "trained.yml", tiny_values(manifests, model="resnet_small", epochs=1, **every))
    baseline = write_config(here / "baseline.yml", baseline_values(manifests, **every))
    for command, config in (("train", trained), ("evaluate", trained), ("evaluate", baseline)):
        answer = handclip(command, config)
        assert answer.code == 0, answer.err
    for command in ("compare", "report", "project"):
        answer = handclip(command, "eval_logs", "--out", command)
        assert answer.code == 0, answer.err
    record = json.loads((here / "report" / "report.json").read_text())
    assert record["faults"] == []
    figures = {Path(name).stem for name in record["files"] if name.startswith("figures/")}
    assert figures == FIGURES
    assert require_that_intervals_hold_their_values(here) > 100
    assert handclip("verify", "eval_logs").code == 0
