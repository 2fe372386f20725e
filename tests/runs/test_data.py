import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_images import leave_without_home, write_images
from tiny_study import HANDS, load_manifest, tiny_config

from handclip.config.experiment import ExperimentConfig
from handclip.datasets.manifest import Manifest
from handclip.datasets.prepare import prepare
from handclip.errors import ConfigError, DataError
from handclip.files import cache_folder
from handclip.runs.data import combined_sha256, default_root, find_manifests, load_training_data

ASPECTS = ("dorsal_r", "dorsal_l", "palmar_r", "palmar_l")


def test_labels_are_dense_and_belong_to_the_identities(manifests: Path) -> None:
    manifest = load_manifest(manifests)
    data = load_training_data({"dorsal_r": manifest}, "train")
    assert {image.label for image in data.train} == set(range(len(data.identities)))
    names = {manifest.path_of(index): manifest.identity_names[manifest.images[index].identity]
             for index in manifest.train_all}  # fmt: skip
    for image in (*data.train, *data.val_queries, *data.val_gallery):
        assert data.identities[image.label] == f"dorsal_r/{names[image.path]}"
    assert [image.path for image in data.train] == [manifest.path_of(index) for index in manifest.train]


def test_d02_validation_is_retrieval_among_training_identities(manifests: Path) -> None:
    manifest = load_manifest(manifests)
    data = load_training_data({"dorsal_r": manifest}, "train")
    assert [image.path for image in data.val_queries] == [manifest.path_of(index) for index in manifest.val]
    trained_on = {image.path for image in data.train}
    assert {image.path for image in data.val_gallery} < trained_on
    assert trained_on.isdisjoint(image.path for image in data.val_queries)
    assert [image.label for image in data.val_gallery] == [image.label for image in data.val_queries]
    assert load_training_data({"dorsal_r": manifest}, "train") == data


def test_train_all_leaves_nothing_to_validate(manifests: Path) -> None:
    manifest = load_manifest(manifests)
    data = load_training_data({"dorsal_r": manifest}, "train_all")
    assert len(data.train) == len(manifest.train_all)
    assert data.val_queries == data.val_gallery == []


