"""The rules that every manifest must obey, and the counts of the published protocol for complete data sets."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from handclip.datasets import hands11k, hd
from handclip.datasets.duplicates import describe_learned
from handclip.datasets.manifest import Draw, Manifest
from handclip.datasets.summary import split_table
from handclip.errors import DataError
from handclip.files import found_in, is_folder
from handclip.plurals import first_names


@dataclass(frozen=True)
class ProtocolCounts:
    """How many identities and images the splits of a complete data set have."""

    train_identities: int
    train_all: int
    test_identities: int
    test: int
    gallery_identities: int
    gallery: int
    gallery_all: int

    @property
    def val(self) -> int:
        """One image of each identity that is trained on."""
        return self.train_identities

    @property
    def train(self) -> int:
        """The others of these identities."""
        return self.train_all - self.val

    @property
    def query(self) -> int:
        """All of test but one of each identity."""
        return self.test - self.test_identities


FULL_COUNTS = {
    ("11k", "dorsal_r"): ProtocolCounts(72, 962, 71, 1042, 71, 71, 290),
    ("11k", "dorsal_l"): ProtocolCounts(73, 808, 73, 1061, 73, 73, 290),
    ("11k", "palmar_r"): ProtocolCounts(72, 977, 71, 988, 71, 71, 290),
    ("11k", "palmar_l"): ProtocolCounts(76, 1004, 75, 1023, 75, 75, 290),
    ("hd", "dorsal"): ProtocolCounts(251, 2407, 251, 2243, 464, 1593, 0),
}


def find_manifest_files(place: Path) -> list[Path]:
    """Return a manifest's file, or those of all manifests that a folder holds.

    Raises:
        DataError: the folder holds none.
        HandCLIPError: it may not be read.
    """
    if not is_folder(place):
        return [place]
    found = found_in(place, "manifest_*.json")
    if not found:
        raise DataError(f"{place}: holds no manifest (manifest_*.json); `handclip prepare` makes them")
    return found


def check_manifest(manifest: Manifest) -> list[str]:
    """Say in a sentence each why no model should be trained with a manifest; an empty list for a sound one.

    That is every breach of the protocol (`check_protocol`), photographs that are trained and tested on under two names
    (`check_copies`), and files that are not in place (`check_files`).
    """
    return [*check_protocol(manifest), *check_copies([manifest]), *check_files(manifest)]


def check_files(manifest: Manifest) -> list[str]:
    """Say in a sentence which files of a manifest are not in place."""
    try:
        manifest.verify_files()
    except DataError as error:
        return [str(error)]
    return []


def check_protocol(manifest: Manifest) -> list[str]:
    """Every breach of the protocol as one sentence; an empty list for a sound manifest. No file is looked at.

    Checks that training, validation and test are disjoint where they must be, that each draw's query and gallery
    partition the test images with one gallery image for each identity, that distractors are no one's own identity, that
    labels are those of the data set, and the published counts if the data set is complete. Copies of a photograph under
    other names are no breach: they harm who trains with the manifest, not who is only evaluated by it (`check_copies`).
    """
    breaches = [*_splits(manifest), *_labels(manifest)]
    for number, draw in enumerate(manifest.draws):
        breaches += [f"draw {number}: {breach}" for breach in _draw(manifest, draw)]
    return [*breaches, *_full_counts(manifest)]


def check_separation(manifest: Manifest) -> list[str]:
    """Those breaches of the protocol without which nothing can be learned: what must be apart is mixed.

    That is, images or people both trained and tested on, and queries that are in their own gallery.
    """
    breaches = list(_mixed_splits(manifest))
    for number, draw in enumerate(manifest.draws):
        breaches += [f"draw {number}: {breach}" for breach in _mixed_draw(manifest, draw)]
    return breaches


def check_copies(manifests: Sequence[Manifest]) -> list[str]:
    """Say whether photographs that a model is trained or validated on are tested on under other names.

    Args:
        manifests: those of all aspects that it is trained on, of one data set.
    """
    if sentence := describe_learned(manifests):
        return [f"{sentence}: whoever is recognised on them was learned by heart. {_way_out(manifests[0])}"]
    return []


def _way_out(manifest: Manifest) -> str:
    """What to do about a photograph that is trained and tested on, which depends on what says whose it is."""
    if manifest.seed is None:
        return (
            "Making new manifests from the folders of the original script gives the same copies: first delete the one "
            "that is in the wrong place from every split folder that holds it (where it is a person's image of val or "
            "of a gallery, all images of that person); then make new manifests with `handclip prepare`, in another "
            "folder, and train on them"
        )
    delete = "else delete the one that is in the wrong place"
    make = "make new manifests with `handclip prepare`"
    if manifest.dataset == hands11k.DATASET:
        return (
            f"If HandInfo.csv gives one person two ids, correct it and {make}, {delete} and make them with "
            "`handclip prepare --allow-missing`; in another folder, and train on them"
        )
    give = "put all images of that person into one folder"
    if manifest.dataset == hd.DATASET:
        give = "give all images of that person the same number (<id>_<number>.jpg)"
    return f"If the two of a pair are one person, {give}, {delete}; then {make}, in another folder, and train on them"


def _mixed_splits(manifest: Manifest) -> Iterator[str]:
    train, val, test = set(manifest.train), set(manifest.val), set(manifest.test)
    if shared := train & val:
        yield f"train and val share {_images(manifest, shared)}"
    if shared := test & (train | val):
        yield f"test shares {_images(manifest, shared)} with train and val"
    if people := manifest.identities(train | val) & manifest.identities(test):
        yield f"train and test share {_identities(manifest, people)}"


def _mixed_draw(manifest: Manifest, draw: Draw) -> Iterator[str]:
    query, galleries = set(draw.query), {*draw.gallery, *draw.gallery_all}
    if shared := query & set(draw.gallery):
        yield f"query and gallery share {_images(manifest, shared)}"
    if shared := query & set(draw.gallery_all):
        yield f"query and gallery_all share {_images(manifest, shared)}"
    if foreign := query - set(manifest.test):
        yield f"query holds {_images(manifest, foreign)} not of test"
    if trained := galleries & {*manifest.train, *manifest.val}:
        yield f"the galleries hold {_images(manifest, trained)} of train and val"


def _splits(manifest: Manifest) -> Iterator[str]:
    train, val, test = (set(split) for split in (manifest.train, manifest.val, manifest.test))
    for name, split in (("train", manifest.train), ("val", manifest.val), ("test", manifest.test)):
        yield from _repeated(name, split)
        if not split:
            yield f"{name} has no images"
    if not manifest.draws:
        yield "there are no query/gallery draws"
    yield from _mixed_splits(manifest)
    if people := manifest.identities(train) - manifest.identities(val):
        yield f"val lacks {_identities(manifest, people)} of train"
    yield from _several(manifest, "val", manifest.val)
    galleries = {index for draw in manifest.draws for index in (*draw.gallery, *draw.gallery_all)}
    if unused := set(range(len(manifest.images))) - train - val - test - galleries:
        yield f"no split holds {_images(manifest, unused)}"
    if people := manifest.identity_names.keys() - manifest.identities(range(len(manifest.images))):
        yield f"there is no image of {_identities(manifest, people)}"


def _labels(manifest: Manifest) -> Iterator[str]:
    own = manifest.identities({*manifest.train, *manifest.val, *manifest.test})
    if people := manifest.identities(manifest.distractors) & own:
        yield f"distractors have the labels of own {_identities(manifest, people)}"
    if manifest.dataset == hands11k.DATASET:
        offsets = hands11k.DISTRACTOR_OFFSETS.get(manifest.aspect, {})
    elif manifest.dataset == hd.DATASET:
        offsets = {hd.DISTRACTOR_FOLDER: hd.DISTRACTOR_OFFSET}
        low = {one for one in manifest.identities(manifest.distractors) if one <= hd.DISTRACTOR_OFFSET}
        if low:
            yield f"distractors have labels of at most {hd.DISTRACTOR_OFFSET}: {_identities(manifest, low)}"
    else:
        return
    wrong = {
        identity for identity, name in manifest.identity_names.items() if identity != _label_of_name(name, offsets)
    }
    if wrong:
        yield f"the label is not the number that the data set gives for {_identities(manifest, wrong)}"


def _label_of_name(name: str, offsets: dict[str, int]) -> int | None:
    """The integer that `0000012`, or with an offset `palmar_l/0000012`, stands for; None for anything else."""
    source, _, number = name.rpartition("/")
    if not (number.isascii() and number.isdigit()) or (source and source not in offsets):
        return None
    return int(number) + offsets.get(source, 0)


def _draw(manifest: Manifest, draw: Draw) -> Iterator[str]:
    query, gallery, gallery_all, test = (
        set(one) for one in (draw.query, draw.gallery, draw.gallery_all, manifest.test)
    )
    distractors = set(manifest.distractors)
    for name in ("query", "gallery", "gallery_all"):
        yield from _repeated(name, getattr(draw, name))
    yield from _mixed_draw(manifest, draw)
    if absent := test - query - gallery:
        yield f"neither query nor gallery holds {_images(manifest, absent)} of test"
    expected_distractors = distractors if manifest.dataset == hd.DATASET else set()
    if foreign := gallery - test - expected_distractors:
        yield f"gallery holds {_images(manifest, foreign)} not of test"
    if absent := expected_distractors - gallery:
        yield f"gallery lacks {_images(manifest, absent)} of distractors"
    if people := manifest.identities(test) - manifest.identities(gallery & test):
        yield f"gallery lacks {_identities(manifest, people)}"
    yield from _several(manifest, "gallery", gallery & test)
    if "gallery_all" in manifest.gallery_protocols:
        if absent := gallery - gallery_all:
            yield f"gallery_all lacks {_images(manifest, absent)} of gallery"
        if foreign := gallery_all - gallery - distractors:
            yield f"gallery_all holds {_images(manifest, foreign)} neither of gallery nor of distractors"
        yield from _several(manifest, "gallery_all", gallery_all)


def _full_counts(manifest: Manifest) -> Iterator[str]:
    expected = FULL_COUNTS.get((manifest.dataset, manifest.aspect))
    if expected is None or manifest.missing_images or manifest.unreadable_images:
        return
    if len(manifest.train_all) + len(manifest.test) != expected.train_all + expected.test:
        return
    published = {
        "train_all": (expected.train_identities, expected.train_all),
        "train": (None, expected.train),
        "val": (None, expected.val),
        "test": (expected.test_identities, expected.test),
        "query0": (None, expected.query),
        "gallery0": (expected.gallery_identities, expected.gallery),
        "gallery0_all": (expected.gallery_all, expected.gallery_all),
    }
    for row in split_table(manifest):
        identities, images = published[row.split]
        for what, count, wanted in (("identities", row.identities, identities), ("images", row.images, images)):
            if wanted not in (None, count):
                yield f"{row.split} {what}: {count:,}, where the complete data set has {wanted:,}"


def _repeated(name: str, indices: tuple[int, ...]) -> Iterator[str]:
    if repeated := len(indices) - len(set(indices)):
        yield f"{name} lists {repeated:,} images more than once"


def _several(manifest: Manifest, name: str, indices: Iterable[int]) -> Iterator[str]:
    counts = Counter(manifest.images[index].identity for index in indices)
    if people := {identity for identity, count in counts.items() if count > 1}:
        yield f"{name} has more than one image of {_identities(manifest, people)}"


def _images(manifest: Manifest, indices: Iterable[int]) -> str:
    paths = sorted(manifest.images[index].path for index in indices)
    return f"{len(paths):,} images ({first_names(paths)})"


def _identities(manifest: Manifest, identities: Iterable[int]) -> str:
    names = [manifest.identity_names.get(identity, str(identity)) for identity in sorted(identities)]
    return f"{len(names):,} identities ({first_names(names)})"
