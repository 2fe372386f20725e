"""Reading photographs: whatever the file holds, an upright 8-bit RGB image or a `DataError` that names the file."""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from handclip.datasets.colours import declared_bits, to_rgb
from handclip.datasets.formats import FORMATS, describe_other
from handclip.datasets.metadata import without_metadata
from handclip.errors import DataError
from handclip.files import read_limited

MAX_PIXELS = 200_000_000
MAX_WEBP_PIXELS = 50_000_000
"""The decoder of WebP takes 16 bytes for each, whatever the size of the file; others take three or four."""
MAX_SIDE = 65_535
"""Pixels of the longer side; as many as JPEG can have."""
MAX_BYTES = 700_000_000
"""Of a file: an uncompressed image of `MAX_PIXELS` has less."""

try:
    import simplejpeg
except ImportError:  # a platform for which there is none; Pillow decodes
    simplejpeg = None
SIMPLEJPEG_VERSION: str | None = simplejpeg.__version__ if simplejpeg else None
"""None where it is not installed."""
_BLOCK = 8
"""Pixels that JPEG codes together. In an image that is smaller, simplejpeg would take another scale than Pillow."""

# Pillow warns of odd metadata, which nothing here depends on. Not with `catch_warnings`, as images are read in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

Pixels = npt.NDArray[np.uint8]
"""(height, width, 3), RGB."""

_Decoded = TypeVar("_Decoded")


def read_image(path: Path, sha256: str | None = None) -> Image.Image:
    """Read a photograph as an upright 8-bit RGB image.

    The EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled (not clipped) to 8 bit,
    and every other colour mode that has a defined white becomes RGB.

    Args:
        path: the image file.
        sha256: the hash that the bytes must have, if known.

    Raises:
        DataError: as for `read_bytes` and `decode_image`.
    """
    return decode_image(read_bytes(path, sha256), str(path))


