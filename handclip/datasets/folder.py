"""Any data set laid out as `root/<identity>/<images>`, or by another pattern, with names of any alphabet."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from handclip.config.experiment import SINGLE_ASPECT
from handclip.config.path_pattern import PLAIN, PathPattern
from handclip.datasets.duplicates import Pair, such_as
from handclip.datasets.folder_listing import FolderListing
from handclip.datasets.inspection import ImageFacts, inspect_images
from handclip.datasets.manifest import Manifest
from handclip.datasets.preparation import Preparation
from handclip.datasets.safe_paths import unicode_form
from handclip.datasets.splits import Identity, SeededDraws, assemble_manifest
from handclip.errors import DataError
from handclip.files import is_folder
from handclip.plurals import counted, first_lines

logger = logging.getLogger(__name__)

DATASET = "folder"
ASPECT = SINGLE_ASPECT[DATASET]


def prepare_folder(preparation: Preparation) -> dict[str, Manifest]:
    """Make the manifest of a plain folder: half of the identities to train on, the other half to test.

    Identities with images are numbered in the code point order of their names. What is not read is counted and said,
    by kind, and so are identities without images. Of copies of a photograph of one identity, the very same under
    several names, the first by name is kept, and the others are left out and counted.

    Raises:
        DataError: there is no such folder, too few identities to train and test on, images are unreadable, nothing is
            read of an identity, the pattern matches nothing, one photograph is there under two identities, or the names
            of two differ in their Unicode form alone.
    """
    root = preparation.root
    listing = _list_folder(root, preparation.pattern)
    listing.say_how_paths_are_read()
    _require_distinct(listing.paths_of, root)
    listing.left_out.report(listing.without_images, allow_missing=preparation.allow_missing)
    identity_of = {path: identity for identity, paths in listing.paths_of.items() for path in paths}
    facts = inspect_images(preparation, list(identity_of))
    copies = _find_copies(preparation, {path: who for path, who in identity_of.items() if path in facts}, facts)
    used = facts.keys() - {copy for copy, _ in copies}
    usable = {name: tuple(path for path in paths if path in used) for name, paths in listing.paths_of.items()}
    with_images = {name: paths for name, paths in usable.items() if paths}
    identities = [Identity(label, name, paths) for label, (name, paths) in enumerate(with_images.items())]
    seeded = SeededDraws(preparation.seed, DATASET, ASPECT)
    splits = seeded.split(*_halves(identities, seeded, root), preparation.num_draws)
    exclusions = listing.left_out.exclusions(
        unreadable_images=len(identity_of) - len(facts),
        empty_identities=len(listing.paths_of) - len(identities) - listing.left_out.unread_identities,
        copied_images=len(copies),
    )
    return {ASPECT: assemble_manifest(preparation, ASPECT, identities, splits, facts, exclusions)}


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
    preparation: Preparation, identity_of: Mapping[str, str], facts: Mapping[str, ImageFacts]
) -> list[Pair]:
    """Return each image that is the very same photograph as an earlier one of its identity, with that one."""
    first: dict[str, str] = {}
    pairs = [(path, first.setdefault(facts[path].sha256, path)) for path in identity_of]
    copies = [(path, same) for path, same in pairs if path != same]
    if mixed := [(same, path) for path, same in copies if identity_of[path] != identity_of[same]]:
        # Many, as who mends them one by one would read all images anew for each.
        named = "; ".join(first_lines([" and ".join(pair) for pair in mixed]))
        who = " and ".join(identity_of[path] for path in mixed[0]) if len(mixed) == 1 else "the two of a pair"
        in_one = "put all their images into one folder"
        say_so = in_one if preparation.pattern is None else "let the paths of all their images say so"
        raise DataError(
            f"{preparation.root} holds the very same photograph under two identities: {named}. If {who} are one "
            f"person, {say_so}; if they are two, delete the copy that is in the wrong one"
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
