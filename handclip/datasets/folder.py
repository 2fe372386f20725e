"""Any data set laid out as `root/<identity>/<images>`, with names of any alphabet."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from handclip.config.experiment import SINGLE_ASPECT
from handclip.datasets.copies import Pair, such_as
from handclip.datasets.images import IMAGE_EXTENSIONS, ImageFacts, Progress, inspect_images
from handclip.datasets.manifest import Manifest
from handclip.datasets.splits import Exclusions, Identity, SeededDraws, assemble_manifest
from handclip.errors import DataError
from handclip.files import is_folder
from handclip.wording import counted

logger = logging.getLogger(__name__)

DATASET = "folder"
ASPECT = SINGLE_ASPECT[DATASET]

_NAMED_PAIRS = 10
"""How many of the photographs under two identities an error names: who mends them one by one would read all images
anew for each."""


def prepare_folder(
    root: Path,
    *,
    seed: int = 0,
    num_draws: int = 10,
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> dict[str, Manifest]:
    """Make the manifest of a plain folder: half of the identities to train on, the other half to test.

    Identities with images are numbered in the code point order of their folder names. Folders inside an identity's
    folder are not followed; they, hidden files and files that are not images are ignored and counted, as are
    identities without images. Of copies within an identity's folder, the very same photograph under several names, the
    first by name is kept, and the others are left out and counted.

    Args:
        root: the folder of identity folders.
        allow_missing: leave out and count unreadable images, instead of refusing.

    Raises:
        DataError: there is no such folder, too few identities to train and test on, images are unreadable, or one
            photograph is there under two identities.
    """
    listing = _list_folder(root)
    listed = [path for paths in listing.paths_of.values() for path in paths]
    facts = inspect_images(root, listed, allow_unreadable=allow_missing, progress=progress)
    copies = _find_copies(root, (path for path in listed if path in facts), facts)
    used = facts.keys() - {copy for copy, _ in copies}
    usable = {name: tuple(path for path in paths if path in used) for name, paths in listing.paths_of.items()}
    with_images = {name: paths for name, paths in usable.items() if paths}
    identities = [Identity(label, name, paths) for label, (name, paths) in enumerate(with_images.items())]
    seeded = SeededDraws(seed, DATASET, ASPECT)
    train, test = _halves(identities, seeded, root)
    manifest = assemble_manifest(
        dataset=DATASET,
        aspect=ASPECT,
        seed=seed,
        root=root,
        identities=identities,
        splits=seeded.split(train, test, num_draws),
        facts=facts,
        exclusions=Exclusions(
            unreadable_images=len(listed) - len(facts),
            ignored_files=listing.ignored_files,
            empty_identities=len(listing.paths_of) - len(identities),
            copied_images=len(copies),
        ),
    )
    return {ASPECT: manifest}


@dataclass(frozen=True)
class _Listing:
    paths_of: dict[str, list[str]]
    ignored_files: int


def _list_folder(root: Path) -> _Listing:
    if not is_folder(root):
        raise DataError(f"{root} is not a folder; expected one folder for each identity in it")
    entries = sorted((entry for entry in root.iterdir() if not entry.name.startswith(".")), key=lambda one: one.name)
    # A folder of manifests that was written into the data set is not an identity.
    folders = [entry for entry in entries if entry.is_dir() and not (entry / f"manifest_{ASPECT}.json").is_file()]
    loose_images = sum(_is_image(entry) for entry in entries)
    if not folders:
        hint = f" (it holds {loose_images:,} images that are in no identity's folder)" if loose_images else ""
        raise DataError(f"{root} holds no identity folders{hint}; expected {root}/<identity>/<images>")
    paths_of: dict[str, list[str]] = {}
    ignored_files = loose_images
    for folder in folders:
        content = list(folder.iterdir())
        images = sorted(entry.name for entry in content if _is_image(entry))
        ignored_files += len(content) - len(images)
        for name in (folder.name, *images):
            _require_unicode(name, folder)
        paths_of[folder.name] = [f"{folder.name}/{name}" for name in images]
    return _Listing(paths_of, ignored_files)


def _is_image(entry: Path) -> bool:
    return entry.suffix.lower() in IMAGE_EXTENSIONS and not entry.name.startswith(".") and not entry.is_dir()


def _require_unicode(name: str, folder: Path) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{folder.parent} holds a name that is not valid UTF-8, {name!r}; rename it") from error


def _find_copies(root: Path, paths: Iterable[str], facts: Mapping[str, ImageFacts]) -> list[Pair]:
    """Return each image that is the very same photograph as an earlier one of its identity, with that one."""
    first: dict[str, str] = {}
    pairs = [(path, first.setdefault(facts[path].sha256, path)) for path in paths]
    copies = [(path, same) for path, same in pairs if path != same]
    if mixed := [(same, path) for path, same in copies if _identity_of(path) != _identity_of(same)]:
        named = "; ".join(" and ".join(pair) for pair in mixed[:_NAMED_PAIRS])
        more = f"; and {len(mixed) - _NAMED_PAIRS:,} more such" if len(mixed) > _NAMED_PAIRS else ""
        who = " and ".join(_identity_of(path) for path in mixed[0]) if len(mixed) == 1 else "the two of a pair"
        raise DataError(
            f"{root} holds the very same photograph under two identities: {named}{more}. If {who} are one person, put "
            "all their images into one folder; if they are two, delete the copy that is in the wrong one"
        )
    if copies:
        logger.warning(
            f"Left out {counted(len(copies), 'copy', 'copies')} of other images of the same identity "
            f"({such_as(copies)}, which is kept)."
        )
    return copies


def _identity_of(path: str) -> str:
    return path.split("/", 1)[0]


def _halves(identities: Sequence[Identity], seeded: SeededDraws, root: Path) -> tuple[list[Identity], list[Identity]]:
    """A random half to train on and the other to test, each with its share of identities that have one image only."""
    several = {identity.name: identity for identity in identities if len(identity.paths) > 1}
    single = {identity.name: identity for identity in identities if len(identity.paths) == 1}
    if len(several) < 4:
        raise DataError(
            f"{root} holds {len(several)} identities with two or more images (and {len(single)} with one); at least 4 "
            "are needed, 2 to train on and 2 to test"
        )
    shuffled_several = seeded.shuffled(several, "half")
    shuffled_single = seeded.shuffled(single, "half")
    cut_several = (len(several) + 1) // 2
    cut_single = (len(identities) + 1) // 2 - cut_several
    train = [*shuffled_several[:cut_several], *shuffled_single[:cut_single]]
    test = [*shuffled_several[cut_several:], *shuffled_single[cut_single:]]
    by_name = several | single
    return [by_name[name] for name in train], [by_name[name] for name in test]
