"""The manifest: which image belongs to which identity, which split, and which query/gallery draws.

A manifest is a JSON file with one image a line and a hash over everything in it except the place of the data set, so
that two people who compare numbers can see at a glance that they used the same images in the same roles.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError

from handclip.config.mistakes import cut
from handclip.config.path_pattern import PLAIN
from handclip.datasets.safe_paths import DatasetFiles, NamesOnDisk, is_plain_relative
from handclip.errors import DataError
from handclip.files import is_folder, read_limited, write_text
from handclip.plurals import first_names

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


@dataclass(frozen=True, kw_only=True)
class Exclusions:
    """How much of a data set was left out, and why.

    Of copies, the very same photographs of one identity, one is kept. `unread_files` counts files that are not read
    although they have to do with photographs, by kind (`handclip.datasets.file_kinds.KINDS`), and `unread_identities`
    the people of whom there is nothing else.
    """

    missing_images: int = 0
    unreadable_images: int = 0
    copied_images: int = 0
    unread_files: dict[str, int] = field(default_factory=dict)
    unread_identities: int = 0
    ignored_files: int = 0
    empty_identities: int = 0


@dataclass(frozen=True)
class Manifest(Exclusions):
    """A data set of one aspect. Splits are sorted indices into `images`; `seed` is None for splits made elsewhere.

    Each image has exactly one identity. Images that are in no split are distractors: they occur in galleries only, and
    their identities are never those of own images. `identity_names` holds the data set's own text for each identity.
    `pattern` says how paths told whose each image is.
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
    root: Path
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
            f"{len(paths):,} {fault} ({first_names(paths)})"
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
        file = _read(path)
        values = {key: value for key, value in file if key not in ("handclip_manifest", "sha256", "root")}
        place = _resolved(path.parent / file.root if root is None else root, path)
        manifest = Manifest(**values, root=place, file=path)
        if fault := next(_faults(manifest, file.sha256), None):
            raise _unsound(path, fault)
        return manifest

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


Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""What can be part of a file's name; what cannot be written as UTF-8 is no JSON to begin with."""
Count = Annotated[int, Field(ge=0)]
Indices = Annotated[tuple[Count, ...], FailFast()]


def _inside_root(path: str) -> str:
    if not is_plain_relative(path):
        raise ValueError(f"{cut(repr(path))} does not stay in the root")
    return path


_ImagePath = Annotated[Text, AfterValidator(_inside_root)]
_Identity = Annotated[int, Field(ge=0, le=LARGEST_IDENTITY)]
_IdentityKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,15})$")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Image = Annotated[
    tuple[_ImagePath, _Identity, Annotated[int, Field(gt=0)], _Sha256],
    AfterValidator(lambda row: ManifestImage(row[0], row[1], row[3], row[2])),
]


class _File(BaseModel):
    """What a manifest's file holds."""

    model_config = ConfigDict(strict=True)

    handclip_manifest: Literal[1]
    """The version of its form, `FORMAT_VERSION`."""
    sha256: str
    root: Text
    dataset: Text
    aspect: Text
    seed: int | None
    missing_images: Count
    unreadable_images: Count
    copied_images: Count = 0
    unread_files: dict[Text, Count] = {}
    unread_identities: Count = 0
    pattern: Text | None = None
    ignored_files: Count
    empty_identities: Count
    identity_names: Annotated[
        dict[_IdentityKey, Text],
        AfterValidator(lambda names: {int(identity): name for identity, name in names.items()}),
    ]
    images: Annotated[tuple[_Image, ...], FailFast()]
    train: Indices
    val: Indices
    test: Indices
    draws: tuple[Draw, ...]


def _read(path: Path) -> _File:
    try:
        return _File.model_validate_json(read_limited(path, MAX_BYTES))
    except FileNotFoundError as error:
        raise DataError(f"there is no manifest {path}; `handclip prepare` makes one") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
    match found["type"], found["loc"]:
        case "json_invalid", _:
            raise DataError(
                f"{path} is not a HandCLIP manifest: it is not JSON ({found['ctx']['error']}). If it was one, "
                "remove it and run `handclip prepare` again"
            )
        case ("model_type", ()) | ("missing", ("handclip_manifest",)):
            raise DataError(f"{path} is not a HandCLIP manifest; `handclip prepare` makes one")
        case _, ("handclip_manifest",):
            raise DataError(
                f"{path} is a manifest of format version {cut(str(found['input']))}, and this HandCLIP reads "
                f"version {FORMAT_VERSION}; run `handclip prepare` again into a new folder"
            )
    key = ".".join(str(part) for part in found["loc"] if part != "[key]")
    raise _unsound(path, f"{cut(key)}: {found['msg'].removeprefix('Value error, ')}")


def _faults(manifest: Manifest, recorded_sha256: str) -> Iterator[str]:
    """Yield what is wrong with a manifest of which each value by itself is sound."""
    indices = {"train": manifest.train, "val": manifest.val, "test": manifest.test}
    for number, draw in enumerate(manifest.draws):
        indices |= {f"draws.{number}.{key}": value for key, value in vars(draw).items()}
    for key, values in indices.items():
        if (last := max(values, default=-1)) >= len(manifest.images):
            yield f"{key}: index {last:,} is beyond the last of {len(manifest.images):,} images"
    if len({image.path for image in manifest.images}) < len(manifest.images):
        yield "images: a path is listed twice"
    if unnamed := manifest.identities(range(len(manifest.images))) - manifest.identity_names.keys():
        yield f"identity_names: there is none of identity {min(unnamed)}"
    if recorded_sha256 != manifest.sha256:
        yield "its content does not have the hash that it records: the file was edited or damaged"


def _unsound(path: Path, fault: str) -> DataError:
    return DataError(f"{path} is not a sound manifest: {fault}; remove it and run `handclip prepare` again")


def _resolved(root: Path, path: Path) -> Path:
    try:
        return NamesOnDisk().find(root).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, for example
        raise DataError(f"{path} names a root that cannot be followed, {root}: {error}") from error


def manifest_path(out: Path, aspect: str) -> Path:
    """The manifest file of an aspect in a folder of manifests."""
    return out / f"manifest_{aspect}.json"


def named_manifest(place: Path, aspect: str) -> Path:
    """The manifest file of an aspect where a file, or a folder of manifests, is named.

    Raises:
        HandCLIPError: nobody can tell which it is.
    """
    return manifest_path(place, aspect) if is_folder(place) else place


def load_manifest(
    path: Path, dataset: str, aspect: str, *, pattern: str | None = None, root: Path | None = None
) -> Manifest:
    """Read a manifest that is to be of a data set, and check that its images are there.

    Args:
        path: the file.
        dataset: `11k`, `hd` or `folder`.
        aspect: of the data set.
        pattern: by which it must have been made, if that matters.
        root: where the data set lies now, if it was moved.

    Raises:
        DataError: as for `Manifest.load` and `Manifest.verify_files`; or it is of other data, or another pattern.
    """
    manifest = Manifest.load(path, root)
    if (manifest.dataset, manifest.aspect) != (dataset, aspect):
        raise DataError(f"{path} is the manifest of {manifest.dataset} {manifest.aspect}, not of {dataset} {aspect}")
    made = manifest.pattern or PLAIN
    if pattern not in (None, made):
        raise DataError(
            f"{path} was made by the pattern {made}, and the pattern {pattern} is asked for (key pattern); ask for "
            "the former, or remove the manifest"
        )
    manifest.verify_files()
    return manifest
