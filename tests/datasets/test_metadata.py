"""A photograph is read, and the right way up, whatever else its file says."""

import functools
import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import encoded as file_of
from made_images import png_chunk as chunk
from PIL import Image

from handclip.datasets.formats import FORMATS
from handclip.datasets.images import decode_image, decode_pixels
from handclip.datasets.metadata import without_metadata
from handclip.errors import DataError

# What importing `images` does, which pytest undoes for each test.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

UPRIGHT = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))
STORED = UPRIGHT.transpose(Image.Transpose.ROTATE_90)  # as orientation 6 has it

Entry = tuple[int, int, int, bytes]
"""Of a directory: tag, type, count, and the bytes of the value."""

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def directory(entries: list[Entry], start: int) -> bytes:
    """A directory that stands at `start`, and behind it what its values do not find room for."""
    body, behind = b"", b""
    at = start + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in sorted(entries):
        if len(value) > 4:
            value, behind = struct.pack("<I", at + len(behind)), behind + value
        body += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    return struct.pack("<H", len(entries)) + body + bytes(4) + behind


def exif(*odd: Entry) -> bytes:
    turned = (0x0112, 3, 1, struct.pack("<H", 6))
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory([*odd, turned], 8)


@functools.cache
def encoded(kind: str, **options: object) -> bytes:
    return file_of(STORED, kind, **options)


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    whole = encoded("JPEG", quality=90)
    between = b"".join(struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in segments)
    return whole[:2] + between + whole[2:]


def png(*chunks: bytes) -> bytes:
    whole = encoded("PNG")
    return whole[:33] + b"".join(chunks) + whole[33:]


def tiff(*odd: Entry) -> bytes:
    pixels = np.asarray(STORED).tobytes()
    numbers = {256: STORED.width, 257: STORED.height, 259: 1, 262: 2, 273: 8, 274: 6, 277: 3, 278: STORED.height}
    numbers[279] = len(pixels)
    entries = [(tag, 4, 1, struct.pack("<I", number)) for tag, number in numbers.items()]
    entries.append((258, 3, 3, struct.pack("<3H", 8, 8, 8)))
    start = 8 + len(pixels)
    return b"II*\0" + struct.pack("<I", start) + pixels + directory([*entries, *odd], start)


def webp(content: bytes) -> bytes:
    return encoded("WEBP", lossless=True, exact=True, exif=content)


def require_upright(data: bytes, *, exact: bool = True) -> None:
    expected = np.asarray(UPRIGHT if exact else decoded_jpeg())
    assert np.array_equal(np.asarray(decode_image(data, "a")), expected)
    assert np.array_equal(decode_pixels(data, "a", enough=(12, 20)), expected)


def decoded_jpeg() -> Image.Image:
    return Image.open(io.BytesIO(encoded("JPEG", quality=90))).transpose(Image.Transpose.ROTATE_270)


ODD_VALUES = [b"300 dpi\0", struct.pack("<ii", -300, 0)]
TAGS = [0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x02BC, 0x83BB, 0x8649, 0x8769, 0x8773, 0x8825, 0xA005, 0xFDE8]


def odd_entries() -> Iterator[Entry]:
    for tag in TAGS:
        for kind in (*range(14), 16, 17, 18, 99):
            for count in (0, 1, 2**31):
                for value in ODD_VALUES:
                    yield tag, kind, count, (value * 2)[: max(4, min(16, count * SIZES.get(kind, 1)))]


@pytest.mark.promise("odd-metadata")
@pytest.mark.parametrize("tag", TAGS)
def test_no_tag_beside_the_orientation_matters(tag: int) -> None:
    for entry in odd_entries():
        if entry[0] == tag:
            data = exif(entry)
            require_upright(jpeg((0xE1, data)), exact=False)
            require_upright(png(chunk(b"eXIf", data[6:])))
            require_upright(webp(data))
            in_centimetres = [(0x0128, 3, 1, b"\3\0")] if tag != 0x0128 else []
            require_upright(tiff(entry, *in_centimetres))


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    entries=st.lists(
        st.tuples(
            st.integers(0, 65535).filter(lambda tag: tag != 0x0112),
            st.integers(0, 20),
            st.integers(0, 3) | st.integers(0, 2**32 - 1),
            st.binary(max_size=24),
        ),
        max_size=6,
    ),
    cut=st.integers(0, 40),
)
def test_no_metadata_makes_a_photograph_unreadable(entries: list[Entry], cut: int) -> None:
    data = exif(*entries)
    data = data[: len(data) - cut]
    for content in (jpeg((0xE1, data)), png(chunk(b"eXIf", data[6:])), webp(data)):
        assert decode_image(content, "a").size in (UPRIGHT.size, STORED.size)


MEGABYTES = bytes(3 * 2**20)
RICH = b"Some description. " * 100_000


