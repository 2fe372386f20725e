import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_study import HANDS

from handclip import demo
from handclip.config.study import StudyConfig, load_study
from handclip.errors import DataError, HandCLIPError

Handclip = Callable[..., Any]
TINY = ["input_size=32", "num_workers=0", "device=cpu", "num_splits=2", "batch_size=24", "warmup_epochs=0"]


@pytest.fixture
def tiny_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's own studies with everything small."""

    def load_tiny(path: Path, overrides: Sequence[str]) -> StudyConfig:
        small = [*(f"common.{change}" for change in TINY), "stage1.epochs=1", "stage2.epochs=1"]
        hands = {"identities": HANDS.identities, "images_per_aspect": HANDS.images_per_aspect, "size": HANDS.size}
        return load_study(path, [*overrides, *small, f"synthetic={json.dumps(hands)}"])

    monkeypatch.setattr(demo, "load_study", load_tiny)


ALL_LOSSES = ["ce", "ce + triplet", "ce + center", "ce + arcface", "ce + triplet + center"]
PLAN = [
    ("0", "vit_small", "no training"),
    ("1", "vit_small", "ce"),
    *(("2", "vit_small", losses) for losses in ALL_LOSSES),
    ("0", "mbanet_small", "no training"),
    ("1", "mbanet_small", "ce"),
    ("2", "mbanet_small", "ce + triplet"),
    ("0", "resnet_small", "no training"),
    ("1", "resnet_small", "ce"),
    ("2", "resnet_small", "ce + triplet"),
]


def planned(out: Path) -> list[tuple[str, str, str]]:
    record = json.loads((out / "study.json").read_text())
    assert {run["state"] for run in record} == {"done"}
    return [(run["stage"], run["model"], run["losses"]) for run in record]


def test_the_demo_from_end_to_end(tiny_recipe: None, handclip: Handclip, here: Path) -> None:
    answer = handclip("demo", "--out", "out")
    assert answer.code == 0, answer.err
    assert "ce + triplet + center" in answer.out
    assert "Everything was written to out/" in answer.out
    assert planned(here / "out") == PLAN
    blocks = json.loads((here / "out" / "comparison.json").read_text())["blocks"]
    assert {
        (block["protocol"]["dataset"], block["protocol"]["gallery_protocol"], block["protocol"]["flip"])
        for block in blocks
    } == {("synthetic", protocol, flip) for protocol in ("gallery", "gallery_all") for flip in ("none", "sum")}
    names = {path.name for path in (here / "out").iterdir()}
    assert names >= {"synthetic_hands", "train_logs", "eval_logs", "saved_models", "comparison.md", "differences.csv"}
    assert not list(here.rglob("*.part"))

    again = handclip("demo", "--out", "out")
    assert again.code == 1
    assert "out exists already. Add --resume" in again.err
    before = {path: path.stat().st_mtime_ns for path in (here / "out" / "saved_models").iterdir()}
    resumed = handclip("demo", "--out", "out", "--resume")
    assert resumed.code == 0
    assert resumed.err.count("has already ended") == 10
    assert {path: path.stat().st_mtime_ns for path in (here / "out" / "saved_models").iterdir()} == before


def test_the_demo_on_given_hands(tiny_recipe: None, hands: Path, here: Path) -> None:
    shutil.copytree(hands, here / "photographs")  # where manifests are left
    result = demo.run_demo(here / "photographs", here / "out")
    result.raise_failures()
    assert planned(here / "out") == PLAN[:7]
    assert not (here / "out" / "synthetic_hands").exists()


def test_the_demo_refuses_what_is_not_in_the_layout(here: Path) -> None:
    (here / "pictures").mkdir()
    with pytest.raises(DataError, match="not in the layout of 11k Hands"):
        demo.run_demo(here / "pictures", here / "out")
    assert not (here / "out").exists()
    with pytest.raises(HandCLIPError, match="exists already"):
        demo.run_demo(None, here / "pictures")
