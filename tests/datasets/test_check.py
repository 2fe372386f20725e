import dataclasses
from pathlib import Path
from typing import Any

import pytest

from handclip.datasets.check import FULL_COUNTS, check_manifest
from handclip.datasets.manifest import Draw, Manifest, ManifestImage


def sound(root: Path) -> Manifest:
    """Images 0-3 train and val, 4-8 test, 9-10 distractors; all files are there."""
    identities = [1, 1, 2, 2, 1060, 1060, 1061, 1061, 1062, 11_001_070, 21_001_060]
    manifest = Manifest(
        dataset="11k",
        aspect="dorsal_r",
        seed=0,
        images=tuple(ManifestImage(f"{n}.jpg", one, f"{n:064x}", n + 1) for n, one in enumerate(identities)),
        train=(0, 3),
        val=(1, 2),
        test=(4, 5, 6, 7, 8),
        draws=(Draw((4, 6), (5, 7, 8), (5, 7, 8, 9, 10)), Draw((4, 7), (5, 6, 8), (5, 6, 8, 9))),
        identity_names={
            1: "0000001",
            2: "0000002",
            1060: "0001060",
            1061: "0001061",
            1062: "0001062",
            11_001_070: "dorsal_l/0001070",
            21_001_060: "palmar_r/0001060",
        },
        root=root,
    )
    for index, image in enumerate(manifest.images):
        manifest.path_of(index).write_bytes(bytes(image.bytes))
    return manifest


def relabelled(manifest: Manifest, index: int, identity: int) -> tuple[ManifestImage, ...]:
    images = list(manifest.images)
    images[index] = dataclasses.replace(images[index], identity=identity)
    return tuple(images)


def first_draw(manifest: Manifest, **changes: Any) -> tuple[Draw, ...]:
    return (dataclasses.replace(manifest.draws[0], **changes), *manifest.draws[1:])


def test_sound_manifest(tmp_path):
    assert check_manifest(sound(tmp_path)) == []


def test_d59_sharing_people_between_train_and_val_is_no_breach_but_sharing_images_is(tmp_path):
    manifest = sound(tmp_path)
    assert manifest.identities(manifest.train) == manifest.identities(manifest.val)
    assert check_manifest(manifest) == []
    assert check_manifest(dataclasses.replace(manifest, train=(0, 1, 3))) == ["train and val share 1 images (1.jpg)"]


@pytest.mark.parametrize(
    ("change", "breach"),
    [
        (lambda m: {"train": ()}, "train has no images"),
        (lambda m: {"draws": ()}, "there are no query/gallery draws"),
        (lambda m: {"train": (0, 3, 3)}, "train lists 1 images more than once"),
        (lambda m: {"train": (0, 3, 4)}, "test shares 1 images (4.jpg) with train and val"),
        (lambda m: {"images": relabelled(m, 0, 1060)}, "train and test share 1 identities (0001060)"),
        (lambda m: {"val": (1,), "train": (0, 2, 3)}, "val lacks 1 identities (0000002) of train"),
        (lambda m: {"val": (0, 1, 2), "train": (3,)}, "val has more than one image of 1 identities (0000001)"),
        (
            lambda m: {"identity_names": {**m.identity_names, 5: "0000005"}},
            "there is no image of 1 identities (0000005)",
        ),
        (lambda m: {"images": relabelled(m, 9, 1060)}, "distractors have the labels of own 1 identities (0001060)"),
        (
            lambda m: {"identity_names": {**m.identity_names, 1: "0000001 "}},
            "the label is not the number that the data set gives for 1 identities (0000001 )",
        ),
        (
            lambda m: {"identity_names": {**m.identity_names, 11_001_070: "palmar_r/0001070"}},
            "the label is not the number that the data set gives for 1 identities (palmar_r/0001070)",
        ),
        (
            lambda m: {"identity_names": {**m.identity_names, 2: "two"}},
            "the label is not the number that the data set gives for 1 identities (two)",
        ),
        (lambda m: {"draws": first_draw(m, gallery_all=(5, 7, 8, 9))}, "no split holds 1 images (10.jpg)"),
        (lambda m: {"draws": first_draw(m, query=(4, 6, 5))}, "draw 0: query and gallery share 1 images (5.jpg)"),
        (
            lambda m: {"draws": first_draw(m, query=(4,))},
            "draw 0: neither query nor gallery holds 1 images (6.jpg) of test",
        ),
        (lambda m: {"draws": first_draw(m, query=(0, 4, 6))}, "draw 0: query holds 1 images (0.jpg) not of test"),
        (lambda m: {"draws": first_draw(m, query=(4, 4, 6))}, "draw 0: query lists 1 images more than once"),
        (
            lambda m: {"draws": first_draw(m, gallery=(5, 7, 8, 9))},
            "draw 0: gallery holds 1 images (9.jpg) not of test",
        ),
        (lambda m: {"draws": first_draw(m, gallery=(5, 7))}, "draw 0: gallery lacks 1 identities (0001062)"),
        (
            lambda m: {"draws": first_draw(m, gallery=(4, 5, 7, 8))},
            "draw 0: gallery has more than one image of 1 identities (0001060)",
        ),
        (
            lambda m: {"draws": first_draw(m, gallery_all=(7, 8, 9, 10))},
            "draw 0: gallery_all lacks 1 images (5.jpg) of gallery",
        ),
        (
            lambda m: {"draws": first_draw(m, gallery_all=(0, 5, 7, 8, 9, 10))},
            "draw 0: gallery_all holds 1 images (0.jpg) neither of gallery nor of distractors",
        ),
        (
            lambda m: {"images": relabelled(m, 10, 11_001_070)},
            "draw 0: gallery_all has more than one image of 1 identities (dorsal_l/0001070)",
        ),
    ],
)
def test_d59_every_breach_is_one_sentence(tmp_path, change, breach):
    manifest = sound(tmp_path)
    assert breach in check_manifest(dataclasses.replace(manifest, **change(manifest)))


