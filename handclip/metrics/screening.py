"""Ranks by float64 cosines at the price of float32 ones.

A float32 product is made in half the time of a float64 one, and tells of nearly all pairs which cosine is the higher:
only of cosines nearer to each other than its error the float64 ones have to be known.

**How large the error can be.** Let q and g be unit vectors of D entries in float64, and u = 2^-24.

- Rounding an entry to float32 multiplies it by 1 + e with |e| <= u, once in q and once in g.
- A sum of D products, in whatever order and however it is shared among registers, blocks and threads, is a tree in
  which each product goes through one multiplication and at most D - 1 additions, each multiplying it by another such
  1 + e. A fused multiply-add leaves one out; adding to 0 and multiplying by 1 are exact.

So each q_i g_i comes out multiplied by at most D + 2 such factors, whose product is within (D + 2) u / (1 - (D + 2) u)
of 1 (Higham, "Accuracy and Stability of Numerical Algorithms", lemma 3.1). By Cauchy and Schwarz the sum of all
|q_i g_i| is at most |q| |g| = 1, hence

    |float32 cosine - cosine| <= (D + 2) u / (1 - (D + 2) u).

`_error` is 1.01 (D + 2) u. Up to `MOST_DIMENSIONS` the denominator takes a fifth of that hundredth. The rest, more than
4e-10 (D + 2), is far above what was left out: the error of the float64 cosine itself, of the lengths of q and g and of
the bounds, together below 1e-15 (D + 2), and entries and products too small for float32, which may come out as 0:
below 1e-37 D.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from handclip.metrics.arrays import Floats, Integers, ranges_from, rounded_up
from handclip.metrics.products import ONE_THREAD_UP_TO, in_threads, threads_of_products

MOST_DIMENSIONS = 2**15
"""Of longer vectors float32 cosines are too uncertain to tell much."""

_QUERIES, _IMAGES = 256, 8192
"""Most queries and gallery images whose scores are made at once."""

_SCORES = 2**24
"""Most scores that all threads together hold at once: 64 MB."""

_ENTRIES = 2**22
"""Most entries of features of the gallery, and of queries, that are there as float32 at once: 16 MB each."""

_PAIR_ENTRIES = 2**15
"""Most entries of float64 features that are gathered at once: 256 kB, so that they stay near the processor."""

_SPARSE = 8
"""Where no more than one in so many scores has to be compared with each relevant image's, they are picked out first."""

_CROWD = 64
"""Where more than one in so many images of the gallery is too near to a relevant one, float64 is faster for all."""


def pays(queries: int, images: int, dimensions: int) -> bool:
    """Return whether ranking by screened scores is faster than by float64 ones from the start."""
    return dimensions <= MOST_DIMENSIONS and queries * images * dimensions > ONE_THREAD_UP_TO


def screened_ranks(
    queries: Floats,
    gallery: Floats,
    chosen: Integers,
    relevant_to: Callable[[Integers], tuple[Integers, Integers]],
    tie: float,
) -> Iterator[tuple[Integers, Integers, NDArray[np.bool_], NDArray[np.bool_]]]:
    """Yield the ranks of relevant images by float64 cosines, of all queries for which they can be had cheaply.

    Args:
        queries: (Q, D) unit vectors.
        gallery: (G, D) unit vectors.
        chosen: which queries to look at; each has a relevant image.
        relevant_to: takes some queries and returns the columns of their relevant images, one query after the other, and
            how many each has.
        tie: cosines this near are equal.

    Yields:
        Some of the chosen queries, and for them: (K, N) ranks of relevant images, best first, 0 where there is none;
        (K,) whether a wrong image has the same score as the best relevant one; (K,) whether all that was found.
    """
    step = _ENTRIES // gallery.shape[1]
    for start in range(0, len(chosen), step):
        blocks = _blocks(chosen[start : start + step])
        screens = in_threads(lambda block: _Screen(queries[block], gallery, *relevant_to(block), tie), blocks)
        _screen(screens, gallery)
        for block, screen in zip(blocks, screens, strict=True):
            yield block, screen.ranks(), screen.tied, screen.found


