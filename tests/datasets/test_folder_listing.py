"""What a folder of photographs holds beside those that are read, and whose they are."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from made_images import close_to_all, hand, write_people
from made_images import write_images as write

from handclip.config.path_pattern import PathPattern
from handclip.datasets import file_kinds
from handclip.datasets.check import check_manifest
from handclip.datasets.folder_listing import FolderListing
from handclip.datasets.preparation import Preparation
from handclip.datasets.prepare import find_or_prepare, prepare
from handclip.errors import ConfigError, DataError, HandCLIPError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five people with two photographs each."""
    return write_people(tmp_path / "people")


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    return lambda folder: close_to_all(folder, monkeypatch)


@pytest.mark.promise("unread-photographs")
def test_what_is_not_read_is_said_by_kind(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(
        root, "p0/IMG_1.CR2", "p0/IMG_2.nef", "p1/x.jxl", "p1/a.pdf", "p2/a.MOV", "p2/b.zip", "p3/a.psd", content=b"x"
    )
    write(root, "p0/Thumbs.db", "p0/notes.txt", "p0/.DS_Store", "README.txt", content=b"x")
    manifest = hand(root)
    assert manifest.unread_files == {
        "archive": 1, "camera_raw": 2, "jpeg_xl": 1, "other_image": 1, "pdf": 1, "video": 1,
    }  # fmt: skip
    assert (manifest.ignored_files, manifest.unread_identities) == (3, 0)
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(
        f"Left out of {root}: 2 camera raw files (such as p0/IMG_1.CR2; export them as JPEG or TIFF)"
    )
    assert "; 1 PDF document (such as p1/a.pdf; save their pages as JPEG or PNG); " in said
    assert said.endswith("; 3 other files (such as p0/.DS_Store).")


def test_only_other_files_are_no_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "handclip")
    write(root, "p0/Thumbs.db", content=b"x")
    assert hand(root).ignored_files == 1
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", f"Left out of {root}: 1 other file (such as p0/Thumbs.db).")
    ]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("IMG_1", b"\xff\xd8\xff\xe0", "ending"),
        ("IMG_1.bak", b"\x89PNG\r\n\x1a\n", "ending"),
        ("IMG_1.old", b"RIFF\x10\0\0\0WEBPVP8 ", "ending"),
        ("IMG_1.txt", b"\xff\xd8", None),
        ("IMG_1.dat", b"", None),
    ],
)
def test_where_the_name_says_nothing_the_content_does(root: Path, name: str, content: bytes, kind: str | None) -> None:
    write(root, f"p0/{name}", content=content)
    manifest = hand(root)
    assert (manifest.unread_files, manifest.ignored_files) == ({kind: 1} if kind else {}, 0 if kind else 1)


@pytest.mark.parametrize(
    ("name", "can_be_read", "kind"),
    [("a.HEIC", False, "heic"), ("a.HEIC", True, None), ("a", False, "heic"), ("a", True, "ending")],
)
def test_what_can_be_read_here_is_not_left_out(
    root: Path, name: str, can_be_read: bool, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, f"p0/{name}", content=b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    endings = file_kinds.IMAGE_EXTENSIONS - {".heic"} | ({".heic"} if can_be_read else set())
    monkeypatch.setattr(file_kinds, "IMAGE_EXTENSIONS", endings)
    listing = FolderListing(root, PathPattern("{identity}/*"), "manifest_hand.json")
    assert listing.left_out.counts == ({kind: 1} if kind else {})
    assert len(listing.paths_of["p0"]) == (2 if kind else 3)


HEIC_BRANDS = ("heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs", "mif1", "msf1")


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        *((f"\0\0\0\x18ftyp{brand}\0\0\0\0mif1heic", "heic") for brand in HEIC_BRANDS),
        *((f"\0\0\0\x18ftyp{brand}\0\0\0\0miafavif", "avif") for brand in ("avif", "avis", "mif1", "msf1")),
        ("\0\0\0\x14ftypmif1\0\0\0\0heicavif", "heic"),  # the second word is beyond the list of brands
        ("\0\0\0\x18ftypqt  \0\0\0\0heicavif", None),
    ],
)
def test_photographs_of_phones_are_known_by_their_brands(tmp_path: Path, first: str, kind: str | None) -> None:
    (tmp_path / "IMG_1").write_bytes(first.encode() + b"\0\0\0\x08mdat")
    for can_be_read in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(file_kinds, "IMAGE_EXTENSIONS", {".heic", ".avif"} if can_be_read else {".jpg"})
            assert file_kinds.kind_of(tmp_path / "IMG_1") == (kind and "ending" if can_be_read else kind)


