"""The same photograph, byte for byte, under several names: left out, refused, or counted and said."""

import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import encoded, hand, with_copy, write_11k, write_images, write_splits
from PIL import Image
from rich.console import Console

from handclip.datasets.check import check_copies, check_manifest, check_protocol
from handclip.datasets.duplicates import copied_queries, describe_copies, learned_by_heart
from handclip.datasets.manifest import Draw, Manifest, ManifestImage
from handclip.datasets.preparation import Preparation
from handclip.datasets.prepare import find_or_prepare, prepare
from handclip.errors import DataError
from handclip.report.screen import split_tables


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Six people with three photographs each."""
    return write_images(tmp_path / "people", *(f"p{person}/IMG {n}.png" for person in range(6) for n in range(3)))


def add_copies(people: Path) -> None:
    """Every photograph a second time, as a download does, and one a third time."""
    for path in sorted(people.rglob("*.png")):
        shutil.copy(path, path.with_name(f"{path.stem} (1).png"))
    shutil.copy(people / "p0" / "IMG 0.png", people / "p0" / "later.png")


@pytest.mark.promise("copies-in-folders")
def test_of_copies_within_an_identity_one_is_kept_and_the_others_are_counted(
    people: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_copies(people)
    prepared = prepare("folder", people, tmp_path / "out")
    manifest = prepared.manifests["hand"]
    # " " comes before "."
    assert {image.path for image in manifest.images} == {f"p{p}/IMG {n} (1).png" for p in range(6) for n in range(3)}
    assert len({image.sha256 for image in manifest.images}) == len(manifest.images)
    assert manifest.copied_images == 19
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["hand"]["copied_images"] == 19
    assert (
        "Left out 19 copies of other images of the same identity (such as p0/IMG 0.png and "
        "p0/IMG 0 (1).png, which is kept)."
    ) in caplog.text
    console = Console(width=200)
    with console.capture() as capture:
        console.print(*split_tables(prepared.manifests))
    assert "Left out: 19 copies of other images" in capture.get()
    assert Manifest.load(tmp_path / "out" / "manifest_hand.json") == manifest
    assert prepare("folder", people, tmp_path / "out").unchanged


@pytest.mark.promise("copies-in-folders")
def test_an_identity_left_with_too_few_is_treated_as_any_such(people: Path) -> None:
    for person in (0, 1, 2):
        for number in (1, 2):
            shutil.copy(people / f"p{person}" / "IMG 0.png", people / f"p{person}" / f"IMG {number}.png")
    with pytest.raises(DataError, match=r"holds 3 identities with two or more images \(and 3 with one\)"):
        hand(people)


@pytest.mark.promise("copies-in-folders")
def test_one_photograph_under_two_identities_is_refused_and_both_files_are_named(people: Path, tmp_path: Path) -> None:
    shutil.copy(people / "p1" / "IMG 2.png", people / "p4" / "IMG 7.png")
    shutil.copy(people / "p1" / "IMG 2.png", people / "p5" / "IMG 8.png")
    for make in (
        lambda: prepare("folder", people, tmp_path / "out"),
        lambda: prepare("folder", people, tmp_path / "out", allow_missing=True),
        lambda: find_or_prepare(Preparation("folder", people), tmp_path / "cache"),
    ):
        with pytest.raises(DataError) as caught:
            make()
        assert str(caught.value) == (
            f"{people} holds the very same photograph under two identities: p1/IMG 2.png and p4/IMG 7.png; "
            "p1/IMG 2.png and p5/IMG 8.png. If the two of a pair are one person, put all their images into one folder; "
            "if they are two, delete the copy that is in the wrong one"
        )
    assert not (tmp_path / "out").exists() and not (people / "manifests").exists()
    (people / "p5" / "IMG 8.png").unlink()
    with pytest.raises(DataError, match=r"p1/IMG 2\.png and p4/IMG 7\.png\. If p1 and p4 are one person, put"):
        hand(people)


@pytest.mark.promise("copies-in-folders")
def test_of_many_photographs_under_two_identities_ten_are_named(people: Path) -> None:
    for number in range(12):
        shutil.copy(people / "p1" / "IMG 2.png", people / "p4" / f"copy {number:02}.png")
    with pytest.raises(DataError) as caught:
        hand(people)
    assert [f"copy {number:02}" in str(caught.value) for number in range(12)] == [True] * 10 + [False] * 2
    assert "p1/IMG 2.png and p4/copy 09.png; and 2 more. If the two of a pair" in str(caught.value)


IMAGES = tuple(ManifestImage(f"{n}.png", n // 4, hashlib.sha256(bytes([n])).hexdigest(), 1) for n in range(40))
SOUND = Manifest(
    dataset="folder",
    aspect="hand",
    seed=0,
    images=IMAGES,
    train=tuple(index for index in range(20) if index % 4),
    val=tuple(range(0, 20, 4)),
    test=tuple(range(20, 40)),
    draws=tuple(
        Draw(tuple(i for i in range(20, 40) if i % 4 != first), tuple(range(20 + first, 40, 4))) for first in (0, 1)
    ),
    identity_names={identity: f"p{identity}" for identity in range(10)},
    root=Path("/nowhere"),
)


@pytest.mark.promise("copies-in-training")
@pytest.mark.parametrize("trained", [1, 4])
def test_a_photograph_that_is_trained_and_tested_on_is_found(trained: int) -> None:
    assert check_protocol(SOUND) == describe_copies(SOUND) == check_copies([SOUND]) == []
    copied = with_copy(SOUND, 22, of=trained)
    (sentence,) = check_copies([copied])
    assert sentence.startswith(
        "test has 1 image of which train and val hold the very same photograph (such as 22.png and "
        f"{trained}.png): whoever is recognised on them was learned by heart. If the two of a pair are one person, put"
    )
    assert sentence in check_manifest(copied)
    # Who has not learned it may be evaluated.
    assert check_protocol(copied) == []


@pytest.mark.promise("copies-in-training")
@pytest.mark.parametrize(
    ("dataset", "seed", "advice"),
    [
        ("folder", 0, "put all images of that person into one folder, else delete the one that is in the wrong place"),
        ("11k", 0, "delete the one that is in the wrong place and make them with `handclip prepare --allow-missing`"),
        ("hd", 0, "give all images of that person the same number (<id>_<number>.jpg), else delete the one"),
        ("11k", None, "first delete the one that is in the wrong place from every split folder that holds it"),
        ("hd", None, "first delete the one that is in the wrong place from every split folder that holds it"),
    ],
)
def test_what_to_do_about_a_photograph_that_is_learned_by_heart_fits_the_data_set(
    dataset: str, seed: int | None, advice: str
) -> None:
    (sentence,) = check_copies([replace(with_copy(SOUND, 22, of=1), dataset=dataset, seed=seed)])
    assert advice in sentence
    assert ("--allow-missing" in sentence) == ((dataset, seed) == ("11k", 0))  # where images are listed in a table


@pytest.mark.promise("copies-in-training")
def test_folders_of_the_original_script_with_such_a_photograph_can_be_read_and_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_original(tmp_path / "data")
    copies = list(root.rglob("h.png"))
    for path in copies:
        shutil.copy(next(root.rglob("a.png")), path)
    # A baseline can be evaluated on them; who prepares them is told at once what training would be refused for.
    find_or_prepare(Preparation("11k", root), tmp_path / "cache", aspects=["dorsal_r"])
    assert "very same photograph" not in caplog.text
    manifest = prepare("11k", root, tmp_path / "out").manifests["dorsal_r"]
    (sentence,) = check_copies([manifest])
    assert sentence in caplog.text and sentence in check_manifest(manifest)
    for path in copies:
        path.unlink()
    assert check_manifest(prepare("11k", root, tmp_path / "anew").manifests["dorsal_r"]) == []


@pytest.mark.promise("copies-in-validation")
def test_a_validation_image_with_a_copy_in_training_is_counted_and_no_breach() -> None:
    manifest = with_copy(with_copy(SOUND, 4, of=5), 8, of=1)
    assert check_protocol(manifest) == []
    assert describe_copies(manifest) == [
        "The training images hold the very same photograph as 2 of 5 validation images (such as 4.png and 5.png), so "
        "the best epoch is chosen on what was learned by heart"
    ]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=40, max_size=40))
def test_copies_are_those_of_equal_hash_in_any_manifest(contents: list[int]) -> None:
    images = tuple(replace(image, sha256=f"{content:064x}") for image, content in zip(IMAGES, contents, strict=True))
    manifest = replace(SOUND, images=images)
    learned = {contents[index] for index in manifest.train_all}
    pairs = learned_by_heart([manifest])
    assert [path for path, _ in pairs] == [images[i].path for i in manifest.test if contents[i] in learned]
    assert bool(pairs) == any("learned by heart" in sentence for sentence in check_copies([manifest]))
    found = copied_queries(manifest, manifest.draws, "gallery")
    assert len(found) == sum(
        contents[query] in {contents[index] for index in draw.gallery}
        for draw in manifest.draws
        for query in draw.query
    )
    for path, same in (*pairs, *found):
        assert path != same
        assert contents[int(path.removesuffix(".png"))] == contents[int(same.removesuffix(".png"))]


def write_hands(root: Path) -> Path:
    return write_11k(root, alike=1100)


def write_hd(root: Path) -> Path:
    for folder, people in {"1-501": (1, 2, 448, 449), "502-712": (502,)}.items():
        for person in people:
            same = encoded(Image.new("RGB", (1, 1)), "PNG") if person in (449, 502) else None
            write_images(root, *(f"{folder}/{person}_{number}.jpg" for number in range(3)), content=same)
    return root


def write_original(root: Path) -> Path:
    """The gallery image of 1100 is also one of its queries, under another name."""
    splits = {
        "train_all": {"12": "ab", "13": "cd"}, "train": {"12": "a", "13": "c"}, "val": {"12": "b", "13": "d"},
        "test": {"1100": "efg", "1200": "hi"}, "query0": {"1100": "ef", "1200": "h"},
        "gallery0": {"1100": "g", "1200": "i"},
    }  # fmt: skip
    folder = write_splits(root / "train_val_test_split_dorsal_r", splits)
    for copy in folder.rglob("g.png"):
        shutil.copy(folder / "test" / "1100" / "e.png", copy)
    return root


@pytest.mark.promise("copies-in-draws")
@pytest.mark.parametrize(
    ("dataset", "write", "sentences"),
    [
        (
            "11k",
            write_hands,
            [
                "11k dorsal_r: In 20 of 40 queries the gallery holds the very same photograph (such as Hands/dorsal "
                "right 1100 ",
                "11k palmar_l: In 20 of 40 queries gallery_all holds the very same photograph (such as Hands/palmar "
                "left 1100 ",
            ],
        ),
        ("hd", write_hd, ["hd dorsal: In 20 of 40 queries the gallery holds the very same photograph (such as 1-501/"]),
        (
            "11k",
            write_original,
            [
                "11k dorsal_r: In 1 of 3 queries the gallery holds the very same photograph (such as "
                "train_val_test_split_dorsal_r/test/1100/e.png and train_val_test_split_dorsal_r/test/1100/g.png), "
                "whose rank says nothing of a model."
            ],
        ),
    ],
)
def test_where_a_protocol_decides_the_draws_copies_are_counted_and_said(
    dataset: str, write, sentences: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "handclip")
    manifests = prepare(dataset, write(tmp_path / "data"), tmp_path / "out").manifests
    assert all(check_manifest(manifest) == [] for manifest in manifests.values())
    for sentence in sentences:
        assert sentence in caplog.text
