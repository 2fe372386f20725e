from pathlib import Path

import pytest
from tiny_study import tiny_config

from handclip.runs.result import TrainingResult
from handclip.runs.train import train


@pytest.fixture(scope="session")
def stage1(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A trained stage-1 model; read it, do not change it."""
    place = tmp_path_factory.mktemp("stage1")
    places = {"output_dir": str(place / "train_logs"), "save_dir": str(place / "saved_models")}
    return train(tiny_config(manifests, experiment="stage1", losses=[{"type": "cross_entropy"}], **places))
