import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclip.datasets.manifest import Draw, Manifest, ManifestImage
from handclip.datasets.safe_paths import is_plain_relative
from handclip.errors import DataError, HandCLIPError


def make_manifest(root: Path, **changes: Any) -> Manifest:
    """Two training identities and two test identities of two images each, and a distractor."""
    identities = [1, 1, 2, 2, 8, 8, 9, 9, 11_000_008]
    manifest = Manifest(
        dataset="11k",
        aspect="dorsal_r",
        seed=0,
        images=tuple(ManifestImage(f"Hands/{n}.jpg", one, f"{n:064x}", n + 1) for n, one in enumerate(identities)),
        train=(0, 3),
        val=(1, 2),
        test=(4, 5, 6, 7),
        draws=(Draw((4, 6), (5, 7), (5, 7, 8)), Draw((4, 7), (5, 6), (5, 6, 8))),
        identity_names={1: "0000001", 2: "手", 8: "0000008", 9: "0000009", 11_000_008: "dorsal_l/0000008"},
        missing_images=3,
        root=root.resolve(),
    )
    return dataclasses.replace(manifest, **changes)


def write_files(manifest: Manifest) -> None:
    for index, image in enumerate(manifest.images):
        manifest.path_of(index).parent.mkdir(exist_ok=True)
        manifest.path_of(index).write_bytes(bytes(image.bytes))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def test_save_and_load(tmp_path):
    manifest = make_manifest(tmp_path / "data")
    path = tmp_path / "out" / "manifest.json"
    manifest.save(path)
    assert Manifest.load(path) == manifest
    assert Manifest.load(path, root=tmp_path) == dataclasses.replace(manifest, root=tmp_path.resolve())
    first = path.read_bytes()
    Manifest.load(path).save(path)
    assert path.read_bytes() == first
    assert '\n  ["Hands/0.jpg", 1, 1, "' in first.decode()


def test_views(tmp_path):
    manifest = make_manifest(tmp_path)
    assert manifest.train_all == (0, 1, 2, 3)
    assert manifest.distractors == (8,)
    assert manifest.gallery_protocols == ("gallery", "gallery_all")
    assert manifest.identities(manifest.test) == {8, 9}
    assert manifest.path_of(8) == tmp_path.resolve() / "Hands" / "8.jpg"
    assert make_manifest(tmp_path, draws=(Draw((4, 6), (5, 7)),)).gallery_protocols == ("gallery",)


def test_hash_depends_on_everything_but_its_places(tmp_path):
    manifest = make_manifest(tmp_path)
    assert make_manifest(tmp_path / "elsewhere").sha256 == manifest.sha256
    changes: list[dict[str, Any]] = [
        {"dataset": "hd"},
        {"aspect": "dorsal_l"},
        {"seed": 1},
        {"seed": None},
        {"images": (dataclasses.replace(manifest.images[0], sha256="f" * 64), *manifest.images[1:])},
        {"train": (0,)},
        {"val": (1,)},
        {"test": (4, 5, 6)},
        {"draws": manifest.draws[:1]},
        {"identity_names": {**manifest.identity_names, 2: "B"}},
        {"missing_images": 0},
        {"unreadable_images": 1},
        {"ignored_files": 1},
        {"empty_identities": 1},
        {"copied_images": 1},
        {"unread_files": {"heic": 1}},
        {"unread_identities": 1},
        {"pattern": "{identity}/*"},
    ]
    assert {field.name for field in dataclasses.fields(Manifest)} == {
        "root",
        "file",
        *(key for one in changes for key in one),
    }
    hashes = {make_manifest(tmp_path, **change).sha256 for change in changes}
    assert len(hashes | {manifest.sha256}) == len(changes) + 1


def test_hash_is_stable(tmp_path):
    assert make_manifest(tmp_path).sha256 == "acbf3f18fa2bcd98f0463da41b3c12262d368749298a268779ad8a9921d0dc5a"


@pytest.mark.parametrize(("root", "out"), [("data", "data/manifests"), ("data", "data"), ("HD/Images", "HD/manifests")])
def test_data_and_manifest_can_be_moved_together(tmp_path, root, out):
    manifest = make_manifest(tmp_path / "a" / root)
    path = tmp_path / "a" / out / "manifest.json"
    manifest.save(path)
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = Manifest.load(tmp_path / "b" / out / "manifest.json")
    assert moved.root == (tmp_path / "b" / root).resolve()


