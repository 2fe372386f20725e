from pathlib import Path

import pytest
from tiny_study import tiny_config
from verified_study import PLACES, SMALL, Copy

from handclip.engine.evaluation import evaluate
from handclip.engine.training import train


@pytest.fixture(scope="session")
def original(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder with a trained and an evaluated run; read it, do not change it."""
    place = tmp_path_factory.mktemp("verified")
    places = {key: str(place / name) for key, name in PLACES.items()}
    config = tiny_config(manifests, experiment="verified", **SMALL, **places)
    train(config)
    evaluate(config)
    return place


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Copy:
    return Copy(original, tmp_path)
