"""What metrics do with arrays and NumPy does not."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


def ranges_from(starts: Integers, lengths: Integers) -> Integers:
    """Integers that count up from each start, one range after the other."""
    before = np.cumsum(lengths) - lengths
    ranges: Integers = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
    return ranges


def rounded_up(bounds: Floats, dtype: np.dtype[Any]) -> NDArray[np.floating[Any]]:
    """The least numbers of a type that are not below the bounds: a number of that type reaches both or neither."""
    rounded: NDArray[np.floating[Any]] = bounds.astype(dtype)
    np.nextafter(rounded, dtype.type(np.inf), out=rounded, where=rounded < bounds)
    return rounded
