"""11k Hands (Afifi, 2019): `HandInfo.csv` and `Hands/`, split by identity number into four aspects of the hand."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from handclip.config.experiment import HAND_ASPECTS
from handclip.config.mistakes import cut
from handclip.datasets.file_kinds import is_image_name, kind_of
from handclip.datasets.inspection import ImageFacts, inspect_images
from handclip.datasets.left_out import LeftOut
from handclip.datasets.manifest import Exclusions, Manifest
from handclip.datasets.preparation import Preparation
from handclip.datasets.safe_paths import is_plain_relative, unicode_form
from handclip.datasets.splits import Identity, SeededDraws, Splits, assemble_manifest
from handclip.errors import DataError
from handclip.files import found_in, is_file, is_folder, read_limited
from handclip.plurals import first_names

DATASET = "11k"
ASPECTS = HAND_ASPECTS
LAST_TRAIN_IDENTITY = {"dorsal_r": 1050, "dorsal_l": 1037, "palmar_r": 1051, "palmar_l": 1042}
# In `gallery_all` the same person's other hand or side is another identity: its number is moved out of the way.
DISTRACTOR_OFFSETS = {
    "dorsal_r": {"dorsal_l": 11_000_000, "palmar_r": 21_000_000, "palmar_l": 31_000_000},
    "dorsal_l": {"dorsal_r": 11_000_000, "palmar_r": 21_000_000, "palmar_l": 31_000_000},
    "palmar_r": {"dorsal_l": 11_000_000, "dorsal_r": 21_000_000, "palmar_l": 31_000_000},
    "palmar_l": {"palmar_r": 11_000_000, "dorsal_r": 21_000_000, "dorsal_l": 31_000_000},
}

_ASPECT_TEXTS = {
    "dorsal right": "dorsal_r",
    "dorsal left": "dorsal_l",
    "palmar right": "palmar_r",
    "palmar left": "palmar_l",
}
_COLUMNS = ("id", "accessories", "aspectOfHand", "imageName")
_ATTRIBUTE_COLUMNS = {
    "age": "age",
    "gender": "gender",
    "skin_colour": "skinColor",
    "nail_polish": "nailPolish",
    "irregularities": "irregularities",
}
# Seven digits, so that no number plus an offset meets another.
_LARGEST_IDENTITY = 9_999_999
_LONGEST_IDENTITY = 100
"""Digits, leading zeros included."""
MAX_TABLE_BYTES = 100_000_000
"""Of `HandInfo.csv`; the published one has a million."""


@dataclass(frozen=True)
class HandInfoRow:
    """What the protocol needs of one row of `HandInfo.csv`; `identity_text` has no surrounding spaces."""

    identity: int
    identity_text: str
    aspect: str
    image_name: str

    @property
    def path(self) -> str:
        """The image's path relative to the data set's root."""
        return f"Hands/{self.image_name}"


def has_11k_layout(root: Path) -> bool:
    """Whether the folder holds `HandInfo.csv` and `Hands/`."""
    return is_file(root / "HandInfo.csv") and is_folder(root / "Hands")


def read_hand_info(root: Path) -> list[HandInfoRow]:
    """Read the rows without accessories from `root/HandInfo.csv`.

    Any column order, line ends, UTF-8 or Latin-1, and stray spaces are accepted.

    Raises:
        DataError: the layout is not that of 11k Hands, a column is missing, a value is not valid (names the line), or
            an image is listed twice.
    """
    rows: list[HandInfoRow] = []
    line_of_image: dict[str, int] = {}
    for line, values in _table_rows(root):
        where = f"{root / 'HandInfo.csv'}, line {line}"
        row = _parse_row(values, where)
        if (first := line_of_image.setdefault(row.image_name, line)) != line:
            raise DataError(f"{where}: {row.image_name} is already listed in line {first}")
        if values["accessories"] == "0":
            rows.append(row)
    return rows


def read_attributes(root: Path) -> dict[str, dict[str, str]]:
    """Read what `root/HandInfo.csv` says of the person and the hand on each image, by the `unicode_form` of its name.

    `age` in years, `gender`, `skin_colour` as the table has them; `nail_polish` and `irregularities` are `yes` or `no`.
    A column that the table lacks, and a cell that is empty, is left out.

    Raises:
        DataError: as for `read_hand_info`.
    """
    attributes = {}
    for _, values in _table_rows(root):
        found = {name: values.get(column, "") for name, column in _ATTRIBUTE_COLUMNS.items()}
        for name in ("nail_polish", "irregularities"):
            found[name] = {"0": "no", "1": "yes"}.get(found[name], "")
        attributes[unicode_form(values["imageName"])] = {name: value for name, value in found.items() if value}
    return attributes


def attributes_of(manifests: Mapping[str, Manifest]) -> dict[str, dict[str, str]]:
    """Return the attributes of the test images, by path: `age`, `gender`, `skin_colour`, ...; see `read_attributes`.

    Only 11k Hands, and what has its layout, says anything; elsewhere nothing is returned.

    Args:
        manifests: by aspect.

    Raises:
        DataError: `HandInfo.csv` is damaged.
    """
    attributes = {}
    for manifest in manifests.values():
        if manifest.dataset != DATASET or not has_11k_layout(manifest.root):
            continue
        by_name = read_attributes(manifest.root)
        for index in manifest.test:
            path = manifest.images[index].path
            # Where the original scripts have sorted the images into folders, they have kept their names.
            if found := by_name.get(unicode_form(PurePosixPath(path).name)):
                attributes[path] = found
    return attributes


def _table_rows(root: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line and the cells of each row of `HandInfo.csv`, by column and without surrounding spaces."""
    if not has_11k_layout(root):
        raise DataError(f"{root} is not 11k Hands: expected {root / 'HandInfo.csv'} and the folder {root / 'Hands'}")
    table = root / "HandInfo.csv"
    reader = csv.reader(io.StringIO(_decode_text(table), newline=""), skipinitialspace=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [column for column in _COLUMNS if column not in header]
        if missing:
            shown = cut(", ".join(header)) or "none"
            raise DataError(f"{table} lacks the column {', '.join(missing)}; it has {shown}")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise DataError(f"{table}, line {reader.line_num}: {len(cells)} values for {len(header)} columns")
            yield reader.line_num, {column: cell.strip() for column, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise DataError(f"{table}, line {reader.line_num}: is no table of comma-separated values ({error})") from error


def prepare_11k(preparation: Preparation) -> dict[str, Manifest]:
    """Make the manifests of the four aspects, `gallery_all` included, of the folder with `HandInfo.csv` and `Hands/`.

    Raises:
        DataError: as for `read_hand_info`; images are absent or unreadable; there is no image at all.
    """
    root = preparation.root
    rows = read_hand_info(root)
    files = {unicode_form(file.name): file for file in found_in(root / "Hands", "*")}
    absent = [row.image_name for row in rows if unicode_form(row.image_name) not in files]
    left_out = LeftOut(root)
    for name in sorted(files.keys() - {unicode_form(row.image_name) for row in rows}):
        if not is_image_name(name) and (kind := kind_of(files[name])) is not None:
            left_out.add(kind, f"Hands/{files[name].name}")
    if absent and not preparation.allow_missing:
        also = f". {left_out}" if left_out.unread else ""
        raise DataError(
            f"{len(absent):,} of the {len(rows):,} images without accessories in {root / 'HandInfo.csv'} are not in "
            f"{root / 'Hands'}: {first_names(absent)}; to work with a part of the data set, pass --allow-missing "
            f"(in a config, allow_missing: true){also}"
        )
    left_out.report()
    missing = frozenset(absent)
    facts = inspect_images(preparation, [row.path for row in rows if row.image_name not in missing])
    if not facts:
        raise DataError(f"{root / 'Hands'} holds none of the images of {root / 'HandInfo.csv'}")
    identities = {
        aspect: _identities(row for row in rows if row.aspect == aspect and row.path in facts) for aspect in ASPECTS
    }
    splits = {aspect: _split(aspect, identities[aspect], preparation) for aspect in ASPECTS}
    manifests = {}
    for aspect in ASPECTS:
        with_all = _with_gallery_all(aspect, splits)
        everyone = [*identities[aspect], *_distractors(aspect, identities, with_all)]
        exclusions = _exclusions([row for row in rows if row.aspect == aspect], missing, facts)
        manifests[aspect] = assemble_manifest(preparation, aspect, everyone, with_all, facts, exclusions)
    return manifests


def _identities(rows: Iterable[HandInfoRow]) -> list[Identity]:
    by_identity: dict[int, list[HandInfoRow]] = {}
    for row in rows:
        by_identity.setdefault(row.identity, []).append(row)
    return [
        Identity(identity, min(row.identity_text for row in group), tuple(sorted(row.path for row in group)))
        for identity, group in sorted(by_identity.items())
    ]


def _split(aspect: str, identities: Sequence[Identity], preparation: Preparation) -> Splits:
    train = [identity for identity in identities if identity.label <= LAST_TRAIN_IDENTITY[aspect]]
    test = [identity for identity in identities if identity.label > LAST_TRAIN_IDENTITY[aspect]]
    return SeededDraws(preparation.seed, DATASET, aspect).split(train, test, preparation.num_draws)


def _with_gallery_all(aspect: str, splits: Mapping[str, Splits]) -> Splits:
    """Give each draw of one aspect the galleries that all four aspects have in the draw of that number."""
    draws = [
        replace(draw, gallery_all={path for other in ASPECTS for path in splits[other].draws[number].gallery})
        for number, draw in enumerate(splits[aspect].draws)
    ]
    return replace(splits[aspect], draws=draws)


def _distractors(aspect: str, identities: Mapping[str, Sequence[Identity]], splits: Splits) -> list[Identity]:
    """The other aspects' gallery identities, renumbered, with those of their images that some draw uses."""
    used = {path for draw in splits.draws for path in draw.gallery_all}
    return [
        Identity(identity.label + offset, f"{other}/{identity.name}", tuple(sorted(used.intersection(identity.paths))))
        for other, offset in DISTRACTOR_OFFSETS[aspect].items()
        for identity in identities[other]
        if not used.isdisjoint(identity.paths)
    ]


def _exclusions(rows: Sequence[HandInfoRow], missing: Set[str], facts: Mapping[str, ImageFacts]) -> Exclusions:
    absent = sum(row.image_name in missing for row in rows)
    readable = [row for row in rows if row.path in facts]
    return Exclusions(
        missing_images=absent,
        unreadable_images=len(rows) - absent - len(readable),
        empty_identities=len({row.identity for row in rows} - {row.identity for row in readable}),
    )


def _parse_row(values: Mapping[str, str], where: str) -> HandInfoRow:
    identity_text = values["id"]
    is_number = identity_text.isascii() and identity_text.isdigit() and len(identity_text) <= _LONGEST_IDENTITY
    if not is_number or int(identity_text) > _LARGEST_IDENTITY:
        shown = cut(repr(identity_text))
        raise DataError(f"{where}: id {shown} is not a whole number from 0 to {_LARGEST_IDENTITY:,}")
    aspect = _ASPECT_TEXTS.get(" ".join(values["aspectOfHand"].lower().split()))
    if aspect is None:
        shown = cut(repr(values["aspectOfHand"]))
        raise DataError(f"{where}: aspectOfHand {shown} is none of {', '.join(_ASPECT_TEXTS)}")
    if values["accessories"] not in ("0", "1"):
        raise DataError(f"{where}: accessories {cut(repr(values['accessories']))} is neither 0 nor 1")
    image_name = values["imageName"]
    if "/" in image_name or not is_plain_relative(image_name):
        raise DataError(f"{where}: imageName {cut(repr(image_name))} is not the name of a file in Hands")
    return HandInfoRow(int(identity_text), identity_text, aspect, image_name)


def _decode_text(path: Path) -> str:
    try:
        data = read_limited(path, MAX_TABLE_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Latin-1, unlike Windows-1252, has a character for every byte; the columns in use are ASCII in both.
        return data.decode("latin-1")
