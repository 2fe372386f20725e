import csv
import hashlib
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from handclip.datasets import hands11k
from handclip.datasets.check import FULL_COUNTS, check_manifest, check_protocol
from handclip.datasets.hands11k import ASPECTS, DISTRACTOR_OFFSETS, LAST_TRAIN_IDENTITY, prepare_11k, read_hand_info
from handclip.datasets.inspection import ImageFacts
from handclip.datasets.manifest import Manifest
from handclip.datasets.preparation import Preparation
from handclip.datasets.summary import split_table, summarise
from handclip.errors import DataError

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "hands11k_sample"
needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real sample of 11k Hands is not here")

HEADER = [
    *["id", "age", "gender", "skinColor", "accessories", "nailPolish", "aspectOfHand", "imageName", "irregularities"]
]
TEXTS = {
    "dorsal_r": "dorsal right",
    "dorsal_l": "dorsal left",
    "palmar_r": "palmar right",
    "palmar_l": "palmar left",
}
Row = list[str]


def prepared(root: Path, **options: Any) -> dict[str, Manifest]:
    return prepare_11k(Preparation("11k", root, **options))


def row(identity: str, aspect: str, image: str, accessories: str = "0") -> Row:
    return [identity, "22", "female", "fair", accessories, "0", TEXTS.get(aspect, aspect), image, "0"]


def write_hand_info(root: Path, rows: Iterable[Sequence[str]], header: Sequence[str] = HEADER) -> Path:
    root.mkdir(exist_ok=True)
    with (root / "HandInfo.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\r\n").writerows([header, *rows])
    (root / "Hands").mkdir(exist_ok=True)
    return root


def write_images(root: Path, names: Iterable[str]) -> None:
    """A one-pixel photograph under many names; each file's bytes are its own, as its name follows the image."""
    encoded = BytesIO()
    Image.new("RGB", (1, 1), (200, 150, 120)).save(encoded, "JPEG")
    for name in names:
        (root / "Hands" / name).write_bytes(encoded.getvalue() + name.encode())


def small_rows() -> list[Row]:
    """Two training and three test identities in each aspect; 1060 has a single dorsal right image."""
    rows = []
    for aspect in ASPECTS:
        for identity, count in ((12, 3), (1037, 2), (1060, 1 if aspect == "dorsal_r" else 2), (1100, 4), (9000000, 2)):
            rows += [row(f"{identity:07}", aspect, f"{aspect}_{identity}_{n}.jpg") for n in range(count)]
    return rows


@pytest.fixture
def small(tmp_path: Path) -> Path:
    root = write_hand_info(tmp_path / "11k", small_rows())
    write_images(root, [one[7] for one in small_rows()])
    return root


def generated_rows() -> list[Row]:
    """Rows with as many identities and images on both sides of each threshold as the complete data set has."""
    rng = random.Random(0)
    rows: list[Row] = []
    for aspect in ASPECTS:
        counts, threshold = FULL_COUNTS["11k", aspect], LAST_TRAIN_IDENTITY[aspect]
        train = range(threshold - counts.train_identities + 1, threshold + 1)
        test = [*range(threshold + 1, threshold + counts.test_identities), 9_000_000]
        for identities, total in ((list(train), counts.train_all), (test, counts.test)):
            extra = rng.choices(identities, k=total - len(identities))
            rows += [
                row(f"{identity:07}", aspect, f"Hand_{len(rows) + n:07}.jpg")
                for n, identity in enumerate(identities + extra)
            ]
        rows.append(row("0000000", aspect, f"ring_{aspect}.jpg", accessories="1"))
    rng.shuffle(rows)
    return rows


def complete(root: Path, **options: Any) -> dict[str, Manifest]:
    """The manifests of all images of a table, of which no file is made."""
    names = [one.image_name for one in read_hand_info(root)]
    facts = {f"Hands/{name}": ImageFacts(hashlib.sha256(name.encode()).hexdigest(), 1) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hands11k, "found_in", lambda folder, _: [folder / name for name in names])
        patch.setattr(hands11k, "inspect_images", lambda *_: facts)
        return prepared(root, **options)


def real_table(root: Path) -> Path:
    (root / "Hands").mkdir(parents=True)
    shutil.copy(SAMPLE / "HandInfo.csv", root)
    return root


@pytest.fixture(scope="module", params=["generated", pytest.param("real", marks=needs_sample)])
def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    root = tmp_path_factory.mktemp("full") / "11k"
    return complete(write_hand_info(root, generated_rows()) if request.param == "generated" else real_table(root))


