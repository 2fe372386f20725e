"""What an evaluation keeps for reports, and that it comes back as it was."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_study import load_manifest, tiny_config

from handclip.datasets.manifest import ManifestImage
from handclip.errors import DamagedFileError, HandCLIPError
from handclip.metrics import rank_gallery
from handclip.retrieval.features import validation_pairs
from handclip.runs.artifacts import (
    Explanation,
    KeptFeatures,
    manifest_file,
    read_attributes,
    read_explanations,
    read_features,
    write_attributes,
    write_explanations,
    write_features,
)
from handclip.runs.evaluate import evaluate
from handclip.runs.result import TrainingResult


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
    write_explanations(tmp_path, [])
    assert read_explanations(tmp_path) == []
    write_explanations(tmp_path, explanations)
    content = (tmp_path / "explanations.safetensors").read_bytes()
    write_explanations(tmp_path, explanations)
    assert (tmp_path / "explanations.safetensors").read_bytes() == content
    for before, after in zip(explanations, read_explanations(tmp_path), strict=True):
        assert (after.image, after.aspect) == (before.image, before.aspect)
        assert np.array_equal(after.photograph, before.photograph)
        assert after.maps.keys() == before.maps.keys()
        assert all(np.array_equal(after.maps[method], before.maps[method]) for method in before.maps)


READERS = {"features.safetensors": read_features, "explanations.safetensors": read_explanations}


def lying_file(shape: str, dtype: str = "F32") -> bytes:
    """A file of one array that claims a shape, and holds four bytes."""
    header = f'{{"flip_none":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,4]}}}}'.encode()
    return len(header).to_bytes(8, "little") + header + b"\0" * 4


@pytest.mark.promise("arrays-that-claim-more-than")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no safetensors",
        lying_file("[1000000000000,512]"),
        lying_file(f"[{10**30}]"),
        lying_file("[-1]"),
        lying_file("[1]", "OBJECT"),
        b"\xff" * 8 + b"{}",
    ],
    ids=["empty", "text", "10^12 rows", "10^30 rows", "negative", "objects", "an endless header"],
)
@pytest.mark.parametrize("name", READERS)
def test_an_array_that_claims_what_it_does_not_hold_takes_no_memory(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DamagedFileError, match=f"{name}: is damaged .*handclip evaluate CONFIG --overwrite"):
        READERS[name](tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000_000


@pytest.mark.parametrize(
    ("hashes", "vectors"),
    [
        (None, np.ones((2, 3), np.float32)),
        (1, np.ones((2, 3), np.float32)),
        (1, np.full((1, 3), np.nan, np.float32)),
        (1, np.ones((1, 3), np.float64)),
        (1, np.ones(3, np.float32)),
    ],
    ids=["no names", "too few names", "not finite", "another type", "no matrix"],
)
def test_features_that_cannot_be_right(tmp_path: Path, hashes: int | None, vectors: np.ndarray) -> None:
    names = {"sha256": np.zeros((hashes, 32), np.uint8)} if hashes else {}
    save_file({**names, "flip_none": vectors}, tmp_path / "features.safetensors", {"names": "[]"})
    with pytest.raises(DamagedFileError, match=r"features\.safetensors: is damaged"):
        read_features(tmp_path)


def test_features_that_are_views_are_written_as_they_are(tmp_path: Path) -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_features(tmp_path, KeptFeatures([image(0).sha256, image(1).sha256], {"none": vectors[::-1, ::-1]}))
    assert np.array_equal(read_features(tmp_path).by_flip["none"], vectors[::-1, ::-1])


@pytest.mark.parametrize("content", ["", "age,image\n1,a\n", "image,age\na.jpg\n", 'image,age\n"a.jpg,30\n'])
def test_attributes_that_cannot_be_right(tmp_path: Path, content: str) -> None:
    (tmp_path / "attributes.csv").write_text(content)
    with pytest.raises(DamagedFileError, match=r"attributes\.csv: is damaged"):
        read_attributes(tmp_path)


def test_attributes_of_images_with_names_like_formulas_come_back(tmp_path: Path) -> None:
    attributes = {"=cmd|' C calc'!A0/+1.jpg": {"age": "-1"}, "@x/-1.jpg": {"age": "=1+1"}}
    write_attributes(tmp_path, attributes)
    assert read_attributes(tmp_path) == attributes
    assert "\n'=cmd" in (tmp_path / "attributes.csv").read_text()


def test_explanations_that_cannot_be_right(tmp_path: Path) -> None:
    arrays = {"0/photograph": np.ones((2, 2), np.uint8)}
    save_file(arrays, tmp_path / "explanations.safetensors", {"names": '[["a.jpg", "dorsal_r"]]'})
    with pytest.raises(DamagedFileError, match=r"explanations\.safetensors: is damaged \(photograph 0 is no picture"):
        read_explanations(tmp_path)


@pytest.mark.parametrize("read", [*READERS.values(), read_attributes])
def test_a_file_that_is_gone_is_named_and_how_to_have_it(tmp_path: Path, read) -> None:
    with pytest.raises(HandCLIPError, match=r"no such file\. Evaluate the run again"):
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


def test_a_flip_setting_that_was_not_evaluated_is_named_and_how_to_have_it() -> None:
    kept = KeptFeatures([image(0).sha256], {"none": np.ones((1, 4), np.float32)})
    with pytest.raises(HandCLIPError) as fault:
        kept.of([image(0)], "sum")
    assert str(fault.value) == (
        "features.safetensors has features of flip none, not of flip sum. To have them too, evaluate the run again: "
        "handclip evaluate CONFIG --overwrite --set 'flip_settings=[none, sum]'"
    )
