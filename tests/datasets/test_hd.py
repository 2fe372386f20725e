import hashlib
import random
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handclip.datasets import hd
from handclip.datasets.check import FULL_COUNTS, check_manifest, check_protocol
from handclip.datasets.hd import prepare_hd
from handclip.datasets.images import read_image
from handclip.datasets.inspection import ImageFacts
from handclip.datasets.manifest import Manifest
from handclip.datasets.preparation import Preparation
from handclip.datasets.summary import split_table
from handclip.errors import DataError


def prepared(root: Path, **options: Any) -> Manifest:
    return prepare_hd(Preparation("hd", root, **options))["dorsal"]


def write_hd(folder: Path, own: dict[int, int], distractors: dict[int, int]) -> None:
    """One-pixel photographs, `own` and `distractors` giving the number of images of each identity."""
    encoded = BytesIO()
    Image.new("RGB", (1, 1)).save(encoded, "JPEG")
    for name, counts in (("1-501", own), ("502-712", distractors)):
        (folder / name).mkdir(parents=True)
        for identity, count in counts.items():
            for number in range(1, count + 1):
                path = folder / name / f"{identity}_{number}.{'JPG' if number == 2 else 'jpg'}"
                # No two files are copies.
                path.write_bytes(encoded.getvalue() + f"{name}/{path.name}".encode())


def spread(identities: list[int], total: int, minimum: int, maximum: int) -> dict[int, int]:
    """A number of images for each identity, with the given sum and extremes."""
    rng = random.Random(0)
    counts = dict.fromkeys(identities, minimum + 1)
    counts[identities[0]], counts[identities[-1]] = minimum, maximum
    while sum(counts.values()) < total:
        identity = rng.choice(identities[1:-1])
        counts[identity] += counts[identity] < maximum - 1
    assert sum(counts.values()) == total
    return counts


def small(tmp_path: Path) -> Path:
    write_hd(tmp_path / "HD" / "Original Images", {3: 3, 447: 1, 448: 2, 500: 12, 698: 1}, {502: 2, 698: 1, 712: 3})
    return tmp_path / "HD"


def test_full_counts(tmp_path, monkeypatch):
    """Of the complete data set, of which no file is made."""
    train = [*range(1, 251), 447]
    test = list(range(448, 699))
    own = spread(train, 2407, 6, 18) | spread(test, 2243, 3, 43)
    counts = {"1-501": own, "502-712": spread(list(range(500, 713)), 1342, 2, 13)}
    names = {
        folder: [f"{identity}_{number}.jpg" for identity, count in counts[folder].items() for number in range(count)]
        for folder in counts
    }
    for folder in counts:
        (tmp_path / "Original_Images" / folder).mkdir(parents=True)
    monkeypatch.setattr(hd, "found_in", lambda folder, _: [folder / name for name in names[folder.name]])
    facts = {
        f"{folder}/{name}": ImageFacts(hashlib.sha256(f"{folder}/{name}".encode()).hexdigest(), 1)
        for folder in names
        for name in names[folder]
    }
    monkeypatch.setattr(hd, "inspect_images", lambda *_: facts)
    manifest = prepared(tmp_path)
    expected = FULL_COUNTS["hd", "dorsal"]
    table = {row.split: row for row in split_table(manifest)}
    assert [(row.split, row.identities, row.images) for row in table.values()] == [
        ("train_all", 251, 2407),
        ("train", 251, 2156),
        ("val", 251, 251),
        ("test", 251, 2243),
        ("query0", 251, 1992),
        ("gallery0", 464, 1593),
    ]
    assert (table["test"].minimum, table["test"].maximum) == (3, 43)
    assert (table["query0"].minimum, table["query0"].maximum) == (2, 42)
    assert (table["gallery0"].minimum, table["gallery0"].minimum_identities, table["gallery0"].maximum) == (1, 251, 13)
    assert table["gallery0"].distractor_identities == 213
    assert len(manifest.images) == 5992
    assert len(manifest.draws) == 10
    for draw in manifest.draws:
        assert (len(draw.query), len(draw.gallery), draw.gallery_all) == (expected.query, expected.gallery, ())
        assert sum(identity > 1000 for identity in manifest.identities(draw.gallery)) == 213
    assert manifest.gallery_protocols == ("gallery",)
    assert check_protocol(manifest) == []


def test_small_set(tmp_path):
    manifest = prepared(small(tmp_path), seed=5, num_draws=3)
    assert (manifest.dataset, manifest.aspect, manifest.seed, len(manifest.draws)) == ("hd", "dorsal", 5, 3)
    assert manifest.identities(manifest.train_all) == {3, 447}
    assert manifest.identities(manifest.test) == {448, 500, 698}
    assert manifest.identities(manifest.distractors) == {1502, 1698, 1712}
    assert manifest.identity_names[1698] == "502-712/698"
    assert manifest.images[0].path == "1-501/3_1.jpg"
    assert check_manifest(manifest) == []


def test_all_places_of_the_root_give_the_same_manifest(tmp_path):
    root = small(tmp_path)
    expected = prepared(root)
    assert expected.root == (root / "Original Images").resolve()
    assert prepared(root / "Original Images") == expected
    (root / "Original Images").rename(root / "Original_Images")
    assert prepared(root).sha256 == expected.sha256


