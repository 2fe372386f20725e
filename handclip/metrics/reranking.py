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
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from handclip.metrics.ranking import COSINE_TIE, Floats, RankingResult, rank_similarities, unit_vectors

Mask = NDArray[np.bool_]

_TIE = 2 * COSINE_TIE
"""Squared distances this near are equal, since d = 2 - 2 cos."""


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

    Takes about 27 (Q + G)^2 bytes: 0.35 GB for a draw of HD.

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
    expanded = _expanded(_reciprocal(distances, k1), _reciprocal(distances, round(k1 / 2)))
    nearest = _nearest(distances, k2 - 1)
    largest = distances.max(axis=1, keepdims=True)
    distances /= np.where(largest > 0, largest, 1)  # all images may be the same
    encodings = np.where(expanded, np.exp(-distances), 0.0)
    encodings /= encodings.sum(axis=1, keepdims=True)
    encodings = np.stack([encodings[neighbours].mean(axis=0) for neighbours in nearest])
    split = len(queries)
    jaccard = _jaccard(encodings[:split], encodings[split:])
    final: Floats = (1 - lambda_) * jaccard + lambda_ * distances[:split, split:]
    return final


def _squared_distances(vectors: Floats) -> Floats:
    """(N, N) squared Euclidean distances of unit vectors, symmetric to the last bit."""
    distances: Floats = vectors @ vectors.T
    distances *= -2
    distances += 2
    distances = np.minimum(distances, distances.T)
    np.fill_diagonal(distances, 0)
    distances[distances < _TIE] = 0
    return distances


def _nearest(distances: Floats, k: int) -> Mask:
    """(N, N): whether column j is row i itself or among its k nearest others."""
    k = min(k, len(distances) - 1)
    kth = np.partition(distances, k, axis=1)[:, k, None]
    return distances <= kth + _TIE


def _reciprocal(distances: Floats, k: int) -> Mask:
    near = _nearest(distances, k)
    return near & near.T


def _expanded(reciprocal: Mask, reciprocal_of_half: Mask) -> Mask:
    """Add, for each image, the k/2-reciprocal neighbours of those neighbours that share most of them with it."""
    sizes = reciprocal_of_half.sum(axis=1)
    expanded = reciprocal.copy()
    for own, grown in zip(reciprocal, expanded, strict=True):
        candidates = np.flatnonzero(own)
        shared = (reciprocal_of_half[candidates] & own).sum(axis=1)
        accepted = candidates[3 * shared > 2 * sizes[candidates]]
        grown |= reciprocal_of_half[accepted].any(axis=0)
    return expanded


def _jaccard(query_encodings: Floats, gallery_encodings: Floats) -> Floats:
    """(Q, G) distances of rows that sum to 1, by way of the few non-zero entries in each column."""
    shared = np.zeros((len(query_encodings), len(gallery_encodings)))
    for of_queries, of_gallery in zip(query_encodings.T, gallery_encodings.T, strict=True):
        rows, columns = np.flatnonzero(of_queries), np.flatnonzero(of_gallery)
        shared[np.ix_(rows, columns)] += np.minimum.outer(of_queries[rows], of_gallery[columns])
    distances: Floats = 1 - shared / (2 - shared)
    return distances