def test_what_reads_heic_is_installed_by_its_own_name() -> None:
    assert file_kinds.KINDS["heic"].advice == "`pip install pillow-heif` reads them"


def test_a_link_is_not_opened_to_see_what_it_is(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xff\xd8\xff\xe0")
    (root / "p0" / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(root / "p0" / "pipe")
    assert (hand(root).unread_files, hand(root).ignored_files) == ({}, 2)


@pytest.mark.promise("unread-photographs")
def test_people_of_whom_nothing_is_read_are_not_lost_without_a_word(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(root, *(f"q{person:02}/{number}.cr3" for person in range(12) for number in range(3)), content=b"x")
    write(root, "q00/a.mov", "p0/a.cr3", content=b"x")
    (root / "nothing").mkdir()
    for work in (
        lambda: prepare("folder", root, root.parent / "out"),
        lambda: find_or_prepare(Preparation("folder", root), root.parent / "cache"),
    ):
        with pytest.raises(DataError) as caught:
            work()
        lines = str(caught.value).splitlines()
        assert lines[:2] == [
            f"{root}: nothing is read of 12 identities:",
            "  q00: 3 camera raw files (such as q00/0.cr3), 1 video (such as q00/a.mov)",
        ]
        assert lines[10:] == [
            "  q09: 3 camera raw files (such as q09/0.cr3)",
            "and 2 more",
            "Of camera raw files: export them as JPEG or TIFF.",
            "Of videos: save pictures of them as JPEG or PNG.",
            "To go on without them, pass --allow-missing (in a config, allow_missing: true)",
        ]
    assert not (root.parent / "out").exists() and not (root / "manifests").exists()
    manifest = hand(root, allow_missing=True)
    assert (manifest.unread_identities, manifest.empty_identities) == (12, 1)
    assert manifest.unread_files == {"camera_raw": 37, "video": 1}
    assert "Left out 12 identities of which nothing is read: q00, q01, q02" in caplog.text
    assert sorted(manifest.identity_names.values()) == [f"p{person}" for person in range(5)]


@pytest.mark.promise("unread-photographs")
def test_photographs_one_level_deeper_are_found_and_a_pattern_is_offered(tmp_path: Path) -> None:
    root = tmp_path / "people"
    write(root, *(f"p{person}/day {day}/{n}.png" for person in range(5) for day in range(2) for n in range(2)))
    with pytest.raises(DataError) as caught:
        hand(root)
    assert "p0: 4 photographs in folders inside an identity's (such as p0/day 0/0.png)" in str(caught.value)
    assert "add --pattern '{identity}/{session}/*' (in a config, pattern: \"{identity}/{session}/*\")" in str(
        caught.value
    )
    manifest = hand(root, pattern="{identity}/{session}/*")
    assert (len(manifest.images), manifest.pattern) == (20, "{identity}/{session}/*")
    assert manifest.unread_files == {} and not manifest.ignored_files and not manifest.empty_identities
    assert check_manifest(manifest) == []
    for image in manifest.images:
        assert image.path.split("/")[0] == manifest.identity_names[image.identity]


def test_two_levels_deeper_another_pattern_is_offered(tmp_path: Path) -> None:
    write(tmp_path, *(f"p{person}/day/left/{n}.png" for person in range(5) for n in range(2)))
    with pytest.raises(DataError, match=re.escape("--pattern '{identity}/{session}/*/*'")):
        hand(tmp_path)
    assert len(hand(tmp_path, pattern="{identity}/{session}/*/*").images) == 10


def test_who_has_photographs_beside_those_further_down_is_not_lost(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(root, "p0/old/a.png", "p0/old/older/b.png", "loose.png")
    write(root, "p0/old/c.cr2", "p0/old/notes.txt", content=b"x")
    manifest = hand(root)
    assert manifest.unread_files == {"camera_raw": 1, "loose": 1, "nested": 2}
    assert (manifest.ignored_files, len(manifest.images)) == (0, 10)
    assert "1 photograph in no identity's folder (such as loose.png; put them into folders; or where" in caplog.text
    assert "--pattern '{identity}_*'" in caplog.text


def test_names_of_files_say_whose_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "handclip")
    write(tmp_path, *(f"P_{person}_{n}.png" for person in range(5) for n in range(3)), "cover.png", "old/P_0_9.png")
    write(tmp_path, "notes.txt", content=b"x")
    manifest = hand(tmp_path, pattern="{identity}_{n}.png")
    assert sorted(manifest.identity_names.values()) == [f"P_{person}" for person in range(5)]
    assert (manifest.unread_files, manifest.ignored_files, len(manifest.images)) == ({"unmatched": 2}, 1, 15)
    assert (
        "By the pattern {identity}_{n}.png, P_0_0.png is of the identity P_0. 15 of 15 paths can be read otherwise, "
        "this one as of P: each wildcard takes as much as it can, the first one first."
    ) in caplog.messages
    assert "2 photographs that the pattern does not match (such as cover.png; write a pattern that does" in caplog.text


def test_the_same_person_in_several_folders_is_one_identity(tmp_path: Path) -> None:
    write(tmp_path, *(f"day {day}/p{person}/{n}.png" for person in range(5) for day in range(2) for n in range(2)))
    manifest = hand(tmp_path, pattern="{session}/{identity}/*")
    assert sorted(manifest.identity_names.values()) == [f"p{person}" for person in range(5)]
    assert len(manifest.images) == 20


def test_by_another_pattern_the_hash_is_another_and_by_the_plain_one_it_is_the_same(root: Path) -> None:
    write(root, *(f"p{person}/x/{number}.png" for person in range(5) for number in range(2)))
    plain = hand(root, allow_missing=True)
    assert hand(root, allow_missing=True, pattern="{identity}/*") == plain
    assert hand(root, pattern="{identity}/x/*").sha256 != plain.sha256
    assert "pattern" not in str(plain._content())


def test_a_pattern_that_matches_nothing_shows_what_there_is(root: Path) -> None:
    with pytest.raises(DataError) as caught:
        hand(root, pattern="{identity}/{session}/*.bmp")
    assert str(caught.value) == (
        f"{root}: no photograph's path matches the pattern {{identity}}/{{session}}/*.bmp; it holds"
        "\n  p0/0.png\n  p0/1.png\n  p1/0.png\n  p1/1.png\n  p2/0.png\n  and 5 more"
    )
    (root.parent / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no identities; expected photographs by the pattern \{identity\}_\*"):
        hand(root.parent / "empty", pattern="{identity}_*")


def test_a_person_lost_by_the_pattern_is_named(root: Path) -> None:
    write(root, *(f"p{person}/day/{number}.png" for person in range(4) for number in range(2)))
    with pytest.raises(DataError) as caught:
        hand(root, pattern="{identity}/{session}/*")
    assert "p4: 2 photographs that the pattern does not match (such as p4/0.png)" in str(caught.value)
    manifest = hand(root, pattern="{identity}/{session}/*", allow_missing=True)
    assert (manifest.unread_identities, manifest.unread_files) == (1, {"unmatched": 10})


def test_copies_are_sought_by_identity_and_not_by_folder(tmp_path: Path) -> None:
    write(tmp_path, *(f"p{person}_{n}.png" for person in range(5) for n in range(3)))
    (tmp_path / "p0_7.png").write_bytes((tmp_path / "p0_1.png").read_bytes())
    assert hand(tmp_path, pattern="{identity}_*").copied_images == 1
    (tmp_path / "p1_7.png").write_bytes((tmp_path / "p0_1.png").read_bytes())
    with pytest.raises(DataError, match=r"If p0 and p1 are one person, let the paths of all their images say so; if"):
        hand(tmp_path, pattern="{identity}_*")


def test_a_folder_of_the_systems_is_left_out_by_name(
    root: Path, closed: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "handclip")
    (root / "lost+found").mkdir()
    by_the_superuser = hand(root)
    caplog.clear()
    closed(root / "lost+found")
    assert hand(root) == by_the_superuser
    assert caplog.messages == [f"Left out of {root}: lost+found, a folder of the system."]
    assert by_the_superuser.empty_identities == 0


@pytest.mark.promise("unread-photographs")
def test_an_identity_whose_folder_may_not_be_read_is_lost(
    root: Path, closed: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    write(root, "p5/0.png")
    closed(root / "p5")
    with pytest.raises(DataError) as caught:
        hand(root)
    assert str(caught.value).splitlines() == [
        f"{root}: nothing is read of 1 identity:",
        "  p5: 1 folder that may not be read (p5: Permission denied)",
        "Of folders that may not be read: ask for the right to read them.",
        "To go on without them, pass --allow-missing (in a config, allow_missing: true)",
    ]
    manifest = hand(root, allow_missing=True)
    assert (manifest.unread_files, manifest.unread_identities, manifest.empty_identities) == ({"closed": 1}, 1, 0)
    assert "1 folder that may not be read (p5: Permission denied; ask for the right" in caplog.text


def test_part_of_a_persons_photographs_that_may_not_be_read(tmp_path: Path, closed: Callable[[Path], None]) -> None:
    write(tmp_path, *(f"p{person}/day {day}/{n}.png" for person in range(5) for day in range(2) for n in range(2)))
    closed(tmp_path / "p0" / "day 1")
    with pytest.raises(DataError, match=r"1 folder may not be read:\n  p0/day 1: Permission denied\n"):
        hand(tmp_path, pattern="{identity}/{session}/*")
    manifest = hand(tmp_path, pattern="{identity}/{session}/*", allow_missing=True)
    assert (manifest.unread_files, manifest.unread_identities, len(manifest.images)) == ({"closed": 1}, 0, 18)


def test_a_folder_beside_a_persons_photographs_that_may_not_be_read(root: Path, closed: Callable[[Path], None]) -> None:
    (root / "p0" / "old").mkdir()
    closed(root / "p0" / "old")
    assert hand(root).unread_files == {"closed_inside": 1}


def test_a_root_that_may_not_be_read(root: Path, closed: Callable[[Path], None]) -> None:
    closed(root)
    with pytest.raises(HandCLIPError, match=rf"^{re.escape(str(root))}: cannot be read: Permission denied$"):
        hand(root)


def test_links_in_a_circle_are_not_followed(root: Path) -> None:
    write(root, "p0/old/a.png")
    for place in ("p0/circle", "p0/old/circle"):
        (root / place).symlink_to(root / "p0")
    assert (hand(root).unread_files, hand(root).ignored_files) == ({"nested": 1}, 1)


def test_first_use_knows_manifests_by_their_pattern(tmp_path: Path) -> None:
    root, cache = tmp_path / "people", tmp_path / "cache"
    write(root, *(f"p{person}/day {day}/{n}.png" for person in range(5) for day in range(2) for n in range(2)))
    pattern = "{identity}/{session}/*"
    made = find_or_prepare(Preparation("folder", root, pattern=pattern), cache)
    again = find_or_prepare(Preparation("folder", root, pattern=pattern), cache)
    assert (again.origin, again.manifests) == ("manifests", made.manifests)
    prepare("folder", root, root / "manifests", pattern=pattern)
    for other in ("{person}/{identity}/*", None):
        with pytest.raises(DataError, match=r"was made by the pattern \{identity\}/\{session\}/\*, and the pattern \{"):
            find_or_prepare(Preparation("folder", root, pattern=other), cache)


def test_a_pattern_that_cannot_be(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a pattern is for the data set folder, not for hd"):
        prepare("hd", root, tmp_path / "out", pattern="{identity}/*")
    with pytest.raises(ConfigError, match=r"pattern: '\{person\}/\*' does not say where the identity stands"):
        prepare("folder", root, tmp_path / "out", pattern="{person}/*")


PEOPLE = [f"p{person}" for person in range(6)]


@pytest.mark.parametrize(
    ("paths", "top", "pattern"),
    [
        ([f"hands/{name}/{n}.png" for name in PEOPLE for n in range(2)], "hands", None),
        ([f"a/hands/{name}/{n}.png" for name in PEOPLE for n in range(2)], "a/hands", None),
        (
            [f"people/{name}/{day}/1.png" for name in PEOPLE for day in ("mon", "tue")],
            "people",
            "{identity}/{session}/*",
        ),
    ],
)
def test_the_one_folder_that_holds_all_people_is_offered_as_the_root(
    tmp_path: Path, paths: list[str], top: str, pattern: str | None
) -> None:
    write(tmp_path, *paths)
    (tmp_path / "__MACOSX").mkdir()
    with pytest.raises(DataError) as caught:
        hand(tmp_path)
    too = f" and add --pattern '{pattern}'" if pattern else "; "
    said = f"if the folders in {tmp_path / top} are the people, name that folder as the root{too}"
    assert said in str(caught.value)
    assert f"; if {top.split('/')[0]} is one person, add --pattern" in str(caught.value)
    assert len(hand(tmp_path / top, pattern=pattern).identity_names) == 6


def test_no_pattern_is_offered_that_would_lose_most_people(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(root, "p0/old/7.png", "p0/old/8.png")
    hand(root)
    said = "2 photographs in folders inside an identity's (such as p0/old/7.png; to use them, move them up, right into"
    assert said in caplog.text
    assert "--pattern" not in caplog.text


def test_a_pattern_that_loses_few_says_what_to_do_with_them(tmp_path: Path) -> None:
    write(tmp_path, "p9/1.png", *(f"{name}/mon/{n}.png" for name in PEOPLE for n in range(2)))
    with pytest.raises(DataError, match=r"--pattern '\{identity\}/\{session\}/\*'.*; first move what lies right in"):
        hand(tmp_path)
