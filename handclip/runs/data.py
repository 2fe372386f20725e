"""From a config to the images of training, validation and evaluation."""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from handclip.config.experiment import ExperimentConfig
from handclip.console import progress_over
from handclip.datasets import folder
from handclip.datasets.check import check_copies, check_separation
from handclip.datasets.duplicates import Pair, describe_learned
from handclip.datasets.left_out import describe_left_out
from handclip.datasets.manifest import Manifest, load_manifest, named_manifest
from handclip.datasets.preparation import Preparation
from handclip.datasets.prepare import PreparedDataset, find_or_prepare, manifests_cache
from handclip.datasets.safe_paths import unicode_form
from handclip.datasets.torch_dataset import LabelledImage
from handclip.errors import ConfigError, DataError, HandCLIPError, missing_file
from handclip.files import is_folder, is_there
from handclip.models.checkpoint import Checkpoint
from handclip.plurals import first_lines
from handclip.synthetic import SyntheticHands, generate, is_generated

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """Labelled images of the training identities; test identities are not in reach.

    `identities` names each class; the label of an image is its index in it. Validation is retrieval: the query is the
    validation image of an identity, the gallery one of its training images.
    """

    train: list[LabelledImage]
    val_queries: list[LabelledImage]
    val_gallery: list[LabelledImage]
    identities: list[str]
    left_out_identities: int
    """Identities whose only image is their validation image: there is nothing to train on."""

    @property
    def val_copies(self) -> list[Pair]:
        """The validation queries that are the very same photograph as a training image, each with that one."""
        first: dict[str, str] = {}
        for image in self.train:
            first.setdefault(image.sha256, str(image.path))
        return [(str(one.path), first[one.sha256]) for one in self.val_queries if one.sha256 in first]

    @property
    def val_aspects(self) -> list[str]:
        """The aspect of each validation query."""
        return [self.identities[image.label].split("/", 1)[0] for image in self.val_queries]


_IMAGES = ("missing_images", "unreadable_images")


def find_manifests(config: ExperimentConfig) -> dict[str, Manifest]:
    """Return the manifest of each aspect that a config covers, preparing the data set on first use.

    Raises:
        HandCLIPError: the data set is not there or is not what it should be, or the manifest is of another one.
    """
    if config.manifest is not None:
        prepared = None
        manifests = {aspect: _read_manifest(config, config.manifest, aspect) for aspect in config.aspects}
    else:
        prepared = _prepare(config)
        manifests = {aspect: prepared.manifests[aspect] for aspect in config.aspects}
    _require_separation(manifests)
    made_now = prepared is not None and prepared.origin != "manifests"  # more is said of files where they are looked at
    what = _IMAGES if made_now else (*_IMAGES, "unread_files", "unread_identities")
    if left_out := describe_left_out(manifests.values(), what):
        logger.info(f"The manifest was made without {', '.join(left_out)}.")
    if prepared is not None and prepared.origin == "manifests" and config.dataset == folder.DATASET:
        _report_added(manifests, prepared.folder)
    return manifests


def _prepare(config: ExperimentConfig) -> PreparedDataset:
    root = default_root(config)
    if config.dataset == "synthetic" and not is_generated(root):
        logger.info(f"There are no hands in {root} yet: those of {SyntheticHands().identities} people are drawn now.")
        with progress_over("drawing synthetic hands") as report:
            generate(root, SyntheticHands(), report)
    if not is_folder(root):
        raise ConfigError(
            f"data_root: {root}: there is no such folder. Put the data set there, or name its place with data_root"
        )
    with progress_over("reading images") as report:
        preparation = Preparation(
            layout_of(config), root, allow_missing=config.allow_missing, pattern=config.pattern, progress=report
        )
        beside_images = config.dataset == "synthetic"  # in a folder that HandCLIP made
        prepared = find_or_prepare(preparation, manifests_cache(), aspects=config.aspects, beside_images=beside_images)
    if not config.allow_missing:
        _require_complete(prepared)
    logger.info(_ORIGINS[prepared.origin].format(root=root, folder=prepared.folder))
    return prepared


def missing_data(config: ExperimentConfig) -> Path | None:
    """Return the folder or manifest that a config's data should come from, if it is not there."""
    place = config.manifest or default_root(config)
    if config.manifest is None and config.dataset == "synthetic":  # made on first use
        return None
    try:
        return None if is_there(place) else place
    except HandCLIPError:  # who reads it says what is wrong with it
        return None