@pytest.mark.parametrize("aspect", ASPECTS)
def test_full_counts(full, aspect):
    expected = FULL_COUNTS["11k", aspect]
    manifest = full[aspect]
    counts = summarise(manifest)
    assert [counts[key] for key in ("train_identities", "train_images", "val_images", "train_all_images")] == [
        expected.train_identities, expected.train, expected.val, expected.train_all,
    ]  # fmt: skip
    assert [counts[key] for key in ("test_identities", "test_images", "query_images", "gallery_images")] == [
        expected.test_identities, expected.test, expected.query, expected.gallery,
    ]  # fmt: skip
    assert len(manifest.draws) == 10
    for draw in manifest.draws:
        assert (len(draw.query), len(draw.gallery), len(draw.gallery_all)) == (expected.query, expected.gallery, 290)
        assert len(manifest.identities(draw.gallery_all)) == 290
        assert len(manifest.identities(draw.gallery_all) - manifest.identities(draw.gallery)) == 290 - expected.gallery
    assert check_protocol(manifest) == []


@needs_sample
def test_real_extremes_and_shared_people(tmp_path):
    root = real_table(tmp_path / "11k")
    rows = read_hand_info(root)
    assert len(rows) == 7865
    assert [Counter(one.aspect for one in rows)[aspect] for aspect in ASPECTS] == [2004, 1869, 1965, 2027]
    (stray,) = [one for one in rows if one.image_name == "Hand_0009853.jpg"]
    assert (stray.identity, stray.identity_text, stray.aspect) == (1200000, "1200000", "dorsal_r")
    manifests = complete(root, num_draws=1)
    tables = {aspect: {one.split: one for one in split_table(manifests[aspect])} for aspect in ASPECTS}

    def extremes(split: str) -> list[tuple[int, int]]:
        return [(tables[aspect][split].minimum, tables[aspect][split].maximum) for aspect in ASPECTS]

    assert extremes("train") == [(2, 40), (1, 41), (3, 70), (1, 55)]
    assert extremes("test") == [(2, 46), (4, 52), (4, 54), (4, 39)]
    assert extremes("query0") == [(1, 45), (3, 51), (3, 53), (3, 38)]
    assert [tables[aspect]["train"].minimum_identities for aspect in ASPECTS] == [1, 1, 4, 2]
    assert [tables[aspect]["gallery0_all"].distractor_identities for aspect in ASPECTS] == [219, 217, 219, 215]
    dorsal_r = manifests["dorsal_r"]
    also_palmar_r = {one - 21_000_000 for one in dorsal_r.identities(dorsal_r.distractors) if 21e6 <= one < 31e6}
    assert len(dorsal_r.identities(dorsal_r.test) & also_palmar_r) == 70


@needs_sample
def test_real_sample():
    with pytest.raises(DataError, match=r"6,378 of the 7,865 images .* Hand_0000002\.jpg.* --allow-missing"):
        prepared(SAMPLE)
    manifests = prepared(SAMPLE, allow_missing=True)
    counts = {}
    for aspect, manifest in manifests.items():
        one = summarise(manifest)
        several = int(one["test_identities"]) - int(one["single_image_test_identities"])
        keys = ("train_identities", "train_all_images", "test_identities", "test_images")
        counts[aspect] = (*(one[key] for key in keys), several)
        assert check_manifest(manifest) == []
    assert counts == {
        "dorsal_r": (63, 177, 59, 185, 43),
        "dorsal_l": (59, 136, 64, 213, 49),
        "palmar_r": (63, 191, 59, 165, 44),
        "palmar_l": (70, 194, 67, 226, 54),
    }
    assert sum(manifest.missing_images for manifest in manifests.values()) == 6378


def test_small_set(small):
    manifests = prepared(small, seed=3, num_draws=4)
    assert list(manifests) == list(ASPECTS)
    manifest = manifests["dorsal_r"]
    assert (manifest.dataset, manifest.aspect, manifest.seed, len(manifest.draws)) == ("11k", "dorsal_r", 3, 4)
    assert manifest.identities(manifest.train_all) == {12, 1037}
    assert manifest.identities(manifest.test) == {1060, 1100, 9000000}
    assert manifest.identity_names[12] == "0000012"
    assert all(len(draw.gallery_all) == 12 for draw in manifest.draws)
    assert [check_manifest(one) for one in manifests.values()] == [[], [], [], []]


