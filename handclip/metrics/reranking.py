r"""k-reciprocal re-ranking (Zhong, Zheng, Cao and Li, "Re-ranking Person Re-identification with k-reciprocal Encoding",
CVPR 2017).

Two images are k-reciprocal neighbours when each is among the k nearest of the other. Images with much the same
neighbours get nearer, others move apart:

1. the original distance $d$ is the squared Euclidean distance of unit vectors, divided by the largest of its row;
2. $R(p)$, the k1-reciprocal neighbours of $p$, takes in the k1/2-reciprocal neighbours of each of its members $q$
   of which more than two thirds are in $R(p)$ already;
3. $V(p)$ weighs them by $e^{-d}$, sums to 1, and is averaged over the k2 nearest images of $p$;
4. the Jaccard distance is $1 - \sum_i \min(V_i(p), V_i(g)) / \sum_i \max(V_i(p), V_i(g))$, and the final distance
   $(1 - \lambda) \cdot$ Jaccard $+ \lambda d$.

Neighbours are sought among queries and gallery together, so that **the rank for one query depends on which others are
asked with it** (the method is transductive). Numbers with and without it are never compared.

Where paper and the authors' code differ, this follows the code, which made the published numbers: "more than" two
thirds, and an image counts as its own nearest, so that k1 adds k1 images to it and k2 counts it in. Images at the same
distance as the k-th nearest are neighbours too; the result does not depend on the order of the images.

An image has a few dozen neighbours among thousands, so all but the distances is kept in sparse matrices. Images that a
model cannot tell apart are all neighbours of each other; what hundreds of them share is computed densely.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from handclip.metrics.arrays import Floats, ranges_from
from handclip.metrics.products import product
from handclip.metrics.ranking import (
    COSINE_TIE,
    RankingResult,
    rank_similarities,
    unit_vectors,
)

Sparse: TypeAlias = sparse.csr_array
"""(N, N); of neighbours, 1 where column j is a neighbour of row i."""

_TIE = 2 * COSINE_TIE
"""Squared distances this near are equal, since d = 2 - 2 cos."""

_TILE = 128
"""Rows and columns of a square of distances that stays near the processor while it is worked on."""

_STRIP = 512
"""Rows of distances that are multiplied at once: of those the product is as fast as of all."""

_GROUPS = 16
"""For each neighbour that is sought: so many groups the images are divided into."""

_PAIRS_AT_ONCE = 1_000_000
"""Pairs of encodings that share an image and are compared at once, a few hundred thousand more at most."""

_CROWD = 10_000
"""So many pairs of images that share a neighbour make it crowded: a hundred on either side, say."""

_DENSE_GAIN = 16
"""A dense matrix is at least so many times as fast for each of its entries as a sparse one."""


def rerank_gallery(
    query_features: Any,
    gallery_features: Any,
    query_labels: Any,
    gallery_labels: Any,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
) -> RankingResult:
    """Rank the gallery for each query by the re-ranked distance, in float64; labels only score the result.

    Args:
        query_features: (Q, D) array or tensor; normalised here.
        gallery_features: (G, D) array or tensor; normalised here.
        query_labels: (Q,) identities, any integers.
        gallery_labels: (G,) identities, any integers.
        k1: neighbours that are encoded.
        k2: nearest images, the image itself among them, whose encodings are averaged.
        lambda_: share of the original distance, from 0 to 1.

    Raises:
        ValueError: as in `rank_gallery`; a parameter is out of range; or each identity of the gallery has one image.
    """
    require_several_images(gallery_labels)
    distances = reranked_distances(query_features, gallery_features, k1=k1, k2=k2, lambda_=lambda_)
    return rank_similarities(-distances, query_labels, gallery_labels, tie=COSINE_TIE)


def require_several_images(gallery_labels: Any) -> None:
    """Check that some identity has more than one gallery image.

    Raises:
        ValueError: none has.
    """
    labels = np.asarray(gallery_labels)
    if len(np.unique(labels)) == len(labels):
        raise ValueError("each identity of the gallery has one image, so that re-ranking by its neighbours cannot help")


def reranked_distances(
    query_features: Any, gallery_features: Any, *, k1: int = 20, k2: int = 6, lambda_: float = 0.3
) -> Floats:
    """Return the (Q, G) final distances; arguments as in `rerank_gallery`.

    Takes about 8 (Q + G)^2 + 16 Q G bytes: 0.15 GB for a draw of HD. Images that a model cannot tell apart are all
    neighbours of each other; of thousands of them it takes several times as much, and long.

    Raises:
        ValueError: a parameter is out of range, a shape does not fit, or a feature vector is zero or not finite.
    """
    if k1 < 1 or k2 < 1 or not 0 <= lambda_ <= 1:
        raise ValueError(f"k1 and k2 start at 1, lambda is from 0 to 1; got {k1}, {k2} and {lambda_}")
    queries = unit_vectors(query_features, "query_features")
    gallery = unit_vectors(gallery_features, "gallery_features")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"query features have {queries.shape[1]} dimensions, gallery features {gallery.shape[1]}")
    distances = _squared_distances(np.concatenate([queries, gallery]))
    near, half_near, nearest = _nearest(distances, (k1, round(k1 / 2), k2 - 1))
    expanded = _expanded(_mutual(near), _mutual(half_near))
    largest = distances.max(axis=1)
    largest[largest == 0] = 1  # all images may be the same
    encodings = _averaged(_encoded(expanded, distances, largest), nearest)
    split = len(queries)
    final = _shared(encodings[:split], encodings[split:].T.tocsr())
    for start in range(0, split, _TILE):
        rows = slice(start, min(start + _TILE, split))
        shared = final[rows]  # and the sum of the larger weights is 2 less this, since each row sums to 1
        original = distances[rows, split:] / largest[rows, None]
        final[rows] = (1 - lambda_) * (1 - shared / (2 - shared)) + lambda_ * original
    return final


def _squared_distances(vectors: Floats) -> Floats:
    """(N, N) squared Euclidean distances of unit vectors, symmetric to the last bit."""
    size = len(vectors)
    distances = np.empty((size, size))
    for start in range(0, size, _STRIP):
        stop = min(start + _STRIP, size)
        product(vectors[start:stop], vectors[start:].T, out=distances[start:stop, start:])
        for top in range(start, stop, _TILE):
            rows = slice(top, min(top + _TILE, stop))
            for left in range(top, size, _TILE):
                columns = slice(left, left + _TILE)
                tile = distances[rows, columns]
                tile *= -2
                tile += 2
                tile[tile < _TIE] = 0
                if top == left:
                    square = distances[rows, rows]
                    np.minimum(square, square.T.copy(), out=square)
                distances[columns, rows] = tile.T
    np.fill_diagonal(distances, 0)
    return distances


def _nearest(distances: Floats, numbers: tuple[int, ...]) -> list[Sparse]:
    """For each k: which images are row i itself or among its k nearest others."""
    size = len(distances)
    places = [min(k, size - 1) for k in numbers]
    last = max(places)
    groups = min(size, _GROUPS * (last + 1))
    found: list[list[NDArray[np.int64]]] = [[] for _ in places]
    for start in range(0, size, _TILE):
        rows = distances[start : start + _TILE]
        # So many groups have an image this near that all neighbours are, and hardly any other: only those are sorted.
        least = rows[:, : size // groups * groups].reshape(len(rows), -1, groups).min(axis=1)
        bounds = np.partition(least, last, axis=1)[:, last, None] + _TIE
        flat = np.flatnonzero(rows <= bounds)
        row, near = flat // size, rows.ravel()[flat]
        ascending = near[np.lexsort((near, row))]
        kth = ascending[np.searchsorted(row, np.arange(len(rows)))[:, None] + places] + _TIE
        for of_k, of_rows in zip(found, kth.T, strict=True):
            of_k.append(flat[near <= of_rows[row]] + start * size)
    return [_neighbours(np.concatenate(flat), size) for flat in found]


def _neighbours(flat: NDArray[np.int64], size: int) -> Sparse:
    """Neighbours by their ascending places in the flattened matrix."""
    ends = np.searchsorted(flat, size * np.arange(size + 1))
    return sparse.csr_array((np.ones(len(flat)), flat % size, ends), shape=(size, size))


def _mutual(near: Sparse) -> Sparse:
    return near.multiply(near.T).tocsr()


def _expanded(reciprocal: Sparse, reciprocal_of_half: Sparse) -> Sparse:
    """Add, for each image, the k/2-reciprocal neighbours of those neighbours that share most of them with it."""
    sizes = reciprocal_of_half.sum(axis=1)
    shared = _product(reciprocal, reciprocal_of_half.T.tocsr()).multiply(reciprocal).tocsr()
    shared.data = (3 * shared.data > 2 * sizes[shared.indices]).astype(np.float64)
    shared.eliminate_zeros()
    expanded = (reciprocal + _product(shared, reciprocal_of_half)).tocsr()
    expanded.sort_indices()
    return expanded


def _encoded(expanded: Sparse, distances: Floats, largest: Floats) -> Sparse:
    """Weights of the neighbours, each row summing to 1."""
    counts = np.diff(expanded.indptr)
    rows = np.repeat(np.arange(len(distances)), counts)
    weights = np.exp(-distances[rows, expanded.indices] / largest[rows])
    sums = np.add.reduceat(weights, expanded.indptr[:-1])  # each row holds the image itself
    return sparse.csr_array((weights / sums[rows], expanded.indices, expanded.indptr), shape=expanded.shape)


def _averaged(encodings: Sparse, nearest: Sparse) -> Sparse:
    """Mean encodings of each image's nearest."""
    sums = _product(nearest, encodings)
    sums.data /= np.repeat(nearest.sum(axis=1), np.diff(sums.indptr))
    return sums