_ORIGINS = {
    "manifests": "Manifests read from {folder}.",
    "original_splits": "Splits prepared by the original scripts in {root} are used as they are; manifests in {folder}.",
    "images": "{root} was not prepared yet: it was now, with seed 0; manifests in {folder}.",
}


def layout_of(config: ExperimentConfig) -> str:
    """Return the data set whose layout the images have; synthetic hands have that of 11k Hands."""
    return "11k" if config.dataset == "synthetic" else config.dataset


def _require_complete(prepared: PreparedDataset) -> None:
    """Refuse manifests that somebody made with images left out, unless the config allows it too."""
    if left_out := describe_left_out(prepared.manifests.values(), (*_IMAGES, "unread_identities")):
        raise DataError(
            f"the manifests in {prepared.folder} were made without {' and '.join(left_out)}. To work with this part of "
            "the data set add allow_missing: true to the config; if it is complete by now, remove these manifests"
        )


def _require_separation(manifests: Mapping[str, Manifest]) -> None:
    """Refuse splits by which nothing should be measured: a person or photograph both trained and tested on, say."""
    for manifest in manifests.values():
        if breaches := check_separation(manifest):
            raise DataError(
                f"the {manifest.dataset} {manifest.aspect} manifest of {manifest.root} breaks the protocol, and what "
                f"is measured by it would mean nothing: {'; '.join(first_lines(breaches, 3))}. Make a new one with "
                "`handclip prepare`, in another folder"
            )


def check_not_learned_by_heart(manifests: Mapping[str, Manifest]) -> None:
    """Check that no photograph that a model is about to be trained or validated on is tested on under another name.

    Raises:
        DataError: says how many there are, the first of them, and what to do.
    """
    for breach in check_copies(list(manifests.values())):
        raise DataError(f"{_roots(manifests)}: {breach}")


def warn_of_copies(manifests: Mapping[str, Manifest]) -> None:
    """Log how many photographs are both tested on and there to be trained on, which the model at hand was not.

    That it was not is what `check_not_tested_on` has found.
    """
    if sentence := describe_learned(list(manifests.values())):
        logger.warning(
            f"{_roots(manifests)}: {sentence}. The model that is evaluated was trained on none of them; "
            "`handclip train` refuses to train on this split"
        )


def _roots(manifests: Mapping[str, Manifest]) -> str:
    return " and ".join(dict.fromkeys(str(manifest.root) for manifest in manifests.values()))


def _report_added(manifests: Mapping[str, Manifest], made: Path) -> None:
    """Log what has come to a plain folder since its manifests were made on first use."""
    for manifest in manifests.values():
        try:
            added = folder.describe_added(manifest)
        except DataError as error:
            logger.warning(f"Whether photographs were added since the manifest was made cannot be told: {error}")
            continue
        if added:
            logger.warning(
                f"{manifest.root} holds {added} that the manifest lacks, and they are not used: remove {made} to have "
                "them included (splits are then drawn anew)"
            )


def images_left_out(manifests: Mapping[str, Manifest]) -> dict[str, int]:
    """Count the images that manifests were made without: `missing_images`, then `unreadable_images`."""
    return {name: sum(getattr(manifest, name) for manifest in manifests.values()) for name in _IMAGES}


def _read_manifest(config: ExperimentConfig, path: Path, aspect: str) -> Manifest:
    file = named_manifest(path, aspect)
    if not is_there(file):
        raise missing_file(file, "manifest_*.json", key="manifest")
    return load_manifest(file, layout_of(config), aspect, pattern=config.pattern, root=config.data_root)


def check_not_tested_on(training_images: Iterable[str], manifests: Mapping[str, Manifest], source: str) -> None:
    """Check that a model was trained on none of the images, by their hashes, that it is about to be tested on.

    Raises:
        DataError: names the source of the model, how many there are, and the first of them.
    """
    seen = set(training_images)
    leaked = [
        manifest.images[index].path
        for manifest in manifests.values()
        for index in manifest.test
        if manifest.images[index].sha256 in seen
    ]
    if leaked:
        raise DataError(
            f"{source}: was trained on {len(leaked):,} images that this manifest tests on (such as {leaked[0]}); "
            "it was made with another split, or from copies of them. Use the manifest that it was trained with, or "
            "train it anew"
        )