@pytest.mark.parametrize("aspect", ASPECTS)
def test_gallery_all_is_own_gallery_and_relabelled_others(small, aspect):
    manifests = prepared(small)
    manifest = manifests[aspect]
    for number, draw in enumerate(manifest.draws):
        expected = {
            (image.path, image.identity + offset)
            for other, offset in {aspect: 0, **DISTRACTOR_OFFSETS[aspect]}.items()
            for image in (manifests[other].images[index] for index in manifests[other].draws[number].gallery)
        }
        assert {(manifest.images[n].path, manifest.images[n].identity) for n in draw.gallery_all} == expected
    names = manifest.identity_names
    for other, offset in DISTRACTOR_OFFSETS[aspect].items():
        assert names[offset + 1100] == f"{other}/0001100"


def test_d03_gallery_and_gallery_all_are_different_named_protocols(small):
    manifest = prepared(small)["palmar_l"]
    assert manifest.gallery_protocols == ("gallery", "gallery_all")
    for draw in manifest.draws:
        assert set(draw.gallery) < set(draw.gallery_all)
        assert manifest.identities(draw.gallery) == manifest.identities(manifest.test)
        assert not manifest.identities(set(draw.gallery_all) - set(draw.gallery)) & manifest.identities(
            manifest.train_all
        )


def test_d02_validation_people_are_training_people(small):
    for manifest in prepared(small).values():
        assert manifest.identities(manifest.val) <= manifest.identities(manifest.train_all)
        assert not manifest.identities(manifest.val) & manifest.identities(manifest.test)
        in_test = {index for draw in manifest.draws for index in (*draw.query, *draw.gallery_all)}
        assert not in_test & set(manifest.val)


def test_d62_order_of_rows_and_of_files_does_not_matter(small):
    expected = {aspect: manifest.sha256 for aspect, manifest in prepared(small).items()}
    rows = small_rows()
    random.Random(1).shuffle(rows)
    write_hand_info(small, rows)
    assert {aspect: manifest.sha256 for aspect, manifest in prepared(small).items()} == expected
    assert {aspect: manifest.sha256 for aspect, manifest in prepared(small, seed=1).items()} != expected


def test_absent_images(small):
    shutil.copytree(small, small.parent / "copy")
    for name in ("dorsal_l_12_0.jpg", "palmar_r_1060_0.jpg", "palmar_r_1060_1.jpg"):
        (small / "Hands" / name).unlink()
    with pytest.raises(DataError, match=r"3 of the 51 images .* dorsal_l_12_0\.jpg, palmar_r_1060_0\.jpg, palmar_r"):
        prepared(small)
    manifests = prepared(small, allow_missing=True)
    assert [manifest.missing_images for manifest in manifests.values()] == [0, 1, 2, 0]
    assert [manifest.empty_identities for manifest in manifests.values()] == [0, 0, 1, 0]
    assert 1060 not in manifests["palmar_r"].identity_names
    assert manifests["dorsal_r"].draws[0].gallery == prepared(small.parent / "copy")["dorsal_r"].draws[0].gallery


def test_photographs_of_other_formats_beside_absent_ones_are_named(small, caplog):
    image = small / "Hands" / "dorsal_l_12_0.jpg"
    expected = {aspect: manifest.sha256 for aspect, manifest in prepared(small).items()}
    shutil.copy(image, image.with_suffix(".CR3"))
    assert {aspect: manifest.sha256 for aspect, manifest in prepared(small).items()} == expected
    named = "Left out of .*: 1 camera raw file (such as Hands/dorsal_l_12_0.CR3; export them as JPEG or TIFF)."
    assert named.replace(".*", str(small)) in caplog.messages
    image.unlink()
    with pytest.raises(
        DataError, match=r"1 of the 51 images .* pass --allow-missing .*" + re.escape(named.split(".*")[1])
    ):
        prepared(small)


def test_unreadable_images(small):
    broken = small / "Hands" / "dorsal_l_1100_2.jpg"
    broken.unlink()
    broken.write_bytes(b"not a photograph")
    with pytest.raises(DataError, match=r"1 of 51 images cannot be read:\n.*dorsal_l_1100_2\.jpg is not an image"):
        prepared(small)
    manifests = prepared(small, allow_missing=True)
    assert [manifest.unreadable_images for manifest in manifests.values()] == [0, 1, 0, 0]
    assert [manifest.missing_images for manifest in manifests.values()] == [0, 0, 0, 0]
    assert "Hands/dorsal_l_1100_2.jpg" not in {image.path for image in manifests["dorsal_l"].images}


def test_images_with_accessories_need_not_be_there(small):
    write_hand_info(small, [*small_rows(), row("12", "dorsal_r", "ring.jpg", accessories="1")])
    assert "Hands/ring.jpg" not in {image.path for image in prepared(small)["dorsal_r"].images}


