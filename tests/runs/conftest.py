"""Runs that tests begin with: one that has ended, and one whose validations find what they are told."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_study import LOSSES, tiny_config

from handclip.config.experiment import ExperimentConfig
from handclip.runs.result import TrainingResult


@pytest.fixture
def ended(stage1: TrainingResult, manifests: Path, tmp_path: Path) -> ExperimentConfig:
    """The config of a run of two epochs that has ended: a copy of `stage1`, to be changed."""
    place = tmp_path / "ended"
    shutil.copytree(stage1.folder.parents[1], place)
    places = {"output_dir": str(place / "train_logs"), "save_dir": str(place / "saved_models")}
    return tiny_config(manifests, experiment="stage1", losses=LOSSES["ce"], **places)


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have validation find these, one after the other: a GPU may find others when it trains an epoch again."""
    script: Iterator[float] = iter(())

    def validate(*images: Any, **options: Any) -> dict[str, float]:
        return {"val_rank1": 0.0, "val_rank5": 1.0, "val_rank10": 1.0, "val_map": next(script)}

    def arrange(*values: float) -> None:
        nonlocal script
        script = iter(values)

    monkeypatch.setattr("handclip.runs.train.validate", validate)
    return arrange