@pytest.mark.promise("odd-metadata")
@pytest.mark.parametrize(
    "data",
    [
        png(chunk(b"zTXt", b"a\0\0" + zlib.compress(MEGABYTES))),
        png(chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(RICH))),
        png(chunk(b"tEXt", b"a\0" + RICH)),
        png(chunk(b"iCCP", b"a\0\0" + zlib.compress(MEGABYTES))),
        png(chunk(b"iCCP", b"a\0\0" + b"not compressed")),
        png(chunk(b"iCCP", b"a\0\7")),
        png(chunk(b"iCCP", b"")),
        png(*[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000)))] * 90),
        png(chunk(b"pHYs", b"\0")),
        png(chunk(b"gAMA", b"")),
        png(chunk(b"cHRM", b"\0\0")),
        png(chunk(b"sRGB", b"")),
        png(chunk(b"tEXt", b"a\0b")[:-4] + b"bad!"),
        encoded("PNG")[:-12] + chunk(b"zTXt", b"a\0\0" + zlib.compress(MEGABYTES)) + encoded("PNG")[-12:],
    ],
    ids=range(14),
)
def test_no_chunk_of_a_png_makes_it_unreadable(data: bytes) -> None:
    turned = data[:33] + chunk(b"eXIf", exif()[6:]) + data[33:]
    require_upright(turned)


@pytest.mark.promise("odd-metadata")
@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xE0, b"JFIF\0"),
        (0xE0, b"JFIF\0\1"),
        (0xE0, b"JFXX\0\x10"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation='\xff'"),
        (0xE1, b"Exif\0\0"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"ICC_PROFILE\0\1\2" + bytes(20)),
        (0xE2, b"MPF\0"),
        (0xE2, b"MPF\0II*\0\x08\0\0\0" + bytes(30)),
        (0xE2, b"MPF\0II*\0" + b"\xff" * 40),
        (0xE2, b"MPF\0II*\0\x08\0\0\0" + directory([(0xB001, 2, 4, b"abcd")], 8)),
        (0xE2, b"MPF\0II*\0\x08\0\0\0" + directory([(0xB001, 4, 1, b"\2\0\0\0"), (0xB002, 7, 3, b"abc")], 8)),
        (0xE2, b"FPXR\0"),
        (0xED, b"Photoshop 3.0\0"),
        (0xED, b"Photoshop 3.0\x008BIM"),
        (0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\0\1x"),
        (0xEE, b"Adobe"),
        (0xEE, b"Adobe\0"),
        (0xEF, b""),
        (0xFE, b""),
        (0xFE, b"\xff" * 60_000),
    ],
)
def test_no_segment_of_a_jpeg_makes_it_unreadable(marker: int, content: bytes) -> None:
    require_upright(jpeg((0xE1, exif()), (marker, content)), exact=False)
    require_upright(jpeg((marker, content), (0xE1, exif())), exact=False)


@pytest.mark.parametrize(
    "orientation",
    [
        (3, 1, struct.pack("<H", 6)),
        (4, 1, struct.pack("<I", 6)),
        (8, 1, struct.pack("<h", 6)),
        (9, 1, struct.pack("<i", 6)),
        (5, 1, struct.pack("<II", 6, 1)),
    ],
)
@pytest.mark.parametrize("make", [lambda data: jpeg((0xE1, data)), lambda data: png(chunk(b"eXIf", data[6:])), webp])
def test_the_orientation_counts_whatever_its_type(
    orientation: tuple[int, int, bytes], make: Callable[[bytes], bytes]
) -> None:
    data = b"Exif\0\0II*\0\x08\0\0\0" + directory([(0x0112, *orientation)], 8)
    require_upright(make(data), exact=make(data)[:2] != b"\xff\xd8")


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_an_orientation_that_there_is_not_turns_nothing(value: int) -> None:
    data = b"Exif\0\0II*\0\x08\0\0\0" + directory([(0x0112, 3, 1, struct.pack("<H", value))], 8)
    for content in (jpeg((0xE1, data)), png(chunk(b"eXIf", data[6:])), webp(data)):
        assert decode_image(content, "a").size == STORED.size


def test_damaged_pixels_are_refused_with_the_first_words_that_were_found() -> None:
    whole = jpeg((0xE1, exif((0x011A, 2, 4, b"abc\0"))), (0xE0, b"JFIF\0"))
    with pytest.raises(DataError, match="a is not an image of a known format"):
        decode_image(whole[: len(whole) // 2], "a")
    with pytest.raises(DataError, match="a cannot be decoded: image file is truncated"):
        decode_image(jpeg()[:-200], "a")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM"])
def test_what_has_no_metadata_is_left_as_it_is(kind: str) -> None:
    bare = without_metadata(encoded(kind))
    if bare is not None:
        assert without_metadata(bare) is None
        assert np.array_equal(np.asarray(decode_image(bare, "a")), np.asarray(decode_image(encoded(kind), "a")))


BEGINNINGS = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0+", b"abcdftyp"]


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.binary(max_size=300), st.sampled_from(BEGINNINGS))
def test_any_bytes_have_metadata_or_not(data: bytes, start: bytes) -> None:
    assert without_metadata(start + data) is None or isinstance(without_metadata(start + data), bytes)


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow does not read AVIF")
@pytest.mark.parametrize("odd", [b"x" * 40, b"II*\0\x08\0\0\0\xff\xff", b"II*\0\xff\xff\xff\xff"])
def test_no_exif_of_an_avif_makes_it_unreadable(odd: bytes) -> None:
    """Its orientation is another thing, which Pillow writes apart."""
    whole = file_of(STORED, "AVIF", quality=100, exif=exif((0x0131, 2, 40, b"x" * 40)))
    start = max(whole.rfind(mark, 0, whole.index(b"x" * 40)) for mark in (b"II*\0", b"MM\0*"))
    damaged = whole[:start] + odd + whole[start + len(odd) :]
    assert np.array_equal(np.asarray(decode_image(damaged, "a")), np.asarray(decode_image(whole, "a")))
