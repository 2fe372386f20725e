from pathlib import Path

import pytest
from tiny_study import make_hands, make_manifests, tiny_config

from handclip.engine.training import TrainingResult, train


@pytest.fixture(scope="session")
def hands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hands(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_manifests(tmp_path_factory.getbasetemp())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def stage1(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A trained stage-1 model; read it, do not change it."""
    place = tmp_path_factory.mktemp("stage1")
    places = {"output_dir": str(place / "train_logs"), "save_dir": str(place / "saved_models")}
    return train(tiny_config(manifests, experiment="stage1", losses=[{"type": "cross_entropy"}], **places))
