"""From a file to pixels of the wanted size: decoded, squashed, and kept for the next time."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import PIL
import torch
import torchvision
from PIL import Image, features
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, resize

from handclip.config.experiment import ResizeMode
from handclip.datasets.formats import HEIF_VERSION
from handclip.datasets.images import SIMPLEJPEG_VERSION, Pixels, read_pixels
from handclip.datasets.pixel_cache import PixelCache

MARGIN = 1.15
"""With reduced decoding, the decoded sides are at least so many times the wanted ones, so that the last step is a
resizing still. Pixels then differ from those of full decoding by less than one level of 255 on average, and 999 of
1,000 by 4 at most (at 100 pixels and more, in photographs with some noise; at 50 pixels by 8). 2 would halve that and
take longer. At a quarter of their size, 1600x1200 pixels are 1.17 times an input of 256.
"""

_RECIPE = 2
"""Raise this whenever `read_image` or `PixelReader` gives other pixels than before: what is cached then counts no more.
"""


@dataclass(frozen=True)
class Squash:
    """How a photograph becomes pixels before anything random."""

    height: int
    width: int
    interpolation: str
    """As torchvision calls it, such as `bicubic`."""
    reduced: bool = False
    """Decode large JPEG files at a half, a quarter or an eighth of their size, and all by simplejpeg where it is."""
    mode: ResizeMode = "squash"
    """`shortest` keeps the aspect ratio and cuts off the longer side's ends; `longest` fills up with black."""

    @property
    def group(self) -> str:
        """A name for pixels that are computed in the same way, by the same versions of the same libraries."""
        mode = f"-{self.mode}" if self.mode != "squash" else ""
        reduced = "-reduced" if self.reduced else ""
        return f"{self.height}x{self.width}-{self.interpolation}{mode}{reduced}-{_versions()}"


class PixelReader:
    """Reads photographs as pixels, from the cache where it has them. Worker processes may share it."""

    def __init__(self, squash: Squash, cache: PixelCache | None = None) -> None:
        self.squash = squash
        self._cache = cache
        self._group = squash.group
        enough = math.ceil(MARGIN * squash.height), math.ceil(MARGIN * squash.width)
        self._enough = enough if squash.reduced else None

    def read(self, path: Path, sha256: str) -> Tensor:
        """Return the pixels, uint8 of shape (3, height, width), of the photograph whose file has this SHA-256.

        Where the cache has the pixels, the photograph's own file is not looked at.

        Raises:
            DataError: as for `read_image`.
        """
        if self._cache is not None:
            stored = self._cache.load(self._group, sha256, self.squash.height, self.squash.width)
            if stored is not None:
                return stored
        pixels = squash_pixels(read_pixels(path, sha256, enough=self._enough), self.squash)
        if self._cache is not None:
            self._cache.store(self._group, sha256, pixels)
        return pixels

    def claim(self, hashes: Iterable[str]) -> None:
        """Tell the cache which images this run is about to read, so that they do not displace each other."""
        if self._cache is not None:
            self._cache.claim(self._group, hashes)


def squash_pixels(pixels: Pixels, squash: Squash) -> Tensor:
    """Return the pixels (H, W, 3) of a photograph as (3, height, width) uint8, whatever its aspect ratio."""
    interpolation = InterpolationMode(squash.interpolation)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    wanted = [squash.height, squash.width]
    height, width, _ = pixels.shape
    size = wanted if squash.mode == "squash" else _resized(height, width, squash)
    with in_one_thread():
        squashed: Tensor = resize(image, size, interpolation, antialias=True)
        if size != wanted:
            squashed = center_crop(squashed, wanted)  # which fills up with black what is smaller
        return squashed.contiguous()


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Let PyTorch do little work on a CPU alone.

    With other threads it waits for each of them: a hundred times as long where other processes hold the cores, which
    are often our own workers.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def seen_part(image: Image.Image, squash: Squash) -> Image.Image:
    """Return what of a photograph becomes pixels, at its own size: all of it where it is squashed."""
    if squash.mode == "squash":
        return image
    scale = _scale(image.height, image.width, squash)
    return center_crop(image, [max(1, round(side / scale)) for side in (squash.height, squash.width)])  # type: ignore[no-any-return]


def _resized(height: int, width: int, squash: Squash) -> list[int]:
    """Return (height, width) of a photograph that keeps its aspect ratio, rounded as open_clip does."""
    scale = _scale(height, width, squash)
    whole = math.floor if squash.mode == "shortest" else round
    return [max(1, whole(side * scale)) for side in (height, width)]


def _scale(height: int, width: int, squash: Squash) -> Fraction:
    """Return by what both sides are multiplied."""
    scales = Fraction(squash.height, height), Fraction(squash.width, width)
    return max(scales) if squash.mode == "shortest" else min(scales)


@cache
def _versions() -> str:
    """Return a short hash of all that pixels depend on beside the photograph and the wanted size."""
    versions = [
        _RECIPE,
        MARGIN,
        PIL.__version__,
        *(features.version(codec) for codec in ("libjpeg_turbo", "jpg", "webp", "avif")),
        SIMPLEJPEG_VERSION,
        HEIF_VERSION,
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),  # resizing is rounded otherwise where vector units are others
        torchvision.__version__,
    ]
    return hashlib.sha256(repr(versions).encode()).hexdigest()[:8]
