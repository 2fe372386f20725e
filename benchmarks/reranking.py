"""k-reciprocal re-ranking, against the loops over images of the published code in numpy."""

from collections.abc import Iterator

import numpy as np
from harness import Row, extra_memory, main, seconds_of, speedup_row
from numpy.typing import NDArray

from handclip.metrics import reranked_distances

Floats = NDArray[np.float64]

QUERIES = GALLERY = 3_000
PEOPLE, DIMENSIONS = 600, 512
K1, K2, LAMBDA = 20, 6, 0.3


def clustered_features() -> tuple[Floats, Floats]:
    """Ten photographs of each person, as near to each other as a trained model puts them."""
    random = np.random.default_rng(0)
    people = random.permutation(np.arange(QUERIES + GALLERY) % PEOPLE)
    features = random.normal(size=(PEOPLE, DIMENSIONS))[people]
    features += random.normal(size=features.shape)
    return features[:QUERIES], features[QUERIES:]


def plain_reranking(queries: Floats, gallery: Floats) -> Floats:
    """Image by image, as the authors' published Python does it; each step in numpy on whole rows."""
    features = np.concatenate([queries, gallery])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    images = len(features)
    distances = 2 - 2 * features @ features.T
    order = np.argsort(distances, axis=1)
    distances /= distances.max(axis=1, keepdims=True)

    def reciprocal(image: int, k: int) -> NDArray[np.int64]:
        forward = order[image, : k + 1]
        backward = order[forward, : k + 1]
        return forward[np.nonzero(backward == image)[0]]

    encodings = np.zeros_like(distances)
    for image in range(images):
        members = expanded = reciprocal(image, K1)
        for candidate in members:
            of_candidate = reciprocal(candidate, round(K1 / 2))
            if len(np.intersect1d(of_candidate, members)) > 2 / 3 * len(of_candidate):
                expanded = np.append(expanded, of_candidate)
        expanded = np.unique(expanded)
        weights = np.exp(-distances[image, expanded])
        encodings[image, expanded] = weights / weights.sum()
    averaged = np.zeros_like(encodings)
    for image in range(images):
        averaged[image] = encodings[order[image, :K2]].mean(axis=0)
    encodings = averaged

    holders = [np.nonzero(encodings[:, column])[0] for column in range(images)]
    jaccard = np.zeros((len(queries), images))
    for image in range(len(queries)):
        shared = np.zeros(images)
        for column in np.nonzero(encodings[image])[0]:
            others = holders[column]
            shared[others] += np.minimum(encodings[image, column], encodings[others, column])
        jaccard[image] = 1 - shared / (2 - shared)
    final: Floats = (1 - LAMBDA) * jaccard + LAMBDA * distances[: len(queries)]
    return final[:, len(queries) :]


def rows() -> Iterator[Row]:
    problem = clustered_features()
    found: list[Floats] = []
    expected: list[Floats] = []
    with extra_memory() as extra:
        found.append(reranked_distances(*problem, k1=K1, k2=K2, lambda_=LAMBDA))
    with extra_memory() as plain_extra:
        reference_seconds = seconds_of(lambda: expected.append(plain_reranking(*problem)))
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5)
    yield speedup_row(
        f"k-reciprocal re-ranking, {QUERIES:,} + {GALLERY:,}",
        "the published loops over images, in numpy",
        reference_seconds=reference_seconds,
        seconds=seconds_of(lambda: reranked_distances(*problem, k1=K1, k2=K2, lambda_=LAMBDA), repeats=3),
        target=10,
        extra_mib=extra[0],
        same_work=f"all distances to 1e-5 (largest difference {np.abs(found[0] - expected[0]).max():.0e})",
        note=f"the loops took {plain_extra[0]:,.0f} MiB",
    )


if __name__ == "__main__":
    main(rows)
