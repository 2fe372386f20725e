"""A name with accents is the same name in each of its Unicode forms, of which systems write different ones."""

import csv
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image
from tiny_study import baseline_config, tiny_config

from handclip.audit import Outcome, audit
from handclip.datasets.hands11k import attributes_of
from handclip.datasets.manifest import Manifest
from handclip.datasets.original_folders import read_original_splits
from handclip.datasets.preparation import Preparation
from handclip.datasets.prepare import prepare
from handclip.datasets.safe_paths import DatasetFiles, NamesOnDisk
from handclip.errors import DataError
from handclip.report.runs import read_run
from handclip.report.selection import gather
from handclip.runs.evaluate import evaluate
from handclip.runs.train import train

PEOPLE = ("Zoë", "André", "Łukasz Ścibor", "가나", "plain", "Ångström")

tells_forms_apart = pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes all forms for one name")


def decomposed(name: str) -> str:
    return normalize("NFD", name)


def hands_of(root: Path, people: tuple[str, ...] = PEOPLE) -> Path:
    random = np.random.default_rng(0)
    for person in people:
        for image in ("ä 0.png", "ä 1.png", "b.png"):
            path = root / person / image
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return root


def rename(root: Path, form: str) -> None:
    """Give all that lies in a folder names in a form, as copying it to another system does."""
    for path in sorted(root.rglob("*"), reverse=True):
        path.rename(path.with_name(normalize(form, path.name)))


def rename_folders_only(root: Path) -> None:
    for path in root.iterdir():
        path.rename(path.with_name(decomposed(path.name)))


def listed(manifest: Manifest) -> set[str]:
    return {image.path for image in manifest.images}


@pytest.mark.promise("unicode-names")
@tells_forms_apart
@pytest.mark.parametrize(("written", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "mixed"), ("NFD", "mixed")])
def test_a_manifest_made_elsewhere_finds_its_photographs(here: Path, written: str, on_disk: str) -> None:
    root = hands_of(here / "Hände")
    rename(root, written)
    made = prepare("folder", root, here / "manifests").manifests["hand"]
    if on_disk == "mixed":
        rename(root, "NFC")
        rename_folders_only(root)
    else:
        rename(root, on_disk)
    manifest = Manifest.load(here / "manifests" / "manifest_hand.json")
    assert manifest == made
    manifest.verify_files()
    assert {manifest.path_of(index).read_bytes() for index in range(len(manifest.images))} == {
        path.read_bytes() for path in root.rglob("*.png")
    }
    (root / "plain" / "b.png").unlink()
    next(path for path in root.rglob("*1.png") if path.parent.name.startswith("Zo")).write_bytes(b"other")
    with pytest.raises(DataError, match=r"1 are gone \(plain/b\.png\) and 1 have another size \(Zo.+1\.png\)"):
        Manifest.load(here / "manifests" / "manifest_hand.json").verify_files()


@tells_forms_apart
def test_the_root_too_may_have_another_form_than_its_manifest_says(tmp_path: Path) -> None:
    root = hands_of(tmp_path / "Hände")
    prepare("folder", root, tmp_path / "manifests")
    prepare("folder", root, root / "manifests")
    root = root.rename(tmp_path / decomposed("Hände"))
    for folder in (tmp_path, root):
        manifest = Manifest.load(folder / "manifests" / "manifest_hand.json")
        assert manifest.root == root.resolve()
        manifest.verify_files()
    Manifest.load(tmp_path / "manifests" / "manifest_hand.json", root=tmp_path / "Hände").verify_files()


@pytest.mark.promise("unicode-names")
@tells_forms_apart
def test_of_two_files_whose_names_differ_in_form_alone_each_is_found_by_its_own(tmp_path: Path) -> None:
    for name in ("é.png", decomposed("é.png")):
        (tmp_path / name).write_bytes(name.encode())
    for name in ("é.png", decomposed("é.png")):
        assert DatasetFiles(tmp_path).path(name).read_bytes() == name.encode()
    (tmp_path / "é.png").unlink()
    assert DatasetFiles(tmp_path).path("é.png").read_bytes() == decomposed("é.png").encode()


