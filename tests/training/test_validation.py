from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from handclip.datasets.torch_dataset import LabelledImage
from handclip.errors import TrainingError
from handclip.training.validation import validate


def images(labels: list[int]) -> list[LabelledImage]:
    return [LabelledImage(Path(f"{label}.jpg"), "", label) for label in labels]


def run(features: list[list[float]], aspects: list[str]) -> dict[str, float]:
    """Validate with these features of the queries, then of the gallery."""
    labels = list(range(len(aspects)))
    embedder: Any = SimpleNamespace(embed=lambda *_, **__: {"none": np.array(features, np.float32)})
    return validate(embedder, images(labels), images(labels), aspects)


# Two people. The right hand of each is found only if their left hands are not in the gallery.
RIGHT = [[1.0, 0.0], [0.0, 1.0]]
LEFT_GALLERY = [[0.9, 0.1], [0.1, 0.9]]


def test_each_aspect_is_validated_by_itself() -> None:
    queries = [[0.95, 0.06], [0.06, 0.95], *LEFT_GALLERY]
    gallery = [*RIGHT, *LEFT_GALLERY]
    together = run(queries + gallery, ["dorsal_r"] * 4)
    apart = run(queries + gallery, ["dorsal_r", "dorsal_r", "dorsal_l", "dorsal_l"])
    assert together["val_rank1"] < 1
    assert apart == {"val_rank1": 1, "val_rank5": 1, "val_rank10": 1, "val_map": 1}


def test_aspects_count_alike() -> None:
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    # Of two dorsal queries both are found, of two palmar ones none.
    queries = [right, wrong, right, wrong]
    gallery = [right, wrong, wrong, right]
    metrics = run(queries + gallery, ["dorsal_r", "dorsal_r", "palmar_r", "palmar_r"])
    assert metrics["val_rank1"] == 0.5
    assert metrics["val_map"] == pytest.approx((1 + 0.5) / 2)


def test_a_collapsed_model_is_a_training_error() -> None:
    with pytest.raises(TrainingError, match="the model has collapsed"):
        run([[0.0, 0.0]] * 4, ["dorsal_r", "dorsal_r"])
