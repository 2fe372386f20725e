"""Formats of photographs: which are read here, how their files end and begin, and what is found in place of them."""

import re
from collections.abc import Mapping
from contextlib import suppress

from PIL import features

from handclip.signatures import LOOKED_AT, is_lfs_pointer, is_web_page, packed_by

ENDINGS: Mapping[str, str] = {
    "JPEG": ".jfi .jfif .jif .jpe .jpeg .jpg .mpo",
    "PNG": ".apng .png",
    "TIFF": ".tif .tiff",
    "WEBP": ".webp",
    "BMP": ".bmp .dib",
    "GIF": ".gif",
    "PPM": ".pbm .pgm .pnm .ppm",
    "AVIF": ".avif .avifs",
    "HEIF": ".heic .heics .heif .heifs .hif",
}
"""By Pillow's names of the formats."""
WHAT_READS = {"AVIF": "`pip install -U pillow`", "HEIF": "`pip install pillow-heif`"}
"""The command after which a format can be read."""

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

_AVIF = (b"avif", b"avis")
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_EITHER = (b"mif1", b"msf1")

_OTHERS = (
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


def phone_format(start: bytes) -> str | None:
    """Return AVIF or HEIF where the first bytes of a file are those of one, such as phones write; 64 suffice."""
    if start[4:8] != b"ftyp":
        return None
    brand, end = start[8:12], int.from_bytes(start[:4])
    compatible = [start[place : place + 4] for place in range(16, min(end, 64), 4)]
    if brand in _AVIF or (brand in _EITHER and any(other in _AVIF for other in compatible)):
        return "AVIF"
    return "HEIF" if brand in _HEIF + _EITHER else None


def describe_other(data: bytes) -> str:
    """Say what a file is that no decoder knows, and what to do with it."""
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
    for pattern, words in _OTHERS:
        if re.match(pattern, start, re.DOTALL):
            return words
    if is_web_page(start):  # which an SVG drawing looks like
        return "is a web page, not an image; fetch the image itself"
    return f"is not an image of a known format ({', '.join(FORMATS)}); save it as one of them"
