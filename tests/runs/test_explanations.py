from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from handclip.datasets.images import read_image
from handclip.datasets.manifest import Draw, Manifest, ManifestImage
from handclip.errors import CheckpointError, DataError
from handclip.models.builder import model_from_checkpoint
from handclip.models.checkpoint import Checkpoint
from handclip.models.embedding_model import EmbeddingModel
from handclip.models.resnet import ResNetEncoder
from handclip.runs.explanations import explain_checkpoint, explain_photographs, hands_to_explain
from handclip.runs.result import TrainingResult

CPU = torch.device("cpu")


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def small_model() -> EmbeddingModel:
    torch.manual_seed(0)
    return EmbeddingModel(ResNetEncoder("resnet_small", input_size=(64, 32)))


def test_photographs_are_kept_small_and_in_their_own_shape() -> None:
    sizes = [(800, 600), (150, 100), (200, 640)]
    taken = [photograph(*size) for size in sizes]
    found = explain_photographs(small_model(), CPU, [(f"{n}.jpg", "dorsal_r", one) for n, one in enumerate(taken)])
    assert [one.photograph.shape for one in found] == [(240, 320, 3), (100, 150, 3), (320, 100, 3)]
    assert all(one.photograph.dtype == np.uint8 for one in found)
    assert [one.size for one in taken] == sizes
    assert [(one.image, one.aspect) for one in found] == [(f"{n}.jpg", "dorsal_r") for n in range(3)]
    assert all(list(one.maps) == ["Grad-CAM"] for one in found)
    assert all(one.maps["Grad-CAM"].shape == (4, 2) and one.maps["Grad-CAM"].dtype == np.float32 for one in found)


def test_each_photograph_has_its_own_map_however_many_there_are() -> None:
    model = small_model()
    photographs = [(f"{seed}.jpg", "", photograph(40, 60, seed)) for seed in range(10)]
    together = explain_photographs(model, CPU, photographs)
    for number in (0, 7, 8, 9):
        [alone] = explain_photographs(model, CPU, [photographs[number]])
        assert together[number].image == alone.image
        np.testing.assert_allclose(together[number].maps["Grad-CAM"], alone.maps["Grad-CAM"], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_explains_any_image(stage1: TrainingResult, hands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    paths = sorted((hands / "Hands").iterdir())[:9]
    found = explain_checkpoint(stage1.checkpoint, paths)
    model = model_from_checkpoint(Checkpoint.load(stage1.checkpoint), "stage 1")
    expected = explain_photographs(model, CPU, [(str(path), "", read_image(path)) for path in paths])
    assert [(one.image, one.aspect) for one in found] == [(str(path), "") for path in paths]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.photograph, other.photograph)
        np.testing.assert_allclose(one.maps["attention rollout"], other.maps["attention rollout"], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_read_is_named(stage1: TrainingResult, hands: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth: no such file"):
        explain_checkpoint(tmp_path / "none.pth", [])
    with pytest.raises(DataError, match=r"none\.jpg does not exist"):
        explain_checkpoint(stage1.checkpoint, [next((hands / "Hands").iterdir()), tmp_path / "none.jpg"])


def manifest(aspect: str, people: int) -> Manifest:
    """Three images a person, of whom each draw has two as queries; the first query of the first draw is the second."""
    images = tuple(
        ManifestImage(f"{aspect}/{person}_{number}.jpg", 100 - person, "0" * 64, 1)
        for person in range(people)
        for number in range(3)
    )
    first = Draw(
        query=tuple(index for index in range(3 * people) if index % 3 != 0),
        gallery=tuple(index for index in range(3 * people) if index % 3 == 0),
    )
    second = Draw(query=first.gallery, gallery=first.query)
    return Manifest(
        dataset="11k", aspect=aspect, seed=0, images=images, train=(), val=(), test=tuple(range(3 * people)),
        draws=(first, second), identity_names={}, missing_images=0, unreadable_images=0, root=Path(),
    )  # fmt: skip


def people_of(chosen: list[tuple[str, int]], manifests: dict[str, Manifest]) -> list[int]:
    return [manifests[aspect].images[index].identity for aspect, index in chosen]


def test_people_of_one_aspect_are_spread_evenly_over_all() -> None:
    manifests = {"dorsal_r": manifest("dorsal_r", 10)}
    chosen = hands_to_explain(manifests)
    assert people_of(chosen, manifests) == [91, 94, 97, 100]  # of 91 to 100
    assert all(index % 3 == 1 for _, index in chosen)
    assert people_of(hands_to_explain(manifests, 1), manifests) == [91]
    assert hands_to_explain(manifests, 0) == []
    few = {"dorsal_r": manifest("dorsal_r", 3)}
    assert sorted(people_of(hands_to_explain(few, 7), few)) == [98, 99, 100]


def test_aspects_take_turns_and_people_differ() -> None:
    aspects = ("palmar_r", "dorsal_r", "palmar_l", "dorsal_l")
    manifests = {aspect: manifest(aspect, 10) for aspect in aspects}
    chosen = hands_to_explain(manifests)
    assert [aspect for aspect, _ in chosen] == ["dorsal_l", "dorsal_r", "palmar_l", "palmar_r"]
    assert people_of(chosen, manifests) == [91, 94, 97, 100]
    assert hands_to_explain(dict(reversed(manifests.items()))) == chosen
    assert [aspect for aspect, _ in hands_to_explain(manifests, 2)] == ["dorsal_l", "dorsal_r"]
    assert len(set(hands_to_explain(manifests, 8))) == 8

    # Person 100, whose turn it is in dorsal_r, is shown already.
    uneven = {"dorsal_l": manifest("dorsal_l", 1), "dorsal_r": manifest("dorsal_r", 2)}
    assert people_of(hands_to_explain(uneven, 2), uneven) == [100, 99]
    both_alone = {"dorsal_l": manifest("dorsal_l", 1), "dorsal_r": manifest("dorsal_r", 1)}
    assert people_of(hands_to_explain(both_alone, 4), both_alone) == [100, 100]