def test_no_image_at_all(tmp_path):
    root = write_hand_info(tmp_path / "11k", small_rows())
    with pytest.raises(DataError, match="51 of the 51 images"):
        prepared(root)
    with pytest.raises(DataError, match=r"Hands holds none of the images of .*HandInfo\.csv"):
        prepared(root, allow_missing=True)


def test_progress(small):
    calls: list[tuple[int, int]] = []
    prepare_11k(Preparation("11k", small, progress=lambda done, total: calls.append((done, total))))
    assert calls == [(done, 51) for done in range(1, 52)]


def test_layout(tmp_path):
    with pytest.raises(DataError, match=r"nowhere is not 11k Hands: expected .*HandInfo\.csv and the folder .*Hands"):
        prepared(tmp_path / "nowhere")
    root = write_hand_info(tmp_path / "11k", small_rows())
    with pytest.raises(DataError, match="is not 11k Hands"):
        prepared(root / "Hands")


def read_text(tmp_path: Path, content: bytes) -> list[tuple[int, str, str, str]]:
    root = write_hand_info(tmp_path / "11k", [])
    (root / "HandInfo.csv").write_bytes(content)
    return [(one.identity, one.identity_text, one.aspect, one.image_name) for one in read_hand_info(root)]


PLAIN = (
    'id,gender,accessories,aspectOfHand,imageName\n"0000012",é,0,palmar left,a.jpg\n"1200000",x,0,dorsal right,b.jpg\n'
)
EXPECTED = [(12, "0000012", "palmar_l", "a.jpg"), (1200000, "1200000", "dorsal_r", "b.jpg")]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("cp1252"),
        PLAIN.replace("é", "\x81").encode("latin-1"),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace("\n", "\n\n").encode(),
        PLAIN.rstrip("\n").encode(),
        b' id , accessories,aspectOfHand ,imageName\n "0000012 ", 0 ,Palmar  Left, a.jpg \n'
        b'"1200000 ",0,dorsal right,b.jpg',
        b"imageName,aspectOfHand,id,accessories\na.jpg,palmar left,0000012,0\nb.jpg,dorsal right,1200000,0\n,,,\n",
    ],
)
def test_hand_info_of_many_kinds(tmp_path, content):
    assert read_text(tmp_path, content) == EXPECTED


@pytest.mark.parametrize("column", ["id", "accessories", "aspectOfHand", "imageName"])
def test_missing_column(tmp_path, column):
    with pytest.raises(DataError, match=rf"HandInfo\.csv lacks the column {column}; it has "):
        read_text(tmp_path, PLAIN.replace(column, "other", 1).encode())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1200000", "12x", r"line 3: id '12x' is not a whole number from 0 to 9,999,999"),
        ("1200000", "-5", r"line 3: id '-5'"),
        ("1200000", "", r"line 3: id ''"),
        ("1200000", "10000000", r"line 3: id '10000000'"),
        ("1200000", "¹²", r"line 3: id '¹²'"),
        ("palmar left", "left palm", r"line 2: aspectOfHand 'left palm' is none of dorsal right, dorsal left"),
        (",0,dorsal", ",no,dorsal", r"line 3: accessories 'no' is neither 0 nor 1"),
        ("b.jpg", "../b.jpg", r"line 3: imageName '\.\./b\.jpg' is not the name of a file"),
        ("b.jpg", "", r"line 3: imageName ''"),
        ("b.jpg", "a.jpg", r"line 3: a\.jpg is already listed in line 2"),
        (",x,0", ",0", r"line 3: 4 values for 5 columns"),
    ],
)
def test_bad_values_name_the_line(tmp_path, old, new, message):
    with pytest.raises(DataError, match=message):
        read_text(tmp_path, PLAIN.replace(old, new, 1).encode())


def test_empty_table(tmp_path):
    with pytest.raises(DataError, match="lacks the column id, accessories, aspectOfHand, imageName; it has none"):
        read_text(tmp_path, b"")


def test_stray_space_in_id_is_the_same_person(small):
    rows = small_rows()
    rows[-1][0] += " "
    write_hand_info(small, rows)
    manifest = prepared(small)["palmar_l"]
    assert manifest.identity_names[9000000] == "9000000"
    assert sum(image.identity == 9000000 for image in manifest.images) == 2


def test_d04_labels_are_the_numbers_of_the_data_set(small):
    manifest = prepared(small)["dorsal_r"]
    own = {image.identity for image in manifest.images if image.path.startswith("Hands/dorsal_r")}
    assert own == {12, 1037, 1060, 1100, 9000000}
    assert manifest.identities(manifest.distractors) == {
        offset + identity for offset in (11_000_000, 21_000_000, 31_000_000) for identity in (1060, 1100, 9000000)
    }
