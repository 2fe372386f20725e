"""Splits that the data sets' original scripts wrote as folders of copies, read as they are.

A split root holds `train_all`, `train`, `val`, `test`, `query0`, `gallery0`, `gallery0_all`, `query1`, ... and each of
these one folder for each identity, whose name is the label once converted to an integer.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from handclip.datasets import hands11k, hd
from handclip.datasets.file_kinds import is_image_name, kind_of
from handclip.datasets.inspection import inspect_images
from handclip.datasets.left_out import LeftOut
from handclip.datasets.manifest import LARGEST_IDENTITY, Manifest
from handclip.datasets.preparation import Preparation
from handclip.datasets.safe_paths import unicode_form
from handclip.datasets.splits import Identity, PathDraw, Splits, assemble_manifest
from handclip.errors import DataError
from handclip.files import found_in, is_folder

_FIXED_SPLITS = ("train_all", "train", "val", "test")


def find_original_splits(root: Path, dataset: str) -> dict[str, Path]:
    """The split root of each aspect that the original scripts prepared."""
    if dataset == hands11k.DATASET:
        folders = {aspect: root / f"train_val_test_split_{aspect}" for aspect in hands11k.ASPECTS}
        return {aspect: folder for aspect, folder in folders.items() if is_folder(folder)}
    if dataset == hd.DATASET:
        for base in (root, root / "Original Images", root / "Original_Images"):
            if is_folder(base / "train_val_test_split"):
                return {hd.ASPECT: base / "train_val_test_split"}
    return {}


def read_original_splits(preparation: Preparation) -> dict[str, Manifest]:
    """Read the manifests of all aspects that the original scripts prepared; their `seed` is None.

    A file that occurs in several splits (same label, name and size) is one image.

    Raises:
        DataError: a folder is missing, a draw is missing, a folder's name is not an identity, `train_all` is not
            `train` and `val` together, images are unreadable, or nothing is read of an identity.
        HandCLIPError: a folder may not be read.
    """
    dataset = preparation.dataset
    found = find_original_splits(preparation.root, dataset)
    if not found:
        raise DataError(
            f"{preparation.root} holds no splits that the original {dataset} script prepared (train_val_test_split...)"
        )
    copies = {aspect: _Copies(folder) for aspect, folder in found.items()}
    splits = {aspect: _read_splits(copies[aspect]) for aspect in found}
    theirs = replace(preparation, root=next(iter(found.values())).parent, seed=None)
    # The splits are what they are: an unreadable image cannot be left out of them.
    facts = inspect_images(
        replace(theirs, allow_missing=False), [path for one in copies.values() for path in one.label_of]
    )
    manifests = {}
    for aspect, one in copies.items():
        paths_of: dict[int, list[str]] = defaultdict(list)
        for path, label in one.label_of.items():
            paths_of[label].append(path)
        left_out = one.left_out
        without_images = [one.name_of[label] for label in sorted(one.name_of.keys() - paths_of.keys())]
        left_out.report(without_images, allow_missing=preparation.allow_missing)
        identities = [Identity(label, one.name_of[label], tuple(paths_of[label])) for label in sorted(paths_of)]
        exclusions = left_out.exclusions(empty_identities=len(without_images) - left_out.unread_identities)
        manifests[aspect] = assemble_manifest(theirs, aspect, identities, splits[aspect], facts, exclusions)
    return manifests


@dataclass
class _Copies:
    """The distinct images under one split root, each known by the path of its first copy."""

    folder: Path
    label_of: dict[str, int] = field(default_factory=dict)
    name_of: dict[int, str] = field(default_factory=dict)
    _path_of: dict[tuple[int, str, int], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.left_out = LeftOut(self.folder)

    def read(self, split: str) -> frozenset[str]:
        """The images of one split."""
        paths = set()
        for identity_folder in found_in(self.folder / split, "*"):
            if not is_folder(identity_folder):
                continue
            text = identity_folder.name.strip()
            if not (text.isascii() and text.isdigit()) or int(text) > LARGEST_IDENTITY:
                raise DataError(f"{identity_folder}: the folder's name is not an identity number")
            label = int(text)
            self.name_of.setdefault(label, text)
            for file in found_in(identity_folder, "*"):
                if not is_image_name(file.name):
                    self.left_out.add(kind_of(file), file.relative_to(self.folder).as_posix(), self.name_of[label])
                    continue
                path = file.relative_to(self.folder.parent).as_posix()
                path = self._path_of.setdefault((label, unicode_form(file.name), file.stat().st_size), path)
                self.label_of[path] = label
                paths.add(path)
        return frozenset(paths)


def _read_splits(copies: _Copies) -> Splits:
    folder = copies.folder
    names = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    drawn, with_all = (
        {int(match[1]) for name in names if (match := re.fullmatch(pattern, name))}
        for pattern in ("(?:query|gallery)([0-9]+)", "gallery([0-9]+)_all")
    )
    numbers = range(1 + max(drawn | with_all, default=0))
    needed = [*_FIXED_SPLITS, *(f"{kind}{number}" for kind in ("query", "gallery") for number in numbers)]
    needed += [f"gallery{number}_all" for number in numbers if with_all]
    if missing := [name for name in needed if name not in names]:
        raise DataError(f"{folder} lacks the folder {', '.join(missing)}; prepare the data set again")
    train_all, train, val, test = (copies.read(split) for split in _FIXED_SPLITS)
    if train_all != train | val:
        different = sorted(train_all ^ (train | val))
        raise DataError(
            f"{folder}: train_all is not train and val together: they differ in {len(different):,} images, for "
            f"example {different[0]}; prepare the data set again"
        )
    draws = []
    for number in numbers:
        gallery_all = f"gallery{number}_all"
        draws.append(
            PathDraw(
                query=copies.read(f"query{number}"),
                gallery=copies.read(f"gallery{number}"),
                gallery_all=copies.read(gallery_all) if gallery_all in names else frozenset(),
            )
        )
    return Splits(train, val, test, draws)