def read_pixels(path: Path, sha256: str | None = None, *, enough: tuple[int, int] | None = None) -> Pixels:
    """Read a photograph as `read_image` does, or faster, as an array.

    Args:
        path: the image file.
        sha256: the hash that the bytes must have, if known.
        enough: as for `decode_pixels`.

    Raises:
        DataError: as for `read_image`.
    """
    return decode_pixels(read_bytes(path, sha256), str(path), enough=enough)


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode a photograph as `read_image` does.

    Args:
        data: the file's bytes.
        name: the file, for errors.

    Raises:
        DataError: it is damaged, of no format in `FORMATS`, larger than `MAX_PIXELS` (`MAX_WEBP_PIXELS` in WebP), or
            has a longer side than `MAX_SIDE`.
    """
    with _saying_what_is_wrong(data, name):
        return _despite_metadata(lambda data: _load(_open(data, name)), data)


def decode_pixels(data: bytes, name: str, *, enough: tuple[int, int] | None = None) -> Pixels:
    """Decode a photograph to (height, width, 3).

    Args:
        data: the file's bytes.
        name: the file, for errors.
        enough: height and width that suffice. A JPEG file is then decoded by libjpeg-turbo directly, where
            that is installed and can; and a larger one at a half, a quarter or an eighth of its size, the smallest
            whose sides are at least that long.

    Raises:
        DataError: as for `decode_image`.
    """

    def decode(data: bytes) -> Pixels:
        image = _open(data, name)
        if enough is not None and image.format in ("JPEG", "MPO"):
            turn = _TURNS.get(orientation(image))
            # Decoded at the smallest size that suffices when it is upright.
            image.draft(None, enough if turn in _ON_ITS_SIDE else enough[::-1])
            pixels = _decode_jpeg(data, image)
            if pixels is not None:
                return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))
        return np.array(_load(image))

    with _saying_what_is_wrong(data, name):
        return _despite_metadata(decode, data)


def _despite_metadata(decode: Callable[[bytes], _Decoded], data: bytes) -> _Decoded:
    """Decode a file, if need be without what it says beside its pixels."""
    try:
        return decode(data)
    except (DataError, MemoryError):
        raise
    except Exception as error:
        bare = without_metadata(data)
        if bare is None:
            raise
        try:
            return decode(bare)
        except DataError:
            raise
        except Exception:
            raise error from None


@contextmanager
def _saying_what_is_wrong(data: bytes, name: str) -> Iterator[None]:
    # Pillow's readers raise nearly any exception on damaged data, hence the broad `except`.
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name} {describe_other(data)}") from None
    except MemoryError:
        raise DataError(f"{name} cannot be decoded: it needs more memory than there is; scale it down") from None
    except Exception as error:
        raise DataError(f"{name} cannot be decoded: {str(error) or type(error).__name__}") from error


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    """Look at everything but the pixels."""
    _require_size(*_webp_canvas(data), name, MAX_WEBP_PIXELS)
    with _without_pillow_size_limit():
        image = Image.open(BytesIO(data), formats=FORMATS)
    _require_size(image.width, image.height, name, MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_PIXELS)
    _require_small_tiles(image)
    return image


def _load(image: ImageFile.ImageFile) -> Image.Image:
    """Have Pillow decode the pixels."""
    bits = declared_bits(image)
    with _without_pillow_size_limit() if image.width * image.height > _LARGE else nullcontext():
        image.load()
    turn = _TURNS.get(orientation(image))
    upright = to_rgb(image, bits)
    return upright if turn is None else upright.transpose(turn)


def orientation(image: Image.Image) -> int:
    """Return how the stored pixels lie, as EXIF counts it: 1 is upright, as is all that says nothing or is garbled."""
    try:
        stated: Any = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's readers raise nearly any exception on damaged data
        return 1
    return int(stated) if stated in range(1, 9) else 1


def _decode_jpeg(data: bytes, opened: Image.Image) -> Pixels | None:
    """Decode by libjpeg-turbo directly what Pillow has opened, and so found to be sound so far, but not loaded yet.

    Pillow decodes with the same library and gives the same pixels, but copies them twice more on the way to an array.

    Args:
        data: the file's bytes.
        opened: knows the size to decode at, which `Image.draft` may have reduced.

    Returns:
        (height, width, 3), as the file stores them: not yet turned upright. None where Pillow has to decode, as the
        file is no JPEG, has other colours than RGB or grey, or anything in it is not as it should be: Pillow says
        whether it matters.
    """
    if simplejpeg is None or opened.format not in ("JPEG", "MPO") or opened.mode not in ("RGB", "L"):
        return None
    if max(opened.size) < _BLOCK:
        return None
    width, height = opened.size
    pixels = np.empty((height, width, 3), np.uint8)
    try:
        # The buffer makes it refuse a file in which it finds another, larger size than Pillow.
        found = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, buffer=pixels)
    except Exception:
        return None
    return found if found.shape == pixels.shape else None


def read_bytes(path: Path, sha256: str | None = None) -> bytes:
    """Return what an image file holds.

    Raises:
        DataError: the file is missing, empty, no regular file, larger than `MAX_BYTES`, or not the file whose hash was
            given.
    """
    try:
        data = read_limited(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except MemoryError:
        raise DataError(f"{path} cannot be read: there is not enough memory") from None
    if not data:
        raise DataError(f"{path} is empty (0 bytes)")
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{path} has changed since the manifest was made; run `handclip prepare` again")
    return data


def _require_size(width: int, height: int, name: str, most: int) -> None:
    if width * height > most:
        of = " in WebP" if most == MAX_WEBP_PIXELS else ""
        raise DataError(
            f"{name} has {width:,} x {height:,} pixels, more than the {most // 10**6} megapixels that HandCLIP "
            f"reads{of}; scale it down"
        )
    if max(width, height) > MAX_SIDE:
        raise DataError(
            f"{name} has {width:,} x {height:,} pixels, and HandCLIP reads at most {MAX_SIDE:,} a side; cut or scale it"
        )


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Return the width and height that a WebP file claims, for which its decoder takes memory at once (RFC 9649)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return 0, 0
    kind = data[12:16]
    if kind == b"VP8X":  # extended
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":  # lossless: 14 bits each
        bits = int.from_bytes(data[21:25], "little")
        return bits % 2**14 + 1, (bits >> 14) % 2**14 + 1
    return int.from_bytes(data[26:28], "little") % 2**14, int.from_bytes(data[28:30], "little") % 2**14


def _require_small_tiles(image: Image.Image) -> None:
    """Refuse a TIFF whose tiles are far larger than itself; its decoder would take memory for a whole one."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        width, height = tags.get(TiffImagePlugin.TILEWIDTH, 0), tags.get(TiffImagePlugin.TILELENGTH, 0)
        if width * height > max(_LARGEST_TILE, 4 * image.width * image.height):
            raise ValueError(f"its tiles have {width:,} x {height:,} pixels; save it again without tiles")


_LARGEST_TILE = 2**24

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each orientation upright."""
_ON_ITS_SIDE = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))
"""Where the stored width is the upright height."""

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
