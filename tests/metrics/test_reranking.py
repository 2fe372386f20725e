"""Re-ranking against a plain implementation, written from the paper with loops and sets."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclip.metrics import rank_gallery, rerank_gallery, reranked_distances, reranking


def plain_reranking(queries: np.ndarray, gallery: np.ndarray, k1: int, k2: int, lambda_: float) -> np.ndarray:
    images = [vector / np.linalg.norm(vector) for vector in [*queries, *gallery]]
    everyone = range(len(images))
    distance = [[0.0 if i == j else float(((images[i] - images[j]) ** 2).sum()) for j in everyone] for i in everyone]
    order = [[i, *(j for j in np.argsort(distance[i], kind="stable").tolist() if j != i)] for i in everyone]

    def reciprocal(p: int, k: int) -> set[int]:
        return {q for q in order[p][: k + 1] if p in order[q][: k + 1]}

    encoding = []
    largest = [max(row) for row in distance]
    for p in everyone:
        members = reciprocal(p, k1)
        expanded = set(members)
        for q in members:
            half = reciprocal(q, round(k1 / 2))
            if len(half & members) > 2 / 3 * len(half):
                expanded |= half
        weights = {q: math.exp(-distance[p][q] / largest[p]) for q in expanded}
        encoding.append({q: weight / sum(weights.values()) for q, weight in weights.items()})
    averaged = [
        {i: sum(encoding[q].get(i, 0) for q in order[p][:k2]) / len(order[p][:k2]) for i in everyone} for p in everyone
    ]
    final = np.zeros((len(queries), len(gallery)))
    for p in range(len(queries)):
        for g in range(len(gallery)):
            v, w = averaged[p], averaged[len(queries) + g]
            jaccard = 1 - sum(min(v[i], w[i]) for i in everyone) / sum(max(v[i], w[i]) for i in everyone)
            final[p, g] = (1 - lambda_) * jaccard + lambda_ * distance[p][len(queries) + g] / largest[p]
    return final


def clusters(seed: int, people: int, images: int, spread: float, dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Features of shape (people * images, dim) and their identities, in random order."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(people), images))
    return random.normal(size=(people, dim))[labels] + spread * random.normal(size=(len(labels), dim)), labels


@pytest.mark.parametrize("parameters", [(20, 6, 0.3), (7, 3, 0.0), (1, 1, 0.5), (12, 1, 1.0), (500, 400, 0.2)])
@pytest.mark.parametrize("spread", [0.2, 0.8])
def test_it_equals_a_plain_implementation(parameters: tuple[int, int, float], spread: float) -> None:
    features, _ = clusters(0, people=8, images=9, spread=spread)
    k1, k2, lambda_ = parameters
    found = reranked_distances(features[:20], features[20:], k1=k1, k2=k2, lambda_=lambda_)
    assert found == pytest.approx(plain_reranking(features[:20], features[20:], k1, k2, lambda_), abs=1e-9)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    num_queries=st.integers(1, 12),
    num_gallery=st.integers(1, 12),
    k1=st.integers(1, 30),
    k2=st.integers(1, 30),
    lambda_=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_it_equals_a_plain_implementation_at_any_size(
    num_queries: int, num_gallery: int, k1: int, k2: int, lambda_: float, seed: int
) -> None:
    features, _ = clusters(seed, people=6, images=4, spread=0.5, dim=5)
    queries, gallery = features[:num_queries], features[-num_gallery:]
    found = reranked_distances(queries, gallery, k1=k1, k2=k2, lambda_=lambda_)
    assert found == pytest.approx(plain_reranking(queries, gallery, k1, k2, lambda_), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("_TILE", [1, 5, 23, 24, 25]),
        ("_STRIP", [1, 5, 9, 24]),
        ("_GROUPS", [1, 2]),
        ("_PAIRS_AT_ONCE", [1, 7, 100, 216]),
    ],
)
def test_the_size_of_the_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch, name: str, sizes: list[int]) -> None:
    features, _ = clusters(7, people=6, images=4, spread=0.5)
    features[::5] = features[0]
    for k1 in (1, 4, 6):
        whole = reranked_distances(features[:9], features[9:], k1=k1, k2=3)
        for size in sizes:
            with monkeypatch.context() as patch:
                patch.setattr(reranking, name, size)
                parts = reranked_distances(features[:9], features[9:], k1=k1, k2=3)
            assert parts == pytest.approx(whole, abs=1e-14)


def test_pairs_that_fill_the_last_part_to_the_brim_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """All images are alike: each of 3 queries shares 8 images with each of 5 in the gallery, which makes 120 pairs."""
    features = np.ones((8, 4))
    for size in (1, 40, 60, 119, 120, 121):
        monkeypatch.setattr(reranking, "_PAIRS_AT_ONCE", size)
        assert reranked_distances(features[:3], features[3:]) == pytest.approx(np.zeros((3, 5)), abs=1e-15)


@pytest.mark.parametrize("alike", [0, 150])
def test_what_a_crowd_shares_is_the_same_densely(monkeypatch: pytest.MonkeyPatch, alike: int) -> None:
    features, _ = clusters(8, people=30, images=10, spread=0.6)
    features[np.random.default_rng(0).permutation(300)[:alike]] = features[0]
    found = []
    for least_pairs in (0, reranking._CROWD, 10**9):  # dense wherever anything is shared, as it is, never
        monkeypatch.setattr(reranking, "_CROWD", least_pairs)
        monkeypatch.setattr(reranking, "_DENSE_GAIN", 16 if least_pairs else 10**9)
        found.append(reranked_distances(features[:130], features[130:], k1=9, k2=4))
    assert found[0] == pytest.approx(found[2], abs=1e-13)
    assert found[1] == pytest.approx(found[2], abs=1e-13)


def test_only_a_crowd_is_dense() -> None:
    """200 images that a model cannot tell apart share everything; those of a person are few."""
    features, _ = clusters(9, people=40, images=10, spread=0.6)

    def crowd(images: np.ndarray) -> object:
        near = reranking._nearest(reranking._squared_distances(images), (20,))[0]
        mutual = reranking._mutual(near)
        return reranking._crowd(mutual, mutual)

    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert crowd(unit) is None
    unit[::2] = unit[0]
    found = crowd(unit)
    assert isinstance(found, reranking._Crowd)
    assert np.array_equal(found.middle, np.arange(400) % 2 == 0)
    assert np.array_equal(found.left, np.ones((200, 200)))


def test_it_helps_where_the_gallery_has_several_images_of_a_person() -> None:
    features, labels = clusters(1, people=30, images=12, spread=1.2, dim=32)
    split = (features[:90], features[90:], labels[:90], labels[90:])
    assert rerank_gallery(*split, k1=10, k2=4).map > rank_gallery(*split).map + 0.05


def test_the_original_distance_alone_ranks_as_before() -> None:
    features, labels = clusters(2, people=10, images=6, spread=1.0)
    split = (features[:20], features[20:], labels[:20], labels[20:])
    alone = rerank_gallery(*split, lambda_=1.0)
    assert np.array_equal(alone.average_precisions, rank_gallery(*split).average_precisions)


def test_the_order_of_the_images_does_not_matter_even_among_equals() -> None:
    features, labels = clusters(3, people=6, images=6, spread=0.7)
    features[::3] = features[0]  # a dozen photographs that the model cannot tell apart
    random = np.random.default_rng(0)
    reference = rerank_gallery(features[:12], features[12:], labels[:12], labels[12:], k1=5, k2=3)
    for _ in range(5):
        q, g = random.permutation(12), 12 + random.permutation(24)
        shuffled = rerank_gallery(features[q], features[g], labels[q], labels[g], k1=5, k2=3)
        assert np.array_equal(shuffled.first_ranks, reference.first_ranks[q])


def test_a_model_that_sees_no_difference_gains_nothing() -> None:
    labels = np.repeat([0, 1, 2], 4)
    result = rerank_gallery(np.ones((3, 8)), np.ones((12, 8)), np.array([0, 1, 2]), labels)
    assert result.first_ranks.tolist() == [9, 9, 9]


def test_images_that_differ_by_rounding_alone_are_equals() -> None:
    """Each gallery image has a twin of somebody else, of another length: no one can be found at rank 1."""
    features, labels = clusters(6, people=8, images=9, spread=0.6)
    lengths = np.random.default_rng(0).uniform(0.1, 10, size=(48, 1))
    gallery = np.concatenate([features[24:], lengths * features[24:]])
    strangers = np.arange(100, 148)
    for k1 in range(1, 16):  # where the neighbours end between twins, both are neighbours
        result = rerank_gallery(features[:24], gallery, labels[:24], [*labels[24:], *strangers], k1=k1, k2=3)
        assert result.first_ranks.min() >= 2
        distances = reranked_distances(features[:24], gallery, k1=k1, k2=3)
        assert distances[:, :48] == pytest.approx(distances[:, 48:], abs=1e-9)
    alone = rerank_gallery(features[:24], features[24:], labels[:24], labels[24:], k1=5, k2=2)
    assert alone.rank(1) > 0.5


def test_other_queries_change_the_result() -> None:
    features, _ = clusters(4, people=5, images=8, spread=0.8)
    together = reranked_distances(features[:10], features[10:], k1=6)
    assert not np.allclose(together[:1], reranked_distances(features[:1], features[10:], k1=6))


def test_a_gallery_of_one_image_each_is_refused() -> None:
    features, labels = clusters(5, people=8, images=2, spread=0.3)
    _, first = np.unique(labels, return_index=True)
    with pytest.raises(ValueError, match="each identity of the gallery has one image"):
        rerank_gallery(features, features[first], labels, labels[first])
    # A distractor with two photographs is enough.
    rerank_gallery(features, np.concatenate([features[first], features[:2]]), labels, [*labels[first], 99, 99])


@pytest.mark.parametrize(("k1", "k2", "lambda_"), [(0, 6, 0.3), (20, 0, 0.3), (20, 6, -0.1), (20, 6, 1.1)])
def test_parameters_out_of_range_are_refused(k1: int, k2: int, lambda_: float) -> None:
    with pytest.raises(ValueError, match="k1 and k2 start at 1"):
        reranked_distances(np.eye(3), np.eye(3), k1=k1, k2=k2, lambda_=lambda_)


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="query features have 3 dimensions, gallery features 4"):
        reranked_distances(np.eye(3), np.eye(4))
    with pytest.raises(ValueError, match="gallery_features: row 1 is a zero vector"):
        reranked_distances(np.eye(3), np.diag([1.0, 0, 1]))
