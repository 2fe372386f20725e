"""From a data set on disk to manifests on disk, once, so that everyone who compares uses the same splits."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from handclip.config.path_pattern import PLAIN
from handclip.datasets import folder, hands11k, hd
from handclip.datasets.check import check_copies, check_files, check_protocol
from handclip.datasets.duplicates import describe_copies
from handclip.datasets.folder import prepare_folder
from handclip.datasets.hands11k import has_11k_layout, prepare_11k
from handclip.datasets.hd import find_hd_folder, prepare_hd
from handclip.datasets.manifest import Manifest, load_manifest, manifest_path
from handclip.datasets.original_folders import find_original_splits, read_original_splits
from handclip.datasets.preparation import ASPECTS, Preparation, Progress
from handclip.datasets.summary import split_table_csv, summarise
from handclip.errors import ConfigError, DataError, HandCLIPError, did_you_mean
from handclip.files import cache_folder, is_folder, require_enterable, require_writable, write_text
from handclip.locks import holding_in_turn

logger = logging.getLogger(__name__)

Origin = Literal["manifests", "original_splits", "images"]
"""Where manifests came from: files that were there, folders of the original scripts, or fresh draws over the images."""


@dataclass(frozen=True)
class PreparedDataset:
    """The manifests of a data set by aspect, the folder of their files, and whether these were there already."""

    manifests: dict[str, Manifest]
    folder: Path
    origin: Origin
    unchanged: bool


def prepare(
    dataset: str,
    root: Path,
    out: Path,
    *,
    seed: int = 0,
    num_draws: int = 10,
    allow_missing: bool = False,
    deterministic_gallery: bool = False,
    pattern: str | None = None,
    progress: Progress | None = None,
) -> PreparedDataset:
    """Write a manifest for each aspect, `summary.json` and `dataset_summary.csv` to `out`.

    Splits are drawn from the images; where only folders prepared by the original scripts are left, those are read.
    Doing it again is harmless: `out` may hold the very same manifests, but no others.

    Args:
        out: the folder.
        others: as for `Preparation`.

    Raises:
        ConfigError: an unknown data set, or an option that it does not have.
        DataError: the data set is not as it should be, or `out` holds other manifests.
        HandCLIPError: `root` may not be read, or `out` cannot be written.
    """
    preparation = Preparation(dataset, root, seed, num_draws, allow_missing, deterministic_gallery, pattern, progress)
    prepared = _prepare(preparation, out)
    # Not on first use: who trains or evaluates then says of copies what they do there.
    for aspect, manifest in prepared.manifests.items():
        for sentence in (*check_copies([manifest]), *describe_copies(manifest)):
            logger.warning(f"{dataset} {aspect}: {sentence}.")
    return prepared


def _prepare(preparation: Preparation, out: Path) -> PreparedDataset:
    dataset, root = preparation.dataset, preparation.root
    if not is_folder(root):
        raise DataError(f"{root}: there is no such folder")
    require_enterable(root)
    if find_original_splits(root, dataset):
        if not _has_images(dataset, root):
            return _store(_read_sound_original_splits(preparation), out, "original_splits")
        logger.info(
            f"{root} also holds splits that the original scripts prepared. They were not used: new ones are drawn from "
            "the images. (A config without `manifest` uses the prepared ones.)"
        )
    return _store(_PREPARE[dataset](preparation), out, "images")


_PREPARE = {hands11k.DATASET: prepare_11k, hd.DATASET: prepare_hd, folder.DATASET: prepare_folder}


def find_or_prepare(
    preparation: Preparation, cache: Path, *, aspects: Sequence[str] | None = None, beside_images: bool = False
) -> PreparedDataset:
    """Load the manifests of a data set, or make and keep them on first use.

    In this order: manifests in `root/manifests` or kept in `cache`, folders prepared by the original scripts, the
    images themselves. What was made is kept in `cache`: the data set's own folder may be others' too. Of processes that
    come at the same time, one makes them and the others wait for it.

    Args:
        preparation: the data set, and how its manifests are made if they are not there.
        cache: where manifests of any number of data sets are kept, see `manifests_cache`.
        aspects: those that are needed, by default all of the data set.
        beside_images: keep what was made in `root/manifests` instead, unless that is read-only.

    Raises:
        ConfigError: an unknown aspect.
        DataError: manifests or data set are not as they should be, or images of the manifests are gone.
        HandCLIPError: the data set's folder may not be read, or the manifests cannot be written.
    """
    dataset, root = preparation.dataset, preparation.root
    needed = ASPECTS[dataset] if aspects is None else tuple(aspects)
    for aspect in needed:
        if aspect not in ASPECTS[dataset]:
            raise ConfigError(f"{dataset} has no aspect '{aspect}'.{did_you_mean(aspect, ASPECTS[dataset])}")
    if is_folder(root):
        require_enterable(root)
    places = places_of_manifests(dataset, root, cache, preparation.pattern)
    if found := _find_made(preparation, needed, places):
        return found
    beside, kept = places
    out = beside if beside_images and _is_writable(root) else kept
    with holding_in_turn(out, logger.info):
        if found := _find_made(preparation, needed, places):
            return found
        if set(needed) <= find_original_splits(root, dataset).keys():
            return _store(_read_sound_original_splits(preparation), out, "original_splits")
        return _prepare(preparation, out)


def manifests_cache() -> Path:
    """Return where manifests that are made on first use are kept: in the user's cache folder.

    Where there is none, or it cannot be written to, it is `manifests` in the working directory.
    """
    try:
        cache = cache_folder() / "manifests"
        require_writable(cache)
    except HandCLIPError:
        return Path("manifests")
    return cache


def places_of_manifests(dataset: str, root: Path, cache: Path, pattern: str | None = None) -> tuple[Path, Path]:
    """Return where the manifests of a data set may lie that a config does not name: beside its images, and in a cache.

    Each data set has a folder of its own in the cache, by its place on this machine and the pattern of its paths.
    """
    place = os.fsencode(root.resolve()) + (b"" if pattern in (None, PLAIN) else f"\0{pattern}".encode())
    return root / "manifests", cache / f"{dataset}_{hashlib.sha256(place).hexdigest()[:12]}"


def _find_made(preparation: Preparation, needed: Sequence[str], places: tuple[Path, Path]) -> PreparedDataset | None:
    """Load manifests that were made before, by hand or on first use; None where one of them is not there."""
    beside, kept = places
    for out in places:
        if all(manifest_path(out, aspect).is_file() for aspect in needed):
            try:
                manifests = {
                    aspect: load_manifest(
                        manifest_path(out, aspect), preparation.dataset, aspect, pattern=preparation.pattern or PLAIN
                    )
                    for aspect in needed
                }
            except DataError as error:
                if out is beside:
                    raise
                raise DataError(
                    f"{error}. (The manifests in {kept} were made when these data were first used. Remove that folder, "
                    "and new ones are made of what is there by then; runs on the old ones cannot be compared with them)"
                ) from error
            return PreparedDataset(manifests, out, "manifests", unchanged=True)
    return None


def _has_images(dataset: str, root: Path) -> bool:
    if dataset == hands11k.DATASET:
        return has_11k_layout(root)
    return dataset != hd.DATASET or find_hd_folder(root) is not None


def _read_sound_original_splits(preparation: Preparation) -> dict[str, Manifest]:
    """Original splits that were prepared twice overlap, and nothing measured on them would be worth anything."""
    manifests = read_original_splits(preparation)
    breaches = [
        f"{aspect}: {breach}"
        for aspect, manifest in manifests.items()
        for breach in (*check_protocol(manifest), *check_files(manifest))
    ]
    if breaches:
        raise DataError(
            f"the splits that the original script prepared in {preparation.root} break the protocol; remove these "
            "folders and prepare the data set again:" + "".join(f"\n  {breach}" for breach in breaches)
        )
    return manifests


def _store(manifests: dict[str, Manifest], out: Path, origin: Origin) -> PreparedDataset:
    unchanged = _holds_same(manifests, out)
    for aspect, manifest in manifests.items():
        path = manifest_path(out, aspect)
        if not (path.is_file() and Manifest.load(path) == manifest):
            manifest.save(path)
    summary = {aspect: summarise(manifest) for aspect, manifest in manifests.items()}
    _write_if_different(out / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    _write_if_different(out / "dataset_summary.csv", split_table_csv(manifests.values()))
    placed = {aspect: replace(manifest, file=manifest_path(out, aspect)) for aspect, manifest in manifests.items()}
    return PreparedDataset(placed, out, origin, unchanged)


def _holds_same(manifests: Mapping[str, Manifest], out: Path) -> bool:
    """Whether `out` holds these manifests already; an error if it holds others."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise DataError(f"{out} is a file, not a folder for manifests")
    present = sorted(out.glob("manifest_*.json"))
    expected = {manifest_path(out, aspect): manifest for aspect, manifest in manifests.items()}
    different = [
        path.name for path in present if path not in expected or Manifest.load(path).sha256 != expected[path].sha256
    ]
    if different:
        raise DataError(
            f"{out} already holds other manifests ({', '.join(different)}), and nothing was overwritten; "
            "choose another folder, or remove them"
        )
    return len(present) == len(expected)


def _write_if_different(path: Path, text: str) -> None:
    if not (path.is_file() and path.read_bytes() == text.encode("utf-8")):
        write_text(path, text)


def _is_writable(root: Path) -> bool:
    """Whether the folder is meant to be written to, which its permission bits tell even the superuser."""
    try:
        return os.access(root, os.W_OK) and bool(root.stat().st_mode & 0o222)
    except OSError:
        return False
