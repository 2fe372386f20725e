from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import silhouette_score

from handclip.metrics.embedding_space import measure_space, principal_plane, project_pca, project_tsne


def space(people: list[int], *, dimensions: int = 6, noise: float = 0.5, seed: int = 0) -> tuple[Any, Any]:
    """Unit vectors around a point for each person."""
    rng = np.random.default_rng(seed)
    labels = np.array(people)
    points = rng.normal(size=(labels.max() + 1, dimensions))[labels] + noise * rng.normal(
        size=(len(labels), dimensions)
    )
    return points / np.linalg.norm(points, axis=1, keepdims=True), labels


@settings(derandomize=True, deadline=None, max_examples=40)
@given(people=st.lists(st.integers(0, 4), min_size=2, max_size=25), seed=st.integers(0, 100))
def test_numbers_are_those_of_every_pair(people: list[int], seed: int) -> None:
    features, labels = space(people, seed=seed)
    found = measure_space(features, labels)
    pairs = [
        (np.sum((features[i] - features[j]) ** 2), people[i] == people[j])
        for i, j in combinations(range(len(people)), 2)
    ]
    same = [squared for squared, alike in pairs if alike]
    other = [squared for squared, alike in pairs if not alike]
    assert found.within == (pytest.approx(np.mean(same) / 2) if same else None)
    assert found.between == (pytest.approx(np.mean(other) / 2) if other else None)
    assert found.alignment == (pytest.approx(np.mean(same)) if same else None)
    assert found.uniformity == pytest.approx(np.log(np.mean([np.exp(-2 * squared) for squared, _ in pairs])))
    counts = np.bincount(labels)
    assert (found.images, found.people, found.people_with_pairs) == (
        len(people),
        (counts > 0).sum(),
        (counts > 1).sum(),
    )


def test_uniformity_counts_pairs_of_different_blocks_once() -> None:
    features, labels = space(list(range(5)) * 300)
    squared = np.maximum(2 - 2 * features @ features.T, 0)
    pairs = np.exp(-2 * squared)[np.triu_indices(len(labels), 1)]
    assert measure_space(features.astype(np.float32), labels).uniformity == pytest.approx(
        np.log(pairs.mean()), rel=1e-5
    )


def test_silhouette_leaves_out_people_with_one_image() -> None:
    features, labels = space([0, 0, 0, 1, 1, 2])
    assert measure_space(features, labels).silhouette == pytest.approx(
        silhouette_score(features[:5], labels[:5], metric="cosine")
    )
    assert measure_space(features[:4], labels[:4]).silhouette is None


def test_a_space_of_one_point_has_uniformity_zero() -> None:
    found = measure_space(np.tile([[1.0, 0.0]], (6, 1)), np.array([0, 0, 1, 1, 2, 2]))
    assert (found.within, found.between, found.uniformity) == (0, 0, 0)


def test_features_and_people_must_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        measure_space(np.ones((3, 2)), np.array([0, 1]))


def test_pca_finds_the_widest_directions_and_their_shares() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 3)) * [1.0, 5.0, 3.0]
    plane = principal_plane(points)
    variances = np.sort(np.linalg.eigvalsh(np.cov(points.T)))[::-1]
    np.testing.assert_allclose(plane.explained, variances[:2] / variances.sum())
    np.testing.assert_allclose(plane.points.var(axis=0, ddof=1), variances[:2])
    # The component is nearly the second axis, and its sign is fixed to be the positive one.
    assert np.corrcoef(plane.points[:, 0], points[:, 1])[0, 1] > 0.99
    assert np.corrcoef(principal_plane(-points).points[:, 0], -points[:, 1])[0, 1] > 0.99


def test_pca_of_points_that_do_not_vary_or_have_one_dimension() -> None:
    plane = principal_plane(np.ones((4, 5)))
    assert not plane.points.any()
    assert not plane.explained.any()
    line = principal_plane(np.array([[1.0], [2.0], [6.0]]))
    np.testing.assert_allclose(line.points, [[-2, 0], [-1, 0], [3, 0]])
    np.testing.assert_allclose(line.explained, [1, 0])
    assert project_pca(np.eye(4), dimensions=6).shape == (4, 6)


def test_tsne_follows_from_features_and_seed() -> None:
    features, _ = space([0, 1, 2, 3] * 15, dimensions=80, noise=0.1)
    first = project_tsne(features, seed=3)
    np.testing.assert_array_equal(first, project_tsne(features, seed=3))
    assert not np.allclose(first, project_tsne(features, seed=4))


def test_tsne_parts_images_with_the_same_features() -> None:
    features, _ = space([0, 1, 2, 3] * 5)
    points = project_tsne(np.concatenate([features, features[:1]]))
    assert not np.allclose(points[0], points[-1], atol=1e-3)


def test_tsne_keeps_groups_together() -> None:
    features, labels = space([0, 1, 2, 3] * 15, dimensions=80, noise=0.1)
    assert silhouette_score(project_tsne(features), labels) > 0.7


@pytest.mark.parametrize("points", [3, 4, 7])
def test_few_points_can_be_projected(points: int) -> None:
    features, _ = space(list(range(points)))
    found = project_tsne(features)
    assert found.shape == (points, 2)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("method", [project_pca, project_tsne, principal_plane])
def test_what_cannot_be_projected_is_refused(method: Any) -> None:
    with pytest.raises(ValueError, match="at least 3"):
        method(np.ones((2, 4)))
    with pytest.raises(ValueError, match="not finite"):
        method(np.full((4, 4), np.nan))
