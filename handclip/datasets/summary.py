"""What is in a data set: counts for each split, and how unevenly images are spread over identities."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from handclip.csv_files import csv_text
from handclip.datasets.manifest import Manifest


@dataclass(frozen=True)
class SplitRow:
    """One split: `minimum` and `maximum` are images per identity, followed by how many identities have as many.

    `identities` and `images` include distractors, `distractor_identities` counts these alone.
    """

    split: str
    identities: int
    images: int
    minimum: int
    minimum_identities: int
    maximum: int
    maximum_identities: int
    distractor_identities: int

    @property
    def imbalance(self) -> float | None:
        """Maximum / minimum; None for an empty split."""
        return self.maximum / self.minimum if self.images else None

    @property
    def balanced(self) -> bool:
        """Whether all identities have equally many images."""
        return self.minimum == self.maximum


def summarise(manifest: Manifest) -> dict[str, int | str]:
    """The counts of `summary.json` for one aspect; those of query and galleries are for the first draw."""
    rows = {row.split: row for row in split_table(manifest)}
    train, test = rows["train_all"], rows["test"]
    images = {split: row.images for split, row in rows.items()}
    return {
        "train_identities": train.identities,
        "train_images": images["train"],
        "val_images": images["val"],
        "train_all_images": images["train_all"],
        "test_identities": test.identities,
        "test_images": images["test"],
        "query_images": images.get("query0", 0),
        "gallery_images": images.get("gallery0", 0),
        "gallery_all_images": images.get("gallery0_all", 0),
        "missing_images": manifest.missing_images,
        "unreadable_images": manifest.unreadable_images,
        "copied_images": manifest.copied_images,
        "unread_files": sum(manifest.unread_files.values()),
        "unread_identities": manifest.unread_identities,
        "ignored_files": manifest.ignored_files,
        "empty_identities": manifest.empty_identities,
        "single_image_train_identities": train.minimum_identities if train.minimum == 1 else 0,
        "single_image_test_identities": test.minimum_identities if test.minimum == 1 else 0,
        "sha256": manifest.sha256,
    }


def split_table(manifest: Manifest) -> list[SplitRow]:
    """One row for each split; query and galleries are those of the first draw."""
    splits = {
        "train_all": manifest.train_all,
        "train": manifest.train,
        "val": manifest.val,
        "test": manifest.test,
    }
    for draw in manifest.draws[:1]:
        splits |= {"query0": draw.query, "gallery0": draw.gallery}
        if "gallery_all" in manifest.gallery_protocols:
            splits["gallery0_all"] = draw.gallery_all
    distractors = manifest.identities(manifest.distractors)
    return [_row(manifest, name, indices, distractors) for name, indices in splits.items()]


def split_table_csv(manifests: Iterable[Manifest]) -> str:
    """The split tables of several manifests as comma-separated text, with data set and aspect in front."""
    counts = ("split", "identities", "images", "minimum", "minimum_identities", "maximum", "maximum_identities")
    columns = (*counts, "imbalance", "balanced", "distractor_identities")
    lines: list[list[object]] = [["dataset", "aspect", *columns]]
    for manifest in manifests:
        for row in split_table(manifest):
            values = {column: getattr(row, column) for column in columns}
            values["imbalance"] = "" if row.imbalance is None else f"{row.imbalance:.4g}"
            lines.append([manifest.dataset, manifest.aspect, *values.values()])
    return csv_text(lines, line_end="\n")


def _row(manifest: Manifest, split: str, indices: tuple[int, ...], distractors: set[int]) -> SplitRow:
    images_of = Counter(manifest.images[index].identity for index in indices)
    identities_with = Counter(images_of.values())
    minimum, maximum = min(identities_with, default=0), max(identities_with, default=0)
    return SplitRow(
        split=split,
        identities=len(images_of),
        images=len(indices),
        minimum=minimum,
        minimum_identities=identities_with[minimum],
        maximum=maximum,
        maximum_identities=identities_with[maximum],
        distractor_identities=len(images_of.keys() & distractors),
    )
