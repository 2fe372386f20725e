"""Photographs as training examples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from handclip.datasets.images import read_image
from handclip.datasets.transforms import ImageTransform
from handclip.errors import HandCLIPError


@dataclass(frozen=True)
class LabelledImage:
    """A file, the hash it must have, and its class index."""

    path: Path
    sha256: str
    label: int


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Reads, checks and transforms photographs.

    An item is asked for by its index, or by (index, seed) where the transform makes random choices.
    """

    def __init__(self, images: Sequence[LabelledImage], transform: ImageTransform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = item if isinstance(item, tuple) else (item, None)
        image = self.images[index]
        return self.transform(read_image(image.path, image.sha256), seed), image.label


@contextmanager
def plain_worker_errors() -> Iterator[None]:
    """Give an error of a worker process the message it had there; DataLoader puts a whole traceback into it."""
    try:
        yield
    except HandCLIPError as error:
        kind = f"{type(error).__module__}.{type(error).__qualname__}: "
        _, found, message = str(error).rpartition(kind)
        if not found:
            raise
        raise type(error)(message.strip()) from None
