"""Photographs as training examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from handclip.datasets.augmentation import Draw
from handclip.datasets.pixel_cache import PixelCache
from handclip.datasets.pixels import PixelReader
from handclip.datasets.transforms import ImageTransform


@dataclass(frozen=True)
class LabelledImage:
    """A file, the hash it must have, and its class index."""

    path: Path
    sha256: str
    label: int


class Batch(NamedTuple):
    """Images of a batch.

    `images` are (B, 3, H, W): either float32 and ready for the model, or uint8 pixels that `ImageTransform.batch` has
    still to transform, with `draws`.
    """

    images: Tensor
    labels: Tensor
    draws: Tensor | None


class ImageDataset(Dataset[tuple[Tensor, int, Draw | None]]):
    """Reads photographs as pixels, with the random choices of their transform.

    An item is asked for by its index, or by (index, seed) where the transform makes random choices.
    """

    def __init__(
        self, images: Sequence[LabelledImage], transform: ImageTransform, cache: PixelCache | None = None
    ) -> None:
        self.images = images
        self.transform = transform
        self._reader = PixelReader(transform.squash, cache)
        self._reader.claim(image.sha256 for image in images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int, Draw | None]:
        index, seed = item if isinstance(item, tuple) else (item, None)
        image = self.images[index]
        return self._reader.read(image.path, image.sha256), image.label, self.transform.draw(seed)


class BatchCollator:
    """Makes batches in the worker processes: of pixels, which the model's device normalises.

    A GPU augments them too. For a CPU that is done here: worker processes use what the training step leaves idle.
    """

    def __init__(self, transform: ImageTransform, device: torch.device) -> None:
        self.transform = transform
        self._transforms_here = device.type == "cpu" and transform.is_random

    @property
    def bytes_per_image(self) -> int:
        """Of what is made here of each image."""
        if self._transforms_here:
            return 4 * 3 * self.transform.preprocessing.height * self.transform.preprocessing.width
        return 3 * self.transform.squash.height * self.transform.squash.width

    def __call__(self, items: Sequence[tuple[Tensor, int, Draw | None]]) -> Batch:
        """Put items of an `ImageDataset` together."""
        images, labels = torch.stack([pixels for pixels, _, _ in items]), torch.tensor([label for _, label, _ in items])
        drawn = [draw for _, _, draw in items if draw is not None]
        draws = torch.from_numpy(np.stack(drawn)) if drawn else None
        if self._transforms_here:
            return Batch(self.transform.batch(images, draws), labels, None)
        return Batch(images, labels, draws)


def to_images(batch: Batch, transform: ImageTransform, device: torch.device) -> Tensor:
    """Return the images of a batch on a device, (B, 3, height, width) float32, transformed if they are not yet."""
    images = batch.images.to(device, non_blocking=True)
    if images.is_floating_point():
        return images
    draws = batch.draws.to(device, non_blocking=True) if batch.draws is not None else None
    return transform.batch(images, draws)
