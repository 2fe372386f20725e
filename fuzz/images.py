"""Feeds mutated photographs to the image reader: each is an image, or an error that names the file."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from handclip.datasets.formats import FORMATS
from handclip.datasets.images import decode_image, decode_pixels
from handclip.errors import HandCLIPError

_MODES = {
    "BMP": ("RGB", "L", "P", "1", "RGBA"),
    "GIF": ("P", "L", "RGB"),
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "P", "1", "RGBA", "LA", "I;16"),
    "PPM": ("RGB", "L", "1"),
    "TIFF": ("RGB", "L", "P", "1", "RGBA", "CMYK", "I;16", "I", "F"),
    "WEBP": ("RGB", "RGBA"),
    "MPO": ("RGB",),
    "AVIF": ("RGB", "L", "RGBA"),
    "HEIF": ("RGB", "L", "RGBA"),
}
_OPTIONS: dict[str, list[dict[str, object]]] = {
    "JPEG": [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}],
    "PNG": [{}, {"compress_level": 0}],
    "TIFF": [{}, *({"compression": kind} for kind in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"))],
    "WEBP": [{}, {"lossless": True}],
}


def one(data: bytes) -> None:
    """Read one image, at its full size and, as training may, at a reduced one.

    PNG's checksums are made right first, or hardly a mutated file would get past them.
    """
    errors = []
    for content in (data, _with_right_checksums(data)) if data.startswith(_PNG) else (data,):
        for decode in (decode_image, decode_for_training):
            try:
                image = decode(content, "a.jpg")
            except HandCLIPError as error:
                errors.append(error)
                assert str(error).startswith("a.jpg ")
            else:
                assert image.mode == "RGB"
    if errors:
        raise errors[-1]


def decode_for_training(data: bytes, name: str) -> Image.Image:
    """Decode one that need not be larger than 2 x 2 pixels."""
    return Image.fromarray(decode_pixels(data, name, enough=(2, 2)))


def seeds() -> Iterator[bytes]:
    """Small photographs of every format, mode and way of compression, with EXIF and with several frames."""
    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 256, (12, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, modes in _MODES.items():
        if kind not in (*FORMATS, "MPO"):  # decoders that are not installed
            continue
        for mode in modes:
            image = picture.convert("L").convert(mode) if mode.startswith(("I", "F")) else picture.convert(mode)
            for options in _OPTIONS.get(kind, [{}]):
                try:
                    yield _saved(image, kind, **options)
                except (OSError, ValueError, KeyError):  # compression that the mode does not have
                    continue
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        yield _saved(picture, kind, exif=exif)
    for kind in ("GIF", "PNG", "TIFF", "WEBP", "MPO"):
        yield _saved(picture, kind, save_all=True, append_images=[picture.rotate(90), picture.rotate(180)])
    yield b"P3 2 1 255 1 2 3 4 5 6"
    yield b"Pf 1 1 1.0 " + struct.pack("<f", 0.5)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


LONGEST = 2048
"""Bytes of an input."""
TOKENS = [
    b"IHDR",
    b"PLTE",
    b"tRNS",
    b"zTXt",
    b"iCCP",
    b"eXIf",
    b"acTL",
    b"fcTL",
    b"fdAT",
    b"\xff\xc0",
    b"\xff\xc2",
    b"\xff\xda",
]
TOKENS += [
    b"\xff\xc4",
    b"\xff\xe1",
    b"Exif\0\0",
    b"MPF\0",
    b"II*\0",
    b"MM\0*",
    b"VP8X",
    b"VP8L",
    b"ALPH",
    b"ANMF",
    b"GIF89a",
    b"ftypavif",
    b"ftypheic",
    b"ispe",
    b"iloc",
]
"""What mutations may put in: marks that decoders look for."""

_PNG = b"\x89PNG\r\n\x1a\n"


def _with_right_checksums(data: bytes) -> bytes:
    parts, position = [_PNG], len(_PNG)
    while position + 12 <= len(data):
        length = min(int.from_bytes(data[position : position + 4], "big"), len(data) - position - 12)
        body = data[position + 4 : position + 8 + length]
        parts += [length.to_bytes(4, "big"), body, zlib.crc32(body).to_bytes(4, "big")]
        position += 12 + length
    return b"".join(parts)
