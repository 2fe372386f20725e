"""What `prepare` says of files that it does not read, and of copies."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_images import with_copy, write_images, write_people
from tiny_study import load_manifest

Handclip = Callable[..., Any]


@pytest.fixture
def people(here: Path) -> Path:
    """Five people with two photographs each, and one of another format."""
    people = write_people(here / "people")
    write_images(people, *(f"p{person}/IMG_2.CR3" for person in range(5)), "p0/Thumbs.db", content=b"x")
    return people


def test_photographs_that_are_not_read_are_no_other_files(handclip: Handclip, people: Path, here: Path) -> None:
    answer = handclip("prepare", "folder", "--root", "people", "--out", "out")
    assert answer.code == 0, answer.err
    said = "Left out of people: 5 camera raw files (such as p0/IMG_2.CR3; export them as JPEG or TIFF); 1 other file"
    assert said in answer.err
    assert "Left out: 5 camera raw files, 1 other file" in " ".join(answer.out.split())
    summary = json.loads((here / "out" / "summary.json").read_text())["hand"]
    assert (summary["unread_files"], summary["unread_identities"], summary["ignored_files"]) == (5, 0, 1)


def test_people_are_left_out_only_where_it_is_allowed(handclip: Handclip, people: Path, here: Path) -> None:
    for number in range(2):
        (people / "p4" / f"{number}.png").unlink()
    refused = handclip("prepare", "folder", "--root", "people", "--out", "out")
    assert refused.code == 1
    assert refused.err.startswith("Error: people: nothing is read of 1 identity:\n  p4: 1 camera raw file (such as p4/")
    assert not (here / "out").exists()
    allowed = handclip("prepare", "folder", "--root", "people", "--out", "out", "--allow-missing")
    assert allowed.code == 0, allowed.err
    assert "Left out 1 identity of which nothing is read: p4." in allowed.err
    assert json.loads((here / "out" / "summary.json").read_text())["hand"]["unread_identities"] == 1


def test_a_pattern_says_whose_photographs_are(handclip: Handclip, people: Path, here: Path) -> None:
    for folder in people.iterdir():
        (folder / "left").mkdir()
        for image in folder.glob("*.png"):
            image.rename(folder / "left" / image.name)
    command = ("prepare", "folder", "--root", "people", "--out", "out")
    refused = handclip(*command)
    assert refused.code == 1
    assert "2 photographs in folders inside an identity's (such as p0/left/0.png)" in refused.err
    assert "add --pattern '{identity}/{session}/*'" in refused.err
    assert handclip(*command, "--pattern", "{identity}/{session}/*").code == 0
    bad = handclip(*command, "--pattern", "{person}/*")
    assert (bad.code, bad.err.count("\n")) == (2, 1)
    assert bad.err.startswith("Error: pattern: '{person}/*' does not say where the identity stands")


@pytest.mark.promise("copies-in-training")
def test_check_says_what_copies_do_to_the_numbers(handclip: Callable[..., Any], manifests: Path, here: Path) -> None:
    manifest = load_manifest(manifests)
    first, of = manifest.draws[0].query[0], manifest.draws[0].gallery[0]
    validated = with_copy(manifest, manifest.val[0], manifest.train[0])
    with_copy(validated, first, of).save(here / "manifest_dorsal_r.json")
    answer = handclip("prepare", "--check", here)
    assert answer.code == 0
    assert "keeps to the protocol" in answer.out
    said = " ".join((answer.out + answer.err).split())
    paths = {index: manifest.images[index].path for index in (first, of, manifest.val[0], manifest.train[0])}
    assert f"queries the gallery holds the very same photograph (such as {paths[first]} and {paths[of]})" in said
    assert f"The training images hold the very same photograph as 1 of {len(manifest.val)} validation images" in said

    with_copy(manifest, first, manifest.train[0]).save(here / "manifest_dorsal_r.json")
    answer = handclip("prepare", "--check", here)
    assert answer.code == 1
    assert "keeps to the protocol" not in answer.out
    assert (
        "test has 1 image of which train and val hold the very same photograph (such as "
        f"{paths[first]} and {paths[manifest.train[0]]})"
    ) in answer.err
