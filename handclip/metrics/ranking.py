"""CMC and mean average precision of a ranked gallery.

**Unmatched queries.** A query whose identity is not in the gallery cannot be found by any model. It is left out of
CMC and both mAPs alike, and counted in `unmatched_queries`. (CLIP-ReID does the same; MBA-Net divides by all queries
and CLIP-FH keeps them in mAP only.) One denominator for all metrics keeps their identities exact: with one relevant
image per query, `map_trapezoid = (rank(1) + map) / 2`.

**Ties** are broken against the model: among equal scores the wrong images come first. The result depends neither on
the order of the gallery nor on a sorting algorithm, and a model that gives every image the same score gains nothing.
Queries whose first rank a tie has decided are counted in `tied_queries`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from handclip.metrics import screening
from handclip.metrics.arrays import Floats, Integers, ranges_from, rounded_up
from handclip.metrics.products import product

Scores: TypeAlias = NDArray[np.floating[Any]]
Ranked: TypeAlias = tuple[Integers, Integers, NDArray[np.bool_]]
"""Queries, the (Q, N) ranks of their relevant images, best first and 0 for none, and whether the best is tied."""

CHUNK_BYTES = 64 * 2**20
"""Most memory that one block of similarities takes."""

CACHE_BYTES = 2 * 2**20
"""Most memory of the part of a block that is ranked at once: small enough to stay near the processor meanwhile."""

SORT_FROM = 64
"""Relevant images from which on it is faster to sort a row of scores than to go through it once for each of them."""

COSINE_TIE = 1e-10
"""Cosines this near are equal: far above the rounding of a float64 dot product (1e-15), which depends on where in
the matrix a pair stands, and far below what float32 features can tell apart (1e-7)."""


@dataclass(frozen=True, eq=False)
class RankingResult:
    """Ranks of the relevant gallery images of each query, and the metrics that follow.

    Args:
        first_ranks: (Q,) 1-based rank of the best relevant image; 0 for an unmatched query.
        average_precisions: (Q,) plain AP; NaN for an unmatched query.
        average_precisions_trapezoid: (Q,) trapezoid AP; NaN for an unmatched query.
        ties: (Q,) whether a wrong image has the same score as the best relevant one; False for an unmatched query.
        num_gallery: gallery images.
    """

    first_ranks: Integers
    average_precisions: Floats
    average_precisions_trapezoid: Floats
    ties: NDArray[np.bool_]
    num_gallery: int

    @property
    def num_queries(self) -> int:
        """All queries, matched or not."""
        return len(self.first_ranks)

    @property
    def unmatched_queries(self) -> int:
        """Queries without a relevant gallery image, which no metric counts."""
        return int(np.count_nonzero(self.first_ranks == 0))

    @property
    def matched_queries(self) -> int:
        """Queries with a relevant gallery image: what every metric is a mean over."""
        return self.num_queries - self.unmatched_queries

    @property
    def tied_queries(self) -> int:
        """Matched queries whose best relevant image shares its score with a wrong one, which then comes first."""
        return int(np.count_nonzero(self.ties))

    @cached_property
    def cmc(self) -> Floats:
        """(G,) cumulative match characteristic: fraction of matched queries whose best rank is at most 1, 2, ..., G."""
        hits = np.bincount(self.first_ranks[self._matched], minlength=self.num_gallery + 1)[1:]
        fractions: Floats = np.cumsum(hits) / hits.sum()
        return fractions

    def rank(self, k: int) -> float:
        """Rank-k; with k beyond the gallery's length, the value at its end.

        Raises:
            ValueError: k is below 1.
        """
        if k < 1:
            raise ValueError(f"ranks count from 1, got {k}")
        return float(self.cmc[min(k, self.num_gallery) - 1])

    @property
    def map(self) -> float:
        r"""Mean of the plain AP, $\frac{1}{n} \sum_i i / r_i$ for relevant images at ranks $r_1 < ... < r_n$."""
        return float(self.average_precisions[self._matched].mean())

    @property
    def map_trapezoid(self) -> float:
        r"""Mean of the trapezoid AP of MBA-Net and the Oxford buildings benchmark.

        $\frac{1}{n} \sum_i \frac12 (i / r_i + (i - 1) / (r_i - 1))$, the second fraction being 1 at rank 1.
        """
        return float(self.average_precisions_trapezoid[self._matched].mean())

    @property
    def _matched(self) -> NDArray[np.bool_]:
        return self.first_ranks > 0


def rank_gallery(query_features: Any, gallery_features: Any, query_labels: Any, gallery_labels: Any) -> RankingResult:
    """Rank the gallery for each query by the cosine of their features, in float64.

    Args:
        query_features: (Q, D) array or tensor; normalised here.
        gallery_features: (G, D) array or tensor; normalised here.
        query_labels: (Q,) identities, any integers.
        gallery_labels: (G,) identities, any integers.

    Raises:
        ValueError: a shape does not fit, a feature vector is zero or not finite, a label is not an integer, there is
            no query or no gallery image, or no query has a relevant image.
    """
    queries = unit_vectors(query_features, "query_features")
    gallery = unit_vectors(gallery_features, "gallery_features")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"query features have {queries.shape[1]} dimensions, gallery features {gallery.shape[1]}")
    query_ids = _identities(query_labels, "query_labels", len(queries))
    gallery_ids = _identities(gallery_labels, "gallery_labels", len(gallery))
    relevant = _Relevant.of(query_ids, gallery_ids)
    return _result(_ranked_features(queries, gallery, relevant), relevant.counts, len(gallery))


def rank_similarities(similarities: Any, query_labels: Any, gallery_labels: Any, *, tie: float = 0.0) -> RankingResult:
    """Rank the gallery for each query by given scores, higher being more alike.

    Args:
        similarities: (Q, G) array or tensor.
        query_labels: (Q,) identities, any integers.
        gallery_labels: (G,) identities, any integers.
        tie: scores this near are equal.

    Raises:
        ValueError: a shape does not fit, a score is not finite, a label is not an integer, there is no query or no
            gallery image, no query has a relevant image, or `tie` is negative or not finite.
    """
    if not 0 <= tie < np.inf:
        raise ValueError(f"tie must be a finite number from 0 up, got {tie}")
    scores = _matrix(similarities, "similarities")
    query_ids = _identities(query_labels, "query_labels", scores.shape[0])
    gallery_ids = _identities(gallery_labels, "gallery_labels", scores.shape[1])
    kept = scores.dtype if scores.dtype in (np.float32, np.float64) else np.float64
    rows = np.arange(len(scores))
    blocks = ((rows[some], scores[some].astype(kept, copy=False)) for some in _chunks(scores.shape, CHUNK_BYTES))
    relevant = _Relevant.of(query_ids, gallery_ids)
    return _result(_ranked_scores(blocks, relevant, tie), relevant.counts, len(gallery_ids))


def best_scores(scores: Any, query_labels: Any, gallery_labels: Any) -> tuple[Floats, Floats]:
    """Return each query's best score among relevant images, and among all others.

    Args:
        scores: (Q, G), higher being more alike.
        query_labels: (Q,) identities.
        gallery_labels: (G,) identities.

    Returns:
        (Q,) and (Q,) scores; minus infinity where there is no such image.

    Raises:
        ValueError: a score is not finite.
    """
    require_finite(scores=scores)
    relevant = np.asarray(query_labels)[:, None] == gallery_labels
    best = (np.max(scores, axis=1, where=where, initial=-np.inf) for where in (relevant, ~relevant))
    of_relevant, of_others = (np.asarray(of, dtype=np.float64) for of in best)
    return of_relevant, of_others


@dataclass(frozen=True, eq=False)
class _Relevant:
    """Which gallery images are relevant to which query.

    Sorted by identity, those of a query stand together: no comparison of each label with each other.
    """

    by_identity: Integers
    begin: Integers
    counts: Integers

    @classmethod
    def of(cls, query_ids: Integers, gallery_ids: Integers) -> "_Relevant":
        by_identity = np.argsort(gallery_ids, kind="stable")
        begin, end = (np.searchsorted(gallery_ids, query_ids, side, by_identity) for side in ("left", "right"))
        return cls(by_identity, begin, end - begin)

    def to(self, queries: Integers) -> tuple[Integers, Integers]:
        """Columns of the images relevant to some queries, one query after the other; and how many each has."""
        counts = self.counts[queries]
        return self.by_identity[ranges_from(self.begin[queries], counts)], counts


def _result(ranked: Iterable[Ranked], counts: Integers, num_gallery: int) -> RankingResult:
    first_ranks = np.zeros(len(counts), dtype=np.int64)
    plain = np.full(len(counts), np.nan)
    trapezoid = np.full(len(counts), np.nan)
    ties = np.zeros(len(counts), dtype=np.bool_)
    for queries, ranks, tied in ranked:
        ties[queries] = tied
        first_ranks[queries], plain[queries], trapezoid[queries] = _score_ranks(ranks, counts[queries])
    if not first_ranks.any():
        raise ValueError("no query has an image of its identity in the gallery: nothing to measure")
    return RankingResult(first_ranks, plain, trapezoid, ties, num_gallery)


def _ranked_features(queries: Floats, gallery: Floats, relevant: _Relevant) -> Iterator[Ranked]:
    left = np.arange(len(queries))
    if screening.pays(len(queries), *gallery.shape):
        few = relevant.counts < SORT_FROM
        remaining = [left[~few]]
        chosen = left[few & (relevant.counts > 0)]
        for some, ranks, ties, found in screening.screened_ranks(queries, gallery, chosen, relevant.to, COSINE_TIE):
            yield some[found], ranks[found], ties[found]
            remaining.append(some[~found])
        left = np.concatenate(remaining)
    parts = (left[some] for some in _chunks((len(left), len(gallery)), CHUNK_BYTES))
    blocks = ((some, product(queries[some], gallery.T)) for some in parts)
    yield from _ranked_scores(blocks, relevant, COSINE_TIE)


def _ranked_scores(blocks: Iterable[tuple[Integers, Scores]], relevant: _Relevant, tie: float) -> Iterator[Ranked]:
    for queries, scores in blocks:
        for part in _chunks(scores.shape, CACHE_BYTES):
            yield queries[part], *_relevant_ranks(scores[part], *relevant.to(queries[part]), tie)


def _relevant_ranks(
    scores: Scores, columns: Integers, counts: Integers, tie: float
) -> tuple[Integers, NDArray[np.bool_]]:
    """(Q, most relevant images of any query) ranks of the relevant images, best first, 0 where there is none; and ties.

    Args:
        scores: (Q, G).
        columns: the relevant images of each query, one query after the other.
        counts: (Q,) how many they are.
        tie: scores this near are equal.
    """
    rows = np.repeat(np.arange(len(scores)), counts)
    place = ranges_from(np.zeros_like(counts), counts)
    values = scores[rows, columns].astype(np.float64)
    ordered = np.full((len(scores), counts.max()), -np.inf)
    ordered[rows, place] = values[np.lexsort((-values, rows))]
    least = ordered - tie
    # The i-th best relevant image stands behind i - 1 relevant ones and behind every wrong one that scores no less:
    # counting those gives its rank without sorting the gallery.
    if ordered.shape[1] < SORT_FROM:
        ahead, relevant_ahead = _count_reaching(scores, least), _count_reaching(ordered, least)
    else:
        ahead, relevant_ahead = _count_reaching_sorted(scores, least), _count_reaching_sorted(ordered, least)
    i = np.arange(1, ordered.shape[1] + 1)
    ranks: Integers = np.where(i <= counts[:, None], i + ahead - relevant_ahead, 0)
    return ranks, _ties(scores, ordered + tie, ranks)


def _ties(scores: Scores, most: Floats, ranks: Integers) -> NDArray[np.bool_]:
    """(Q,) whether a wrong image ahead of the best relevant one scores no more than the first of (Q, N) `most`."""
    ties = np.zeros(len(scores), dtype=np.bool_)
    # Whose relevant image comes first is tied with nobody; of the others, few are left to count.
    behind = np.flatnonzero((ranks[:, :1] > 1).any(axis=1))
    above = rounded_up(np.nextafter(most[behind, :1], np.inf), scores.dtype)
    ties[behind] = [
        np.count_nonzero(scores[row] >= bound) < ranks[row, 0] - 1 for row, bound in zip(behind, above, strict=True)
    ]
    return ties


def _count_reaching(scores: Scores, least: Floats) -> Integers:
    """(Q, N) how many of each query's (Q, G) scores are at least (Q, N) given ones."""
    bounds = rounded_up(least, scores.dtype)
    reached = np.empty(least.shape, dtype=np.int64)
    for i in range(least.shape[1]):
        # Counting along an axis turns each truth value into an integer first; row by row it does not.
        reached[:, i] = [np.count_nonzero(row) for row in scores >= bounds[:, i, None]]
    return reached