def _shared(queries: Sparse, gallery: Sparse) -> Floats:
    """(Q, G) sums of the smaller weights of (Q, N) and (N, G) encodings, by way of the few that are not zero."""
    shared = np.zeros((queries.shape[0], gallery.shape[1]))
    crowd = _crowd(queries, gallery)
    if crowd is not None:
        block = np.zeros((len(crowd.rows), len(crowd.columns)))
        smaller = np.empty_like(block)
        for of_queries, of_gallery in zip(crowd.left.T, crowd.right, strict=True):
            block += np.minimum.outer(of_queries, of_gallery, out=smaller)
        shared[np.ix_(crowd.rows, crowd.columns)] = block
        queries, gallery = queries[:, ~crowd.middle], gallery[~crowd.middle]
    _add_shared(shared, queries, gallery)
    return shared


def _add_shared(shared: Floats, queries: Sparse, gallery: Sparse) -> None:
    width = shared.shape[1]
    row = np.repeat(np.arange(len(shared)), np.diff(queries.indptr))
    starts, holders = gallery.indptr[queries.indices], np.diff(gallery.indptr)[queries.indices]
    parts = np.searchsorted(np.cumsum(holders), np.arange(0, holders.sum() + _PAIRS_AT_ONCE, _PAIRS_AT_ONCE), "right")
    flat = shared.reshape(-1)
    for begin, end in pairwise(parts):
        entries = slice(begin, end)
        counts = holders[entries]
        places = ranges_from(starts[entries], counts)
        first = row[begin] * width
        pairs = np.repeat(row[entries] * width - first, counts) + gallery.indices[places]
        smaller = np.minimum(np.repeat(queries.data[entries], counts), gallery.data[places])
        sums = np.bincount(pairs, smaller)
        flat[first : first + len(sums)] += sums


