"""Feeds mutated manifests, and mutated `HandInfo.csv`, to their readers."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from handclip.datasets.hands11k import read_hand_info
from handclip.datasets.manifest import Draw, Manifest, ManifestImage
from handclip.errors import HandCLIPError

_FOLDER = tempfile.TemporaryDirectory(prefix="handclip_fuzz_")
_ROOT = Path(_FOLDER.name)
_MANIFEST, _TABLE = _ROOT / "manifest.json", _ROOT / "HandInfo.csv"
(_ROOT / "Hands").mkdir()


def one(data: bytes) -> None:
    """Read a table, or a manifest: as it is, and with the hash that its content should have."""
    if not data.startswith(b"{"):
        _TABLE.write_bytes(data)
        for row in read_hand_info(_ROOT):
            assert "/" not in row.image_name
        return
    errors: list[HandCLIPError] = []
    for content in (data, _with_right_hash(data)):
        _MANIFEST.write_bytes(content)
        try:
            manifest = Manifest.load(_MANIFEST)
        except HandCLIPError as error:
            errors.append(error)
            continue
        manifest.save(_MANIFEST)
        assert Manifest.load(_MANIFEST) == manifest
        assert all(manifest.path_of(index).is_relative_to(manifest.root) for index in range(len(manifest.images)))
        try:
            manifest.verify_files()
        except HandCLIPError as error:
            errors.append(error)
    for error in errors:
        assert str(error)
    if errors:
        raise errors[-1]


def seeds() -> Iterator[bytes]:
    """A small manifest, and a small table."""
    identities = [1, 1, 2, 2, 8, 8, 11_000_008]
    Manifest(
        dataset="11k",
        aspect="dorsal_r",
        seed=0,
        images=tuple(ManifestImage(f"Hands/{n}.jpg", one, f"{n:064x}", n + 1) for n, one in enumerate(identities)),
        train=(0, 3),
        val=(1, 2),
        test=(4, 5),
        draws=(Draw((4,), (5,), (5, 6)),),
        identity_names={1: "0000001", 2: "手", 8: "0000008", 11_000_008: "dorsal_l/0000008"},
        missing_images=3,
        unreadable_images=0,
        root=_ROOT,
    ).save(_MANIFEST)
    yield _MANIFEST.read_bytes()
    yield b'{"handclip_manifest": 1, "images": [], "draws": [], "identity_names": {}, "root": ".", "seed": null}'
    yield b"id,accessories,aspectOfHand,imageName\n0000012,0,dorsal right,Hand_1.jpg\n13, 1 ,palmar left,Hand_2.jpg\n"
    yield '\ufeffimageName,id,age,aspectOfHand,accessories\r\n"=cmd()",1,20,Dorsal  Left,0\r\n'.encode()


LONGEST = 2048
"""Bytes of an input."""
TOKENS = [
    b'"images"',
    b'"draws"',
    b'"query"',
    b'"identity_names"',
    b'"root"',
    b"null",
    b"NaN",
    b"1e99",
    b"..",
    b"/",
    b"\\\\",
]
"""What mutations may put in."""


def _with_right_hash(data: bytes) -> bytes:
    """Sign a manifest anew, so that what comes after the check of its hash is reached."""
    try:
        value = json.loads(data)
        content = {key: value[key] for key in value if key not in ("handclip_manifest", "sha256", "root")}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return json.dumps({**value, "sha256": hashlib.sha256(canonical.encode("ascii")).hexdigest()}).encode()
    except (ValueError, TypeError, RecursionError):
        return data