def test_verify_files(tmp_path):
    manifest = make_manifest(tmp_path)
    write_files(manifest)
    manifest.verify_files()
    for index in (0, 3, 4, 8):
        manifest.path_of(index).unlink()
    manifest.path_of(5).write_bytes(b"another size")
    with pytest.raises(DataError) as caught:
        manifest.verify_files()
    message = str(caught.value)
    assert "of the 9 images" in message
    assert "4 are gone (Hands/0.jpg, Hands/3.jpg, Hands/4.jpg, ...)" in message
    assert "1 have another size (Hands/5.jpg)" in message


def test_not_a_manifest(tmp_path):
    path = tmp_path / "manifest.json"
    with pytest.raises(DataError, match="there is no manifest"):
        Manifest.load(path)
    with pytest.raises(DataError, match="cannot be read"):
        Manifest.load(tmp_path)
    for text in ("", "{", "\x00\xff", "[" * 100_000):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(DataError, match="is not a HandCLIP manifest: it is not JSON"):
            Manifest.load(path)
    for text in ("[]", "{}", "3"):
        path.write_text(text)
        with pytest.raises(DataError, match="is not a HandCLIP manifest"):
            Manifest.load(path)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("train", lambda value: value.pop("train")),
        ("seed", lambda value: value.pop("seed")),
        ("seed", lambda value: value.update(seed="0")),
        ("seed", lambda value: value.update(seed=float("nan"))),
        ("missing_images", lambda value: value.update(missing_images=True)),
        ("missing_images", lambda value: value.update(missing_images=-1)),
        ("missing_images", lambda value: value.update(missing_images=float("inf"))),
        ("train", lambda value: value["train"].append(9)),
        ("train.2", lambda value: value["train"].append("x" * 10**6)),
        ("val.2", lambda value: value["val"].append(-1)),
        ("test.4", lambda value: value["test"].append(1.0)),
        ("draws.2", lambda value: value["draws"].append([])),
        ("draws.1.query", lambda value: value["draws"][1]["query"].append(99)),
        ("draws.1.gallery", lambda value: value["draws"][1].pop("gallery")),
        ("images.3.3", lambda value: value["images"][3].pop()),
        ("images.3.1", lambda value: value["images"][3].__setitem__(1, -1)),
        ("images.3.1", lambda value: value["images"][3].__setitem__(1, 10**300)),
        ("images.3.2", lambda value: value["images"][3].__setitem__(2, 0)),
        ("images.3.3", lambda value: value["images"][3].__setitem__(3, "ab")),
        ("images", lambda value: value["images"][3].__setitem__(0, "Hands/0.jpg")),
        ("identity_names", lambda value: value["identity_names"].pop("8")),
        ("identity_names.08", lambda value: value["identity_names"].update({"08": "x"})),
        ("identity_names.8", lambda value: value["identity_names"].update({"8": 8})),
        ("identity_names.8", lambda value: value["identity_names"].update({"8": "a\0"})),
        (f"identity_names.{'8' * 65}…", lambda value: value["identity_names"].update({"8" * 100: "x"})),
        ("root", lambda value: value.update(root="a\0b")),
        *(
            ("images.3.0", lambda value, path=path: value["images"][3].__setitem__(0, path))
            for path in (
                "/etc/passwd",
                "../a.jpg",
                "a/../../b.jpg",
                "C:\\a.jpg",
                "",
                ".",
                "a//b.jpg",
                "./a.jpg",
                "a\0b",
            )
        ),
    ],
)
def test_a_value_that_cannot_be_is_named_by_its_key(tmp_path, key, change):
    path = tmp_path / "manifest.json"
    make_manifest(tmp_path).save(path)
    edit(path, change)
    with pytest.raises(DataError) as caught:
        Manifest.load(path)
    assert str(caught.value).startswith(f"{path} is not a sound manifest: {key}: ")
    assert str(caught.value).endswith("; remove it and run `handclip prepare` again")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(handclip_manifest=2), "format version 2, and this HandCLIP reads version 1"),
        (lambda value: value["train"].append(9), "manifest: train: index 9 is beyond the last of 9 images; remove"),
        (
            lambda value: value["images"][3].__setitem__(0, "../a.jpg"),
            "images.3.0: '../a.jpg' does not stay in the root",
        ),
        (lambda value: value.update(aspect="\ud800"), "is not a HandCLIP manifest: it is not JSON"),
        (lambda value: value.update(sha256="0" * 64), "the file was edited or damaged"),
        (lambda value: value["train"].pop(), "the file was edited or damaged"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said(tmp_path, change, message):
    path = tmp_path / "manifest.json"
    make_manifest(tmp_path).save(path)
    edit(path, change)
    with pytest.raises(DataError, match=re.escape(message)):
        Manifest.load(path)


def test_cannot_write(tmp_path):
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(HandCLIPError, match="cannot write"):
        make_manifest(tmp_path).save(tmp_path / "manifest.json")


@pytest.mark.promise("damaged-manifest")
def test_one_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "manifest.json"
    manifest = make_manifest(tmp_path / "data")
    manifest.save(path)
    original = path.read_bytes()

    @given(st.integers(0, len(original) - 1), st.integers(1, 255))
    @settings(derandomize=True, deadline=None, max_examples=300)
    def flip(position: int, change: int) -> None:
        data = bytearray(original)
        data[position] ^= change
        path.write_bytes(data)
        try:
            loaded = Manifest.load(path)
        except DataError:
            return
        assert dataclasses.replace(loaded, root=manifest.root) == manifest

    flip()


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 50_000,
        '{"handclip_manifest": 1, "seed": ' + "1" * 5000 + "}",
        "\ufeff{}",
        "9" * 100_000,
    ],
    ids=["nested", "long number", "byte order mark", "a number"],
)
def test_monstrous_json_is_no_manifest(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="is not a HandCLIP manifest: it is not JSON") as caught:
        Manifest.load(path)
    assert len(str(caught.value)) < 400


