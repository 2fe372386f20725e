"""Matrix products that wait for other threads only where these are worth it."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from handclip.cores import available_cores

_Task = TypeVar("_Task")
_Done = TypeVar("_Done")

ONE_THREAD_UP_TO = 2**26
"""Multiplications that one thread does in a millisecond or two. Sharing them gains less than that, and costs many times
as much where another process holds a core: all threads then wait for the one that does not get its turn."""

_one_at_a_time = threading.Lock()
"""Held by who limits the threads of products, as the limit is one for the whole process: two who set it at once could
leave it behind for ever. Who multiplies meanwhile does so in one thread, too."""


def product(left: NDArray[Any], right: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return the (N, M) product of (N, D) and (D, M) matrices, made in one thread if it is small."""
    if left.size * right.shape[1] > ONE_THREAD_UP_TO or not _one_at_a_time.acquire(blocking=False):
        return np.matmul(left, right, out=out)
    try:
        with _blas().limit(limits=1):
            return np.matmul(left, right, out=out)
    finally:
        _one_at_a_time.release()


def threads_of_products() -> int:
    """Return how many threads a large product is shared among."""
    return max((library["num_threads"] for library in _blas().info()), default=available_cores())


def in_threads(do: Callable[[_Task], _Done], tasks: Iterable[_Task]) -> list[_Done]:
    """Return the results of tasks, shared among as many threads as a large product is, in place of its parts."""
    alone = partial(_blas().limit, limits=1)  # in each thread, too: in some builds the limit is the thread's own
    with _one_at_a_time:
        threads = threads_of_products()
        with alone(), ThreadPoolExecutor(threads, initializer=alone) as pool:
            return list(pool.map(do, tasks))


@cache
def _blas() -> Any:
    """NumPy's linear algebra. Finding it takes a millisecond each time, setting its threads hundredths of one."""
    return ThreadpoolController().select(user_api="blas")