def _product(left: Sparse, right: Sparse) -> Sparse:
    """Product of two sparse matrices, through a dense one for what is crowded."""
    crowd = _crowd(left, right)
    if crowd is None:
        return (left @ right).tocsr()
    block = sparse.coo_array(product(crowd.left, crowd.right))
    places = crowd.rows[block.row], crowd.columns[block.col]
    of_crowd = sparse.csr_array((block.data, places), shape=(left.shape[0], right.shape[1]))
    return (left[:, ~crowd.middle] @ right[~crowd.middle] + of_crowd).tocsr()


@dataclass(frozen=True, eq=False)
class _Crowd:
    """The part of a product of two sparse matrices that is faster with dense ones.

    `middle` (N,) are the images it goes over, `rows` (I,) and `columns` (J,) those that it adds to, `left` (I, K) and
    `right` (K, J) its factors.
    """

    middle: NDArray[np.bool_]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    left: Floats
    right: Floats


def _crowd(left: Sparse, right: Sparse) -> _Crowd | None:
    """The images that more pairs of a row on the left and a column on the right share than is good for sparse ones."""
    pairs = np.bincount(left.indices, minlength=left.shape[1]) * np.diff(right.indptr)
    middle = pairs > _CROWD
    if not middle.any():
        return None
    of_left, of_right = left[:, middle], right[middle]
    rows, columns = np.flatnonzero(np.diff(of_left.indptr)), np.unique(of_right.indices)
    if _DENSE_GAIN * pairs[middle].sum() < len(rows) * len(columns) * np.count_nonzero(middle):
        return None
    return _Crowd(middle, rows, columns, of_left[rows].toarray(), of_right[:, columns].toarray())