@pytest.mark.promise("damaged-manifest")
def test_a_manifest_that_is_cut_off_anywhere_is_found(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    make_manifest(tmp_path).save(path)
    whole = path.read_bytes()
    for length in range(len(whole.rstrip())):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="is not a HandCLIP manifest"):
            Manifest.load(path)


def test_a_pipe_or_gigabytes_are_no_manifest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=r"pipe\.json cannot be read: it is no file but a pipe"):
        Manifest.load(tmp_path / "pipe.json")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(10**11)
    with pytest.raises(
        DataError, match=r"large\.json cannot be read: it has 100,000,000,000 bytes, more than the 200,"
    ):
        Manifest.load(tmp_path / "large.json")


def test_a_root_in_a_circle_of_links_is_explained(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to("data")
    make_manifest(tmp_path / "elsewhere").save(tmp_path / "manifest.json")
    with pytest.raises(DataError, match="names a root that cannot be followed"):
        Manifest.load(tmp_path / "manifest.json", root=tmp_path / "data")


_NAMES = st.text(st.characters(exclude_characters="/\\\0", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: is_plain_relative(name)
)


@st.composite
def any_manifests(draw: st.DrawFn) -> Manifest:
    """Manifests of any form, sound by the protocol or not."""
    paths = draw(st.lists(st.lists(_NAMES, min_size=1, max_size=3).map("/".join), unique=True, max_size=6))
    identities = draw(st.lists(st.integers(0, 2**53), min_size=len(paths), max_size=len(paths)))
    indices = st.lists(st.integers(0, len(paths) - 1), max_size=4).map(tuple) if paths else st.just(())
    counts = st.integers(0, 9)
    return Manifest(
        dataset=draw(_NAMES),
        aspect=draw(_NAMES),
        seed=draw(st.none() | st.integers()),
        images=tuple(
            ManifestImage(path, identity, draw(st.integers(0, 16**64 - 1).map("{:064x}".format)), draw(st.integers(1)))
            for path, identity in zip(paths, identities, strict=True)
        ),
        train=draw(indices),
        val=draw(indices),
        test=draw(indices),
        draws=tuple(draw(st.lists(st.builds(Draw, indices, indices, indices), max_size=3))),
        identity_names={
            identity: draw(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
            for identity in identities
        },
        missing_images=draw(counts),
        unreadable_images=draw(counts),
        root=Path("/data"),
        ignored_files=draw(counts),
        empty_identities=draw(counts),
        copied_images=draw(counts),
        unread_files=draw(
            st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), counts)
        ),
        unread_identities=draw(counts),
        pattern=draw(st.sampled_from([None, "{identity}/{session}/*"])),
    )


@settings(derandomize=True, deadline=None, max_examples=60)
@given(any_manifests())
def test_any_manifest_reads_back_as_itself(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> None:
    path = tmp_path_factory.getbasetemp() / "any_manifest.json"
    manifest.save(path)
    assert Manifest.load(path) == manifest
