"""Photographs of every format that can be decoded here, under every name that their files have."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_images import encoded, turned
from PIL import Image

from handclip.datasets.file_kinds import KINDS
from handclip.datasets.formats import FORMATS, HEIF_VERSION, IMAGE_EXTENSIONS
from handclip.datasets.images import decode_image, read_image
from handclip.errors import DataError

needs_heic = pytest.mark.skipif(HEIF_VERSION is None, reason="pillow-heif is not installed")
needs_avif = pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow does not read AVIF")

HAND = Image.new("RGB", (48, 32), (200, 120, 40))
HAND.paste((10, 20, 30), (0, 0, 24, 32))


def test_every_ending_of_a_format_that_is_read_is_that_of_an_image() -> None:
    of_pillow = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert of_pillow - {".pfm"} <= IMAGE_EXTENSIONS  # floating-point numbers have no white
    assert not IMAGE_EXTENSIONS & set(KINDS["other_image"].endings.split())


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".JPG", ".jif", ".mpo"])
def test_a_jpeg_is_read_whatever_its_name(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"hand{ending}").write_bytes(encoded(HAND, "JPEG", quality=95))
    assert ending.lower() in IMAGE_EXTENSIONS
    assert np.abs(np.asarray(read_image(tmp_path / f"hand{ending}")) - np.asarray(HAND).astype(int)).mean() < 3


@pytest.mark.parametrize("kind", [pytest.param("AVIF", marks=needs_avif), pytest.param("HEIF", marks=needs_heic)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_phones_photographs_are_read_upright(kind: str, mode: str, orientation: int) -> None:
    turns = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    image = HAND.convert(mode)
    stored = image.transpose(turns[orientation]) if orientation in turns else image
    found = decode_image(encoded(stored, kind, quality=95, exif=turned(orientation).tobytes()), "hand.heic")
    assert found.size == HAND.size
    assert np.abs(np.asarray(found) - np.asarray(image.convert("RGB")).astype(int)).mean() < 3


@pytest.mark.parametrize("kind", [pytest.param("AVIF", marks=needs_avif), pytest.param("HEIF", marks=needs_heic)])
def test_transparency_of_phones_formats_is_laid_over_white(kind: str) -> None:
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 51))
    assert abs(int(np.asarray(decode_image(encoded(clear, kind, quality=100), "a"))[16, 16, 0]) - 204) <= 2


@needs_heic
@pytest.mark.parametrize("levels", [10, 12])
def test_heic_of_more_than_8_bits_is_scaled(levels: int) -> None:
    import pillow_heif

    values = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", levels == 12)
        for mode, data in (("I;16", values), ("RGB;16", np.repeat(values[..., None], 3, -1))):
            buffer = io.BytesIO()
            pillow_heif.from_bytes(mode, (64, 48), data.tobytes()).save(buffer, quality=95)
            found = np.asarray(decode_image(buffer.getvalue(), "a"))[..., 1]
            assert np.abs(found - values / 257).mean() < 4


@pytest.mark.parametrize("kind", [pytest.param("AVIF", marks=needs_avif), pytest.param("HEIF", marks=needs_heic)])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_damaged_photographs_of_phones_are_refused(kind: str, keep: float) -> None:
    whole = encoded(HAND.resize((480, 320)), kind, quality=95)
    with pytest.raises(DataError, match=r"a\.heic (is an? (HEIC|AVIF) photograph that )?cannot be decoded"):
        decode_image(whole[: int(keep * len(whole))], "a.heic")


WITHOUT = """
import sys
sys.modules["pillow_heif"] = None
from handclip.datasets.formats import FORMATS, IMAGE_EXTENSIONS
from handclip.datasets.images import decode_image
from handclip.errors import DataError
assert "HEIF" not in FORMATS and ".heic" not in IMAGE_EXTENSIONS
try:
    decode_image(b"\\0\\0\\0\\x20ftypheic" + bytes(40), "hand.heic")
except DataError as error:
    print(error)
"""


def test_without_pillow_heif_it_is_said_what_reads_heic() -> None:
    result = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert result.stdout == (
        "hand.heic is a HEIC photograph; `pip install pillow-heif` reads it, or save it as JPEG or PNG\n"
    )