def _blocks(chosen: Integers) -> list[Integers]:
    """Divide queries into blocks of equal size, as many for each thread."""
    threads = threads_of_products()
    rows = min(_QUERIES, max(1, _SCORES // _IMAGES // threads))
    rounds = -(-len(chosen) // (rows * threads))
    return [block for block in np.array_split(chosen, rounds * threads) if len(block)]


def _screen(screens: list["_Screen"], gallery: Floats) -> None:
    step = min(_IMAGES, _ENTRIES // gallery.shape[1])
    for start in range(0, len(gallery), step):
        images = gallery[start : start + step].astype(np.float32)
        open_ones = [screen for screen in screens if screen.found.any()]
        in_threads(partial(_Screen.compare, images=images, start=start), open_ones)


class _Screen:
    """Counts, some gallery images at a time, which wrong ones come before each relevant one, for a block of queries."""

    def __init__(self, queries: Floats, gallery: Floats, columns: Integers, counts: Integers, tie: float) -> None:
        self._queries, self._gallery, self._counts = queries, gallery, counts
        self._narrow = queries.astype(np.float32)
        rows = np.repeat(np.arange(len(queries)), counts)
        cosines = self._cosines(rows, columns)
        by_column = np.argsort(columns, kind="stable")
        self._relevant = rows[by_column], columns[by_column]
        # Nothing reaches infinity, which stands where a query has fewer relevant images than others.
        ordered = np.full((len(queries), counts.max()), np.inf)
        ordered[rows, ranges_from(np.zeros_like(counts), counts)] = cosines[np.lexsort((-cosines, rows))]
        self._least, self._most = ordered - tie, ordered + tie
        error = _error(queries.shape[1])
        self._low = rounded_up(self._least - error, np.dtype(np.float32))
        self._high = rounded_up(self._most + error, np.dtype(np.float32))
        self._lowest = self._low[np.arange(len(queries)), counts - 1]
        self._ahead: Integers = np.zeros(ordered.shape, dtype=np.int64)
        self._near = np.zeros(len(queries), dtype=np.int64)
        self.tied = np.zeros(len(queries), dtype=np.bool_)
        self.found = np.ones(len(queries), dtype=np.bool_)

    def ranks(self) -> Integers:
        """(Q, N): the i-th best relevant image stands behind i - 1 relevant ones and the wrong ones ahead of it."""
        i = np.arange(1, self._ahead.shape[1] + 1)
        return np.where(i <= self._counts[:, None], i + self._ahead, 0)

    def compare(self, images: NDArray[np.float32], start: int) -> None:
        """Take in the images of the gallery from a place on."""
        scores = np.matmul(self._narrow, images.T)
        rows, columns = self._relevant
        begin, end = np.searchsorted(columns, (start, start + len(images)))
        scores[rows[begin:end], columns[begin:end] - start] = -np.inf  # which leaves the wrong ones
        reaching = np.flatnonzero(scores >= self._lowest[:, None])
        if _SPARSE * len(reaching) * self._low.shape[1] <= scores.size:
            self._compare_few(scores, reaching, start)
        else:
            self._compare_all(scores, start)

    def _compare_few(self, scores: NDArray[np.float32], reaching: Integers, start: int) -> None:
        row, column = np.divmod(reaching, scores.shape[1])
        score = scores.ravel()[reaching][:, None]
        beyond = score >= self._high[row]
        first = np.flatnonzero(np.diff(row, prepend=-1))
        if len(first):
            self._ahead[row[first]] += np.add.reduceat(beyond, first, axis=0, dtype=np.int64)
        near, place = np.nonzero((score >= self._low[row]) & ~beyond)
        self._decide(row[near], place, start + column[near])

    def _compare_all(self, scores: NDArray[np.float32], start: int) -> None:
        for place in range(self._low.shape[1]):
            beyond = scores >= self._high[:, place, None]
            self._ahead[:, place] += beyond.view(np.uint8).sum(axis=1, dtype=np.uint16)  # faster than count_nonzero
            near = np.flatnonzero((scores >= self._low[:, place, None]) > beyond)
            row, column = np.divmod(near, scores.shape[1])
            self._decide(row, np.full_like(row, place), start + column)

    def _decide(self, rows: Integers, places: Integers, columns: Integers) -> None:
        """Compare by float64 wrong images that float32 cannot tell from a relevant one."""
        self._near += np.bincount(rows, minlength=len(self._near))
        self._give_up(self._near > 1 + len(self._gallery) // _CROWD)
        kept = self.found[rows]
        rows, places, columns = rows[kept], places[kept], columns[kept]
        cosines = self._cosines(rows, columns)
        ahead = cosines >= self._least[rows, places]
        np.add.at(self._ahead, (rows[ahead], places[ahead]), 1)
        self.tied[rows[ahead & (places == 0) & (cosines <= self._most[rows, 0])]] = True

    def _give_up(self, queries: NDArray[np.bool_]) -> None:
        self.found[queries] = False
        self._low[queries] = self._high[queries] = self._lowest[queries] = np.inf

    def _cosines(self, rows: Integers, columns: Integers) -> Floats:
        """Float64 cosines of pairs."""
        cosines = np.empty(len(rows))
        step = max(1, _PAIR_ENTRIES // self._queries.shape[1])
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            pairs = self._queries.take(rows[some], axis=0), self._gallery.take(columns[some], axis=0)
            np.einsum("ij,ij->i", *pairs, out=cosines[some])
        return cosines


def _error(dimensions: int) -> float:
    """How far a float32 cosine can be from a float64 one."""
    return 1.01 * (dimensions + 2) * 2.0**-24