def test_val_of_a_single_image_identity(tmp_path):
    manifest = sound(tmp_path)
    images = relabelled(manifest, 1, 7)
    names = {**manifest.identity_names, 7: "0000007"}
    assert (
        check_manifest(dataclasses.replace(manifest, images=images, identity_names=names, train=(3,), val=(0, 1, 2)))
        == []
    )


def test_files(tmp_path):
    manifest = sound(tmp_path)
    manifest.path_of(3).unlink()
    (breach,) = check_manifest(manifest)
    assert "1 are gone (3.jpg)" in breach


def test_hd_distractors(tmp_path):
    manifest = sound(tmp_path)
    images = relabelled(dataclasses.replace(manifest, images=relabelled(manifest, 9, 1502)), 10, 1502)
    draws = tuple(Draw(draw.query, (*draw.gallery, 9, 10)) for draw in manifest.draws)
    names = {identity: str(identity) for identity in (1, 2, 1060, 1061, 1062)} | {1502: "502-712/502"}
    hd = dataclasses.replace(manifest, dataset="hd", aspect="dorsal", images=images, draws=draws, identity_names=names)
    assert check_manifest(hd) == []
    assert check_manifest(dataclasses.replace(hd, draws=(Draw((4, 6), (5, 7, 8, 9)), draws[1]))) == [
        "draw 0: gallery lacks 1 images (10.jpg) of distractors"
    ]
    low = dataclasses.replace(
        hd,
        images=relabelled(dataclasses.replace(hd, images=relabelled(hd, 9, 502)), 10, 502),
        identity_names={**names, 502: "502"},
    )
    assert "distractors have labels of at most 1000: 1 identities (502)" in check_manifest(low)


def test_d59_counts_of_the_complete_data_set(tmp_path):
    """With as many images as the complete set, another split than the published one is a breach."""
    counts = FULL_COUNTS["11k", "dorsal_r"]
    total = counts.train_all + counts.test
    (tmp_path / "hand.jpg").write_bytes(b"x")

    def manifest_of(test_images: int, missing_images: int) -> Manifest:
        test = tuple(range(total - test_images, total))
        return Manifest(
            dataset="11k",
            aspect="dorsal_r",
            seed=0,
            images=tuple(ManifestImage("hand.jpg", n, "0" * 64, 1) for n in range(total)),
            train=(),
            val=tuple(range(total - test_images)),
            test=test,
            draws=(Draw((), test),),
            identity_names={n: str(n) for n in range(total)},
            missing_images=missing_images,
            root=tmp_path,
        )

    breaches = check_manifest(manifest_of(1000, 0))
    assert "test images: 1,000, where the complete data set has 1,042" in breaches
    assert "query0 images: 0, where the complete data set has 971" in breaches
    assert "gallery0 identities: 1,000, where the complete data set has 71" in breaches
    assert not any("complete data set" in breach for breach in check_manifest(manifest_of(1000, 1)))
