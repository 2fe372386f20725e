"""What a file says beside its pixels: the orientation counts, and nothing else may keep a photograph from being read.

Pillow reads camera settings, profiles and texts along with the pixels, and refuses the whole file where one of them is
odd or large.
"""

import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

from PIL import ExifTags, Image


def without_metadata(data: bytes) -> bytes | None:
    """Return the same image with its orientation, and without all else that does not decide over its pixels.

    Returns:
        None where there is nothing to leave out, or the file's structure is damaged.
    """
    if data.startswith(b"\xff\xd8"):
        bare = _bare_jpeg(data)
    elif data.startswith(_PNG):
        bare = _bare_png(data)
    elif data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        bare = _bare_tiff(data)
    elif data[4:8] == b"ftyp":  # AVIF and HEIC, whose orientation belongs to the pixels
        bare = _ITEM.sub(rb"\1none", data)
    else:
        return None
    return None if bare == data else bare


def _bare_jpeg(data: bytes) -> bytes | None:
    kept: list[bytes] = []
    exif, position = b"", 2
    while (position := data.find(b"\xff", position)) >= 0:
        marker, length = data[position + 1 : position + 2], int.from_bytes(data[position + 2 : position + 4], "big")
        content = data[position + 4 : position + 2 + length]
        if marker == b"\xda":  # the pixels
            return b"\xff\xd8" + _segment(b"\xe1", _exif(exif)) + b"".join(kept) + data[position:]
        if marker == b"\xff" or marker in _STAND_ALONE:
            position += 1 if marker == b"\xff" else 2
            continue
        if len(content) != length - 2:
            return None
        if marker == b"\xe1" and content.startswith(b"Exif\0\0"):
            exif += content[6:]
        # Two of the application's segments say which colours are stored.
        elif marker == b"\xe0" and content.startswith(b"JFIF\0") and len(content) >= 14:
            kept.append(_segment(marker, b"JFIF\0\1\1\0\0\1\0\1\0\0"))
        elif marker == b"\xee" and content.startswith(b"Adobe") and len(content) >= 12:
            kept.append(_segment(marker, content[:12]))
        elif not b"\xe0" <= marker <= b"\xef" and marker != b"\xfe":
            kept.append(_segment(marker, content))
        position += 2 + length
    return None


_STAND_ALONE = [bytes([code]) for code in (0x00, 0x01, *range(0xD0, 0xD9))]
"""Markers that nothing belongs to."""


def _segment(marker: bytes, content: bytes) -> bytes:
    return b"\xff" + marker + (len(content) + 2).to_bytes(2, "big") + content


_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"acTL", b"fcTL", b"fdAT", b"IEND")


def _bare_png(data: bytes) -> bytes:
    kept, exif = [], b""
    for kind, chunk in _chunks(data):
        if kind == b"eXIf":
            exif = chunk[8:-4]
        elif kind in _PNG_PIXELS:
            kept.append(chunk)
    body = b"eXIf" + _exif(exif).removeprefix(b"Exif\0\0")
    kept.insert(1, (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big"))
    return _PNG + b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = len(_PNG)
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        yield data[position + 4 : position + 8], data[position:end]
        position = end


def _exif(given: bytes) -> bytes:
    """Return EXIF that holds the orientation of the given one, if it says any, and nothing else."""
    theirs, kept = Image.Exif(), Image.Exif()
    with suppress(Exception):  # Pillow's readers raise nearly any exception on damaged data
        theirs.load(given)
        if (stated := theirs[ExifTags.Base.Orientation]) in range(1, 9):
            kept[ExifTags.Base.Orientation] = int(stated)
    return kept.tobytes()


# Size, depth, colours, transparency and orientation, and where the pixels are and how they are compressed.
_TIFF_PIXELS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325}
    | {332, 334, 338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532}
)


def _bare_tiff(data: bytes) -> bytes | None:
    """Shorten the first directory where it stands, so that everything else keeps its place."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    big = b"+" in data[:4]
    offset_bytes, count_bytes, entry_bytes = (8, 8, 20) if big else (4, 2, 12)

    def number(start: int, size: int) -> int:
        return int.from_bytes(data[start : start + size], order)

    start = number(8 if big else 4, offset_bytes)
    first, end = start + count_bytes, start + count_bytes + entry_bytes * number(start, count_bytes)
    if end > len(data):
        return None
    entries = [data[entry : entry + entry_bytes] for entry in range(first, end, entry_bytes)]
    kept = [entry for entry in entries if int.from_bytes(entry[:2], order) in _TIFF_PIXELS]
    directory = len(kept).to_bytes(count_bytes, order) + b"".join(kept) + bytes(offset_bytes)
    return data[:start] + directory + data[start + len(directory) :]


_ITEM = re.compile(rb"(infe[\2\3].{3}(?:.{4}|.{6}))(?:Exif|mime)", re.DOTALL)
"""The entry of EXIF or XMP in an ISO base media file, of version 2 or 3."""
