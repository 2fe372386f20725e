"""Photographs as examples, in batches that processes read."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from handclip.datasets.pixel_cache import PixelCache
from handclip.datasets.pixels import PixelReader
from handclip.datasets.transforms import Choices, ImageTransform
from handclip.datasets.workers import Workers, begin, say_fewer, step_back, workers_with_room
from handclip.interruption import waiting


@dataclass(frozen=True)
class LabelledImage:
    """A file, the hash it must have, and its class index."""

    path: Path
    sha256: str
    label: int


class Batch(NamedTuple):
    """Images of a batch.

    `images` are (B, 3, H, W): either float32 and ready for the model, or uint8 pixels that `ImageTransform.batch` has
    still to transform, with `choices`.
    """

    images: Tensor
    labels: Tensor
    choices: Tensor | None


class ImageDataset(Dataset[tuple[Tensor, int, Choices | None]]):
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

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int, Choices | None]:
        index, seed = item if isinstance(item, tuple) else (item, None)
        image = self.images[index]
        return self._reader.read(image.path, image.sha256), image.label, self.transform.choose(seed)


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

    def __call__(self, items: Sequence[tuple[Tensor, int, Choices | None]]) -> Batch:
        """Put items of an `ImageDataset` together."""
        images, labels = torch.stack([pixels for pixels, _, _ in items]), torch.tensor([label for _, label, _ in items])
        drawn = [draw for _, _, draw in items if draw is not None]
        choices = torch.from_numpy(np.stack(drawn)) if drawn else None
        if self._transforms_here:
            return Batch(self.transform.batch(images, choices), labels, None)
        return Batch(images, labels, choices)


def to_images(batch: Batch, transform: ImageTransform, device: torch.device) -> Tensor:
    """Return the images of a batch on a device, (B, 3, height, width) float32, transformed if they are not yet."""
    images = batch.images.to(device, non_blocking=True)
    if images.is_floating_point():
        return images
    choices = batch.choices.to(device, non_blocking=True) if batch.choices is not None else None
    return transform.batch(images, choices)


class ImageLoader(DataLoader[Any]):
    """Yields the batches of a data set; the wait for one ends with the first signal.

    Args:
        dataset: the photographs.
        batches: the items of each batch.
        device: of the model.
        largest: images in the largest batch.
        num_workers: processes that read; fewer, or none, where shared memory has no room for what they hand over.
        training: keep the processes for further epochs; on a CPU they use the time that the training step leaves.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batches: Sampler[list[Any]] | Iterable[list[Any]],
        device: torch.device,
        *,
        largest: int,
        num_workers: int,
        training: bool = False,
    ) -> None:
        collator = BatchCollator(dataset.transform, device)
        workers, ready = workers_with_room(num_workers, largest * collator.bytes_per_image)
        if workers < num_workers:
            say_fewer(num_workers, workers)
        super().__init__(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=collator,
            worker_init_fn=step_back if training and device.type == "cpu" else begin,
            prefetch_factor=ready if workers else None,
            persistent_workers=training and workers > 0,
            pin_memory=device.type == "cuda",
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # DataLoader promises a private class of its own
        """Start the processes, or have them go on with the next epoch."""
        return _Batches(super().__iter__())

    def close(self) -> None:
        """End the processes that are kept for further epochs."""
        kept, self._iterator = self._iterator, None
        if isinstance(kept, Workers):
            kept._shutdown_workers()

    def _get_iterator(self) -> Any:
        return Workers(self) if self.num_workers else super()._get_iterator()


class _Batches(Iterator[Batch]):
    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches

    def __next__(self) -> Batch:
        with waiting():
            return next(self._batches)
