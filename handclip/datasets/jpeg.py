"""JPEG files decoded by libjpeg-turbo directly, where simplejpeg is installed.

Pillow decodes with the same library and gives the same pixels, but copies them twice more on the way to an array.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

try:
    import simplejpeg
except ImportError:  # a platform for which there is none; Pillow decodes
    simplejpeg = None

SIMPLEJPEG_VERSION: str | None = simplejpeg.__version__ if simplejpeg else None
"""None where it is not installed."""

_BLOCK = 8
"""Pixels that JPEG codes together. In an image that is smaller, simplejpeg would take another scale than Pillow."""


def decode_jpeg(data: bytes, opened: Image.Image) -> npt.NDArray[np.uint8] | None:
    """Decode what Pillow has opened, and so found to be sound so far, but not loaded yet.

    Args:
        data: the file's bytes.
        opened: knows the size to decode at, which `Image.draft` may have reduced.

    Returns:
        (height, width, 3), as the file stores them: not yet turned upright. None where Pillow has to decode, as the
        file is no JPEG, has other colours than RGB or grey, or anything in it is not as it should be: Pillow says
        whether it matters.
    """
    if simplejpeg is None or opened.format not in ("JPEG", "MPO") or opened.mode not in ("RGB", "L"):
        return None
    if max(opened.size) < _BLOCK:
        return None
    width, height = opened.size
    pixels = np.empty((height, width, 3), np.uint8)
    try:
        # The buffer makes it refuse a file in which it finds another, larger size than Pillow.
        found = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, buffer=pixels)
    except Exception:
        return None
    return found if found.shape == pixels.shape else None
