"""CMC and mean average precision of a ranked gallery.

**Unmatched queries.** A query whose identity is not in the gallery cannot be found by any model. It is left out of
CMC and both mAPs alike, and counted in `unmatched_queries`. (CLIP-ReID does the same; MBA-Net divides by all queries
and CLIP-FH keeps them in mAP only.) One denominator for all metrics keeps their identities exact: with one relevant
image per query, `map_trapezoid = (rank(1) + map) / 2`.

**Ties** are broken against the model: among equal scores the wrong images come first. The result depends neither on
the order of the gallery nor on a sorting algorithm, and a model that gives every image the same score gains nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

CHUNK_BYTES = 64 * 2**20
"""Most memory that one block of similarities takes."""

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
        num_gallery: gallery images.
    """

    first_ranks: Integers
    average_precisions: Floats
    average_precisions_trapezoid: Floats
    num_gallery: int

    @property
    def num_queries(self) -> int:
        """All queries, matched or not."""
        return len(self.first_ranks)

    @property
    def unmatched_queries(self) -> int:
        """Queries without a relevant gallery image, which no metric counts."""
        return int(np.count_nonzero(self.first_ranks == 0))

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
    blocks = ((rows, queries[rows] @ gallery.T) for rows in _chunks(len(queries), len(gallery)))
    return _rank(blocks, query_ids, gallery_ids, tie=COSINE_TIE)


def rank_similarities(similarities: Any, query_labels: Any, gallery_labels: Any, *, tie: float = 0.0) -> RankingResult:
    """Rank the gallery for each query by given scores, higher being more alike.

    Args:
        similarities: (Q, G) array or tensor.
        query_labels: (Q,) identities, any integers.
        gallery_labels: (G,) identities, any integers.
        tie: scores this near are equal.

    Raises:
        ValueError: a shape does not fit, a score is not finite, a label is not an integer, there is no query or no
            gallery image, or no query has a relevant image.
    """
    scores = _matrix(similarities, "similarities")
    query_ids = _identities(query_labels, "query_labels", scores.shape[0])
    gallery_ids = _identities(gallery_labels, "gallery_labels", scores.shape[1])
    blocks = ((rows, np.array(scores[rows], dtype=np.float64)) for rows in _chunks(*scores.shape))
    return _rank(blocks, query_ids, gallery_ids, tie)


def best_scores(scores: Any, query_labels: Any, gallery_labels: Any) -> tuple[Floats, Floats]:
    """Return each query's best score among relevant images, and among all others.

    Args:
        scores: (Q, G) finite, higher being more alike.
        query_labels: (Q,) identities.
        gallery_labels: (G,) identities.

    Returns:
        (Q,) and (Q,) scores; minus infinity where there is no such image.
    """
    relevant = np.asarray(query_labels)[:, None] == gallery_labels
    best = (np.max(scores, axis=1, where=where, initial=-np.inf) for where in (relevant, ~relevant))
    of_relevant, of_others = (np.asarray(of, dtype=np.float64) for of in best)
    return of_relevant, of_others


def _rank(
    blocks: Iterable[tuple[slice, Floats]], query_ids: Integers, gallery_ids: Integers, tie: float
) -> RankingResult:
    first_ranks = np.zeros(len(query_ids), dtype=np.int64)
    plain = np.full(len(query_ids), np.nan)
    trapezoid = np.full(len(query_ids), np.nan)
    for rows, scores in blocks:
        relevant = query_ids[rows, None] == gallery_ids
        first_ranks[rows], plain[rows], trapezoid[rows] = _score_block(scores, relevant, tie)
    if not first_ranks.any():
        raise ValueError("no query has an image of its identity in the gallery: nothing to measure")
    return RankingResult(first_ranks, plain, trapezoid, len(gallery_ids))


def _score_block(scores: Floats, relevant: NDArray[np.bool_], tie: float) -> tuple[Integers, Floats, Floats]:
    """First rank and both APs of a few queries; overwrites `scores`."""
    counts = relevant.sum(axis=1)
    ordered = _relevant_scores(scores, relevant, counts)
    scores[relevant] = -np.inf

    first_ranks = np.zeros(len(scores), dtype=np.int64)
    plain = np.zeros(len(scores))
    trapezoid = np.zeros(len(scores))
    # The i-th best relevant image stands behind i - 1 relevant ones and behind every wrong one that scores no less:
    # counting those gives its rank without sorting the gallery.
    for i in range(1, ordered.shape[1] + 1):
        wrong_ahead = np.count_nonzero(scores >= ordered[:, i - 1, None] - tie, axis=1)
        rank = i + wrong_ahead
        exists = i <= counts
        precision = i / rank
        precision_before = np.where(rank > 1, (i - 1) / np.maximum(rank - 1, 1), 1.0)
        plain += np.where(exists, precision, 0.0)
        trapezoid += np.where(exists, (precision + precision_before) / 2, 0.0)
        if i == 1:
            first_ranks = np.where(exists, rank, 0)
    matched_counts = np.where(counts > 0, counts, np.nan)
    return first_ranks, plain / matched_counts, trapezoid / matched_counts


def _relevant_scores(scores: Floats, relevant: NDArray[np.bool_], counts: Integers) -> Floats:
    """(Q, most relevant images of any query) scores of the relevant images, best first, filled up with infinity."""
    rows, columns = np.nonzero(relevant)
    values = scores[rows, columns]
    best_first = np.lexsort((-values, rows))
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    ordered = np.full((len(scores), counts.max()), np.inf)
    ordered[rows, place] = values[best_first]
    return ordered


def _chunks(num_queries: int, num_gallery: int) -> Iterable[slice]:
    step = max(1, CHUNK_BYTES // (8 * num_gallery))
    return (slice(start, start + step) for start in range(0, num_queries, step))


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
    _refuse_rows(~np.isfinite(matrix).all(axis=1), name, "holds NaN or infinity")
    return matrix


def unit_vectors(features: Any, name: str) -> Floats:
    """Return the rows of (N, D) features at unit length, in float64.

    Raises:
        ValueError: `name` is no matrix, or holds a row that is zero or not finite.
    """
    vectors = _matrix(features, name).astype(np.float64)
    # Division by the largest entry first: squares of very large or very small entries leave the range of a float.
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    _refuse_rows(largest[:, 0] == 0, name, "is a zero vector")
    vectors /= largest
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _refuse_rows(bad: NDArray[np.bool_], name: str, what: str) -> None:
    if bad.any():
        raise ValueError(f"{name}: row {np.argmax(bad)} {what} ({np.count_nonzero(bad)} bad of {len(bad)} rows)")


def _identities(labels: Any, name: str, expected: int) -> Integers:
    identities = _as_array(labels)
    if identities.shape != (expected,) or identities.dtype.kind not in "iu":
        raise ValueError(f"{name} must be {expected} integers, got {identities.dtype} of shape {identities.shape}")
    return identities.astype(np.int64)
