from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handclip.datasets.torch_dataset import LabelledImage
from handclip.errors import TrainingError
from handclip.training import validation
from handclip.training.validation import validate


def images(labels: list[int]) -> list[LabelledImage]:
    return [LabelledImage(Path(f"{label}.jpg"), "", label) for label in labels]


def run(monkeypatch: pytest.MonkeyPatch, features: list[list[float]], aspects: list[str]) -> dict[str, float]:
    """Validate with these features of the queries, then of the gallery."""
    found = np.array(features, np.float32)
    monkeypatch.setattr(validation, "extract_features", lambda *_, **__: (found, None))
    labels = list(range(len(aspects)))
    nothing: Any = None
    return validate(
        nothing, images(labels), images(labels), aspects, device=torch.device("cpu"), batch_size=1, num_workers=0
    )


# Two people. The right hand of each is found only if their left hands are not in the gallery.
RIGHT = [[1.0, 0.0], [0.0, 1.0]]
LEFT_GALLERY = [[0.9, 0.1], [0.1, 0.9]]


def test_each_aspect_is_validated_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = [[0.95, 0.06], [0.06, 0.95], *LEFT_GALLERY]
    gallery = [*RIGHT, *LEFT_GALLERY]
    together = run(monkeypatch, queries + gallery, ["dorsal_r"] * 4)
    apart = run(monkeypatch, queries + gallery, ["dorsal_r", "dorsal_r", "dorsal_l", "dorsal_l"])
    assert together["val_rank1"] < 1
    assert apart == {"val_rank1": 1, "val_rank5": 1, "val_rank10": 1, "val_map": 1}


def test_aspects_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    # Of two dorsal queries both are found, of two palmar ones none.
    queries = [right, wrong, right, wrong]
    gallery = [right, wrong, wrong, right]
    metrics = run(monkeypatch, queries + gallery, ["dorsal_r", "dorsal_r", "palmar_r", "palmar_r"])
    assert metrics["val_rank1"] == 0.5
    assert metrics["val_map"] == pytest.approx((1 + 0.5) / 2)


def test_a_collapsed_model_is_a_training_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="the model has collapsed"):
        run(monkeypatch, [[0.0, 0.0]] * 4, ["dorsal_r", "dorsal_r"])