def _count_reaching_sorted(scores: Scores, least: Floats) -> Integers:
    """Do the same for many bounds."""
    ascending = np.sort(scores, axis=1)
    below = [row.searchsorted(bounds) for row, bounds in zip(ascending, rounded_up(least, scores.dtype), strict=True)]
    reached: Integers = scores.shape[1] - np.array(below)
    return reached


def _score_ranks(ranks: Integers, counts: Integers) -> tuple[Integers, Floats, Floats]:
    """First rank and both APs of a few queries."""
    first_ranks = np.zeros(len(ranks), dtype=np.int64)
    plain = np.zeros(len(ranks))
    trapezoid = np.zeros(len(ranks))
    for i, rank in enumerate(ranks.T, start=1):
        exists = rank > 0
        precision = i / np.maximum(rank, 1)
        precision_before = np.where(rank > 1, (i - 1) / np.maximum(rank - 1, 1), 1.0)
        plain += np.where(exists, precision, 0.0)
        trapezoid += np.where(exists, (precision + precision_before) / 2, 0.0)
        if i == 1:
            first_ranks = rank
    matched_counts = np.where(counts > 0, counts, np.nan)
    return first_ranks, plain / matched_counts, trapezoid / matched_counts


def _chunks(shape: tuple[int, ...], most_bytes: int) -> Iterable[slice]:
    """Slices of the rows of a float64 matrix that take so many bytes at most, but one row at least."""
    rows, columns = shape
    step = max(1, most_bytes // (8 * columns))
    return (slice(start, start + step) for start in range(0, rows, step))


def _as_array(values: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":  # which NumPy does not have
            values = values.float()
    return np.asarray(values)


def _matrix(values: Any, name: str) -> NDArray[Any]:
    matrix = _as_array(values)
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be a non-empty matrix of numbers, got {matrix.dtype} of shape {matrix.shape}")
    finite = [np.isfinite(matrix[rows]).all(axis=1) for rows in _chunks(matrix.shape, CACHE_BYTES)]
    _refuse_rows(~np.concatenate(finite), name, "holds NaN or infinity")
    return matrix


def require_finite(**arrays: Any) -> None:
    """Check that arrays hold neither NaN nor infinity, which sums and averages would carry on unseen.

    Args:
        arrays: by the name that the error is to give them.

    Raises:
        ValueError: names the array, and how many of its values are bad.
    """
    for name, values in arrays.items():
        finite = np.isfinite(_as_array(values))
        if not finite.all():
            raise ValueError(f"{name}: {finite.size - np.count_nonzero(finite):,} of {finite.size:,} are not finite")


def unit_vectors(features: Any, name: str) -> Floats:
    """Return the rows of (N, D) features at unit length, in float64.

    Raises:
        ValueError: `name` is no matrix, or holds a row that is zero or not finite.
    """
    vectors = _matrix(features, name).astype(np.float64)
    zero = np.empty(len(vectors), dtype=np.bool_)
    for rows in _chunks(vectors.shape, CACHE_BYTES):
        part = vectors[rows]
        # Division by the largest entry first: squares of very large or very small entries leave the range of a float.
        largest = np.abs(part).max(axis=1, keepdims=True)
        zero[rows] = largest[:, 0] == 0
        part /= np.where(largest > 0, largest, 1)
        part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1)  # which is at least 1, but for a zero vector
    _refuse_rows(zero, name, "is a zero vector")
    return vectors


def _refuse_rows(bad: NDArray[np.bool_], name: str, what: str) -> None:
    if bad.any():
        raise ValueError(f"{name}: row {np.argmax(bad)} {what} ({np.count_nonzero(bad)} bad of {len(bad)} rows)")


def _identities(labels: Any, name: str, expected: int) -> Integers:
    identities = _as_array(labels)
    if identities.shape != (expected,) or identities.dtype.kind not in "iu":
        raise ValueError(f"{name} must be {expected} integers, got {identities.dtype} of shape {identities.shape}")
    return identities.astype(np.int64)
