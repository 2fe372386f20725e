import hashlib
import os
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from made_images import noise, turned
from PIL import Image, ImageFile

from handclip.datasets.images import read_image, read_pixels
from handclip.datasets.inspection import ImageFacts, inspect_image, inspect_images
from handclip.datasets.preparation import Preparation
from handclip.errors import DataError

LEFT_RED_RIGHT_BLUE = np.zeros((16, 32, 3), np.uint8)
LEFT_RED_RIGHT_BLUE[:, :16] = (255, 0, 0)
LEFT_RED_RIGHT_BLUE[:, 16:] = (0, 0, 255)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.ppm"])
def test_lossless_formats_keep_their_pixels(tmp_path, name):
    image = noise()
    path = save(image, tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    assert np.array_equal(pixels(path), np.asarray(image))
    assert np.array_equal(read_pixels(path, enough=(4, 4)), np.asarray(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = Image.fromarray(LEFT_RED_RIGHT_BLUE)
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    path = save(upright if stored is None else upright.transpose(stored), tmp_path / "a.png", exif=turned(orientation))
    assert np.array_equal(pixels(path), LEFT_RED_RIGHT_BLUE)


@pytest.mark.parametrize(
    ("width", "height", "enough", "decoded"),
    [
        (640, 480, (60, 80), (80, 60)),
        (640, 480, (61, 80), (160, 120)),
        (640, 480, (60, 81), (160, 120)),
        (640, 480, (121, 100), (320, 240)),
        (641, 481, (60, 80), (81, 61)),
        (640, 480, (241, 100), (640, 480)),
        (640, 480, (900, 900), (640, 480)),
    ],
)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_large_jpeg_files_are_decoded_no_larger_than_needed(tmp_path, width, height, enough, decoded, orientation):
    on_its_side = orientation == 6
    stored = noise(height, width) if on_its_side else noise(width, height)
    path = save(stored, tmp_path / "a.jpg", exif=turned(orientation))
    assert read_pixels(path, enough=enough).shape[1::-1] == decoded
    assert read_image(path).size == (width, height)


def test_grey_and_one_bit(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(pixels(save(Image.fromarray(ramp), tmp_path / "grey.png")), np.repeat(ramp[..., None], 3, -1))
    black_white = Image.fromarray(ramp).point(lambda value: 255 * (value > 127)).convert("1")
    assert set(np.unique(pixels(save(black_white, tmp_path / "one.png")))) == {0, 255}


def test_palette(tmp_path):
    path = save(Image.fromarray(LEFT_RED_RIGHT_BLUE).quantize(2), tmp_path / "a.png")
    assert Image.open(path).mode == "P"
    assert np.abs(pixels(path).astype(int) - LEFT_RED_RIGHT_BLUE).max() <= 8


def test_transparency_is_laid_over_white(tmp_path):
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 200, 10, 30])
    image.putpixel((0, 0), 0)
    for name in ("a.png", "a.gif"):
        got = pixels(save(image, tmp_path / name, transparency=0))
        assert got[0, 0].tolist() == [255, 255, 255] and got[1, 3].tolist() == [200, 10, 30]
    got = pixels(save(Image.fromarray(LEFT_RED_RIGHT_BLUE), tmp_path / "a.png", transparency=(255, 0, 0)))
    assert got[0, 0].tolist() == [255, 255, 255] and got[0, -1].tolist() == [0, 0, 255]
    assert np.all(pixels(save(Image.new("RGBA", (2, 2), (0, 0, 0, 51)), tmp_path / "rgba.png")) == 204)
    assert np.all(pixels(save(Image.new("LA", (2, 2), (0, 0)), tmp_path / "la.png")) == 255)


def test_cmyk(tmp_path):
    got = pixels(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=100))
    assert np.abs(got[4, 4].astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, name):
    grey = np.array([[0, 257, 128 * 257, 65535, 300]], np.uint16)
    got = pixels(save(Image.fromarray(grey), tmp_path / name))
    assert got[0, :, 0].tolist() == [0, 1, 128, 255, 1]
    assert np.array_equal(got[..., 0], got[..., 2])


@pytest.mark.parametrize("grey", [np.array([[0.5]], np.float32), np.array([[70000]], np.int32)])
def test_pixels_without_a_defined_white_are_refused(tmp_path, grey):
    path = save(Image.fromarray(grey), tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif cannot be decoded: .* without a defined white"):
        read_image(path)


def test_missing_empty_and_folder(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(DataError, match=r"none\.jpg does not exist"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(DataError, match=r"empty\.jpg is empty"):
        read_image(tmp_path / "empty.jpg")
    with pytest.raises(DataError, match=r"folder\.jpg cannot be read: Is a directory"):
        read_image(tmp_path / "folder.jpg")


@pytest.mark.parametrize(("name", "keep"), [("a.jpg", 0.5), ("a.png", 0.5), ("a.jpg", 0.02), ("a.png", 0.005)])
def test_truncated(tmp_path, name, keep):
    path = save(noise(), tmp_path / name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=name):
        read_image(path)


def test_ninety_five_megapixels_are_read_without_a_warning(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    path = save(Image.new("1", (10_000, 9_500)), tmp_path / "a.tif", compression="group4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).size == (10_000, 9_500)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_hash_is_checked(tmp_path):
    path = save(noise(), tmp_path / "a.png")
    facts = inspect_image(path)
    assert facts == ImageFacts(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    assert read_image(path, facts.sha256).size == (64, 48)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(
        DataError, match=r"a\.png has changed since the manifest was made; run `handclip prepare` again"
    ):
        read_image(path, facts.sha256)


def test_inspect_images_lists_the_unreadable(tmp_path):
    buffer = BytesIO()
    noise(8, 8).save(buffer, "PNG")
    paths = [f"{number:02}.png" for number in range(30)]
    for number, path in enumerate(paths):
        (tmp_path / path).write_bytes(b"" if number % 2 else buffer.getvalue())
    calls: list[tuple[int, int]] = []
    with pytest.raises(DataError) as caught:
        inspect_images(Preparation("folder", tmp_path, progress=lambda *counts: calls.append(counts)), paths)
    message = str(caught.value)
    assert message.startswith("15 of 30 images cannot be read:")
    assert f"{tmp_path}{os.sep}01.png is empty" in message
    assert "19.png" in message
    assert "21.png" not in message
    assert "and 5 more" in message
    assert "--allow-missing" in message
    assert calls == [(done, 30) for done in range(1, 31)]
    assert sorted(inspect_images(Preparation("folder", tmp_path, allow_missing=True), paths)) == paths[::2]
