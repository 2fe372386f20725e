from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import hand
from PIL import Image

from handclip.datasets.check import check_manifest
from handclip.datasets.summary import summarise
from handclip.errors import DataError

PEOPLE = {"Zoë": 3, "anna": 2, "Борис": 4, "王芳": 2, "عمر": 2, "Jean Luc": 5, "single": 1}


def write_people(root: Path, people: dict[str, int]) -> Path:
    for person, (name, count) in enumerate(people.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (2, 2), (number, person, 0)).save(root / name / f"фото {number}.png")
    return root


def test_any_alphabet(tmp_path):
    manifest = hand(write_people(tmp_path, PEOPLE), num_draws=3)
    assert (manifest.dataset, manifest.aspect, len(manifest.draws)) == ("folder", "hand", 3)
    assert manifest.identity_names == dict(enumerate(sorted(PEOPLE)))
    assert check_manifest(manifest) == []
    for image in manifest.images:
        assert image.path.split("/")[0] == manifest.identity_names[image.identity]
    train, test = manifest.identities(manifest.train_all), manifest.identities(manifest.test)
    assert not train & test
    assert (len(train), len(test)) == (4, 3)
    assert manifest.gallery_protocols == ("gallery",)


def test_seed_decides_who_is_trained_on(tmp_path):
    write_people(tmp_path, PEOPLE)
    halves = {
        frozenset(manifest.identities(manifest.test))
        for manifest in (hand(tmp_path, seed=seed, num_draws=1) for seed in range(20))
    }
    assert len(halves) > 5
    assert hand(tmp_path, seed=3) == hand(tmp_path, seed=3)


def test_halves_share_out_the_single_images(tmp_path_factory):
    @given(st.integers(4, 9), st.integers(0, 7), st.integers(0, 1000))
    @settings(derandomize=True, deadline=None, max_examples=15)
    def check(several: int, single: int, seed: int) -> None:
        people = {f"m{n}": 2 for n in range(several)} | {f"s{n}": 1 for n in range(single)}
        root = write_people(tmp_path_factory.mktemp("folder"), people)
        manifest = hand(root, seed=seed, num_draws=1)
        counts = summarise(manifest)
        assert counts["train_identities"] == (several + single + 1) // 2
        assert counts["test_identities"] == (several + single) // 2
        single_train, single_test = counts["single_image_train_identities"], counts["single_image_test_identities"]
        assert counts["train_identities"] - single_train == (several + 1) // 2
        assert counts["test_identities"] - single_test == several // 2
        assert check_manifest(manifest) == []

    check()


def test_other_entries_are_ignored_and_counted(tmp_path):
    write_people(tmp_path, PEOPLE)
    expected = hand(tmp_path)
    photograph = (tmp_path / "anna" / "фото 0.png").read_bytes()
    (tmp_path / "README.txt").write_text("not counted")
    (tmp_path / "loose.png").write_bytes(photograph)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "anna" / "notes.txt").write_text("x")
    (tmp_path / "anna" / ".hidden.png").write_bytes(photograph)
    (tmp_path / "anna" / "nested").mkdir()
    (tmp_path / "anna" / "nested" / "a.png").write_bytes(photograph)
    (tmp_path / "anna" / "without photographs").mkdir()
    (tmp_path / "empty").mkdir()
    manifest = hand(tmp_path)
    assert (manifest.ignored_files, manifest.empty_identities) == (3, 1)
    assert manifest.unread_files == {"loose": 1, "nested": 1}
    assert manifest.images == expected.images
    assert manifest.draws == expected.draws


def test_upper_case_extensions_are_images(tmp_path):
    write_people(tmp_path, PEOPLE)
    (tmp_path / "anna" / "фото 0.png").rename(tmp_path / "anna" / "IMG_0001.PNG")
    assert "anna/IMG_0001.PNG" in {image.path for image in hand(tmp_path).images}


def test_manifests_inside_the_data_set_are_not_an_identity(tmp_path):
    write_people(tmp_path, PEOPLE)
    expected = hand(tmp_path)
    expected.save(tmp_path / "manifests" / "manifest_hand.json")
    assert hand(tmp_path) == expected


@pytest.mark.parametrize("people", [{"a": 9, "b": 9, "c": 9}, {"a": 2, "b": 2, "c": 2, "d": 1, "e": 1}])
def test_too_few_identities(tmp_path, people):
    with pytest.raises(DataError, match=r"3 identities with two or more images .* at least 4 are needed"):
        hand(write_people(tmp_path, people))


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(DataError, match=r"none is not a folder"):
        hand(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no identity folders; expected .*/<identity>/<images>"):
        hand(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no identity folders; .* 1 photograph in no identity's folder \(such as a\."):
        hand(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"holds 0 identities with two or more images"):
        hand(tmp_path)


def test_unreadable_images(tmp_path):
    write_people(tmp_path, PEOPLE)
    (tmp_path / "single" / "фото 0.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"1 of 19 images cannot be read:\n.*single/фото 0\.png is not an image"):
        hand(tmp_path)
    manifest = hand(tmp_path, allow_missing=True)
    assert (manifest.unreadable_images, manifest.empty_identities) == (1, 1)
    assert "single" not in manifest.identity_names.values()


def test_name_that_is_not_utf8(tmp_path):
    write_people(tmp_path, PEOPLE)
    try:
        Path(bytes(tmp_path).decode() + "/bad\udcff").mkdir()
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    with pytest.raises(DataError, match=r"holds a name that is not valid UTF-8, 'bad\\udcff'; rename it"):
        hand(tmp_path)
