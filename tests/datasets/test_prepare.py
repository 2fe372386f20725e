import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from made_images import write_11k, write_images, write_splits

from handclip.datasets.manifest import Manifest, manifest_path
from handclip.datasets.preparation import Preparation
from handclip.datasets.prepare import ASPECTS, PreparedDataset, find_or_prepare, places_of_manifests, prepare
from handclip.datasets.summary import split_table, summarise
from handclip.errors import ConfigError, DataError, HandCLIPError
from handclip.locks import holding

ORIGINAL = {
    "train_all": {"12": "ab"},
    "train": {"12": "a"},
    "val": {"12": "b"},
    "test": {"1100": "cd", "1200": "ef"},
    "query0": {"1100": "c", "1200": "e"},
    "gallery0": {"1100": "d", "1200": "f"},
}


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Six people, of whom the first has one image, the next two, and so on."""
    paths = [f"person {person}/{number}.png" for person in range(6) for number in range(person + 1)]
    return write_images(tmp_path / "people", *paths)


@pytest.fixture
def hands(tmp_path: Path) -> Path:
    return write_11k(tmp_path / "11k")


def contents_of(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def write_original(root: Path, splits: dict[str, dict[str, str]] = ORIGINAL) -> None:
    write_splits(root / "train_val_test_split_dorsal_r", splits)


def first_use(
    dataset: str, root: Path, *, aspects: list[str] | None = None, beside_images: bool = False, **options: Any
) -> PreparedDataset:
    """What is made is kept in a folder beside the data set's."""
    preparation, cache = Preparation(dataset, root, **options), root.parent / "cache"
    return find_or_prepare(preparation, cache, aspects=aspects, beside_images=beside_images)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_writes_manifests_and_summaries(hands, tmp_path):
    prepared = prepare("11k", hands, tmp_path / "out", seed=2, num_draws=3)
    assert (prepared.folder, prepared.origin, prepared.unchanged) == (tmp_path / "out", "images", False)
    assert sorted(content(tmp_path / "out")) == [
        "dataset_summary.csv",
        *sorted(f"manifest_{aspect}.json" for aspect in ASPECTS["11k"]),
        "summary.json",
    ]
    for aspect, manifest in prepared.manifests.items():
        assert Manifest.load(manifest_path(tmp_path / "out", aspect)) == manifest
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary == {aspect: summarise(manifest) for aspect, manifest in prepared.manifests.items()}
    nothing = ("missing_images", "unreadable_images", "copied_images", "unread_files", "unread_identities")
    nothing += ("ignored_files", "empty_identities", "single_image_train_identities", "single_image_test_identities")
    assert summary["dorsal_l"] == dict.fromkeys(nothing, 0) | {
        "train_identities": 2, "train_images": 4, "val_images": 2, "train_all_images": 6, "test_identities": 2,
        "test_images": 6, "query_images": 4, "gallery_images": 2, "gallery_all_images": 8,
        "sha256": prepared.manifests["dorsal_l"].sha256,
    }  # fmt: skip
    header, *rows = (tmp_path / "out" / "dataset_summary.csv").read_text().splitlines()
    assert header.startswith("dataset,aspect,split,identities,images,minimum,minimum_identities,maximum,")
    assert header.endswith(",maximum_identities,imbalance,balanced,distractor_identities")
    assert len(rows) == 4 * 7
    assert rows[6] == "11k,dorsal_r,gallery0_all,8,8,1,8,1,8,1,True,6"


def test_split_table_of_uneven_identities(people):
    manifest = prepare("folder", people, people.parent / "out").manifests["hand"]
    table = {row.split: row for row in split_table(manifest)}
    assert list(table) == ["train_all", "train", "val", "test", "query0", "gallery0"]
    sizes = [len(list((people / manifest.identity_names[one]).iterdir())) for one in manifest.identities(manifest.test)]
    row = table["test"]
    assert (row.identities, row.images, row.minimum, row.maximum) == (3, sum(sizes), min(sizes), max(sizes))
    assert (row.minimum_identities, row.maximum_identities) == (1, 1)
    assert row.imbalance == max(sizes) / min(sizes)
    assert not row.balanced
    assert table["val"].balanced
    counts = summarise(manifest)
    assert int(counts["single_image_train_identities"]) + int(counts["single_image_test_identities"]) == 1


