"""Pixels of all colour modes made 8-bit RGB: by the depth that their file declares, and not by what they hold."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

_NO_WHITE = "without a defined white"
_ADVICE = "save it with 8 or 16 bits"
_UNSIGNED = (1,)
_WHITE_IS_ZERO = 0


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
        image = _grey_to_eight_bits(image)
    _require_light(image, bits)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def declared_bits(image: Image.Image) -> int:
    """Return how many bits the numbers of a pixel have: in the file of an image that is opened but not loaded, or else
    in what Pillow has made of it, which keeps more than 8 bits of grey alone.
    """
    if not isinstance(image, ImageFile.ImageFile):
        return 32 if image.mode == "I" else 16 if image.mode.startswith("I;16") else 8
    if isinstance(image, TiffImageFile):
        bits: int = max(image.tag_v2.get(BITSPERSAMPLE, (1,)))
        return bits
    if image.format not in ("PNG", "PPM"):
        return 8
    if not image.tile:  # loaded
        return 16 if image.mode.startswith("I") else 8
    # The decoder's raw mode, and in PPM files also the number that stands for white.
    how: Any = image.tile[0].args
    rawmode, white = how if isinstance(how, tuple) else (how, 255)
    return 16 if ";16" in rawmode or white > 255 else 8


def _grey_to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale a loaded image of grey integers (mode I or I;16) to mode L.

    Raises:
        ValueError: they have 32 bits or a sign, for which no format defines a white.
    """
    # Pillow's own conversion clips at 255. It gives 16-bit grey of some formats as 32-bit integers (mode I).
    grey: npt.NDArray[Any] = np.asarray(image)
    white = 65535
    if isinstance(image, TiffImageFile) or image.format is None:
        bits = declared_bits(image)
        if bits > 16:
            raise ValueError(f"its pixels are {bits}-bit numbers {_NO_WHITE}; {_ADVICE}")
    if isinstance(image, TiffImageFile):
        if image.tag_v2.get(SAMPLEFORMAT, _UNSIGNED) != _UNSIGNED:
            raise ValueError(f"its pixels are numbers with a sign, {_NO_WHITE}; {_ADVICE}")
        white = 2**bits - 1
        if image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
            grey = white - grey
    return Image.fromarray(((grey.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8))


def _require_light(image: Image.Image, bits: int) -> None:
    """Refuse an 8-bit image, made of one of more bits, that shows nothing.

    Its numbers went from 0 to 255, most likely, which is next to black where 65,535 is white.

    Raises:
        ValueError: no number in it is higher than 1.
    """
    if bits > 8 and np.max(image.getextrema()) <= 1:
        raise ValueError(
            f"its pixels are {bits}-bit numbers {_NO_WHITE}: all of them are as low as if they had 8 bits; {_ADVICE}"
        )
