"""Numbers of more than 8 bits are read by the depth that their file declares, and by nothing else."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from made_images import encoded as file_of
from made_images import png_chunk as chunk
from PIL import Image
from PIL.TiffImagePlugin import SAVE_INFO

from handclip.datasets.colours import to_rgb
from handclip.datasets.images import decode_image
from handclip.errors import DataError

RAMP = np.arange(48).reshape(6, 8)


def encoded(values: np.ndarray, kind: str, **options: object) -> bytes:
    return file_of(Image.fromarray(values), kind, **options)


def png(values: np.ndarray, colour: int) -> bytes:
    """A PNG of 16 bits, which Pillow writes in grey only."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    chunks = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(values: np.ndarray, *, order: str = "<", bits: int = 0, photometric: int = 1) -> bytes:
    """An uncompressed TIFF of integers; those of 12 `bits` are packed."""
    height, width, *_ = values.shape
    samples = values.shape[2] if values.ndim == 3 else 1
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if bits == 12:
        text = "".join(f"{number:012b}" for number in values.ravel())
        data = int(text, 2).to_bytes(len(text) // 8, "big")
    tags = {256: [width], 257: [height], 258: [bits or 8 * values.dtype.itemsize] * samples, 259: [1]}
    tags |= {262: [photometric], 273: [200], 277: [samples], 278: [height], 279: [len(data)]}
    tags |= {339: [2 if values.dtype.kind == "i" else 1] * samples}
    directory, behind = b"", b""
    for tag, numbers in tags.items():
        content = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(content) > 4:
            content, behind = struct.pack(f"{order}I", 160 + len(behind)), behind + content
        directory += struct.pack(f"{order}HHI", tag, 3, len(numbers)) + content.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags)) + directory
    return (head.ljust(160, b"\0") + behind).ljust(200, b"\0") + data


def grey(data: bytes) -> np.ndarray:
    image = np.asarray(decode_image(data, "a"))
    assert np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 0], image[..., 2])
    return image[..., 0]


def scaled(values: np.ndarray, white: int) -> np.ndarray:
    return np.round(values.astype(np.float64) * 255 / white).astype(np.uint8)


SIXTEEN = (RAMP * 1394).astype(np.uint16)  # up to 65,518


@pytest.mark.parametrize(
    "data",
    [
        encoded(SIXTEEN, "PNG"),
        encoded(SIXTEEN, "PPM"),
        encoded(SIXTEEN, "TIFF"),
        encoded(SIXTEEN, "TIFF", compression="tiff_lzw"),
        tiff(SIXTEEN),
        tiff(SIXTEEN, order=">"),
    ],
)
def test_white_of_sixteen_bits_is_65535(data: bytes) -> None:
    assert np.array_equal(grey(data), scaled(SIXTEEN, 65535))


def test_white_of_twelve_bits_is_4095() -> None:
    values = (RAMP * 87).astype(np.uint16)
    assert np.array_equal(grey(tiff(values, bits=12)), scaled(values, 4095))


def test_where_white_is_zero_a_photograph_is_no_negative() -> None:
    assert np.array_equal(grey(tiff(SIXTEEN, photometric=0)), scaled(65535 - SIXTEEN, 65535))
    eight = (5 * RAMP).astype(np.uint8)
    assert np.array_equal(grey(tiff(eight, photometric=0)), 255 - eight)


@pytest.mark.parametrize("white", [1, 100, 254, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_white_of_a_pgm_is_what_it_says(white: int, plain: bool) -> None:
    values = (RAMP * white) // RAMP.max()
    numbers = " ".join(map(str, values.ravel())).encode()
    data = numbers if plain else values.astype(">u2" if white > 255 else "u1").tobytes()
    found = grey(b"P%d 8 6 %d\n" % (2 if plain else 5, white) + data)
    assert np.abs(found - scaled(values, white).astype(int)).max() <= (0 if white < 255 else 1)


@pytest.mark.promise("unknown-white")
@pytest.mark.parametrize("highest", [1, 255, 256, 65535, 70_000, 2**31 - 1])
@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}])
def test_32_bit_integers_have_no_white_whatever_they_are(highest: int, options: dict[str, str]) -> None:
    values = (RAMP * (highest / RAMP.max())).astype(np.int32)
    with pytest.raises(DataError, match="32-bit numbers without a defined white; save it with 8 or 16 bits"):
        decode_image(encoded(values, "TIFF", **options), "a")


