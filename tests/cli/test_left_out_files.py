"""What `prepare` says of files that it does not read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Handclip = Callable[..., Any]


@pytest.fixture
def people(here: Path) -> Path:
    """Five people with two photographs each, and two of another format."""
    for person in range(5):
        folder = here / "people" / f"p{person}"
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (1, 1), (person, number, 0)).save(folder / f"{number}.png")
        (folder / "IMG_2.CR3").write_bytes(b"x")
    (here / "people" / "p0" / "Thumbs.db").write_bytes(b"x")
    return here / "people"


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
