"""What a space of embeddings looks like: projections to two dimensions, and numbers that need no picture.

Embeddings are compared by their cosine, so all of it is about features of length 1, for which the squared distance of
two is twice their cosine distance: $||x - y||^2 = 2 (1 - x \\cdot y)$.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from handclip.metrics.arrays import Floats, Integers
from handclip.metrics.ranking import require_finite

FEWEST_POINTS = 3
"""Fewer points than this have no arrangement to look at."""
PERPLEXITY = 30.0
"""How many neighbours t-SNE lets each point have, roughly; van der Maaten and Hinton (2008) advise 5 to 50."""

_BEFORE_TSNE = 50
"""Dimensions that PCA leaves to t-SNE, as its authors do: noise goes, and so does most of the time."""
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Plane:
    """The two directions in which features vary most.

    Args:
        points: (N, 2) coordinates, in the units of the features.
        explained: (2,) share of the whole variance in each direction.
    """

    points: Floats
    explained: Floats


@dataclass(frozen=True)
class SpaceNumbers:
    """An embedding space in numbers; None where there are too few people or images to tell.

    Args:
        images: how many features there are.
        people: whom they show.
        people_with_pairs: those with at least two images, who alone have a distance to themselves.
        silhouette: mean over images of (b - a) / max(a, b), with a the mean cosine distance to the same person's other
            images and b that to the nearest other person's (Rousseeuw, 1987); from -1 to 1, more is better. People with
            one image are left out.
        within: mean cosine distance over pairs of images of the same person.
        between: mean cosine distance over pairs of images of two people.
        alignment: mean squared distance over pairs of images of the same person (Wang and Isola, 2020).
        uniformity: log of the mean of exp(-2 squared distance) over all pairs (Wang and Isola, 2020); 0 when all
            features are one point, the lower the more evenly they fill the sphere, never below -8.
    """

    images: int
    people: int
    people_with_pairs: int
    silhouette: float | None
    within: float | None
    between: float | None
    alignment: float | None
    uniformity: float | None


def project_pca(features: NDArray[np.floating], *, dimensions: int = 2) -> Floats:
    """Return the (N, `dimensions`) coordinates of (N, D) features along their principal components.

    A component's sign is arbitrary; scikit-learn makes its entry that is farthest from 0 positive. Components that N
    points or D dimensions do not have are 0.

    Raises:
        ValueError: there are fewer than `FEWEST_POINTS` features, or one is not finite.
    """
    return _principal(features, dimensions)[0]


def principal_plane(features: NDArray[np.floating]) -> Plane:
    """Return what `project_pca` does in two dimensions, and how much of the variance it shows.

    Raises:
        ValueError: as for `project_pca`.
    """
    return Plane(*_principal(features, 2))


def project_tsne(features: NDArray[np.floating], *, seed: int = 0, perplexity: float = PERPLEXITY) -> Floats:
    """Return (N, 2) coordinates of (N, D) features by t-SNE, from their first 50 principal components.

    Neighbours stay neighbours as far as possible; how far apart groups are, and how dense, means little. The same
    features and seed give the same coordinates: it starts from the principal plane, with a little noise that the seed
    decides and that parts images with the same features, and runs on one thread, since sums in another order would grow
    into another picture. With few points the perplexity is a third of their number.

    Raises:
        ValueError: as for `project_pca`.
    """
    with threadpool_limits(limits=1):
        reduced = project_pca(features, dimensions=min(_BEFORE_TSNE, max(2, min(features.shape))))
        spread = reduced[:, 0].std()
        start = 1e-4 * reduced[:, :2] / (spread if spread > 0 else 1.0)
        start += 1e-6 * np.random.default_rng(seed).normal(size=start.shape)
        fitting = min(perplexity, max(1.0, (len(reduced) - 1) / 3))
        tsne = TSNE(perplexity=fitting, init=start.astype(np.float32), random_state=seed, n_jobs=1)
        return np.asarray(tsne.fit_transform(reduced), dtype=np.float64)


def _principal(features: NDArray[np.floating], dimensions: int) -> tuple[Floats, Floats]:
    if features.ndim != 2 or len(features) < FEWEST_POINTS:
        raise ValueError(f"a projection needs at least {FEWEST_POINTS} features, got an array of {features.shape}")
    require_finite(features=features)
    values = features.astype(np.float64)
    points, explained = np.zeros((len(values), dimensions)), np.zeros(dimensions)
    variance = values.var(axis=0, ddof=1).sum()
    if variance > 0:
        found = min(dimensions, *values.shape)
        pca = PCA(found, svd_solver="full")
        points[:, :found] = pca.fit_transform(values)
        explained[:found] = pca.explained_variance_ / variance
    return points, explained


def measure_space(features: NDArray[np.floating], people: Integers) -> SpaceNumbers:
    """Return the numbers of an embedding space.

    Args:
        features: (N, D) of length 1.
        people: (N,) identity of each.

    Raises:
        ValueError: the two do not fit together, or a feature is not finite.
    """
    if features.ndim != 2 or people.shape != features.shape[:1]:
        raise ValueError(f"features {features.shape} and people {people.shape} do not fit together")
    require_finite(features=features)
    if features.dtype.itemsize < np.dtype(np.float32).itemsize:
        features = features.astype(np.float32)  # in which, or better, all products are made
    _, persons, images_of = np.unique(people, return_inverse=True, return_counts=True)
    images, count = len(people), len(images_of)
    within_pairs = int((images_of * (images_of - 1) // 2).sum())
    between_pairs = images * (images - 1) // 2 - within_pairs
    # The sum of all cosines within a set of vectors of length 1 is the squared length of their sum.
    sums = np.zeros((count, features.shape[1]))
    np.add.at(sums, persons, features.astype(np.float64))
    own = float((sums**2).sum())
    whole = float((sums.sum(axis=0) ** 2).sum())
    within = 1 - (own - images) / 2 / within_pairs if within_pairs else None
    paired, silhouette = images_of[persons] > 1, None
    if np.count_nonzero(images_of > 1) > 1:
        silhouette = float(silhouette_score(features[paired], persons[paired], metric="cosine"))
    return SpaceNumbers(
        images=images,
        people=count,
        people_with_pairs=int(np.count_nonzero(images_of > 1)),
        silhouette=silhouette,
        within=within,
        between=1 - (whole - own) / 2 / between_pairs if between_pairs else None,
        alignment=2 * within if within is not None else None,
        uniformity=_uniformity(features) if images > 1 else None,
    )


def _uniformity(features: NDArray[np.floating]) -> float:
    total = 0.0
    for start in range(0, len(features), _ROWS_AT_ONCE):
        rows = features[start : start + _ROWS_AT_ONCE]
        similar = np.exp(4 * (rows @ features[start:].T) - 4)
        # Every pair once: what stands right of the diagonal.
        total += float(np.triu(similar, 1).sum(dtype=np.float64))
    return float(np.log(total / (len(features) * (len(features) - 1) / 2)))
