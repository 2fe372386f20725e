"""Seeded draws of validation and gallery images, and their assembly into a manifest.

Every random number comes from a generator of its own, seeded by what is being drawn. No draw depends on the order of
a listing, on the draws before it, or on which other identities there are.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from handclip.datasets.images import ImageFacts
from handclip.datasets.manifest import Draw, Manifest, ManifestImage


@dataclass(frozen=True)
class Identity:
    """One identity of a data set: its label, the data set's own text for it, and its image paths."""

    label: int
    name: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class PathDraw:
    """A `Draw` in terms of image paths."""

    query: Set[str]
    gallery: Set[str]
    gallery_all: Set[str] = frozenset()


@dataclass(frozen=True)
class Splits:
    """The splits of a `Manifest` in terms of image paths."""

    train: Set[str]
    val: Set[str]
    test: Set[str]
    draws: Sequence[PathDraw]


@dataclass(frozen=True)
class Exclusions:
    """How much of a data set was left out, and why."""

    missing_images: int = 0
    unreadable_images: int = 0
    ignored_files: int = 0
    empty_identities: int = 0
    copied_images: int = 0
    unread_files: Mapping[str, int] = field(default_factory=dict)
    """By kind."""
    unread_identities: int = 0
    """Of which nothing is read, though there is something."""


def all_paths(identities: Iterable[Identity]) -> frozenset[str]:
    """The paths of all images of the identities."""
    return frozenset(path for identity in identities for path in identity.paths)


@dataclass(frozen=True)
class SeededDraws:
    """Random choices that depend on the seed, the data set, the aspect, the identity's name and the purpose alone."""

    seed: int
    dataset: str
    aspect: str

    def split(self, train: Sequence[Identity], test: Sequence[Identity], num_draws: int) -> Splits:
        """Draw one validation image of each training identity, and for each draw one gallery image of each test one.

        The other images are for training and query. An identity with one image has it in validation or in the gallery.
        """
        val = frozenset(self._one_of(identity, "val") for identity in train)
        test_paths = all_paths(test)
        galleries = [
            frozenset(self._one_of(identity, f"gallery{number}") for identity in test) for number in range(num_draws)
        ]
        return Splits(
            train=all_paths(train) - val,
            val=val,
            test=test_paths,
            draws=[PathDraw(query=test_paths - gallery, gallery=gallery) for gallery in galleries],
        )

    def shuffled(self, names: Iterable[str], purpose: str) -> list[str]:
        """The names in random order: each gets a random number from its own generator, and they are sorted by it."""
        return sorted(names, key=lambda name: (self._generator(name, purpose).random(), name))

    def _one_of(self, identity: Identity, purpose: str) -> str:
        paths = sorted(identity.paths)
        return paths[int(self._generator(identity.name, purpose).integers(len(paths)))]

    def _generator(self, identity: str, purpose: str) -> np.random.Generator:
        key = json.dumps([self.seed, self.dataset, self.aspect, identity, purpose])
        return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode("ascii")).digest(), "big"))


def assemble_manifest(
    *,
    dataset: str,
    aspect: str,
    seed: int | None,
    root: Path,
    identities: Sequence[Identity],
    splits: Splits,
    facts: Mapping[str, ImageFacts],
    exclusions: Exclusions,
    pattern: str | None = None,
) -> Manifest:
    """Number the images, sorted by identity and path, and express the splits by these numbers.

    Args:
        identities: own identities and distractors, each with the images that are in use.
        facts: hash and size of each of their paths (and perhaps of others).
        pattern: by which the paths said whose they are.
    """
    labelled = sorted((identity.label, path) for identity in identities for path in identity.paths)
    index_of = {path: index for index, (_, path) in enumerate(labelled)}

    def indices(paths: Set[str]) -> tuple[int, ...]:
        return tuple(sorted(index_of[path] for path in paths))

    return Manifest(
        dataset=dataset,
        aspect=aspect,
        seed=seed,
        images=tuple(ManifestImage(path, label, facts[path].sha256, facts[path].bytes) for label, path in labelled),
        train=indices(splits.train),
        val=indices(splits.val),
        test=indices(splits.test),
        draws=tuple(
            Draw(indices(draw.query), indices(draw.gallery), indices(draw.gallery_all)) for draw in splits.draws
        ),
        identity_names={identity.label: identity.name for identity in identities},
        missing_images=exclusions.missing_images,
        unreadable_images=exclusions.unreadable_images,
        root=root.resolve(),
        ignored_files=exclusions.ignored_files,
        empty_identities=exclusions.empty_identities,
        copied_images=exclusions.copied_images,
        unread_files=dict(exclusions.unread_files),
        unread_identities=exclusions.unread_identities,
        pattern=pattern,
    )
