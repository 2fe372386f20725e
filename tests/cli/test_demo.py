import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import Handclip
from tiny_study import HANDS

from handclip import demo
from handclip.config.study import StudyConfig, load_study
from handclip.errors import DataError, HandCLIPError

TINY = ["input_size=32", "num_workers=0", "device=cpu", "num_splits=2", "batch_size=24", "warmup_epochs=0"]
TINY += ["explained_images=0", "precision=float32", "flip_settings=[none]"]


@pytest.fixture
def tiny_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's own studies with everything small."""

    def load_tiny(path: Path, overrides: Sequence[str]) -> StudyConfig:
        small = [*(f"common.{change}" for change in TINY), "stage1.epochs=1", "stage2.epochs=1"]
        hands = {"identities": HANDS.identities, "images_per_aspect": HANDS.images_per_aspect, "size": HANDS.size}
        return load_study(path, [*overrides, *small, f"synthetic={json.dumps(hands)}"])

    monkeypatch.setattr(demo, "load_study", load_tiny)


ALL_LOSSES = ["ce", "ce + triplet", "ce + center", "ce + arcface", "ce + triplet + center"]
STAGES = {"vit_small": ALL_LOSSES, "mbanet_small": ["ce + triplet"], "resnet_small": ["ce + triplet"]}
PLAN = [
    (stage, model, losses)
    for model, stage2 in STAGES.items()
    for stage, losses in [("0", "no training"), ("1", "ce"), *(("2", losses) for losses in stage2)]
]


def planned(out: Path) -> list[tuple[str, str, str]]:
    record = json.loads((out / "study.json").read_text())
    assert {run["state"] for run in record} == {"done"}
    return [(run["stage"], run["model"], run["losses"]) for run in record]


@pytest.mark.slow
def test_the_demo_from_end_to_end(tiny_recipe: None, handclip: Handclip, here: Path) -> None:
    answer = handclip.ok("demo", "--out", "out")
    assert "ce + triplet + center" in answer.out
    assert "Everything was written to out/" in answer.out
    assert planned(here / "out") == PLAN
    blocks = json.loads((here / "out" / "comparison.json").read_text())["blocks"]
    protocols = {tuple(block["protocol"][key] for key in ("dataset", "gallery_protocol", "flip")) for block in blocks}
    assert protocols == {("synthetic", gallery, "none") for gallery in ("gallery", "gallery_all")}
    names = {path.name for path in (here / "out").iterdir()}
    assert names >= {"synthetic_hands", "train_logs", "eval_logs", "saved_models", "comparison.md", "differences.csv"}
    assert not list(here.rglob("*.part"))

    assert "out exists already. Add --resume" in handclip.refused("demo", "--out", "out", code=1)
    before = {path: path.stat().st_mtime_ns for path in (here / "out" / "saved_models").iterdir()}
    resumed = handclip.ok("demo", "--out", "out", "--resume")
    assert resumed.err.count("has already ended") == 10
    assert {path: path.stat().st_mtime_ns for path in (here / "out" / "saved_models").iterdir()} == before


def test_the_demo_on_given_hands(hands: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run_study", lambda study, plan, out: plan)
    plan = demo.run_demo(hands, here / "out")
    assert [(run.stage, run.model, run.losses) for run in plan] == PLAN[:7]
    assert {(run.config.dataset, run.config.data_root) for run in plan} == {("11k", hands)}
    assert {run.config.epochs for run in plan if run.stage == "1"} == {90}


def test_the_demo_refuses_what_is_not_in_the_layout(here: Path) -> None:
    (here / "pictures").mkdir()
    with pytest.raises(DataError, match="not in the layout of 11k Hands"):
        demo.run_demo(here / "pictures", here / "out")
    assert not (here / "out").exists()
    with pytest.raises(HandCLIPError, match="exists already"):
        demo.run_demo(None, here / "pictures")
