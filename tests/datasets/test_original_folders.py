import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from made_images import write_splits
from PIL import Image

from handclip.datasets.check import check_manifest
from handclip.datasets.manifest import Manifest
from handclip.datasets.original_folders import find_original_splits, read_original_splits
from handclip.datasets.preparation import Preparation
from handclip.errors import DataError

SPLITS = {
    "train_all": {"0000012": "abc", "0000500": "d"},
    "train": {"0000012": "ab", "0000500": ""},
    "val": {"0000012": "c", "0000500": "d"},
    "test": {"0001100": "efg", "1200000": "hi", "0001060": "j"},
    "query0": {"0001100": "ef", "1200000": "h", "0001060": ""},
    "gallery0": {"0001100": "g", "1200000": "i", "0001060": "j"},
    "query1": {"0001100": "fg", "1200000": "i", "0001060": ""},
    "gallery1": {"0001100": "e", "1200000": "h", "0001060": "j"},
}
GALLERY_ALL = {
    "gallery0_all": {**SPLITS["gallery0"], "11001100": "x", "21001100": "y"},
    "gallery1_all": {**SPLITS["gallery1"], "11001100": "z", "21001100": "y"},
}


def write_11k(tmp_path: Path, splits: Mapping[str, Mapping[str, str]] = SPLITS | GALLERY_ALL) -> Path:
    write_splits(tmp_path / "train_val_test_split_dorsal_r", splits)
    return tmp_path


def read_11k(root: Path) -> Manifest:
    return read_original_splits(Preparation("11k", root))["dorsal_r"]


def letters(manifest: Manifest, indices: tuple[int, ...]) -> str:
    return "".join(sorted(Path(manifest.images[index].path).stem[-1] for index in indices))


def test_11k(tmp_path):
    root = write_11k(tmp_path)
    assert find_original_splits(root, "11k")
    manifest = read_11k(root)
    assert (manifest.dataset, manifest.aspect, manifest.seed) == ("11k", "dorsal_r", None)
    assert [letters(manifest, one) for one in (manifest.train, manifest.val, manifest.test)] == ["ab", "cd", "efghij"]
    assert letters(manifest, manifest.train_all) == "abcd"
    assert [(letters(manifest, draw.query), letters(manifest, draw.gallery)) for draw in manifest.draws] == [
        ("efh", "gij"),
        ("fgi", "ehj"),
    ]
    assert [letters(manifest, draw.gallery_all) for draw in manifest.draws] == ["gijxy", "ehjyz"]
    assert len(manifest.images) == 13
    assert manifest.images[0].path == "train_val_test_split_dorsal_r/train_all/0000012/a.png"
    assert manifest.identities(manifest.distractors) == {11_001_100, 21_001_100}
    assert manifest.identity_names[12] == "0000012"
    assert check_manifest(manifest) == []


def test_several_aspects_and_no_gallery_all(tmp_path):
    write_11k(tmp_path, SPLITS)
    write_splits(tmp_path / "train_val_test_split_palmar_l", SPLITS)
    manifests = read_original_splits(Preparation("11k", tmp_path))
    assert list(manifests) == ["dorsal_r", "palmar_l"]
    assert manifests["palmar_l"].gallery_protocols == ("gallery",)
    assert check_manifest(manifests["palmar_l"]) == []


@pytest.mark.parametrize("where", [".", "Original Images", "Original_Images"])
def test_d04_hd_labels_are_integers_and_not_ranks(tmp_path, where):
    splits = {
        "train_all": {"1": "ab"},
        "train": {"1": "a"},
        "val": {"1": "b"},
        "test": {"448": "cd", "500": "ef"},
        "query0": {"448": "c", "500": "e"},
        "gallery0": {"1502": "xy", "448": "d", "500": "f"},
    }
    write_splits(tmp_path / where / "train_val_test_split", splits)
    assert find_original_splits(tmp_path, "hd")
    manifest = read_original_splits(Preparation("hd", tmp_path))["dorsal"]
    draw = manifest.draws[0]
    assert manifest.identities(draw.query) == {448, 500}
    assert manifest.identities(draw.gallery) == {448, 500, 1502}
    assert manifest.identities(manifest.distractors) == {1502}
    assert manifest.images[0].path == "train_val_test_split/train_all/1/a.png"
    assert check_manifest(manifest) == []