def test_deterministic_gallery_is_the_first_image(tmp_path):
    manifest = prepared(small(tmp_path), deterministic_gallery=True)
    first = ["1-501/448_1.jpg", "1-501/500_1.jpg", "1-501/698_1.jpg"]
    for draw in manifest.draws:
        own = [manifest.images[index].path for index in draw.gallery if index in manifest.test]
        assert own == first
    assert check_manifest(manifest) == []
    random_galleries = {draw.gallery for draw in prepared(tmp_path / "HD").draws}
    assert len(random_galleries) > 1


@pytest.mark.promise("unread-photographs")
def test_photographs_of_other_formats_are_named(tmp_path, caplog):
    root = small(tmp_path)
    folder = root / "Original Images" / "1-501"
    for name in ("3_7.jxl", "3_8.png", "cover.pdf", "Thumbs.db", "._3_1.jpg", "notes.txt"):
        (folder / name).write_bytes(b"x")
    manifest = prepared(root)
    assert manifest.unread_files == {"jpeg_xl": 1, "not_jpg": 1, "pdf": 1}
    assert (manifest.ignored_files, manifest.unread_identities) == (3, 0)
    assert "1 image that is not .jpg (such as 1-501/3_8.png; save them as JPEG, as all of HD are)" in caplog.text
    (folder / "44_1.png").write_bytes(b"x")
    (root / "Original Images" / "502-712" / "3_1.JXL").write_bytes(b"x")  # another person than 3 of the other folder
    with pytest.raises(DataError) as caught:
        prepared(root)
    assert str(caught.value).splitlines()[:3] == [
        f"{root / 'Original Images'}: nothing is read of 2 identities:",
        "  1-501/44: 1 image that is not .jpg (such as 1-501/44_1.png)",
        "  502-712/3: 1 JPEG XL photograph (such as 502-712/3_1.JXL)",
    ]
    manifest = prepared(root, allow_missing=True)
    assert (manifest.unread_identities, manifest.empty_identities) == (2, 0)


@pytest.mark.parametrize("name", ["hand.jpg", "x_1.jpg", "1000_1.jpg", "-3_1.jpg"])
def test_name_without_an_identity(tmp_path, name):
    root = small(tmp_path)
    (root / "Original Images" / "1-501" / name).write_bytes(b"x")
    with pytest.raises(DataError, match=rf"{name}: expected <id>_<number>\.jpg with an id below 1000"):
        prepared(root)


def test_unreadable_images(tmp_path):
    root = small(tmp_path)
    for name in ("1-501/698_1.jpg", "502-712/502_1.jpg"):
        (root / "Original Images" / name).unlink()
        (root / "Original Images" / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 25 images cannot be read:\n.*698_1\.jpg is empty"):
        prepared(root)
    manifest = prepared(root, allow_missing=True)
    assert (manifest.unreadable_images, manifest.empty_identities) == (2, 1)
    assert manifest.identities(manifest.test) == {448, 500}


def test_layout(tmp_path):
    with pytest.raises(DataError, match=r"is not HD: expected the folders '1-501' and '502-712' in .*Original Images"):
        prepared(tmp_path)
    write_hd(tmp_path, {}, {})
    with pytest.raises(DataError, match=r"1-501 holds no image named <id>_<number>\.jpg"):
        prepared(tmp_path)


def rank1(manifest: Manifest, labels: dict[str, int]) -> float:
    """Rank-1 by mean colour, in which every toy identity is perfectly recognisable."""
    colour = [np.asarray(read_image(manifest.path_of(n))).mean((0, 1)) for n in range(len(manifest.images))]
    name = [manifest.identity_names[image.identity] for image in manifest.images]
    draw = manifest.draws[0]
    hits = 0
    for query in draw.query:
        nearest = min(draw.gallery, key=lambda one: float(np.abs(colour[one] - colour[query]).sum()))
        hits += labels[f"query {name[query]}"] == labels[f"gallery {name[nearest]}"]
    return hits / len(draw.query)


def test_d04_distractors_do_not_shift_the_labels(tmp_path):
    own, distractors = {1: 2, 448: 3, 500: 3, 600: 3}, {502: 2, 700: 2}
    write_hd(tmp_path, own, distractors)
    colours = np.random.default_rng(0).permutation(np.arange(0, 250, 35))
    for colour, (folder, identity, count) in zip(
        colours,
        [*(("1-501", *item) for item in own.items()), *(("502-712", *item) for item in distractors.items())],
        strict=False,
    ):
        for number in range(1, count + 1):
            path = tmp_path / folder / f"{identity}_{number}.{'JPG' if number == 2 else 'jpg'}"
            path.unlink()
            Image.new("RGB", (4, 4), (int(colour), 0, 0)).save(path, "PNG")
    manifest = prepared(tmp_path)
    labels = {
        f"{role} {name}": identity
        for role in ("query", "gallery")
        for identity, name in manifest.identity_names.items()
    }
    assert rank1(manifest, labels) == 1.0
    # What an enumeration of sorted folder names would make of it: "1502" sorts before "448".
    draw = manifest.draws[0]
    enumerated = {}
    for role, indices in (("query", draw.query), ("gallery", draw.gallery)):
        folders = {
            str(image.identity): manifest.identity_names[image.identity]
            for image in map(manifest.images.__getitem__, indices)
        }
        enumerated |= {f"{role} {folders[text]}": label for label, text in enumerate(sorted(folders))}
    assert rank1(manifest, enumerated) == 0.0
