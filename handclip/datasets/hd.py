"""PolyU Contactless Hand Dorsal Images (HD): folder `1-501` to train and test, folder `502-712` as distractors."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from handclip.config.experiment import SINGLE_ASPECT
from handclip.datasets.file_kinds import is_image_name, kind_of
from handclip.datasets.inspection import ImageFacts, inspect_images
from handclip.datasets.left_out import LeftOut
from handclip.datasets.manifest import Manifest
from handclip.datasets.preparation import Preparation
from handclip.datasets.splits import Identity, PathDraw, SeededDraws, all_paths, assemble_manifest
from handclip.errors import DataError
from handclip.files import found_in, is_folder

DATASET = "hd"
ASPECT = SINGLE_ASPECT[DATASET]
LAST_TRAIN_IDENTITY = 447
DISTRACTOR_OFFSET = 1000

OWN_FOLDER = "1-501"
DISTRACTOR_FOLDER = "502-712"


def find_hd_folder(root: Path) -> Path | None:
    """The folder `Original Images` (or `Original_Images`) in `root`, or `root` itself if it is that folder."""
    for folder in (root, root / "Original Images", root / "Original_Images"):
        if is_folder(folder / OWN_FOLDER) and is_folder(folder / DISTRACTOR_FOLDER):
            return folder
    return None


def prepare_hd(preparation: Preparation) -> dict[str, Manifest]:
    """Make the manifest of HD. Its root is the folder that holds `1-501` and `502-712`.

    Raises:
        DataError: the layout is not that of HD, a file name has no identity, images are unreadable, or nothing is read
            of an identity.
    """
    root = preparation.root
    folder = find_hd_folder(root)
    if folder is None:
        raise DataError(
            f"{root} is not HD: expected the folders '{OWN_FOLDER}' and '{DISTRACTOR_FOLDER}' in "
            f"{root / 'Original Images'}, in {root / 'Original_Images'}, or in {root} itself"
        )
    preparation = replace(preparation, root=folder)
    left_out = LeftOut(folder)
    clear = _list_images(folder, OWN_FOLDER, left_out)
    noisy = _list_images(folder, DISTRACTOR_FOLDER, left_out)
    there = {one.identity for one in left_out.unread if one.identity}
    without_images = sorted(there - {_name(path, label) for path, label in (clear | noisy).items()})
    left_out.report(without_images, allow_missing=preparation.allow_missing)
    facts = inspect_images(preparation, [*clear, *noisy])
    own = _group(clear, facts)
    distractors = [
        replace(identity, label=identity.label + DISTRACTOR_OFFSET, name=f"{DISTRACTOR_FOLDER}/{identity.name}")
        for identity in _group(noisy, facts)
    ]
    if not own:
        raise DataError(f"{folder / OWN_FOLDER} holds no image named <id>_<number>.jpg. {left_out}".strip())
    train = [identity for identity in own if identity.label <= LAST_TRAIN_IDENTITY]
    test = [identity for identity in own if identity.label > LAST_TRAIN_IDENTITY]
    splits = SeededDraws(preparation.seed, DATASET, ASPECT).split(train, test, preparation.num_draws)
    draws = splits.draws
    if preparation.deterministic_gallery:
        first = frozenset(identity.paths[0] for identity in test)
        draws = [PathDraw(query=splits.test - first, gallery=first)] * preparation.num_draws
    with_distractors = [replace(draw, gallery=draw.gallery | all_paths(distractors)) for draw in draws]
    exclusions = left_out.exclusions(
        unreadable_images=len(clear) + len(noisy) - len(facts),
        empty_identities=len(set(clear.values())) + len(set(noisy.values())) - len(own) - len(distractors),
    )
    splits = replace(splits, draws=with_distractors)
    return {ASPECT: assemble_manifest(preparation, ASPECT, [*own, *distractors], splits, facts, exclusions)}


def _list_images(root: Path, folder: str, left_out: LeftOut) -> dict[str, int]:
    """The identity number of each image path in a folder, sorted by path; what else is there is left out."""
    identity_of: dict[str, int] = {}
    for file in found_in(root / folder, "*"):
        path = str(PurePosixPath(folder, file.name))
        label = _label_of(file.name)
        if file.suffix.lower() != ".jpg" or file.name.startswith("."):
            kind = "not_jpg" if is_image_name(file.name) else kind_of(file)
            left_out.add(kind, path, None if label is None else _name(path, label))
        elif label is None:
            raise DataError(f"{file}: expected <id>_<number>.jpg with an id below {DISTRACTOR_OFFSET}")
        else:
            identity_of[path] = label
    return identity_of


def _label_of(name: str) -> int | None:
    text = name.split("_", 1)[0].strip()
    return int(text) if text.isascii() and text.isdigit() and int(text) < DISTRACTOR_OFFSET else None


def _name(path: str, label: int) -> str:
    """An identity as a person calls it: one number is another person in each of the two folders."""
    return f"{path.split('/', 1)[0]}/{label}"


def _group(identity_of: Mapping[str, int], facts: Mapping[str, ImageFacts]) -> list[Identity]:
    paths_of: dict[int, list[str]] = {}
    for path, label in identity_of.items():
        if path in facts:
            paths_of.setdefault(label, []).append(path)
    return [Identity(label, str(label), tuple(sorted(paths))) for label, paths in sorted(paths_of.items())]
