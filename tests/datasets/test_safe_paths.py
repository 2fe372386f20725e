"""Names and links that lead out of a data set's root."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_images import write_11k, write_images, write_people, write_splits

from handclip.datasets import inspection
from handclip.datasets.manifest import Manifest
from handclip.datasets.original_folders import read_original_splits
from handclip.datasets.preparation import Preparation
from handclip.datasets.prepare import find_or_prepare, prepare
from handclip.datasets.safe_paths import DatasetFiles, is_plain_relative
from handclip.errors import DataError


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """A plain folder of six identities with three images each."""
    return write_people(tmp_path / "people", 6, 3)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """An image that is none of the data set's."""
    return write_images(tmp_path / "elsewhere", "0.png")


def link(root: Path, target: Path | str) -> Path:
    (root / "p1" / "0.png").unlink()
    (root / "p1" / "0.png").symlink_to(target)
    return root / "p1" / "0.png"


def link_image(root: Path, elsewhere: Path) -> Path:
    return link(root, elsewhere / "0.png")


def link_image_relatively(root: Path, elsewhere: Path) -> Path:
    return link(root, "../../elsewhere/0.png")


def link_folder(root: Path, elsewhere: Path) -> Path:
    shutil.rmtree(root / "p1")
    (root / "p1").symlink_to(elsewhere)
    return root / "p1"


def link_through_a_link(root: Path, elsewhere: Path) -> Path:
    (root / ".way").symlink_to(elsewhere)
    return link(root, "../.way/0.png")


LINKS: list[Callable[[Path, Path], Path]] = [link_image, link_image_relatively, link_folder, link_through_a_link]


@pytest.mark.promise("hostile-paths")
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("allow_missing", [False, True])
def test_prepare_refuses_a_link_out_of_the_root_before_it_reads_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, people: Path, elsewhere: Path, link: Callable, allow_missing: bool
) -> None:
    place = link(people, elsewhere)
    monkeypatch.setattr(inspection, "inspect_image", lambda path: pytest.fail("an image was read"))
    with pytest.raises(DataError) as caught:
        prepare("folder", people, tmp_path / "out", allow_missing=allow_missing)
    message = str(caught.value)
    assert message.startswith(f"{place} leads out of the data set's root by a link, to {elsewhere}")
    assert "name the folder that really holds the images as the root, or copy them into this one" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.promise("hostile-paths")
@pytest.mark.parametrize("link", LINKS)
def test_a_manifest_whose_images_became_links_is_refused(
    tmp_path: Path, people: Path, elsewhere: Path, link: Callable
) -> None:
    manifest = prepare("folder", people, people / "manifests").manifests["hand"]
    shutil.copy(people / "p1" / "0.png", elsewhere / "0.png")  # the very same bytes
    place = link(people, elsewhere)
    for check in (manifest.verify_files, lambda: find_or_prepare(Preparation("folder", people), tmp_path / "cache")):
        with pytest.raises(DataError) as caught:
            check()
        assert str(caught.value).startswith(f"{place} leads out of the data set's root by a link, to {elsewhere}")


def test_links_within_the_root_and_the_root_itself_may_be_links(tmp_path: Path, people: Path) -> None:
    (people / "p1" / "0.png").rename(people / ".kept.png")
    (people / "p1" / "0.png").symlink_to("../.kept.png")
    (tmp_path / "root").symlink_to(people)
    manifest = prepare("folder", tmp_path / "root", tmp_path / "out").manifests["hand"]
    manifest.verify_files()
    assert len(manifest.images) == 18
    Manifest.load(tmp_path / "out" / "manifest_hand.json", root=tmp_path / "root").verify_files()


def test_a_circle_of_links_is_an_image_that_cannot_be_read(tmp_path: Path, people: Path) -> None:
    (people / "p1" / "9.png").symlink_to("9.png")
    with pytest.raises(DataError, match=r"9\.png cannot be read: Too many levels of symbolic links"):
        prepare("folder", people, tmp_path / "out")


def test_a_neighbour_whose_name_begins_alike_is_outside(tmp_path: Path, people: Path) -> None:
    (tmp_path / "people2").mkdir()
    shutil.copy(people / "p1" / "0.png", tmp_path / "people2" / "0.png")
    link(people, tmp_path / "people2" / "0.png")
    with pytest.raises(DataError, match=r"leads out .*people2/0\.png"):
        DatasetFiles(people).status("p1/0.png")


