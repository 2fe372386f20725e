"""Small images and data sets of them, made for a test."""

import errno
import hashlib
import io
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handclip.datasets.folder import prepare_folder
from handclip.datasets.manifest import Manifest
from handclip.datasets.preparation import Preparation


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of a file of this format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 64, height: int = 48, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """An image of random numbers."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def turned(orientation: int) -> Image.Exif:
    """EXIF that says how an image lies."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file, with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_images(root: Path, *paths: str, content: bytes | None = None) -> Path:
    """Write files below a folder; each without content is a PNG image of its own, whatever its name."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        colour = tuple(hashlib.sha256(path.encode()).digest()[:3])
        (root / path).write_bytes(encoded(Image.new("RGB", (2, 2), colour), "PNG") if content is None else content)
    return root


def write_people(root: Path, people: int = 5, images: int = 2) -> Path:
    """A plain folder: `p0/0.png` and so on."""
    return write_images(root, *(f"p{person}/{number}.png" for person in range(people) for number in range(images)))


def write_splits(root: Path, splits: Mapping[str, Mapping[str, str]]) -> Path:
    """Folders as the original scripts make them: each letter is an image of its own, each occurrence a copy of it."""
    for split, identities in splits.items():
        for identity, letters in identities.items():
            (root / split / identity).mkdir(parents=True)
            for letter in letters:
                image = encoded(Image.new("RGB", (1, 1), (ord(letter), 0, 0)), "PNG")
                (root / split / identity / f"{letter}.png").write_bytes(image)
    return root


def write_11k(root: Path, alike: int | None = None) -> Path:
    """11k Hands of two people to train on and two to test, with three photographs of each aspect.

    Args:
        root: the folder.
        alike: the person of whom all photographs are the same.
    """
    rows = ["id,accessories,aspectOfHand,imageName"]
    for aspect in ("dorsal right", "dorsal left", "palmar right", "palmar left"):
        for identity in (12, 500, 1100, 1200):
            for number in range(3):
                name = f"{aspect} {identity} {number}.png"
                same = encoded(Image.new("RGB", (1, 1)), "PNG") if identity == alike else None
                write_images(root, f"Hands/{name}", content=same)
                rows.append(f"{identity:07},0,{aspect},{name}")
    (root / "HandInfo.csv").write_text("\n".join(rows))
    return root


def with_copy(manifest: Manifest, index: int, of: int) -> Manifest:
    """The manifest in which one image is the same photograph as another."""
    images = list(manifest.images)
    images[index] = replace(images[index], sha256=images[of].sha256)
    return replace(manifest, images=tuple(images))


def close_to_all(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let nobody list a folder, not even the superuser."""
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if os.fspath(path) == os.fspath(folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return scandir(path)

    patch.setattr(os, "scandir", refuse)


def leave_without_home(patch: pytest.MonkeyPatch) -> None:
    """Let the user have no home folder, and no folder for caches."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    patch.delenv("XDG_CACHE_HOME")
    patch.setattr(Path, "home", no_home)


def hand(root: Path, **options: Any) -> Manifest:
    """The manifest of a plain folder."""
    return prepare_folder(Preparation("folder", root, **options))["hand"]
