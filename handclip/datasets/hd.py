"""PolyU Contactless Hand Dorsal Images (HD): folder `1-501` to train and test, folder `502-712` as distractors."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from handclip.config.experiment import SINGLE_ASPECT
from handclip.datasets.images import ImageFacts, Progress, inspect_images
from handclip.datasets.manifest import Manifest
from handclip.datasets.splits import Exclusions, Identity, PathDraw, SeededDraws, all_paths, assemble_manifest
from handclip.errors import DataError
from handclip.files import is_folder

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


def prepare_hd(
    root: Path,
    *,
    seed: int = 0,
    num_draws: int = 10,
    allow_missing: bool = False,
    deterministic_gallery: bool = False,
    progress: Progress | None = None,
) -> dict[str, Manifest]:
    """Make the manifest of HD. Its root is the folder that holds `1-501` and `502-712`.

    Args:
        root: `HD/`, or `Original Images` inside it.
        allow_missing: leave out and count unreadable images, instead of refusing.
        deterministic_gallery: take the first image of each test identity in every draw, not a random one.

    Raises:
        DataError: the layout is not that of HD, a file name has no identity, or images are unreadable.
    """
    folder = find_hd_folder(root)
    if folder is None:
        raise DataError(
            f"{root} is not HD: expected the folders '{OWN_FOLDER}' and '{DISTRACTOR_FOLDER}' in "
            f"{root / 'Original Images'}, in {root / 'Original_Images'}, or in {root} itself"
        )
    clear, ignored_clear = _list_images(folder, OWN_FOLDER)
    noisy, ignored_noisy = _list_images(folder, DISTRACTOR_FOLDER)
    facts = inspect_images(folder, [*clear, *noisy], allow_unreadable=allow_missing, progress=progress)
    own = _group(clear, facts)
    distractors = [
        replace(identity, label=identity.label + DISTRACTOR_OFFSET, name=f"{DISTRACTOR_FOLDER}/{identity.name}")
        for identity in _group(noisy, facts)
    ]
    if not own:
        raise DataError(f"{folder / OWN_FOLDER} holds no image named <id>_<number>.jpg")
    train = [identity for identity in own if identity.label <= LAST_TRAIN_IDENTITY]
    test = [identity for identity in own if identity.label > LAST_TRAIN_IDENTITY]
    splits = SeededDraws(seed, DATASET, ASPECT).split(train, test, num_draws)
    draws = splits.draws
    if deterministic_gallery:
        first = frozenset(identity.paths[0] for identity in test)
        draws = [PathDraw(query=splits.test - first, gallery=first)] * num_draws
    with_distractors = [replace(draw, gallery=draw.gallery | all_paths(distractors)) for draw in draws]
    manifest = assemble_manifest(
        dataset=DATASET,
        aspect=ASPECT,
        seed=seed,
        root=folder,
        identities=[*own, *distractors],
        splits=replace(splits, draws=with_distractors),
        facts=facts,
        exclusions=Exclusions(
            unreadable_images=len(clear) + len(noisy) - len(facts),
            ignored_files=ignored_clear + ignored_noisy,
            empty_identities=len(set(clear.values())) + len(set(noisy.values())) - len(own) - len(distractors),
        ),
    )
    return {ASPECT: manifest}


def _list_images(root: Path, folder: str) -> tuple[dict[str, int], int]:
    """The identity number of each image path in a folder, sorted by path, and the number of other files there."""
    identity_of: dict[str, int] = {}
    names = sorted(entry.name for entry in (root / folder).iterdir())
    images = [name for name in names if name.lower().endswith(".jpg") and not name.startswith(".")]
    for name in images:
        text = name.split("_", 1)[0].strip()
        if not (text.isascii() and text.isdigit()) or int(text) >= DISTRACTOR_OFFSET:
            raise DataError(f"{root / folder / name}: expected <id>_<number>.jpg with an id below {DISTRACTOR_OFFSET}")
        identity_of[str(PurePosixPath(folder, name))] = int(text)
    return identity_of, len(names) - len(images)


def _group(identity_of: Mapping[str, int], facts: Mapping[str, ImageFacts]) -> list[Identity]:
    paths_of: dict[int, list[str]] = {}
    for path, label in identity_of.items():
        if path in facts:
            paths_of.setdefault(label, []).append(path)
    return [Identity(label, str(label), tuple(sorted(paths))) for label, paths in sorted(paths_of.items())]
