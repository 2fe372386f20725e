"""Reading photographs: whatever the file holds, an upright 8-bit RGB image or a `DataError` that names the file."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from handclip.cores import available_cores
from handclip.errors import DataError

MAX_PIXELS = 200_000_000
IMAGE_EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

Progress = Callable[[int, int], None]
"""Called as `progress(done, total)` after each image."""


@dataclass(frozen=True)
class ImageFacts:
    """What identifies an image file: the SHA-256 of its bytes (hexadecimal) and its size."""

    sha256: str
    bytes: int


def read_image(path: Path, sha256: str | None = None, *, enough: tuple[int, int] | None = None) -> Image.Image:
    """Read a photograph as an upright 8-bit RGB image.

    The EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled (not clipped) to 8 bit,
    and every other colour mode that has a defined white becomes RGB.

    Args:
        path: the image file.
        sha256: the hash that the bytes must have, if known.
        enough: height and width that suffice. A larger JPEG file is then decoded, which is faster, at a half, a quarter
            or an eighth of its size, the smallest whose sides are at least that long.

    Raises:
        DataError: the file is missing, empty, damaged, not an image, larger than 200 megapixels, or not the file whose
            hash was given.
    """
    data = _read_bytes(path)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{path} has changed since the manifest was made; run `handclip prepare` again")
    return _decode(data, path, enough)


def inspect_image(path: Path) -> ImageFacts:
    """Hash a file and decode it once, so that a damaged image is found before training.

    Raises:
        DataError: as for `read_image`.
    """
    data = _read_bytes(path)
    _decode(data, path)
    return ImageFacts(hashlib.sha256(data).hexdigest(), len(data))


def inspect_images(
    root: Path, paths: Sequence[str], *, allow_unreadable: bool = False, progress: Progress | None = None
) -> dict[str, ImageFacts]:
    """Inspect many images at once; unreadable ones are left out of the answer if `allow_unreadable`.

    Raises:
        DataError: there are unreadable images; names how many, and the first ten with what is wrong.
    """

    def inspect(path: str) -> ImageFacts | DataError:
        try:
            return inspect_image(root / path)
        except DataError as error:
            return error

    facts: dict[str, ImageFacts] = {}
    failures: list[DataError] = []
    # Threads, not processes: hashing and Pillow's decoders release the interpreter lock.
    with ThreadPoolExecutor(min(8, available_cores())) as pool:
        for done, (path, result) in enumerate(zip(paths, pool.map(inspect, paths), strict=True), start=1):
            if isinstance(result, DataError):
                failures.append(result)
            else:
                facts[path] = result
            if progress is not None:
                progress(done, len(paths))
    if failures and not allow_unreadable:
        first = "".join(f"\n  {failure}" for failure in failures[:10])
        more = f"\n  and {len(failures) - 10:,} more" if len(failures) > 10 else ""
        raise DataError(
            f"{len(failures):,} of {len(paths):,} images cannot be read:{first}{more}\n"
            "Mend or remove them, or leave them out with --allow-missing (in a config, allow_missing: true)"
        )
    return facts


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not data:
        raise DataError(f"{path} is empty (0 bytes)")
    return data


def _decode(data: bytes, path: Path, enough: tuple[int, int] | None = None) -> Image.Image:
    # Pillow's readers raise nearly any exception on damaged data, hence the broad `except`.
    try:
        with _without_pillow_size_limit():
            image = Image.open(BytesIO(data))
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image of a known format") from error
    except Exception as error:
        raise DataError(f"{path} cannot be decoded: {error}") from error
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise DataError(
            f"{path} has {image.width:,} x {image.height:,} pixels, more than the {MAX_PIXELS // 10**6} megapixels "
            "that HandCLIP reads; scale it down"
        )
    try:
        if enough is not None:
            _reduce(image, *enough)
        with _without_pillow_size_limit() if pixels > _LARGE else nullcontext():
            image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    except Exception as error:
        raise DataError(f"{path} cannot be decoded: {error}") from error


def _reduce(image: Image.Image, height: int, width: int) -> None:
    """Have a JPEG file decoded at the smallest size that is, when upright, at least `height` x `width`."""
    lies_on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) in _ON_ITS_SIDE
    image.draft(None, (height, width) if lies_on_its_side else (width, height))


_ON_ITS_SIDE = (5, 6, 7, 8)
"""EXIF orientations in which the stored width is the upright height."""

# Well below Pillow's limit of 89 million pixels. Larger images are decoded one at a time, which also spares memory.
_LARGE = 50_000_000
_PILLOW_LIMIT_LOCK = Lock()


@contextmanager
def _without_pillow_size_limit() -> Iterator[None]:
    """Keep Pillow from warning about large images or refusing them: `MAX_PIXELS` is checked before decoding."""
    with _PILLOW_LIMIT_LOCK:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _sixteen_bit_to_rgb(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a defined white; save it with 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _sixteen_bit_to_rgb(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips at 255. It gives 16-bit grey of some formats as 32-bit integers (mode I).
    grey: npt.NDArray[Any] = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("its pixels are 32-bit numbers without a defined white; save it with 8 or 16 bits")
    eight_bit = (grey.astype(np.uint32) * 255 + 32767) // 65535
    return Image.fromarray(eight_bit.astype(np.uint8)).convert("RGB")