def check_not_validated_on(training_images: Iterable[str], data: TrainingData, source: str) -> None:
    """Check that the earlier stage was trained on none of the images by which the next one chooses its best epoch.

    Copies of its own training images are left out, of which `TrainingData.val_copies` tells.

    Args:
        training_images: hashes of the images that the earlier stage, or one before it, was trained on.
        data: what is about to be trained and validated on.
        source: the earlier stage.

    Raises:
        DataError: names the source, how many there are, and the first of them.
    """
    seen = set(training_images) - {image.sha256 for image in data.train}
    learned = [image.path for image in data.val_queries if image.sha256 in seen]
    if learned:
        raise DataError(
            f"{source}: was trained on {len(learned):,} of the {len(data.val_queries):,} images that this run is "
            f"validated on (such as {learned[0]}), so the best epoch would be chosen on what was learned by heart. "
            "Take an earlier stage that was trained with this manifest and train_split: train, or train this one with "
            "train_split: train_all, which validates nothing and keeps the last epoch"
        )


def warn_of_known_names(model: Checkpoint, manifests: Mapping[str, Manifest]) -> None:
    """Log how many test identities of plain folders have names that a model's training identities have, too.

    Two folders may name different people alike, 1 and 2 for one, and the same ones, which nothing here can tell apart.
    """
    if model.trained_on["dataset"] != folder.DATASET:
        return
    trained = {unicode_form(name.split("/", 1)[1]) for name in model.identities}
    tested = [
        manifest.identity_names[identity]
        for manifest in manifests.values()
        if manifest.dataset == folder.DATASET
        for identity in manifest.identities(manifest.test)
    ]
    if known := sorted(trained.intersection(map(unicode_form, tested))):
        logger.warning(
            f"{model.run} was trained on the names of {len(known):,} of {len(tested):,} test identities (such as "
            f"{known[0]}). If they are the same people, it has learned what it is tested on, and the results say "
            "little of people whom it does not know"
        )


def people_known_from_other_aspects(trained_on: Iterable[str], manifests: Mapping[str, Manifest]) -> dict[str, int]:
    """Count test identities whose other hand, or other side, was trained on.

    The aspects of 11k Hands split people at different numbers, so a few are training people in one aspect and test
    people in another. Published results have them too. Those that were trained on are named `aspect/identity`.
    """
    trained = [name.split("/", 1) for name in trained_on]
    counts = {}
    for aspect, manifest in manifests.items():
        elsewhere = {person for other, person in trained if other != aspect} if manifest.dataset == "11k" else set()
        tested = {manifest.identity_names[identity] for identity in manifest.identities(manifest.test)}
        counts[aspect] = len(tested & elsewhere)
    return counts


def combined_sha256(manifests: dict[str, Manifest]) -> str:
    """Return the manifest's hash, or one hash of several aspects' manifests."""
    return combined_hash({aspect: manifest.sha256 for aspect, manifest in manifests.items()})


def combined_hash(of_aspects: Mapping[str, str]) -> str:
    """Return the same from the hash of each aspect's manifest."""
    hashes = [of_aspects[aspect] for aspect in sorted(of_aspects)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def load_training_data(manifests: dict[str, Manifest], train_split: str) -> TrainingData:
    """Collect the training and validation images; each (aspect, identity) is a class of its own.

    Raises:
        DataError: fewer than two identities have training images.
    """
    found: dict[tuple[str, int], list[int]] = {}
    for aspect, manifest in manifests.items():
        for index in manifest.train_all if train_split == "train_all" else manifest.train:
            found.setdefault((aspect, manifest.images[index].identity), []).append(index)
    classes = sorted(found)
    if len(classes) < 2:
        raise DataError(f"training needs at least two identities with images, but there are {len(classes)}")
    label = {key: number for number, key in enumerate(classes)}

    def labelled(aspect: str, index: int) -> LabelledImage:
        manifest = manifests[aspect]
        image = manifest.images[index]
        return LabelledImage(manifest.path_of(index), image.sha256, label[aspect, image.identity])

    random = np.random.default_rng(0)
    queries, gallery, left_out = [], [], 0
    for aspect, manifest in manifests.items():
        for index in manifest.val if train_split == "train" else ():
            key = (aspect, manifest.images[index].identity)
            if key not in label:
                left_out += 1
                continue
            queries.append(labelled(aspect, index))
            gallery.append(labelled(aspect, int(random.choice(found[key]))))
    return TrainingData(
        train=[labelled(aspect, index) for aspect, identity in classes for index in found[aspect, identity]],
        val_queries=queries,
        val_gallery=gallery,
        identities=[f"{aspect}/{manifests[aspect].identity_names[identity]}" for aspect, identity in classes],
        left_out_identities=left_out,
    )


def default_root(config: ExperimentConfig) -> Path:
    """Return the folder of the data set: `data_root`, or the place where the original code looked for it."""
    named = {"11k": "11k", "hd": "HD", "synthetic": "synthetic"}
    return config.data_root or Path("datasets") / named[config.dataset]
