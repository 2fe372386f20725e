"""Photographs as training examples."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from handclip.datasets.augmentation import Draw
from handclip.datasets.pixel_cache import PixelCache
from handclip.datasets.pixels import PixelReader
from handclip.datasets.transforms import ImageTransform
from handclip.errors import HandCLIPError
from handclip.interruption import HANG_UP


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

    def __call__(self, items: Sequence[tuple[Tensor, int, Draw | None]]) -> Batch:
        """Put items of an `ImageDataset` together."""
        images, labels = torch.stack([pixels for pixels, _, _ in items]), torch.tensor([label for _, label, _ in items])
        drawn = [draw for _, _, draw in items if draw is not None]
        draws = torch.from_numpy(np.stack(drawn)) if drawn else None
        if self._transforms_here:
            return Batch(self.transform.batch(images, draws), labels, None)
        return Batch(images, labels, draws)


def leave_signals_to_parent(worker: int) -> None:
    """Let the process that a worker reads for decide when to stop; the worker ends with it.

    A terminal sends Ctrl-C to every process of a command, one that is closed SIGHUP, and a cluster SIGTERM: a worker
    that ended of it would take the step under way with it. Only a second SIGTERM ends it, which its parent sends to one
    that hangs.
    """

    def end_next_time(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if HANG_UP is not None:
        signal.signal(HANG_UP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_next_time)


def step_back(worker: int) -> None:
    """Leave signals to the parent, and let a worker process use the time that the training step leaves.

    The threads of a step share its work evenly; one that has to wait for its core keeps all of them waiting.
    """
    leave_signals_to_parent(worker)
    if hasattr(os, "nice"):
        os.nice(_NICENESS)


_NICENESS = 10


def to_images(batch: Batch, transform: ImageTransform, device: torch.device) -> Tensor:
    """Return the images of a batch on a device, (B, 3, height, width) float32, transformed if they are not yet."""
    images = batch.images.to(device, non_blocking=True)
    if images.is_floating_point():
        return images
    draws = batch.draws.to(device, non_blocking=True) if batch.draws is not None else None
    return transform.batch(images, draws)


@contextmanager
def plain_worker_errors() -> Iterator[None]:
    """Give an error of a worker process the message it had there; DataLoader puts a whole traceback into it.

    Raises:
        HandCLIPError: as raised in the worker; or the system has ended the worker.
    """
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        # Ended in the middle of a batch that it was handing over, a worker breaks the connection.
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        how = str(error) or type(error).__name__
        raise HandCLIPError(
            f"a process that reads images was ended from outside ({how}), for want of memory, perhaps; with a lower "
            "num_workers less is needed"
        ) from error
    except HandCLIPError as error:
        kind = f"{type(error).__module__}.{type(error).__qualname__}: "
        _, found, message = str(error).rpartition(kind)
        if not found:
            raise
        raise type(error)(message.strip()) from None
