"""Any data set laid out as `root/<identity>/<images>`, or by another pattern, with names of any alphabet."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from handclip.config.experiment import SINGLE_ASPECT
from handclip.config.path_pattern import PLAIN, PathPattern
from handclip.datasets.duplicates import Pair, such_as
from handclip.datasets.folder_listing import FolderListing
from handclip.datasets.images import ImageFacts, Progress, inspect_images
from handclip.datasets.manifest import Manifest
from handclip.datasets.safe_paths import unicode_form
from handclip.datasets.splits import Exclusions, Identity, SeededDraws, assemble_manifest
from handclip.errors import DataError
from handclip.files import is_folder
from handclip.plurals import counted

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
    pattern: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Manifest]:
    """Make the manifest of a plain folder: half of the identities to train on, the other half to test.

    Identities with images are numbered in the code point order of their names. What is not read is counted and said,
    by kind, and so are identities without images. Of copies of a photograph of one identity, the very same under
    several names, the first by name is kept, and the others are left out and counted.

    Args:
        root: the folder of identity folders.
        allow_missing: leave out and count unreadable images, and identities of which nothing is read while there is
            something, instead of refusing.
        pattern: says whose each photograph is by its path, see `PathPattern`; by default `{identity}/*`.

    Raises:
        DataError: there is no such folder, too few identities to train and test on, images are unreadable, nothing is
            read of an identity, the pattern matches nothing, one photograph is there under two identities, or the names
            of two differ in their Unicode form alone.
        ValueError: the pattern is none.
    """
    pattern = None if pattern == PLAIN else pattern
    listing = _list_folder(root, pattern)
    listing.say_how_paths_are_read()
    _require_distinct(listing.paths_of, root)
    lost = listing.left_out.require_nobody_lost(listing.without_images, allow_missing=allow_missing)
    listing.left_out.report()
    identity_of = {path: identity for identity, paths in listing.paths_of.items() for path in paths}
    listed = list(identity_of)
    facts = inspect_images(root, listed, allow_unreadable=allow_missing, progress=progress)
    copies = _find_copies(root, {path: identity_of[path] for path in listed if path in facts}, facts, pattern)
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
            ignored_files=len(listing.left_out.others),
            empty_identities=len(listing.paths_of) - len(identities) - lost,
            copied_images=len(copies),
            unread_files=listing.left_out.counts,
            unread_identities=lost,
        ),
        pattern=pattern,
    )
    return {ASPECT: manifest}


def describe_added(manifest: Manifest) -> str:
    """Say how many photographs and people have come to the folder since a manifest was made of it; empty if none.

    Photographs are listed and not read. As many as the manifest left out, as copies or unreadable, are not counted.

    Args:
        manifest: of a plain folder.

    Raises:
        DataError: the folder cannot be listed.
    """
    listing = _list_folder(manifest.root, manifest.pattern)
    had = {unicode_form(image.path) for image in manifest.images}
    known = set(map(unicode_form, manifest.identity_names.values()))
    new = {path: name for name, paths in listing.paths_of.items() for path in paths if unicode_form(path) not in had}
    count = len(new) - manifest.copied_images - manifest.unreadable_images
    if count <= 0:
        return ""
    people = {name for name in new.values() if unicode_form(name) not in known}
    # What came last is none of the images that were left out before.
    example = max(sorted(new), key=lambda path: (new[path] in people, _time_it_came(manifest.root / path)))
    of_whom = f" and {counted(min(len(people), count), 'identity', 'identities')}" if people else ""
    return f"{counted(count, 'photograph')}{of_whom} (such as {example})"


def _time_it_came(file: Path) -> int:
    try:
        return file.lstat().st_ctime_ns
    except OSError:
        return 0


def _list_folder(root: Path, pattern: str | None) -> FolderListing:
    if not is_folder(root):
        raise DataError(f"{root} is not a folder; expected one folder for each identity in it")
    listing = FolderListing(root, PathPattern(pattern or PLAIN), manifest_name=f"manifest_{ASPECT}.json")
    if not listing.paths_of:
        plain = f"identity folders; expected {root}/<identity>/<images>"
        lacks = plain if pattern is None else f"identities; expected photographs by the pattern {pattern}"
        raise DataError(f"{root} holds no {lacks}. {listing.left_out}".strip())
    return listing


def _require_distinct(names: Iterable[str], root: Path) -> None:
    """Refuse one person as two: photographs that came from two machines, say, of which one writes names otherwise."""
    first: dict[str, str] = {}
    for name in names:
        same = first.setdefault(unicode_form(name), name)
        if same != name:
            raise DataError(
                f"{root} holds the name {name} in two Unicode forms, as macOS and other systems write it ({same!a} and "
                f"{name!a}), which would be two people; put all images of this person under one of them"
            )


def _find_copies(
    root: Path, identity_of: Mapping[str, str], facts: Mapping[str, ImageFacts], pattern: str | None
) -> list[Pair]:
    """Return each image that is the very same photograph as an earlier one of its identity, with that one."""
    first: dict[str, str] = {}
    pairs = [(path, first.setdefault(facts[path].sha256, path)) for path in identity_of]
    copies = [(path, same) for path, same in pairs if path != same]
    if mixed := [(same, path) for path, same in copies if identity_of[path] != identity_of[same]]:
        named = "; ".join(" and ".join(pair) for pair in mixed[:_NAMED_PAIRS])
        more = f"; and {len(mixed) - _NAMED_PAIRS:,} more such" if len(mixed) > _NAMED_PAIRS else ""
        who = " and ".join(identity_of[path] for path in mixed[0]) if len(mixed) == 1 else "the two of a pair"
        say_so = (
            "put all their images into one folder" if pattern is None else "let the paths of all their images say so"
        )
        raise DataError(
            f"{root} holds the very same photograph under two identities: {named}{more}. If {who} are one person, "
            f"{say_so}; if they are two, delete the copy that is in the wrong one"
        )
    if copies:
        logger.warning(
            f"Left out {counted(len(copies), 'copy', 'copies')} of other images of the same identity "
            f"({such_as(copies)}, which is kept)."
        )
    return copies


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
