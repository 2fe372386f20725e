"""What simplejpeg decodes is what Pillow decodes, and it takes nothing that Pillow refuses."""

import io
import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import encoded as file_of
from made_images import turned
from PIL import Image

from handclip.datasets import images
from handclip.datasets.images import _decode_jpeg, decode_pixels
from handclip.errors import DataError

# What importing `images` does, which pytest undoes for each test.
pytestmark = [
    pytest.mark.skipif(images.simplejpeg is None, reason="simplejpeg is not installed"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
]


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Coarse and fine noise together, so that all frequencies and colours occur."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (height // 9 + 1, width // 9 + 1, 3), dtype=np.uint8))
    fine = generator.integers(-40, 40, (height, width, 3))
    mixed = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + fine
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, **options: object) -> bytes:
    return file_of(image, "JPEG", **options)


def by_pillow(data: bytes, enough: tuple[int, int]) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "simplejpeg", None)
        return decode_pixels(data, "a.jpg", enough=enough)


def outcome(data: bytes, enough: tuple[int, int], *, alone: bool) -> str | bytes:
    """The pixels, or the words of the refusal."""
    try:
        pixels = by_pillow(data, enough) if alone else decode_pixels(data, "a.jpg", enough=enough)
    except DataError as error:
        return str(error)
    return bytes(repr(pixels.shape), "ascii") + pixels.tobytes()


@pytest.mark.promise("simplejpeg")
@settings(derandomize=True, deadline=None, max_examples=250)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    enough=st.tuples(st.integers(1, 160), st.integers(1, 160)),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    quality=st.integers(1, 100),
    progressive=st.booleans(),
    orientation=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_pixels_are_those_of_pillow(
    size: tuple[int, int],
    enough: tuple[int, int],
    mode: str,
    subsampling: str,
    quality: int,
    progressive: bool,
    orientation: int,
    seed: int,
) -> None:
    options = {"quality": quality, "progressive": progressive, "exif": turned(orientation)}
    options |= {"subsampling": subsampling} if mode == "RGB" else {}
    data = encoded(noise(*size, mode, seed), **options)
    assert np.array_equal(decode_pixels(data, "a.jpg", enough=enough), by_pillow(data, enough))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
@pytest.mark.parametrize("restart", [0, 2])
@pytest.mark.parametrize("enough", [(600, 800), (200, 200), (90, 110), (40, 50)])
def test_photographs_are_decoded_by_simplejpeg(subsampling: str, restart: int, enough: tuple[int, int]) -> None:
    options = {"restart_marker_blocks": restart} if restart else {}
    data = encoded(noise(800, 600), subsampling=subsampling, quality=90, **options)
    with Image.open(io.BytesIO(data)) as opened:
        opened.draft(None, enough[::-1])
        found = _decode_jpeg(data, opened)
    assert found is not None
    assert np.array_equal(found, by_pillow(data, enough))


def with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


WHOLE = encoded(noise(120, 90), quality=80)
ODD = {
    "cut": WHOLE[: len(WHOLE) // 2],
    "cut in the header": WHOLE[:100],
    "without its end": WHOLE[:-2],
    "followed by other bytes": WHOLE + b"x" * 1000,
    "with a byte of noise between segments": WHOLE[:2] + b"\0" + WHOLE[2:],
    "a hole in the pixels": WHOLE[:-900] + bytes(300) + WHOLE[-600:],
    "coloured as RGB": with_segment(encoded(noise(120, 90), keep_rgb=True), 0xED, b"x"),
    "said to be RGB by Adobe": with_segment(WHOLE, 0xEE, b"Adobe\0\x64\0\0\0\0\0"),
    "of four colours": encoded(noise(120, 90, "CMYK")),
    "of two frames": WHOLE[:2] + WHOLE[WHOLE.index(b"\xff\xc0") :][:19] + WHOLE[2:],
    "with many pixels in a frame that Pillow skips": WHOLE.replace(b"\0\x5a\0\x78\x03", b"\xff\xff\xff\xff\x03"),
    "without tables": b"".join((WHOLE[:20], WHOLE[WHOLE.index(b"\xff\xc0") :])),
    "12 bits deep": WHOLE.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"),
    "arithmetic coded, it says": WHOLE.replace(b"\xff\xc0\0\x11", b"\xff\xc9\0\x11"),
    "lossless, it says": WHOLE.replace(b"\xff\xc0\0\x11", b"\xff\xc3\0\x11"),
}


@pytest.mark.parametrize("enough", [(90, 120), (20, 30)])
@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_comes_out_as_from_pillow(name: str, enough: tuple[int, int]) -> None:
    assert outcome(ODD[name], enough, alone=False) == outcome(ODD[name], enough, alone=True)


@pytest.mark.promise("simplejpeg")
def test_damage_comes_out_as_from_pillow() -> None:
    choose = random.Random(0)
    for _ in range(1500):
        data = bytearray(choose.choice([WHOLE, PROGRESSIVE, GREY]))
        for _ in range(choose.randint(1, 4)):
            start = choose.randrange(len(data) if choose.random() < 0.3 else 700)
            data[start : start + choose.randint(0, 3)] = choose.randbytes(choose.randint(0, 3))
        assert outcome(bytes(data), (40, 50), alone=False) == outcome(bytes(data), (40, 50), alone=True)


PROGRESSIVE, GREY = encoded(noise(120, 90), progressive=True), encoded(noise(120, 90, "L"))


@pytest.mark.promise("simplejpeg")
def test_without_simplejpeg_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "simplejpeg", None)
    with Image.open(io.BytesIO(WHOLE)) as opened:
        assert _decode_jpeg(WHOLE, opened) is None
    assert decode_pixels(WHOLE, "a.jpg", enough=(90, 120)).shape == (90, 120, 3)
