"""From images to features, each image once: in evaluation as in the validation of training."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from handclip.config.experiment import ExperimentConfig
from handclip.datasets.manifest import Manifest
from handclip.datasets.pixel_cache import PixelCache
from handclip.datasets.torch_dataset import ImageDataset, ImageLoader, LabelledImage, to_images
from handclip.datasets.transforms import ImageTransform
from handclip.datasets.workers import plain_worker_errors
from handclip.errors import DataError, HandCLIPError
from handclip.models.embedding_model import EmbeddingModel
from handclip.parallel.hardware import full_float32
from handclip.parallel.processes import combine, current, own_share

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Embedder:
    """A model, and how it is given images: the one way features are made."""

    model: EmbeddingModel
    device: torch.device
    """Where the model is."""
    batch_size: int
    num_workers: int
    """Processes that read images."""
    cache: PixelCache | None = None
    """Where decoded images are kept."""

    @torch.no_grad()
    def embed(
        self,
        images: Sequence[LabelledImage],
        flips: Collection[str] = ("none",),
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Features]:
        """Embed each image once, in float32 and in eval mode, without a look at its label.

        Several processes embed whole batches in turn, and each gets the features of all. The model is left in the mode
        it was in.

        Args:
            images: what to embed.
            flips: flip settings; `sum` embeds each image once more, mirrored left to right, and adds the two.
            progress: called with (images done, images in all).

        Returns:
            Features of shape (N, D) under `none` and those of `flips`. They are not normalised.

        Raises:
            DataError: an image cannot be read or is not the one in the manifest.
            HandCLIPError: a feature is not finite.
        """
        transform = ImageTransform(self.model.encoder.preprocessing)
        dataset = ImageDataset(images, transform, self.cache)
        starts = range(0, len(images), self.batch_size)
        own = own_share([list(range(start, min(start + self.batch_size, len(images)))) for start in starts])
        # Starting a worker takes longer than reading a batch, so a few images are read right here.
        workers = min(self.num_workers, sum(map(len, own)) // self.batch_size)
        loader = ImageLoader(dataset, own, self.device, largest=self.batch_size, num_workers=workers)
        plain = np.zeros((len(images), self.model.feature_dim), np.float32)
        mirrored = np.zeros_like(plain) if "sum" in flips else None
        done = 0
        with torch.autocast(self.device.type, enabled=False), full_float32(), plain_worker_errors():
            for rows, batch in zip(own, loader, strict=True):
                prepared = to_images(batch, transform, self.device)
                plain[rows] = self.model.embed(prepared).float().cpu().numpy()
                if mirrored is not None:
                    mirrored[rows] = self.model.embed(prepared.flip(-1)).float().cpu().numpy()
                done += len(prepared)
                if progress:
                    progress(min(done * current().size, len(images)), len(images))
        for features in (plain, mirrored):
            if features is None:
                continue
            combine(features)
            if not (finite := np.isfinite(features).all(axis=1)).all():
                first = images[int(np.flatnonzero(~finite)[0])].path
                raise HandCLIPError(
                    f"{np.count_nonzero(~finite)} features are not finite (NaN or infinity), such as of {first}"
                )
        return {"none": plain} if mirrored is None else {"none": plain, "sum": plain + mirrored}


@dataclass(frozen=True)
class FeatureTable:
    """Features of each distinct image, by `listed_path` and by flip setting; `sha256` are the hashes of their files."""

    images: dict[Path, int]
    sha256: list[str]
    by_flip: dict[str, Features]

    def of(self, manifest: Manifest, indices: Sequence[int], flip: str) -> Features:
        """Return the (N, D) features of images of a manifest."""
        rows = [self.images[listed_path(manifest, index)] for index in indices]
        return self.by_flip[flip][rows]


def listed_path(manifest: Manifest, index: int) -> Path:
    """Return an image's path as the manifest has it, by which features are ordered, whatever form a disk gives it."""
    return manifest.root / manifest.images[index].path


def embed_images(
    embedder: Embedder,
    manifests: Mapping[str, Manifest],
    used: Mapping[str, Sequence[int]],
    flips: Collection[str],
    progress: Callable[[int, int], None],
) -> FeatureTable:
    """Embed images of manifests, each once.

    Args:
        embedder: makes the features.
        manifests: by aspect.
        used: indices of the images of each aspect: `images_of_draws`, or `validation_images`.
        flips: flip settings.
        progress: called with (images done, images in all).

    Raises:
        DataError: an image cannot be read.
        HandCLIPError: a feature is not finite.
    """
    wanted = {
        # No label goes in: ranking is scored later.
        listed_path(manifest, index): LabelledImage(manifest.path_of(index), manifest.images[index].sha256, label=-1)
        for aspect, manifest in manifests.items()
        for index in used[aspect]
    }
    listed = sorted(wanted, key=str)
    images = [wanted[path] for path in listed]
    by_flip = embedder.embed(images, flips, progress)
    return FeatureTable({path: row for row, path in enumerate(listed)}, [i.sha256 for i in images], by_flip)


def validation_pairs(manifest: Manifest) -> tuple[list[int], list[int]]:
    """Return the validation images of training people, and for each a training image of the same person.

    The training image is drawn at random, the same way every time. People without a training image are left out.
    """
    random = np.random.default_rng(0)
    by_person: dict[int, list[int]] = {}
    for index in manifest.train:
        by_person.setdefault(manifest.images[index].identity, []).append(index)
    queries = [index for index in manifest.val if manifest.images[index].identity in by_person]
    return queries, [int(random.choice(by_person[manifest.images[index].identity])) for index in queries]


def validation_images(manifest: Manifest) -> list[int]:
    """Return the validation images of training people, and a training image of each; see `validation_pairs`."""
    return sorted({*chain(*validation_pairs(manifest))})


def images_of_draws(config: ExperimentConfig, manifest: Manifest) -> list[int]:
    """Return every image of the draws that a config evaluates.

    Raises:
        DataError: the manifest has fewer draws.
    """
    if config.num_splits > len(manifest.draws):
        raise DataError(
            f"num_splits: {config.num_splits}: the {manifest.aspect} manifest has {len(manifest.draws)} draws"
        )
    used: set[int] = set()
    for draw in manifest.draws[: config.num_splits]:
        used.update(draw.query, draw.gallery)
        if "gallery_all" in config.gallery_protocols:
            used.update(draw.gallery_all)
    return sorted(used)