def test_each_folder_is_resolved_once(monkeypatch: pytest.MonkeyPatch, people: Path) -> None:
    import os

    resolved: list[object] = []
    realpath = os.path.realpath
    files = DatasetFiles(people)
    monkeypatch.setattr(os.path, "realpath", lambda path: resolved.append(path) or realpath(path))
    for path in sorted(people.rglob("*.png")):
        files.status(path.relative_to(people).as_posix())
    assert len(resolved) == 6


@pytest.mark.promise("hostile-paths")
@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../a",
        "a/../../b",
        "..",
        "",
        ".",
        "./a",
        "a//b",
        "a\0b",
        "a\\b",
        "..\\a",
        "C:\\a",
        "C:a",
        "\\\\h\\a",
    ],
)
def test_no_name_leads_out_of_the_root(people: Path, path: str) -> None:
    assert not is_plain_relative(path)
    with pytest.raises(DataError, match="is no plain name of a file in it"):
        DatasetFiles(people).status(path)


@pytest.mark.parametrize("path", ["a", "a/b.jpg", "...", "a b/=cmd().jpg", "手/<b>.jpg", "ab:c", "..a/b.."])
def test_plain_names_are_taken(path: str) -> None:
    assert is_plain_relative(path)


def test_a_name_with_a_backslash_is_refused_when_a_folder_is_prepared(tmp_path: Path, people: Path) -> None:
    shutil.copy(people / "p1" / "0.png", people / "p1" / "a\\..\\x.png")
    with pytest.raises(DataError, match=r"is no plain name of a file in it .*; rename it"):
        prepare("folder", people, tmp_path / "out")


def hands_and_a_row(root: Path, **cells: str) -> Path:
    row = {"id": "0000012", "accessories": "0", "aspectOfHand": "dorsal right", "imageName": "x.png"} | cells
    with (write_11k(root) / "HandInfo.csv").open("a", encoding="utf-8", newline="") as file:
        file.write("\n")
        csv.writer(file).writerow(row.values())
    return root


@pytest.mark.promise("hostile-paths")
@pytest.mark.parametrize(
    ("cells", "message"),
    [
        *(
            ({"imageName": name}, r"HandInfo\.csv, line \d+: imageName .* is not the name of a file in Hands")
            for name in ("../x.jpg", "/etc/passwd", "a/b.jpg", "..\\x.jpg", "C:x.jpg", "x\0.jpg", "..", ".")
        ),
        ({"id": "1" * 5000}, "is not a whole number from 0"),
        ({"imageName": "x" * 200_000}, "is no table"),
        ({"id": "٣"}, "is not a whole number from 0"),
    ],
)
def test_a_table_of_11k_hands_names_files_in_its_folder_only(
    tmp_path: Path, cells: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        prepare("11k", hands_and_a_row(tmp_path / "hands", **cells), tmp_path / "out")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["=cmd().jpg", "<script>alert(1)<script>.jpg", "[bold]@a.jpg"])
def test_formulas_and_html_in_a_table_stay_text(tmp_path: Path, name: str) -> None:
    root = write_images(hands_and_a_row(tmp_path / "hands", imageName=name), f"Hands/{name}")
    manifest = prepare("11k", root, tmp_path / "out").manifests["dorsal_r"]
    assert any(image.path == f"Hands/{name}" for image in manifest.images)
    assert Manifest.load(tmp_path / "out" / "manifest_dorsal_r.json") == manifest


def test_a_table_of_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    with (write_11k(tmp_path / "hands") / "HandInfo.csv").open("r+b") as file:
        file.truncate(10**11)
    with pytest.raises(DataError, match=r"HandInfo\.csv cannot be read: it has 100,000,000,000 bytes, more than"):
        prepare("11k", tmp_path / "hands", tmp_path / "out")


def test_links_in_the_original_scripts_folders_are_refused(tmp_path: Path, elsewhere: Path) -> None:
    splits = {"train_all": "a", "train": "a", "val": "", "test": "b", "query0": "", "gallery0": ""}
    split = tmp_path / "data" / "train_val_test_split_dorsal_r"
    write_splits(split, {part: {"0000001": letters} for part, letters in splits.items()})
    (split / "train_all" / "0000001" / "a.png").unlink()
    (split / "train_all" / "0000001" / "a.png").symlink_to(elsewhere / "0.png")
    shutil.copy(elsewhere / "0.png", split / "train" / "0000001" / "a.png")
    with pytest.raises(DataError, match=r"a\.png leads out of the data set's root by a link"):
        read_original_splits(Preparation("11k", tmp_path / "data"))
