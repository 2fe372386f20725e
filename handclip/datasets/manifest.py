"""The manifest: which image belongs to which identity, which split, and which query/gallery draws.

A manifest is a JSON file with one image a line and a hash over everything in it except the place of the data set, so
that two people who compare numbers can see at a glance that they used the same images in the same roles.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, NoReturn

from handclip.datasets.safe_paths import DatasetFiles, NamesOnDisk, is_plain_relative
from handclip.errors import DataError
from handclip.files import read_limited, write_text

FORMAT_VERSION = 1
MAX_BYTES = 200_000_000
"""Of a manifest file; that of 11k Hands has two million."""
LARGEST_IDENTITY = 2**53
"""Every program that reads JSON can tell numbers up to here apart."""


@dataclass(frozen=True)
class ManifestImage:
    """One image file: `path` is posix and relative to the manifest's root, `bytes` the size of the file.

    The disk may have the name in another Unicode form, see `Manifest.file_of`.
    """

    path: str
    identity: int
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Draw:
    """One random choice of query and gallery: sorted indices into `Manifest.images`.

    `gallery_all` is empty where the data set has no such protocol.
    """

    query: tuple[int, ...]
    gallery: tuple[int, ...]
    gallery_all: tuple[int, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A data set of one aspect. Splits are sorted indices into `images`; `seed` is None for splits made elsewhere.

    Each image has exactly one identity. Images that are in no split are distractors: they occur in galleries only, and
    their identities are never those of own images. `identity_names` holds the data set's own text for each identity.
    `missing_images`, `unreadable_images`, `copied_images`, `ignored_files` and `empty_identities` count what was left
    out; of copies, the very same photographs of one identity, one is kept. `unread_files` counts files that are not
    read although they have to do with photographs, by kind (`handclip.datasets.file_kinds.KINDS`), and
    `unread_identities` the people of whom there is nothing else. `pattern` says how paths told whose each image is.
    """

    dataset: str
    aspect: str
    seed: int | None
    images: tuple[ManifestImage, ...]
    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]
    draws: tuple[Draw, ...]
    identity_names: dict[int, str]
    missing_images: int
    unreadable_images: int
    root: Path
    ignored_files: int = 0
    empty_identities: int = 0
    copied_images: int = 0
    unread_files: dict[str, int] = field(default_factory=dict)
    unread_identities: int = 0
    pattern: str | None = None
    file: Path | None = field(default=None, compare=False)
    """Where it was read from or written to, if it was."""

    @property
    def train_all(self) -> tuple[int, ...]:
        """`train` and `val` together, sorted."""
        return tuple(sorted({*self.train, *self.val}))

    @property
    def distractors(self) -> tuple[int, ...]:
        """Images of identities other than the data set's own, which occur in galleries only."""
        own = {*self.train, *self.val, *self.test}
        return tuple(index for index in range(len(self.images)) if index not in own)

    @property
    def gallery_protocols(self) -> tuple[str, ...]:
        """The galleries that queries can be ranked in: `gallery`, and `gallery_all` where the data set has it."""
        has_gallery_all = any(draw.gallery_all for draw in self.draws)
        return ("gallery", "gallery_all") if has_gallery_all else ("gallery",)

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal hash of everything except `root` and `file`."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def identities(self, indices: Iterable[int]) -> set[int]:
        """The identities of the given images."""
        return {self.images[index].identity for index in indices}

    def path_of(self, index: int) -> Path:
        """The file of an image, by its number."""
        return self.file_of(self.images[index])

    def file_of(self, image: ManifestImage) -> Path:
        """The file of an image, as this disk has its name: a copy made elsewhere may have another Unicode form."""
        return self._files.path(image.path)

    @cached_property
    def _files(self) -> DatasetFiles:
        return DatasetFiles(self.root)

    def verify_files(self) -> None:
        """Check that every image is there, in the root itself and not by a link out of it, with its recorded size.

        Raises:
            DataError: names how many are gone or changed, and the first of them; or the link, and where it leads.
        """
        files = DatasetFiles(self.root)
        gone: list[str] = []
        changed: list[str] = []
        for image in self.images:
            try:
                size = files.status(image.path).st_size
            except OSError:
                gone.append(image.path)
            else:
                if size != image.bytes:
                    changed.append(image.path)
        problems = [
            f"{len(paths):,} {fault} ({', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''})"
            for paths, fault in ((gone, "are gone"), (changed, "have another size"))
            if paths
        ]
        if problems:
            raise DataError(
                f"of the {len(self.images):,} images of the {self.dataset} {self.aspect} manifest in {self.root}, "
                f"{' and '.join(problems)}; restore them or run `handclip prepare` again into a new folder"
            )

    def save(self, path: Path, *, place: Path | None = None) -> None:
        """Write the manifest atomically. The same manifest at the same place always gives the same bytes.

        Args:
            path: the file.
            place: where the file is to lie in the end, if not there: its root is named as seen from there.

        Raises:
            HandCLIPError: the file cannot be written.
        """
        lines = [f'"handclip_manifest": {FORMAT_VERSION}', f'"sha256": {_json(self.sha256)}']
        lines.append(f'"root": {_json(_portable_root(self.root, place or path))}')
        for key, value in self._content().items():
            if key in ("images", "draws"):
                lines.append(f"{_json(key)}: [\n{_one_a_line(_json(item) for item in value)}]")
            elif key == "identity_names":
                names = (f"{_json(identity)}: {_json(name)}" for identity, name in value.items())
                lines.append(f"{_json(key)}: {{\n{_one_a_line(names)}}}")
            else:
                lines.append(f"{_json(key)}: {_json(value)}")
        write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")

    @staticmethod
    def load(path: Path, root: Path | None = None) -> "Manifest":
        """Read a manifest and check its form, not yet its images (see `verify_files`) or protocol (`check_manifest`).

        Args:
            path: the JSON file.
            root: where the data set lies now, if it was moved.

        Raises:
            DataError: the file is missing, is not a manifest, is of another version, or was edited or damaged.
        """
        return _Reader(path).read(root)

    def _content(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "aspect": self.aspect,
            "seed": self.seed,
            "missing_images": self.missing_images,
            "unreadable_images": self.unreadable_images,
            # Only where there are any, so that the hash of other manifests is what it was before they were counted.
            **({"copied_images": self.copied_images} if self.copied_images else {}),
            **({"unread_files": dict(sorted(self.unread_files.items()))} if self.unread_files else {}),
            **({"unread_identities": self.unread_identities} if self.unread_identities else {}),
            **({"pattern": self.pattern} if self.pattern is not None else {}),
            "ignored_files": self.ignored_files,
            "empty_identities": self.empty_identities,
            "identity_names": {str(identity): name for identity, name in sorted(self.identity_names.items())},
            "images": [[image.path, image.identity, image.bytes, image.sha256] for image in self.images],
            "train": list(self.train),
            "val": list(self.val),
            "test": list(self.test),
            "draws": [
                {"query": list(draw.query), "gallery": list(draw.gallery), "gallery_all": list(draw.gallery_all)}
                for draw in self.draws
            ],
        }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _one_a_line(items: Iterable[str]) -> str:
    text = ",\n".join(f"  {item}" for item in items)
    return text + "\n" if text else ""