def test_a_folder_is_listed_once_and_only_where_a_name_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handclip.datasets import safe_paths

    names = [f"é{number}.png" for number in range(20)]
    for form in ("NFC", "NFD"):
        (tmp_path / form / "ü").mkdir(parents=True)
        for name in (*names, "plain.png"):
            (tmp_path / form / "ü" / normalize(form, name)).write_bytes(b"x")
    seen: list[Path] = []
    names_in = safe_paths._names_in
    monkeypatch.setattr(safe_paths, "_names_in", lambda folder: seen.append(folder) or names_in(folder))
    for form in ("NFC", "NFD"):
        files = DatasetFiles(tmp_path / form)
        for name in (*names, "plain.png"):
            assert files.status(f"ü/{name}").st_size == 1
    assert seen == [tmp_path / "NFD" / "ü"] * (sys.platform != "darwin")


@pytest.mark.promise("unicode-names-safe")
@tells_forms_apart
@pytest.mark.parametrize("what", ["image", "folder"])
def test_a_link_out_of_the_root_is_refused_in_any_form(tmp_path: Path, what: str) -> None:
    hands_of(tmp_path / "elsewhere", ("x",))
    root = tmp_path / "root"
    if what == "image":
        (root / "Zoë").mkdir(parents=True)
        (root / "Zoë" / decomposed("ä.png")).symlink_to(tmp_path / "elsewhere" / "x" / "b.png")
        name = "Zoë/ä.png"
    else:
        root.mkdir()
        (root / decomposed("Zoë")).symlink_to(tmp_path / "elsewhere" / "x")
        name = "Zoë/b.png"
    with pytest.raises(DataError, match="leads out of the data set's root by a link"):
        DatasetFiles(root).status(name)


def test_a_path_of_any_length_ends_at_what_is_not_there(tmp_path: Path) -> None:
    for path in ("é/" * 100_000 + "é", "a/" * 100_000 + "é"):
        assert DatasetFiles(tmp_path).path(path) == tmp_path / path
        assert NamesOnDisk().find(tmp_path / path) == tmp_path / path


