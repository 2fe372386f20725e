"""Formats of photographs: how their files end and begin, and what reads those that not every installation can."""

from collections.abc import Mapping

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

_AVIF = (b"avif", b"avis")
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_EITHER = (b"mif1", b"msf1")


def phone_format(start: bytes) -> str | None:
    """Return AVIF or HEIF where the first bytes of a file are those of one, such as phones write; 64 suffice."""
    if start[4:8] != b"ftyp":
        return None
    brand, end = start[8:12], int.from_bytes(start[:4])
    compatible = [start[place : place + 4] for place in range(16, min(end, 64), 4)]
    if brand in _AVIF or (brand in _EITHER and any(other in _AVIF for other in compatible)):
        return "AVIF"
    return "HEIF" if brand in _HEIF + _EITHER else None
