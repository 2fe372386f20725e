from pathlib import Path

import pytest
from audited_study import RUNTIME, SMALL, Copy
from tiny_study import tiny_config

from handclip.runs.evaluate import evaluate
from handclip.runs.train import train


@pytest.fixture(scope="session")
def original(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder with a trained and an evaluated run; read it, do not change it."""
    place = tmp_path_factory.mktemp("audited")
    places = {key: str(place / name) for key, name in RUNTIME.items()}
    config = tiny_config(manifests, experiment="audited", **SMALL, **places)
    train(config)
    evaluate(config)
    return place


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Copy:
    return Copy(original, tmp_path)