@pytest.mark.promise("unicode-names")
@tells_forms_apart
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_table_of_11k_hands_names_files_in_any_form(hands: Path, tmp_path: Path, form: str) -> None:
    root = Path(shutil.copytree(hands, tmp_path / "hands"))
    with (root / "HandInfo.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[::2]:
        name = row["imageName"]
        row["imageName"] = normalize(form, f"é {name}")
        (root / "Hands" / name).rename(root / "Hands" / normalize({"NFC": "NFD", "NFD": "NFC"}[form], f"é {name}"))
    with (root / "HandInfo.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    manifests = prepare("11k", root, tmp_path / "out").manifests
    own = manifests["dorsal_r"]
    assert own.missing_images == 0
    # The manifest has the table's text, whatever the disk makes of it, so that it is the same everywhere.
    assert {row["imageName"] for row in rows if (row["aspectOfHand"], row["accessories"]) == ("dorsal right", "0")} <= {
        path.removeprefix("Hands/") for path in listed(own)
    }
    own.verify_files()
    attributes = attributes_of({"dorsal_r": own})
    assert attributes.keys() == {own.images[index].path for index in own.test}
    for row in rows:
        row["imageName"] = normalize({"NFC": "NFD", "NFD": "NFC"}[form], row["imageName"])
    with (root / "HandInfo.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert attributes_of({"dorsal_r": own}) == attributes


@pytest.mark.promise("unicode-names-safe")
@tells_forms_apart
def test_one_person_in_two_folders_of_one_name_is_refused(tmp_path: Path) -> None:
    root = hands_of(tmp_path / "hands", (*PEOPLE, decomposed("Zoë")))
    with pytest.raises(DataError) as caught:
        prepare("folder", root, tmp_path / "out")
    assert "holds the name Zoë in two Unicode forms" in str(caught.value)
    assert "('Zoe\\u0308' and 'Zo\\xeb'), which would be two people; put all images of" in str(caught.value)


@tells_forms_apart
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_pattern_matches_names_in_any_form(tmp_path: Path, form: str) -> None:
    root = hands_of(tmp_path / "hands", tuple(f"Hände von {person}" for person in PEOPLE))
    rename(root, {"NFC": "NFD", "NFD": "NFC"}[form])
    pattern = normalize(form, "Hände von {identity}/ä {n}.png")
    manifest = prepare("folder", root, tmp_path / "out", pattern=pattern).manifests["hand"]
    assert sorted(manifest.identity_names.values()) == sorted(PEOPLE)
    assert len(manifest.images) == 2 * len(PEOPLE)


@tells_forms_apart
def test_copies_of_the_original_scripts_are_one_image_in_any_form(tmp_path: Path) -> None:
    split = tmp_path / "train_val_test_split_dorsal_r"
    image = hands_of(tmp_path / "x", ("p",)) / "p" / "b.png"
    for part, name in (("train_all", "é.png"), ("train", decomposed("é.png")), ("val", None), ("test", "t.png")):
        (split / part / "1").mkdir(parents=True)
        if name:
            (split / part / "1" / name).write_bytes(image.read_bytes())
    for part in ("query0", "gallery0"):
        (split / part).mkdir()
    manifest = read_original_splits(Preparation("11k", tmp_path))["dorsal_r"]
    assert listed(manifest) == {
        "train_val_test_split_dorsal_r/test/1/t.png",
        "train_val_test_split_dorsal_r/train_all/1/é.png",
    }


@pytest.mark.promise("unicode-names")
@tells_forms_apart
def test_everything_that_opens_photographs_finds_them(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A data set that is copied to another system between its preparation and its use, and back before it is looked at.

    The features stand in the manifest's order on each of them, so the numbers are the same and can be verified.
    """
    root = hands_of(here / "hands", (*(f"{letter}ë" for letter in "abcdefgh"), "eê", "éz"))
    prepare("folder", root, here / "manifests")
    data = {"dataset": "folder", "data_root": str(root), "aspect": "hand", "num_splits": 2}
    before = evaluate(baseline_config(here / "manifests", **data, eval_dir="before"))
    rename(root, "NFD")
    after = evaluate(baseline_config(here / "manifests", **data, eval_dir="after"))
    assert after.metrics["results"] == before.metrics["results"]
    for name in ("features.safetensors", "explanations.safetensors", "per_query.csv"):
        assert (after.folder / name).read_bytes() == (before.folder / name).read_bytes()
    for form in ("NFD", "NFC"):
        rename(root, form)
        for one in audit([after.folder]):
            assert one.holds, one
            images = next(finding for finding in one.findings if finding.what.startswith("images of"))
            assert images.outcome is Outcome.MATCHES
        run = gather([read_run(after.folder)]).best
        assert run.manifests is not None
        assert all(run.photograph("hand", image) is not None for image in run.manifests["hand"].images)
    rename(root, "NFD")
    first = train(
        tiny_config(here / "manifests", **data, experiment="one", losses=[{"type": "cross_entropy"}], epochs=1)
    )
    # The same people in a manifest that was written there are the same identities.
    manifest = Manifest.load(here / "manifests" / "manifest_hand.json")
    names = {identity: decomposed(name) for identity, name in manifest.identity_names.items()}
    replace(manifest, identity_names=names).save(here / "there" / "manifest_hand.json")
    caplog.set_level("INFO", "handclip")
    again = {**data, "experiment": "two", "losses": [{"type": "cross_entropy"}], "epochs": 1}
    train(tiny_config(here / "there", **again, resume_from=str(first.checkpoint)))
    assert "Taken over from the earlier stage" in caplog.text