def test_stray_space_in_a_folder_name(tmp_path):
    root = write_11k(tmp_path)
    split = root / "train_val_test_split_dorsal_r"
    (split / "query0" / "1200000").rename(split / "query0" / "1200000 ")
    manifest = read_11k(root)
    assert manifest.identities(manifest.draws[0].query) == {1100, 1200000}
    assert check_manifest(manifest) == []


def test_same_name_with_another_size_is_another_image(tmp_path):
    root = write_11k(tmp_path)
    other = root / "train_val_test_split_dorsal_r" / "query0" / "0001100" / "e.png"
    Image.new("RGB", (64, 64)).save(other)
    breaches = check_manifest(read_11k(root))
    assert any("draw 0: query holds 1 images" in breach and "not of test" in breach for breach in breaches)


def test_other_files_and_empty_identities_are_counted(tmp_path):
    root = write_11k(tmp_path)
    split = root / "train_val_test_split_dorsal_r"
    (split / "test" / "0001100" / "Thumbs.db").write_bytes(b"x")
    (split / "test" / "0007777").mkdir()
    manifest = read_11k(root)
    assert (manifest.ignored_files, manifest.empty_identities) == (1, 1)
    assert 7777 not in manifest.identity_names


def test_people_of_whom_nothing_is_read_are_not_lost_without_a_word(tmp_path):
    root = write_11k(tmp_path)
    split = root / "train_val_test_split_dorsal_r"
    for name in ("0007777", "0001100"):
        (split / "test" / name).mkdir(exist_ok=True)
        (split / "test" / name / "a.jxl").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"nothing is read of 1 identity:\n  0007777: 1 JPEG XL photograph \(such as test/"
    ):
        read_11k(root)
    manifest = read_original_splits(Preparation("11k", root, allow_missing=True))["dorsal_r"]
    assert (manifest.unread_files, manifest.unread_identities, manifest.empty_identities) == ({"jpeg_xl": 2}, 1, 0)


def rename_draw(split: Path) -> None:
    for name in ("query", "gallery"):
        (split / f"{name}1").rename(split / f"{name}2")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *(
            (lambda split, name=name: shutil.rmtree(split / name), f"dorsal_r lacks the folder {name}; prepare")
            for name in ("train_all", "train", "val", "test", "query0", "gallery1", "gallery0_all")
        ),
        (rename_draw, "lacks the folder query1, gallery1"),
        (
            lambda split: [shutil.rmtree(folder) for folder in split.iterdir() if folder.name[-1].isdigit()],
            "lacks the folder query0, query1, gallery0, gallery1",
        ),
        (
            lambda split: (split / "train" / "0000012" / "a.png").unlink(),
            r"differ in 1 images, for example .*train_all/0000012/a\.png",
        ),
        (lambda split: (split / "val" / "anna").mkdir(), "val/anna: the folder's name is not an identity number"),
        (lambda split: (split / "test" / "0001100" / "e.png").write_bytes(b"x"), r"e\.png is not an image"),
    ],
)
def test_folders_that_were_not_left_as_the_script_makes_them(tmp_path, damage, message):
    root = write_11k(tmp_path)
    damage(root / "train_val_test_split_dorsal_r")
    with pytest.raises(DataError, match=message):
        read_11k(root)


def test_nothing_there(tmp_path):
    for dataset in ("11k", "hd", "folder"):
        assert not find_original_splits(tmp_path, dataset)
        with pytest.raises(DataError, match="holds no splits that the original"):
            read_original_splits(Preparation(dataset, tmp_path))


def test_d62_preparing_twice_into_the_same_folders_is_noticed(tmp_path):
    """The original scripts add a second random choice beside the first, and the splits overlap."""
    again = {
        "train": {"0000012": "c"},
        "val": {"0000012": "a"},
        "query0": {"0001100": "g"},
        "gallery0": {"0001100": "f"},
    }
    splits = {split: dict(identities) for split, identities in (SPLITS | GALLERY_ALL).items()}
    for split, identities in again.items():
        for identity, added in identities.items():
            splits[split][identity] += added
    breaches = check_manifest(read_11k(write_11k(tmp_path, splits)))
    assert any(breach.startswith("train and val share 2 images") for breach in breaches)
    assert any(breach.startswith("draw 0: query and gallery share 2 images") for breach in breaches)
    assert any(breach.startswith("draw 0: gallery has more than one image of 1 identities") for breach in breaches)