@pytest.mark.promise("unknown-white")
@pytest.mark.parametrize("highest", [100, 255, 256, 32767])
@pytest.mark.parametrize("order", ["<", ">"])
def test_numbers_with_a_sign_have_no_white(highest: int, order: str) -> None:
    values = (RAMP * (highest / RAMP.max())).astype(np.int16)
    with pytest.raises(DataError, match="numbers with a sign, without a defined white"):
        decode_image(tiff(values, order=order), "a")


def test_unsigned_32_bit_integers_have_no_white() -> None:
    with pytest.raises(DataError, match="32-bit numbers without a defined white"):
        decode_image(tiff(RAMP.astype(np.uint32)), "a")


EIGHT = 5 * RAMP  # up to 235: what numpy makes of an 8-bit image when it computes
COLOURS = np.stack([EIGHT, EIGHT[::-1], 255 - EIGHT], -1)
ALPHA = np.dstack([COLOURS, np.full_like(EIGHT, 255)])


@pytest.mark.promise("unknown-white")
@pytest.mark.parametrize(
    "data",
    [
        encoded(EIGHT.astype(np.uint16), "PNG"),
        encoded(EIGHT.astype(np.uint16), "TIFF"),
        encoded(EIGHT.astype(np.uint16), "PPM"),
        encoded(EIGHT.astype(np.int32), "PPM"),
        png(COLOURS, 2),
        png(ALPHA, 6),
        png(np.dstack([EIGHT, ALPHA[..., 3]]), 4),
        tiff(COLOURS.astype(np.uint16), photometric=2),
        tiff(COLOURS.astype(np.uint16), photometric=2, order=">"),
        b"P6 8 6 65535\n" + COLOURS.astype(">u2").tobytes(),
    ],
)
def test_eight_bits_in_sixteen_are_not_read_as_black(data: bytes) -> None:
    with pytest.raises(DataError, match="16-bit numbers without a defined white: all of them are as low as if they "):
        decode_image(data, "a")


@pytest.mark.parametrize(
    "data",
    [
        png(257 * COLOURS, 2),
        tiff((257 * COLOURS).astype(np.uint16), photometric=2),
        b"P6 8 6 65535\n" + (257 * COLOURS).astype(">u2").tobytes(),
    ],
)
def test_colours_of_sixteen_bits_are_scaled(data: bytes) -> None:
    assert np.array_equal(np.asarray(decode_image(data, "a")), COLOURS)


def test_black_drawn_on_sixteen_bits_of_transparency_is_read() -> None:
    drawing = np.dstack([np.zeros_like(COLOURS), 257 * EIGHT])
    assert np.array_equal(grey(png(drawing, 6)), 255 - EIGHT)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF", "PPM", "WEBP", "JPEG"])
def test_black_of_eight_bits_is_black(kind: str) -> None:
    assert not np.asarray(decode_image(encoded(np.zeros((6, 8), np.uint8), kind), "a")).any()


def test_black_of_five_bits_is_black() -> None:
    head = b"BM" + struct.pack("<IHHI IiiHHIIiiII", 66, 0, 0, 54, 40, 2, 3, 1, 16, 0, 12, 0, 0, 0, 0)
    assert not np.asarray(decode_image(head + bytes(12), "a")).any()


def test_every_mode_of_pillow_that_tiff_can_hold_is_read_or_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for mode in SAVE_INFO:
            buffer = io.BytesIO()
            Image.new("L", (4, 4), 200).convert("I" if mode.startswith("I") else "L").convert(mode).save(buffer, "TIFF")
            if mode in ("I", "F", "I;16", "I;16L", "I;16B"):
                with pytest.raises(DataError, match="without a defined white"):
                    decode_image(buffer.getvalue(), "a")
            else:
                assert decode_image(buffer.getvalue(), "a").mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF"])
@pytest.mark.parametrize("is_loaded", [False, True])
def test_too_dark_16_bit_grey_is_refused_whether_loaded_or_not(kind: str, is_loaded: bool) -> None:
    def opened(level: int) -> Image.Image:
        image = Image.open(io.BytesIO(encoded(np.full((4, 4), level, np.uint16), kind)))
        if is_loaded:
            image.load()
        return image

    assert to_rgb(opened(257 * 90)).getpixel((0, 0)) == (90, 90, 90)
    with pytest.raises(ValueError, match="its pixels are 16-bit numbers without a defined white"):
        to_rgb(opened(200))