def test_d62_preparing_again_changes_nothing(hands, tmp_path):
    out = tmp_path / "out"
    prepare("11k", hands, out)
    before = content(out)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = prepare("11k", hands, out)
    assert again.unchanged
    assert content(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    (out / "summary.json").unlink()
    (out / "manifest_palmar_r.json").unlink()
    assert not prepare("11k", hands, out).unchanged
    assert content(out) == before


def test_d62_other_manifests_are_never_overwritten(hands, people, tmp_path):
    out = tmp_path / "out"
    prepare("11k", hands, out)
    before = content(out)
    with pytest.raises(DataError, match=r"already holds other manifests \(manifest_dorsal_l\.json, .*nothing was over"):
        prepare("11k", hands, out, seed=1)
    with pytest.raises(DataError, match=r"already holds other manifests \(manifest_dorsal_l\.json, "):
        prepare("folder", people, out)
    assert content(out) == before


def test_d62_importing_does_nothing_and_needs_no_torch(tmp_path):
    code = "import sys, handclip.datasets.prepare as p; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=60)
    assert not list(tmp_path.iterdir())


def test_moved_data_set_is_the_same_content(people, tmp_path):
    out = tmp_path / "elsewhere" / "out"
    expected = prepare("folder", people, out).manifests["hand"]
    moved = tmp_path / "moved"
    shutil.move(people, moved)
    again = prepare("folder", moved, out)
    assert again.manifests["hand"].sha256 == expected.sha256
    assert Manifest.load(manifest_path(out, "hand")).root == moved.resolve()


def test_unwritable_out(people, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file, not a folder for manifests"):
        prepare("folder", people, tmp_path / "file")
    (tmp_path / "out" / "summary.json").mkdir(parents=True)
    with pytest.raises(HandCLIPError, match=r"cannot write .*summary\.json"):
        prepare("folder", people, tmp_path / "out")


def test_bad_requests(people, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no data set 'folders'\. Did you mean 'folder'\?"):
        prepare("folders", people, tmp_path)
    with pytest.raises(ConfigError, match="number of draws must be at least 1, not 0"):
        prepare("folder", people, tmp_path, num_draws=0)
    with pytest.raises(ConfigError, match="deterministic gallery is defined for hd only"):
        prepare("folder", people, tmp_path, deterministic_gallery=True)
    with pytest.raises(ConfigError, match=r"11k has no aspect 'dorsal_x'\. Did you mean 'dorsal_r'\?"):
        find_or_prepare(Preparation("11k", people), tmp_path, aspects=["dorsal_x"])


def test_prepare_reads_original_splits_where_the_images_are_not(tmp_path):
    write_original(tmp_path / "11k")
    prepared = prepare("11k", tmp_path / "11k", tmp_path / "out")
    assert (prepared.origin, list(prepared.manifests)) == ("original_splits", ["dorsal_r"])
    assert prepare("11k", tmp_path / "11k", tmp_path / "out").unchanged


@pytest.mark.promise("first-use")
def test_first_use_prepares_and_keeps(hands, tmp_path):
    before = contents_of(hands)
    first = first_use("11k", hands, aspects=["palmar_l"])
    assert (first.origin, first.folder.parent, first.unchanged) == ("images", tmp_path / "cache", False)
    assert contents_of(hands) == before
    second = first_use("11k", hands, seed=9, aspects=["palmar_l"])
    assert (second.origin, second.unchanged) == ("manifests", True)
    assert second.manifests == {"palmar_l": first.manifests["palmar_l"]}
    # In another place they are made anew, and of the same images are the same.
    moved = tmp_path / "moved"
    shutil.move(hands, moved)
    third = first_use("11k", moved)
    assert (third.origin, third.folder == first.folder) == ("images", False)
    assert third.manifests["palmar_l"].sha256 == first.manifests["palmar_l"].sha256


@pytest.mark.parametrize("kept_too", [False, True])
def test_manifests_that_stand_in_the_data_set_are_used(hands, tmp_path, kept_too):
    if kept_too:
        first_use("11k", hands)
    asked = prepare("11k", hands, hands / "manifests", seed=7)
    found = first_use("11k", hands)
    assert (found.origin, found.folder, found.manifests) == ("manifests", hands / "manifests", asked.manifests)
    shutil.move(hands, tmp_path / "moved")
    assert first_use("11k", tmp_path / "moved").manifests["dorsal_r"].seed == 7


def test_what_is_made_goes_beside_the_images_where_that_is_asked_for(hands, tmp_path):
    made = first_use("11k", hands, beside_images=True)
    assert made.folder == hands / "manifests"
    assert first_use("11k", hands).origin == "manifests"
    assert not (tmp_path / "cache").exists()


def test_the_plain_pattern_by_name_shares_the_manifests_of_none(tmp_path):
    named, unnamed = (places_of_manifests("folder", tmp_path, tmp_path, one) for one in ("{identity}/*", None))
    assert named == unnamed
    assert places_of_manifests("folder", tmp_path, tmp_path, "{identity}_*") != unnamed


@pytest.mark.promise("first-use")
def test_of_two_at_once_one_waits_for_the_other(hands, tmp_path, caplog):
    caplog.set_level("INFO", "handclip")
    _, kept = places_of_manifests("11k", hands, tmp_path / "cache")
    with ThreadPoolExecutor(2) as pool:
        with holding(kept):
            waiting = [pool.submit(find_or_prepare, Preparation("11k", hands), tmp_path / "cache") for _ in range(2)]
            while caplog.text.count("waiting for it") < 2 and not any(one.done() for one in waiting):
                time.sleep(0.01)
            assert not kept.exists()
        first, second = (one.result() for one in waiting)
    assert {first.origin, second.origin} == {"images", "manifests"}
    assert first.manifests == second.manifests
    assert f"{kept} is in use by process {os.getpid()} on " in caplog.text
    assert caplog.text.count("; waiting for it to finish.\n") == 2


def test_first_use_of_a_folder_data_set_is_stable(people, tmp_path):
    first = first_use("folder", people)
    assert prepare("folder", people, first.folder).unchanged
    assert prepare("folder", people, people / "manifests").manifests == first.manifests
    assert first_use("folder", people).manifests == first.manifests


def test_first_use_of_read_only_data(hands, tmp_path):
    hands.chmod(0o555)
    try:
        first = first_use("11k", hands, beside_images=True)
        assert first.folder.parent == tmp_path / "cache"
        assert not (hands / "manifests").exists()
        second = first_use("11k", hands)
        assert (second.origin, second.manifests) == ("manifests", first.manifests)
    finally:
        hands.chmod(0o755)


def test_first_use_prefers_original_splits_if_they_have_the_aspect(hands, tmp_path):
    write_original(hands)
    read = first_use("11k", hands, aspects=["dorsal_r"])
    assert read.origin == "original_splits"
    assert read.manifests["dorsal_r"].seed is None
    assert first_use("11k", hands, aspects=["dorsal_r"]).origin == "manifests"
    shutil.rmtree(read.folder)
    assert first_use("11k", hands, aspects=["palmar_l"]).origin == "images"


def test_overlapping_original_splits_are_refused(tmp_path):
    write_original(tmp_path / "11k", {**ORIGINAL, "query0": {"1100": "cd", "1200": "e"}})
    with pytest.raises(DataError, match=r"break the protocol.*\n  dorsal_r: draw 0: query and gallery share 1 images"):
        first_use("11k", tmp_path / "11k", aspects=["dorsal_r"])


@pytest.mark.promise("images-gone-since")
def test_manifest_whose_images_have_gone(hands, tmp_path):
    made = first_use("11k", hands)
    (hands / "Hands" / "palmar left 12 0.png").unlink()
    with pytest.raises(DataError, match=r"1 are gone \(Hands/palmar left 12 0\.png\)") as caught:
        first_use("11k", hands, aspects=["palmar_l"])
    # What nobody has asked for nobody would look for either.
    said = f"(The manifests in {made.folder} were made when these data were first used. Remove that"
    assert said in str(caught.value)
    shutil.rmtree(made.folder)
    assert first_use("11k", hands, allow_missing=True).origin == "images"


def test_manifest_of_another_data_set(hands, tmp_path):
    prepare("11k", hands, hands / "manifests")
    path = manifest_path(hands / "manifests", "dorsal_r")
    shutil.copy(manifest_path(hands / "manifests", "dorsal_l"), path)
    with pytest.raises(DataError, match=r"is the manifest of 11k dorsal_l, not of 11k dorsal_r"):
        first_use("11k", hands)


@pytest.mark.parametrize("damage", [b"", b"{", b"data", None])
@pytest.mark.parametrize("name", ["summary.json", "dataset_summary.csv"])
def test_a_damaged_summary_is_made_anew(people: Path, tmp_path: Path, name: str, damage: bytes | None) -> None:
    prepare("folder", people, tmp_path / "out")
    path = tmp_path / "out" / name
    whole = path.read_bytes()
    path.write_bytes(damage) if damage is not None else path.unlink()
    prepare("folder", people, tmp_path / "out")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["emptied", "cut off", "flipped"])
def test_a_damaged_manifest_is_named_and_not_overwritten(people: Path, tmp_path: Path, damage: str) -> None:
    prepare("folder", people, people / "manifests")
    path = people / "manifests" / "manifest_hand.json"
    whole = path.read_bytes()
    place = whole.index(b'"train": [') + len(b'"train": [')
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    spoilt = {"emptied": b"", "cut off": whole[:-9], "flipped": flipped}[damage]
    path.write_bytes(spoilt)
    for work in (
        lambda: prepare("folder", people, people / "manifests"),
        lambda: first_use("folder", people),
    ):
        with pytest.raises(DataError, match=r"manifest_hand\.json is not a") as caught:
            work()
        assert "remove it and run `handclip prepare` again" in str(caught.value)
        assert path.read_bytes() == spoilt
