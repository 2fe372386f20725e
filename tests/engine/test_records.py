"""What an evaluation keeps for reports, and that it comes back as it was."""

from pathlib import Path

import numpy as np
import pytest
from tiny_study import load_manifest, tiny_config

from handclip.datasets.manifest import ManifestImage
from handclip.engine.evaluation import evaluate
from handclip.engine.records import (
    Explanation,
    KeptFeatures,
    manifest_file,
    read_attributes,
    read_explanations,
    read_features,
    validation_pairs,
    write_attributes,
    write_explanations,
    write_features,
)
from handclip.engine.training import TrainingResult
from handclip.errors import HandCLIPError
from handclip.metrics import rank_gallery


def image(number: int) -> ManifestImage:
    return ManifestImage(f"Hands/{number}.jpg", number, f"{number:064x}", 100)


def features(count: int = 3, dim: int = 4) -> KeptFeatures:
    rng = np.random.default_rng(0)
    by_flip = {flip: rng.normal(size=(count, dim)).astype(np.float32) for flip in ("none", "sum")}
    return KeptFeatures([image(number).sha256 for number in range(count)], by_flip)


def test_features_come_back_bit_by_bit(tmp_path: Path) -> None:
    before = features()
    write_features(tmp_path, before)
    after = read_features(tmp_path)
    assert list(after.sha256) == list(before.sha256)
    for flip in ("none", "sum"):
        assert np.array_equal(after.by_flip[flip], before.by_flip[flip])


def test_features_are_found_by_image_and_have_length_1() -> None:
    kept = features()
    found = kept.of([image(2), image(0)], "sum")
    expected = kept.by_flip["sum"][[2, 0]]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)
    assert found.dtype == np.float64


def test_a_feature_of_zeros_stays_as_it_is() -> None:
    kept = KeptFeatures([image(0).sha256], {"none": np.zeros((1, 4), np.float32)})
    assert not kept.of([image(0)], "none").any()


def test_an_image_without_features_is_named() -> None:
    with pytest.raises(HandCLIPError, match="do not belong together"):
        features().of([image(7)], "none")


def test_attributes_and_explanations_come_back(tmp_path: Path) -> None:
    attributes = {"Hands/b.jpg": {"age": "30", "gender": "female"}, "Hands/a.jpg": {"age": "22", "gender": ""}}
    write_attributes(tmp_path, attributes)
    assert read_attributes(tmp_path) == attributes
    rng = np.random.default_rng(0)
    explanations = [
        Explanation(
            f"Hands/{number}.jpg",
            "dorsal_r",
            rng.integers(0, 255, (5, 6, 3), dtype=np.uint8),
            {"Grad-CAM": rng.random((2, 3), dtype=np.float32), "spatial attention": np.ones((2, 3), np.float32)},
        )
        for number in range(12)
    ]
    write_explanations(tmp_path, explanations)
    for before, after in zip(explanations, read_explanations(tmp_path), strict=True):
        assert (after.image, after.aspect) == (before.image, before.aspect)
        assert np.array_equal(after.photograph, before.photograph)
        assert after.maps.keys() == before.maps.keys()
        assert all(np.array_equal(after.maps[method], before.maps[method]) for method in before.maps)


def test_no_explanation_is_no_error(tmp_path: Path) -> None:
    write_explanations(tmp_path, [])
    assert read_explanations(tmp_path) == []


@pytest.mark.parametrize("name", ["features.npz", "explanations.npz"])
@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    read = {"features.npz": read_features, "explanations.npz": read_explanations}[name]
    with pytest.raises(HandCLIPError, match=f"{name}: is damaged"):
        read(tmp_path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"flip_none": np.ones((2, 3), np.float32)},
        {"sha256": np.array(["0" * 64], dtype="S64"), "flip_none": np.ones((2, 3), np.float32)},
        {"sha256": np.array(["0" * 64], dtype="S64"), "flip_none": np.full((1, 3), np.nan, np.float32)},
        {"sha256": np.array(["0" * 64], dtype="S64"), "flip_none": np.ones(3, np.float32)},
    ],
    ids=["no names", "too few names", "not finite", "no matrix"],
)
def test_features_that_cannot_be_right(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "features.npz", **arrays)
    with pytest.raises(HandCLIPError, match=r"features\.npz: is damaged"):
        read_features(tmp_path)


def test_explanations_that_cannot_be_right(tmp_path: Path) -> None:
    np.savez(tmp_path / "explanations.npz", **{"0/photograph": np.ones((2, 2, 3), np.uint8)})
    with pytest.raises(HandCLIPError, match=r"explanations\.npz: is damaged"):
        read_explanations(tmp_path)


@pytest.mark.parametrize("read", [read_features, read_explanations, read_attributes])
def test_an_evaluation_of_an_older_version_is_told_so(tmp_path: Path, read) -> None:
    with pytest.raises(HandCLIPError, match=r"older version of HandCLIP\. Evaluate the run again"):
        read(tmp_path)


def test_validation_pairs_show_training_people_only(manifests: Path) -> None:
    manifest = load_manifest(manifests)
    queries, gallery = validation_pairs(manifest)
    assert queries == list(manifest.val)
    assert set(gallery) <= set(manifest.train)
    people = [[manifest.images[index].identity for index in side] for side in (queries, gallery)]
    assert people[0] == people[1]
    assert not manifest.identities(manifest.test) & set(people[0])
    assert validation_pairs(manifest) == (queries, gallery)


def test_what_is_kept_gives_the_measured_numbers_again(here: Path, manifests: Path, stage1: TrainingResult) -> None:
    config = tiny_config(
        manifests,
        experiment="stage1",
        losses=[{"type": "cross_entropy"}],
        checkpoint=str(stage1.checkpoint),
        eval_dir=str(here / "eval_logs"),
    )
    evaluation = evaluate(config)
    manifest = load_manifest(manifests)
    assert manifest_file(evaluation.folder, "dorsal_r").is_file()
    kept = read_features(evaluation.folder)
    for flip in ("none", "sum"):
        for split, draw in enumerate(manifest.draws[:3]):
            query, gallery = ([manifest.images[index] for index in side] for side in (draw.query, draw.gallery))
            labels = ([image.identity for image in side] for side in (query, gallery))
            result = rank_gallery(kept.of(query, flip), kept.of(gallery, flip), *labels)
            assert result.map == pytest.approx(evaluation.result("gallery", flip)["splits"][split]["map"], abs=1e-6)
    tested = {manifest.images[index].path for index in manifest.test}
    attributes = read_attributes(evaluation.folder)
    assert attributes.keys() == tested
    assert {"age", "gender", "skin_colour", "nail_polish", "irregularities"} <= set(next(iter(attributes.values())))
    explanations = read_explanations(evaluation.folder)
    assert len(explanations) == 4
    assert {one.image for one in explanations} <= tested
    # Validation images are kept, and are no test images.
    known = set(kept.sha256)
    for index in (*manifest.val, *validation_pairs(manifest)[1]):
        assert manifest.images[index].sha256 in known
    assert evaluation.metrics["distinct_images"] < len(kept.sha256)


def test_no_photograph_is_kept_where_none_is_wanted(here: Path, manifests: Path, stage1: TrainingResult) -> None:
    config = tiny_config(
        manifests,
        experiment="stage1",
        losses=[{"type": "cross_entropy"}],
        checkpoint=str(stage1.checkpoint),
        eval_dir=str(here / "eval_logs"),
        explained_images=0,
    )
    assert read_explanations(evaluate(config).folder) == []