def test_each_aspect_of_a_person_is_an_identity(manifests: Path) -> None:
    data = load_training_data({aspect: load_manifest(manifests, aspect) for aspect in ASPECTS}, "train")
    people = [f"{number:07}" for number in range(1, HANDS.identities // 2 + 1)]
    assert sorted(data.identities) == sorted(f"{aspect}/{person}" for aspect in ASPECTS for person in people)
    assert {image.label for image in data.train} == set(range(4 * len(people)))
    for query, found in zip(data.val_queries, data.val_gallery, strict=True):
        assert query.label == found.label


def without_training_images(manifest: Manifest, identities: set[int]) -> Manifest:
    kept = tuple(index for index in manifest.train if manifest.images[index].identity not in identities)
    return replace(manifest, train=kept)


def test_identities_without_training_images_are_counted(manifests: Path) -> None:
    data = load_training_data({"dorsal_r": without_training_images(load_manifest(manifests), {2, 3})}, "train")
    assert (data.left_out_identities, len(data.identities), len(data.val_queries)) == (2, 4, 4)
    with pytest.raises(DataError, match="at least two identities with images, but there are 1"):
        load_training_data({"dorsal_r": without_training_images(load_manifest(manifests), {2, 3, 4, 5, 6})}, "train")


def test_one_hash_names_several_manifests(manifests: Path) -> None:
    found = find_manifests(tiny_config(manifests, aspect="all"))
    assert tuple(found) == ASPECTS
    assert combined_sha256({"dorsal_r": found["dorsal_r"]}) == found["dorsal_r"].sha256
    assert combined_sha256(found) == combined_sha256(dict(reversed(found.items())))
    assert combined_sha256(found) not in {manifest.sha256 for manifest in found.values()}


def test_a_manifest_may_be_named_by_file_or_folder(manifests: Path) -> None:
    by_file = tiny_config(manifests, manifest=str(manifests / "manifest_{aspect}.json"), aspect="palmar_l")
    assert find_manifests(by_file) == find_manifests(tiny_config(manifests, aspect="palmar_l"))


def test_the_manifest_of_another_aspect_or_data_set_is_refused(manifests: Path) -> None:
    path = str(manifests / "manifest_palmar_l.json")
    with pytest.raises(DataError, match="is the manifest of 11k palmar_l, not of 11k dorsal_r"):
        find_manifests(tiny_config(manifests, manifest=path))
    with pytest.raises(DataError, match="not of hd dorsal"):
        find_manifests(tiny_config(manifests, manifest=path, dataset="hd"))


@pytest.mark.promise("first-use")
def test_a_data_set_is_prepared_on_first_use(
    hands: Path, here: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "handclip")
    shutil.copytree(hands, here / "datasets" / "11k")
    config = tiny_config(here, manifest=None)
    first = find_manifests(config)
    (place,) = (cache_folder() / "manifests").glob("11k_*")
    assert f"datasets/11k was not prepared yet: it was now, with seed 0; manifests in {place}." in caplog.text
    caplog.clear()
    assert find_manifests(config)["dorsal_r"] == first["dorsal_r"]
    assert f"Manifests read from {place}." in caplog.text
    assert first["dorsal_r"].seed == 0
    # Whoever uses these data from elsewhere has the same manifests.
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    again = find_manifests(tiny_config(here, manifest=None, data_root="../datasets/11k"))
    assert again["dorsal_r"] == first["dorsal_r"]
    left = {path.name for path in (here / "datasets" / "11k").iterdir()}
    assert left == {path.name for path in hands.iterdir()}


def test_synthetic_hands_have_their_manifests_beside_them(hands: Path, here: Path) -> None:
    shutil.copytree(hands, here / "datasets" / "synthetic")
    find_manifests(tiny_config(here, manifest=None, dataset="synthetic"))
    assert (here / "datasets" / "synthetic" / "manifests" / "manifest_dorsal_r.json").is_file()
    assert not (cache_folder() / "manifests").exists()


def test_data_are_looked_for_where_the_original_code_did() -> None:
    places = {
        dataset: default_root(tiny_config(Path(), manifest=None, dataset=dataset)).as_posix()
        for dataset in ("11k", "hd", "synthetic")
    }
    assert places == {"11k": "datasets/11k", "hd": "datasets/HD", "synthetic": "datasets/synthetic"}
    assert default_root(tiny_config(Path(), manifest=None, data_root="elsewhere")) == Path("elsewhere")


def test_a_data_set_that_is_not_there(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"datasets/HD: there is no such folder\. .* data_root"):
        find_manifests(tiny_config(here, manifest=None, dataset="hd"))


def test_what_a_manifest_leaves_out_is_said(hands: Path, here: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "handclip")
    shutil.copytree(hands, here / "hands")
    manifest = prepare("11k", here / "hands", here / "whole").manifests["dorsal_r"]
    find_manifests(tiny_config(here / "whole"))
    assert "made without" not in caplog.text
    manifest.path_of(manifest.test[0]).unlink()
    manifest.path_of(manifest.test[1]).write_bytes(b"spoilt")
    prepare("11k", here / "hands", here / "part", allow_missing=True)
    find_manifests(tiny_config(here / "part"))
    assert "The manifest was made without 1 absent image, 1 unreadable image." in caplog.text


def test_manifests_of_a_part_of_the_data_are_used_only_when_allowed(hands: Path, here: Path) -> None:
    shutil.copytree(hands, here / "hands")
    next((here / "hands" / "Hands").iterdir()).unlink()
    part = {"manifest": None, "data_root": str(here / "hands")}
    with pytest.raises(DataError, match="--allow-missing"):
        find_manifests(tiny_config(here, **part))
    find_manifests(tiny_config(here, **part, aspect="all", allow_missing=True))
    with pytest.raises(DataError, match=r"were made without 1 absent image\. .* allow_missing: true"):
        find_manifests(tiny_config(here, **part, aspect="all"))
    find_manifests(tiny_config(here, **part, aspect="all", allow_missing=True))


@pytest.mark.parametrize("lacking", ["home", "folder"])
def test_where_no_cache_can_be_manifests_are_in_the_working_directory(
    hands: Path, here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lacking: str
) -> None:
    caplog.set_level("INFO", "handclip")
    if lacking == "home":
        leave_without_home(monkeypatch)
    else:
        (here / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(here / "file"))
    root = Path(shutil.copytree(hands, here / "hands"))
    config = tiny_config(here, manifest=None, data_root=str(root))
    made = find_manifests(config)
    assert find_manifests(config)["dorsal_r"].sha256 == made["dorsal_r"].sha256
    (place,) = Path("manifests").glob("11k_*")
    assert (place / "manifest_dorsal_r.json").is_file()
    assert f"with seed 0; manifests in {place}." in caplog.text
    assert not (root / "manifests").exists()


@pytest.fixture
def people(here: Path) -> Path:
    """Five people with two photographs each in a folder of their own, and one of another format."""
    paths = [f"p{person}/day 1/{number}.png" for person in range(5) for number in range(2)]
    return write_images(write_images(here / "people", *paths), "p0/day 1/a.nef", content=b"x")


PATTERN = "{identity}/{session}/*"


def of_folder(people: Path, **changes: Any) -> ExperimentConfig:
    values = {"dataset": "folder", "aspect": "hand", "manifest": None, "data_root": str(people), "pattern": PATTERN}
    return tiny_config(people, **values | changes)


@pytest.mark.promise("unread-photographs")
def test_what_is_not_read_is_said_on_first_use_and_after(people: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "handclip")
    with pytest.raises(DataError, match="2 photographs in folders inside an identity's"):
        find_manifests(of_folder(people, pattern=None))
    first = find_manifests(of_folder(people))
    said = f"Left out of {people}: 1 camera raw file (such as p0/day 1/a.nef; export them as JPEG or TIFF)."
    assert said in caplog.text
    caplog.clear()
    assert find_manifests(of_folder(people)) == first
    assert "The manifest was made without 1 camera raw file." in caplog.text


def test_people_lost_from_a_manifest_are_lost_only_where_it_is_allowed(people: Path) -> None:
    for image in (people / "p4" / "day 1").glob("*.png"):
        image.rename(image.with_suffix(".jxl"))
    with pytest.raises(DataError, match=r"nothing is read of 1 identity:\n  p4: 2 JPEG XL photographs"):
        find_manifests(of_folder(people))
    find_manifests(of_folder(people, allow_missing=True))
    with pytest.raises(DataError, match=r"were made without 1 identity of which nothing is read\. .* allow_missing"):
        find_manifests(of_folder(people))


def test_a_named_manifest_must_be_made_by_the_pattern_that_is_named(people: Path) -> None:
    prepare("folder", people, people / "made", pattern=PATTERN)
    named = {"manifest": str(people / "made"), "data_root": None}
    assert find_manifests(of_folder(people, **named, pattern=None)) == find_manifests(of_folder(people, **named))
    with pytest.raises(DataError, match=r"was made by the pattern \{identity\}/\{session\}/\*, and the pattern \{id"):
        find_manifests(of_folder(people, **named, pattern="{identity}/*/*"))


def test_photographs_added_after_first_use_are_said(people: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(people / "p0/day 1/0.png", people / "p0/day 1/copy.png")
    (people / "p1/day 1/broken.png").write_bytes(b"x")
    config = of_folder(people, allow_missing=True)
    first = find_manifests(config)
    caplog.clear()
    find_manifests(config)
    assert "lacks" not in caplog.text
    write_images(people, "p2/day 1/new.png")
    find_manifests(config)
    assert f"{people} holds 1 photograph (such as p2/day 1/new.png) that the manifest lacks" in caplog.text
    write_images(people, "zoe/day 1/0.png", "zora/day 1/0.png")
    caplog.clear()
    assert find_manifests(config) == first
    [said] = [record for record in caplog.records if "lacks" in record.message]
    assert said.levelname == "WARNING"
    assert f"{people} holds 3 photographs and 2 identities (such as zo" in said.message
    assert "remove " in said.message and "to have them included (splits are then drawn anew)" in said.message
    made = first["hand"].file
    assert made is not None and str(made.parent) in said.message
    caplog.clear()
    find_manifests(of_folder(people, allow_missing=True, manifest=str(made)))
    assert "lacks" not in caplog.text
    shutil.rmtree(made.parent)
    assert len(find_manifests(config)["hand"].identity_names) == 7
