"""Reading photographs: whatever the file holds, an upright 8-bit RGB image or a `DataError` that names the file."""

import hashlib
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError, features

from handclip.datasets.depth import declared_bits, grey_to_eight_bits, require_light
from handclip.datasets.formats import ENDINGS, WHAT_READS, phone_format
from handclip.datasets.jpeg import decode_jpeg
from handclip.datasets.metadata import orientation, without_metadata
from handclip.errors import DataError
from handclip.files import read_limited
from handclip.signatures import LOOKED_AT, is_lfs_pointer, is_web_page, packed_by

MAX_PIXELS = 200_000_000
MAX_WEBP_PIXELS = 50_000_000
"""The decoder of WebP takes 16 bytes for each, whatever the size of the file; others take three or four."""
MAX_SIDE = 65_535
"""Pixels of the longer side; as many as JPEG can have."""
MAX_BYTES = 700_000_000
"""Of a file: an uncompressed image of `MAX_PIXELS` has less."""

HEIF_VERSION: str | None = None
"""That of pillow-heif, which reads HEIC; None where it is not installed."""
with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    HEIF_VERSION = pillow_heif.__version__
_IS_READ = {"AVIF": bool(features.check("avif")), "HEIF": HEIF_VERSION is not None}
FORMATS = tuple(name for name in ENDINGS if _IS_READ.get(name, True))
"""The decoders that may run, by Pillow's names. Of the others one starts a program (EPS), and many are seldom used."""
IMAGE_EXTENSIONS = frozenset(" ".join(ENDINGS[name] for name in FORMATS).split())
"""How the names of images end that are read here."""

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
            `handclip.datasets.jpeg` can; and a larger one at a half, a quarter or an eighth of its size, the smallest
            whose sides are at least that long.

    Raises:
        DataError: as for `decode_image`.
    """

    def decode(data: bytes) -> Pixels:
        image = _open(data, name)
        if enough is not None and image.format in ("JPEG", "MPO"):
            turn = _TURNS.get(orientation(image))
            _reduce(image, *enough, on_its_side=turn in _ON_ITS_SIDE)
            pixels = decode_jpeg(data, image)
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
        raise DataError(f"{name} {_what_else(data)}") from None
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

_OTHER_KINDS = (
    (rb"PK[\x03\x05]", "is a ZIP archive, not an image; unpack it"),
    (rb"%PDF", "is a PDF document, not an image; save its pages as JPEG or PNG"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "is a PostScript drawing, not an image; save it as JPEG or PNG"),
    (
        rb".{4}ftyp|\0{3}\x0cjP|\xff\x4f\xff\x51",
        "is an image of a format that HandCLIP does not read (JPEG 2000 or a film); save it as JPEG or PNG",
    ),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*(<[?!][^>]{0,500}>\s*)*<svg[\s>]",
        "is an SVG drawing, not an image; save it as JPEG or PNG",
    ),
)
"""How files begin that are often found under an image's name, and what to say of them."""


def _what_else(data: bytes) -> str:
    start = data[:LOOKED_AT]
    if is_lfs_pointer(start):
        return "is a Git LFS pointer, not an image; fetch the image with git lfs pull"
    if packed_by(start):
        return "is an archive, not an image; unpack it"
    if format := phone_format(start):
        photograph = "is an AVIF photograph" if format == "AVIF" else "is a HEIC photograph"
        if format in FORMATS:
            return f"{photograph} that cannot be decoded; save it as JPEG or PNG"
        return f"{photograph}; {WHAT_READS[format]} reads it, or save it as JPEG or PNG"
    for pattern, words in _OTHER_KINDS:
        if re.match(pattern, start, re.DOTALL):
            return words
    if is_web_page(start):  # which an SVG drawing looks like
        return "is a web page, not an image; fetch the image itself"
    return f"is not an image of a known format ({', '.join(FORMATS)}); save it as one of them"


def _reduce(image: Image.Image, height: int, width: int, *, on_its_side: bool) -> None:
    """Have a JPEG file decoded at the smallest size that is, when upright, at least `height` x `width`."""
    image.draft(None, (height, width) if on_its_side else (width, height))


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


def to_rgb(image: Image.Image, bits: int | None = None) -> Image.Image:
    """Convert an image as `read_image` does, whose colours it keeps.

    Args:
        image: of any mode.
        bits: of a number, as its file declares them; by default asked of the image, whose file may be open.

    Raises:
        ValueError: its mode has no defined white.
    """
    if bits is None:
        bits = declared_bits(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a defined white; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = grey_to_eight_bits(image)
    require_light(image, bits)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
