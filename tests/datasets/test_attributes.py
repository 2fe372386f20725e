"""What the data set says of people and hands."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_study import load_manifest

from handclip.datasets.hands11k import attributes_of, read_attributes
from handclip.errors import DataError

HEADER = "id,age,gender,skinColor,accessories,nailPolish,aspectOfHand,imageName,irregularities"
ROWS = [
    '"0000001",21,"female","dark",0,1,"dorsal right","a.jpg",0',
    '"0000002",,"male","fair",1,0,"palmar left","b.jpg",1',
]


def layout(folder: Path, lines: list[str]) -> Path:
    (folder / "Hands").mkdir()
    (folder / "HandInfo.csv").write_text("\n".join(lines))
    return folder


def test_every_column_is_read(tmp_path: Path) -> None:
    assert read_attributes(layout(tmp_path, [HEADER, *ROWS])) == {
        "a.jpg": {
            "age": "21", "gender": "female", "skin_colour": "dark", "nail_polish": "yes", "irregularities": "no",
        },
        "b.jpg": {"gender": "male", "skin_colour": "fair", "nail_polish": "no", "irregularities": "yes"},
    }  # fmt: skip


def test_columns_may_be_lacking(tmp_path: Path) -> None:
    lines = ["id,accessories,aspectOfHand,imageName,gender", "1,0,dorsal right,a.jpg,male"]
    assert read_attributes(layout(tmp_path, lines)) == {"a.jpg": {"gender": "male"}}


def test_a_damaged_table_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"HandInfo\.csv, line 3: 2 values for 9 columns"):
        read_attributes(layout(tmp_path, [HEADER, ROWS[0], "1,2"]))


def test_test_images_alone_have_attributes(manifests: Path) -> None:
    manifest = load_manifest(manifests)
    found = attributes_of({"dorsal_r": manifest})
    assert found.keys() == {manifest.images[index].path for index in manifest.test}


def test_images_sorted_into_folders_are_found_by_name(manifests: Path, tmp_path: Path) -> None:
    manifest = load_manifest(manifests)
    shutil.copy(manifest.root / "HandInfo.csv", tmp_path)
    (tmp_path / "Hands").mkdir()
    moved = replace(
        manifest,
        root=tmp_path,
        images=tuple(replace(one, path=one.path.replace("Hands/", "test/007/")) for one in manifest.images),
    )
    assert len(attributes_of({"dorsal_r": moved})) == len(manifest.test)


def test_a_data_set_without_attributes(manifests: Path, tmp_path: Path) -> None:
    manifest = load_manifest(manifests)
    assert attributes_of({"hand": replace(manifest, dataset="folder")}) == {}
    assert attributes_of({"dorsal_r": replace(manifest, root=tmp_path)}) == {}
