"""Seeded draws of validation and gallery images, and their assembly into a manifest.

Every random number comes from a generator of its own, seeded by what is being drawn. No draw depends on the order of
a listing, on the draws before it, or on which other identities there are.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass

import numpy as np

from handclip.datasets.inspection import ImageFacts
from handclip.datasets.manifest import Draw, Exclusions, Manifest, ManifestImage
from handclip.datasets.preparation import Preparation


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


def all_paths(identities: Iterable[Identity]) -> frozenset[str]:
    """The paths of all images of the identities."""
    return frozenset(path for identity in identities for path in identity.paths)


@dataclass(frozen=True)
class SeededDraws:
    """Random choices that depend on the seed, the data set, the aspect, the identity's name and the purpose alone."""

    seed: int | None
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
    preparation: Preparation,
    aspect: str,
    identities: Sequence[Identity],
    splits: Splits,
    facts: Mapping[str, ImageFacts],
    exclusions: Exclusions,
) -> Manifest:
    """Number the images, sorted by identity and path, and express the splits by these numbers.

    Args:
        preparation: names the data set, its root, its seed, and by what pattern the paths said whose they are.
        aspect: of the data set.
        identities: own identities and distractors, each with the images that are in use.
        splits: of these images.
        facts: hash and size of each of their paths (and perhaps of others).
        exclusions: what is left out.
    """
    labelled = sorted((identity.label, path) for identity in identities for path in identity.paths)
    index_of = {path: index for index, (_, path) in enumerate(labelled)}

    def indices(paths: Set[str]) -> tuple[int, ...]:
        return tuple(sorted(index_of[path] for path in paths))

    return Manifest(
        dataset=preparation.dataset,
        aspect=aspect,
        seed=preparation.seed,
        images=tuple(ManifestImage(path, label, facts[path].sha256, facts[path].bytes) for label, path in labelled),
        train=indices(splits.train),
        val=indices(splits.val),
        test=indices(splits.test),
        draws=tuple(
            Draw(indices(draw.query), indices(draw.gallery), indices(draw.gallery_all)) for draw in splits.draws
        ),
        identity_names={identity.label: identity.name for identity in identities},
        root=preparation.root.resolve(),
        pattern=preparation.pattern,
        **asdict(exclusions),
    )