def _portable_root(root: Path, manifest_path: Path) -> str:
    """Relative to the manifest where the two lie in or beside each other, so that they can be moved together."""
    folder, root = manifest_path.parent.resolve(), root.resolve()
    if folder.is_relative_to(root) or root.is_relative_to(folder.parent):
        return PurePath(os.path.relpath(root, folder)).as_posix()
    return root.as_posix()


class _Reader:
    """Turns the JSON of one manifest file into a `Manifest`, refusing anything that `save` would not have written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, root: Path | None) -> Manifest:
        value = self._parse()
        images = tuple(self._image(item, number) for number, item in enumerate(self._list(value, "images")))
        self._require(len({image.path for image in images}) == len(images), "'images' lists a path twice")
        names = self._identity_names(value)
        unnamed = {image.identity for image in images} - names.keys()
        self._require(not unnamed, f"'identity_names' lacks identity {min(unnamed, default=0)}")
        draws = []
        for number, draw in enumerate(self._list(value, "draws")):
            self._require(isinstance(draw, dict), f"draw {number} is not an object")
            where = f"draw {number}: "
            draws.append(
                Draw(
                    query=self._indices(draw, "query", len(images), where),
                    gallery=self._indices(draw, "gallery", len(images), where),
                    gallery_all=self._indices(draw, "gallery_all", len(images), where),
                )
            )
        recorded_root = self._get(value, "root", str)
        manifest = Manifest(
            dataset=self._get(value, "dataset", str),
            aspect=self._get(value, "aspect", str),
            seed=None if value.get("seed", 0) is None else self._get(value, "seed", int),
            images=images,
            train=self._indices(value, "train", len(images)),
            val=self._indices(value, "val", len(images)),
            test=self._indices(value, "test", len(images)),
            draws=tuple(draws),
            identity_names=names,
            missing_images=self._count(value, "missing_images"),
            unreadable_images=self._count(value, "unreadable_images"),
            root=self._resolved(self.path.parent / recorded_root if root is None else root),
            ignored_files=self._count(value, "ignored_files"),
            empty_identities=self._count(value, "empty_identities"),
            copied_images=self._count(value, "copied_images") if "copied_images" in value else 0,
            unread_files=self._counts(value, "unread_files") if "unread_files" in value else {},
            unread_identities=self._count(value, "unread_identities") if "unread_identities" in value else 0,
            pattern=self._get(value, "pattern", str) if "pattern" in value else None,
            file=self.path,
        )
        self._require(
            self._get(value, "sha256", str) == manifest.sha256,
            "its content does not have the hash that it records: the file was edited or damaged",
        )
        return manifest

    def _parse(self) -> dict[str, Any]:
        try:
            text = read_limited(self.path, MAX_BYTES).decode("utf-8")
            value = json.loads(text, parse_constant=_refuse_constant)
        except FileNotFoundError as error:
            raise DataError(f"there is no manifest {self.path}; `handclip prepare` makes one") from error
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self.path} is not a HandCLIP manifest: it is not JSON ({_shortly(error)}). If it was one, "
                "remove it and run `handclip prepare` again"
            ) from error
        if not isinstance(value, dict) or "handclip_manifest" not in value:
            raise DataError(f"{self.path} is not a HandCLIP manifest; `handclip prepare` makes one")
        version = value["handclip_manifest"]
        if version != FORMAT_VERSION:
            raise DataError(
                f"{self.path} is a manifest of format version {version}, and this HandCLIP reads version "
                f"{FORMAT_VERSION}; run `handclip prepare` again into a new folder"
            )
        return value

    def _require(self, condition: bool, problem: str) -> None:
        if not condition:
            raise DataError(
                f"{self.path} is not a sound manifest: {problem}; remove it and run `handclip prepare` again"
            )

    def _get(self, value: dict[str, Any], key: str, kind: type, where: str = "") -> Any:
        self._require(key in value, f"{where}'{key}' is missing")
        # `type` rather than `isinstance`: True is an int to the latter.
        self._require(type(value[key]) is kind, f"{where}'{key}' is not of type {kind.__name__}")
        self._require(kind is not str or _is_text(value[key]), f"{where}'{key}' holds what is no text")
        return value[key]

    def _resolved(self, root: Path) -> Path:
        try:
            return NamesOnDisk().find(root).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a circle of links, for example
            raise DataError(f"{self.path} names a root that cannot be followed, {root}: {error}") from error

    def _list(self, value: dict[str, Any], key: str, where: str = "") -> list[Any]:
        items: list[Any] = self._get(value, key, list, where)
        return items

    def _count(self, value: dict[str, Any], key: str) -> int:
        count: int = self._get(value, key, int)
        self._require(count >= 0, f"'{key}' is negative")
        return count

    def _counts(self, value: dict[str, Any], key: str) -> dict[str, int]:
        counts: dict[str, Any] = self._get(value, key, dict)
        self._require(all(map(_is_text, counts)), f"'{key}' holds what is no text")
        return {kind: self._count(counts, kind) for kind in counts}

    def _indices(self, value: dict[str, Any], key: str, size: int, where: str = "") -> tuple[int, ...]:
        indices = self._list(value, key, where)
        for index in indices:
            self._require(type(index) is int, f"{where}'{key}' holds {_shortly(index)}, which is not an index")
            self._require(0 <= index < size, f"{where}'{key}' holds index {index}, but there are {size} images")
        return tuple(indices)

    def _identity_names(self, value: dict[str, Any]) -> dict[int, str]:
        names: dict[int, str] = {}
        for key, name in self._get(value, "identity_names", dict).items():
            self._require(re.fullmatch(r"0|[1-9][0-9]*", key) is not None, f"identity {key!r} is not a whole number")
            self._require(len(key) <= len(str(LARGEST_IDENTITY)), f"identity {key[:20]}... is too large a number")
            self._require(isinstance(name, str) and _is_text(name), f"the name of identity {key} is not text")
            names[int(key)] = name
        return names

    def _image(self, item: Any, number: int) -> ManifestImage:
        self._require(
            isinstance(item, list) and [type(part) for part in item] == [str, int, int, str],
            f"image {number} is not a list of path, identity, bytes and sha256",
        )
        path, identity, size, sha256 = item
        self._require(
            is_plain_relative(path) and _is_text(path),
            f"image {number} has the path {path!r}, which does not stay in the root",
        )
        self._require(identity >= 0 and size > 0, f"image {number} has a negative identity or no bytes")
        self._require(identity <= LARGEST_IDENTITY, f"image {number} has an identity above {LARGEST_IDENTITY:,}")
        self._require(re.fullmatch(r"[0-9a-f]{64}", sha256) is not None, f"image {number} has a malformed sha256")
        return ManifestImage(path, identity, sha256, size)


def _is_text(value: str) -> bool:
    """Whether a string can be part of a file's name and be written as UTF-8: JSON can say more than that."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _shortly(value: Any) -> str:
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
