"""Matrix products that wait for other threads only where these are worth it."""

import threading
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

ONE_THREAD_UP_TO = 2**26
"""Multiplications that one thread does in a millisecond or two. Sharing them gains less than that, and costs many times
as much where another process holds a core: all threads then wait for the one that does not get its turn."""

_one_at_a_time = threading.Lock()


def product(left: NDArray[Any], right: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return the (N, M) product of (N, D) and (D, M) matrices, made in one thread if it is small."""
    if left.size * right.shape[1] > ONE_THREAD_UP_TO:
        return np.matmul(left, right, out=out)
    # The limit holds for the whole process. Two threads that set it at once could leave it behind for ever; a third one
    # that multiplies meanwhile only does so in one thread.
    with _one_at_a_time, _blas().limit(limits=1):
        return np.matmul(left, right, out=out)


@cache
def _blas() -> Any:
    """NumPy's linear algebra. Finding it takes a millisecond each time, setting its threads hundredths of one."""
    return ThreadpoolController().select(user_api="blas")
