import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handclip.metrics import rank_gallery, rank_similarities, ranking
from handclip.metrics.ranking import best_scores

IDENTITIES = [7, 448, 1_001_039, 11_001_039, 9_000_000, -3]


def relevant_ranks(scores, query_label, gallery_labels):
    """Ranks after sorting the whole gallery, wrong images first among equal scores."""
    order = sorted(range(len(scores)), key=lambda g: (-scores[g], gallery_labels[g] == query_label))
    return [place for place, g in enumerate(order, start=1) if gallery_labels[g] == query_label]


def plain_ap(ranks):
    return sum(i / r for i, r in enumerate(ranks, start=1)) / len(ranks)


def trapezoid_ap(ranks):
    total = 0.0
    for i, r in enumerate(ranks, start=1):
        before = (i - 1) / (r - 1) if r > 1 else 1.0
        total += (i / r + before) / 2
    return total / len(ranks)


def is_tied(scores, query_label, gallery_labels, tie):
    """Whether a wrong image scores what the best relevant one does."""
    relevant = [score for score, label in zip(scores, gallery_labels, strict=True) if label == query_label]
    wrong = [score for score, label in zip(scores, gallery_labels, strict=True) if label != query_label]
    return bool(relevant) and any(abs(score - max(relevant)) <= tie for score in wrong)


def check_against_brute_force(result, scores, query_labels, gallery_labels):
    all_ranks = [relevant_ranks(row, label, gallery_labels) for row, label in zip(scores, query_labels, strict=True)]
    matched = [ranks for ranks in all_ranks if ranks]
    assert result.num_queries == len(query_labels)
    assert result.num_gallery == len(gallery_labels) == len(result.cmc)
    assert result.unmatched_queries == len(all_ranks) - len(matched)
    assert result.matched_queries == len(matched)
    ties = [is_tied(row, label, gallery_labels, 0) for row, label in zip(scores, query_labels, strict=True)]
    assert result.ties.tolist() == ties
    assert result.tied_queries == sum(ties)
    assert result.first_ranks.tolist() == [ranks[0] if ranks else 0 for ranks in all_ranks]
    assert result.map == pytest.approx(np.mean([plain_ap(ranks) for ranks in matched]), abs=1e-12)
    assert result.map_trapezoid == pytest.approx(np.mean([trapezoid_ap(ranks) for ranks in matched]), abs=1e-12)
    for k in range(1, len(gallery_labels) + 1):
        assert result.rank(k) == pytest.approx(np.mean([ranks[0] <= k for ranks in matched]), abs=1e-12)
    assert result.rank(len(gallery_labels) + 5) == result.rank(len(gallery_labels)) == 1.0
    for ranks, plain, trapezoid in zip(
        all_ranks, result.average_precisions, result.average_precisions_trapezoid, strict=True
    ):
        assert plain == pytest.approx(plain_ap(ranks) if ranks else np.nan, abs=1e-12, nan_ok=True)
        assert trapezoid == pytest.approx(trapezoid_ap(ranks) if ranks else np.nan, abs=1e-12, nan_ok=True)


@st.composite
def problems(draw, max_gallery=12):
    """Small retrieval problems with many tied scores, several relevant images and unmatched queries."""
    queries, gallery = draw(st.integers(1, 6)), draw(st.integers(1, max_gallery))
    labels = st.sampled_from(IDENTITIES)
    query_labels = draw(st.lists(labels, min_size=queries, max_size=queries))
    gallery_labels = draw(st.lists(labels, min_size=gallery, max_size=gallery))
    gallery_labels[draw(st.integers(0, gallery - 1))] = query_labels[0]
    row = st.lists(st.integers(-2, 2), min_size=gallery, max_size=gallery)
    scores = draw(st.lists(row, min_size=queries, max_size=queries))
    return np.array(scores) / 2, query_labels, gallery_labels


@settings(derandomize=True, deadline=None, max_examples=300)
@given(problems())
def test_d52_equals_brute_force_with_ties_and_unmatched_queries(problem):
    scores, query_labels, gallery_labels = problem
    copy = scores.copy()
    result = rank_similarities(scores, query_labels, gallery_labels)
    check_against_brute_force(result, scores, query_labels, gallery_labels)
    np.testing.assert_array_equal(scores, copy)
    assert np.all(np.diff(result.cmc) >= 0)
    assert result.cmc[-1] == 1
    assert result.map >= result.map_trapezoid - 1e-12


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    problem=problems(max_gallery=30),
    dtype=st.sampled_from([np.float16, np.float32, np.float64, np.int64, torch.bfloat16]),
    tie=st.sampled_from([0.0, 1e-10, 0.3, 0.5]),
    rows_at_once=st.integers(1, 6),
    rows_in_cache=st.integers(1, 6),
    sort_from=st.sampled_from([1, 3, 1000]),
)
def test_counting_and_sorting_in_parts_equal_brute_force(problem, dtype, tie, rows_at_once, rows_in_cache, sort_from):
    scores, query_labels, gallery_labels = problem
    scores = 2 * scores  # whole numbers, exact in every type; 0.3 ties no two of them and 0.5 neither
    given_scores = torch.tensor(scores).to(dtype) if isinstance(dtype, torch.dtype) else scores.astype(dtype)
    row_bytes = 8 * len(gallery_labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "CHUNK_BYTES", rows_at_once * row_bytes)
        patch.setattr(ranking, "CACHE_BYTES", rows_in_cache * row_bytes)
        patch.setattr(ranking, "SORT_FROM", sort_from)
        result = rank_similarities(given_scores, query_labels, gallery_labels, tie=tie)
    check_against_brute_force(result, scores, query_labels, gallery_labels)


@pytest.mark.parametrize("sort_from", [1, 1000])
def test_float32_scores_tie_exactly_where_float64_ones_do(monkeypatch, sort_from):
    """The bound, a score less the tie, lies between two float32 numbers: rounded down, it would let the lower pass."""
    monkeypatch.setattr(ranking, "SORT_FROM", sort_from)
    one = np.float32(1)
    below = [one]
    for _ in range(40):
        below.append(np.nextafter(below[-1], np.float32(0)))
    scores = np.array([below], dtype=np.float32)
    for tie in np.linspace(0, 3e-6, 301):
        result = rank_similarities(scores, [0], range(41), tie=tie)
        within = np.count_nonzero(scores.astype(np.float64) >= 1 - tie)
        assert result.first_ranks.tolist() == [within]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(problems(), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([np.float32, np.float64]))
def test_scores_nearer_than_the_tie_count_as_tied(problem, tie, dtype):
    scores, query_labels, gallery_labels = problem
    result = rank_similarities(scores.astype(dtype), query_labels, gallery_labels, tie=tie)
    expected = [is_tied(row, label, gallery_labels, tie) for row, label in zip(scores, query_labels, strict=True)]
    assert result.ties.tolist() == expected


def test_the_same_photograph_of_two_people_is_a_tie():
    features = np.random.default_rng(0).normal(size=(3, 8))
    gallery = np.concatenate([features, features[:1]])
    result = rank_gallery(features * [[2], [3], [5]], gallery, [0, 1, 2], [0, 1, 2, 3])
    assert (result.tied_queries, result.ties.tolist(), result.first_ranks.tolist()) == (
        1,
        [True, False, False],
        [2, 1, 1],
    )


@settings(derandomize=True, deadline=None, max_examples=100)
@given(problems(), st.randoms(use_true_random=False))
def test_d52_the_order_of_the_gallery_changes_nothing(problem, random):
    scores, query_labels, gallery_labels = problem
    order = list(range(len(gallery_labels)))
    random.shuffle(order)
    one = rank_similarities(scores, query_labels, gallery_labels)
    other = rank_similarities(scores[:, order], query_labels, [gallery_labels[g] for g in order])
    np.testing.assert_array_equal(one.first_ranks, other.first_ranks)
    np.testing.assert_array_equal(one.average_precisions, other.average_precisions)
    np.testing.assert_array_equal(one.average_precisions_trapezoid, other.average_precisions_trapezoid)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(problems(), st.integers(0, 1000))
def test_features_on_a_grid_equal_brute_force(problem, seed):
    """Cosines of small integer vectors tie mathematically, and differ by rounding: still ties."""
    _, query_labels, gallery_labels = problem
    rng = np.random.default_rng(seed)
    queries = rng.integers(1, 4, size=(len(query_labels), 3))
    gallery = rng.integers(1, 4, size=(len(gallery_labels), 3))
    norms = np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(gallery, axis=1))
    scores = np.round(queries @ gallery.T / norms, 9)
    result = rank_gallery(queries, gallery, query_labels, gallery_labels)
    check_against_brute_force(result, scores, query_labels, gallery_labels)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 1000))
def test_with_one_relevant_image_the_trapezoid_is_the_mean_of_rank_1_and_map(gallery, queries, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, size=(queries, gallery))
    result = rank_similarities(scores, rng.integers(0, gallery, queries), rng.permutation(gallery))
    assert result.map_trapezoid == pytest.approx((result.rank(1) + result.map) / 2, abs=1e-12)
    assert result.map >= result.map_trapezoid >= result.rank(1)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.sets(st.integers(1, 12), min_size=1))
def test_the_two_precisions_agree_only_where_the_relevant_images_lead(ranks):
    result = result_with_ranks(ranks, length=12)
    lead = sorted(ranks) == list(range(1, len(ranks) + 1))
    assert (result.map_trapezoid == pytest.approx(result.map, abs=1e-12)) == lead


def result_with_ranks(ranks, length):
    gallery_labels = [1 if place in ranks else 2 for place in range(1, length + 1)]
    return rank_similarities([list(range(length, 0, -1))], [1], gallery_labels)


@pytest.mark.parametrize(
    ("ranks", "trapezoid", "plain"),
    [
        ({1}, 1, 1),
        ({2}, 0.25, 0.5),
        ({3}, 0.1667, 0.3333),
        ({5}, 0.1, 0.2),
        ({10}, 0.05, 0.1),
        ({1, 3}, 0.7917, 0.8333),
        ({2, 3}, 0.4167, 0.5833),
        ({1, 6, 7}, 0.5492, 0.5873),
    ],
)
def test_check_values_of_both_precisions(ranks, trapezoid, plain):
    result = result_with_ranks(ranks, length=10)
    assert result.map_trapezoid == pytest.approx(trapezoid, abs=5e-5)
    assert result.map == pytest.approx(plain, abs=5e-5)
    assert result.first_ranks.tolist() == [min(ranks)]


def test_d52_duplicate_images_tie_wherever_they_stand():
    rng = np.random.default_rng(0)
    queries, distinct = rng.normal(size=(33, 97)), rng.normal(size=(50, 97))
    gallery = np.concatenate([distinct, 3 * distinct])  # each image twice, under two identities
    labels = np.arange(100)
    for query_label in range(100):
        result = rank_gallery(queries, gallery, np.full(33, query_label), labels)
        assert np.all(result.first_ranks % 2 == 0)  # behind its twin
    among_equals = rank_similarities(np.ones((1, 4)), [1], [1, 2, 1, 3])
    assert (among_equals.first_ranks.tolist(), among_equals.map) == ([3], pytest.approx((1 / 3 + 2 / 4) / 2))


def test_d41_metrics_equal_float64_where_half_precision_ties():
    rng = np.random.default_rng(0)
    identities = rng.normal(size=(60, 16))
    gallery_labels, query_labels = np.arange(60), np.arange(240) % 60
    gallery = (identities * 0.02 + 1).astype(np.float32)
    queries = (identities[query_labels] * 0.02 + 1 + 0.01 * rng.normal(size=(240, 16))).astype(np.float32)
    unit_queries, unit_gallery = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (queries, gallery)
    )
    exact = unit_queries @ unit_gallery.T

    result = rank_gallery(queries, gallery, query_labels, gallery_labels)

    expected = [relevant_ranks(row, label, gallery_labels)[0] for row, label in zip(exact, query_labels, strict=True)]
    assert result.first_ranks.tolist() == expected
    assert result.map == pytest.approx(np.mean(1 / np.array(expected)), abs=1e-6)
    half = rank_similarities(exact.astype(np.float16), query_labels, gallery_labels)
    assert abs(half.map - result.map) > 0.01


def test_d04_labels_are_identities_and_not_places_in_a_sorted_list():
    """Distractors shift the places of the query identities in any sorted list of the gallery's."""
    own, distractors = [1039, 1_200_000, 9_000_000], [5, 11_001_039, 21_001_039]
    gallery_labels = np.array(distractors + own)
    gallery = np.eye(6)
    queries = gallery[3:] + 0.1

    result = rank_gallery(queries, gallery, np.array(own), gallery_labels)

    assert result.rank(1) == 1
    enumerated = rank_gallery(queries, gallery, np.arange(3), np.arange(6))
    assert enumerated.rank(1) == 0


def test_unmatched_queries_are_counted_and_left_out():
    scores = [[3, 2, 1], [3, 2, 1], [3, 2, 1]]
    result = rank_similarities(scores, [5, 6, 99], [5, 6, 7])
    assert result.unmatched_queries == 1
    assert result.num_queries == 3
    assert result.first_ranks.tolist() == [1, 2, 0]
    assert result.rank(1) == 0.5
    assert result.map == 0.75
    assert result.map_trapezoid == pytest.approx((result.rank(1) + result.map) / 2)
    with pytest.raises(ValueError, match="no query has an image of its identity"):
        rank_similarities(scores, [97, 98, 99], [5, 6, 7])


def test_unit_vectors_are_the_same_in_parts_as_at_once(monkeypatch):
    features = np.random.default_rng(0).normal(size=(50, 37)) * np.logspace(-200, 200, 50)[:, None]
    scaled = features / np.abs(features).max(axis=1, keepdims=True)
    expected = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    for rows in (1, 7, 49, 1000):
        monkeypatch.setattr(ranking, "CACHE_BYTES", 8 * 37 * rows)
        np.testing.assert_array_equal(ranking.unit_vectors(features, "features"), expected)


def test_bad_rows_are_counted_over_all_parts(monkeypatch):
    monkeypatch.setattr(ranking, "CACHE_BYTES", 1)
    features = np.ones((5, 3))
    features[[1, 4]] = np.nan
    with pytest.raises(ValueError, match=r"features: row 1 holds NaN or infinity \(2 bad of 5 rows\)"):
        ranking.unit_vectors(features, "features")
    features[[1, 4]] = 0
    with pytest.raises(ValueError, match=r"features: row 1 is a zero vector \(2 bad of 5 rows\)"):
        ranking.unit_vectors(features, "features")


@pytest.mark.parametrize("several", [True, False])
def test_chunks_change_nothing(monkeypatch, several):
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(57, 33)), rng.normal(size=(40, 33))
    gallery_labels = rng.integers(0, 9, 40) if several else np.arange(40)
    query_labels = rng.integers(0, 9, 57)
    whole = rank_gallery(queries, gallery, query_labels, gallery_labels)
    for rows in (1, 7, 56):
        monkeypatch.setattr(ranking, "CHUNK_BYTES", 8 * 40 * rows)
        parts = rank_gallery(queries, gallery, query_labels, gallery_labels)
        np.testing.assert_array_equal(parts.first_ranks, whole.first_ranks)
        np.testing.assert_array_equal(parts.average_precisions, whole.average_precisions)
        np.testing.assert_array_equal(parts.average_precisions_trapezoid, whole.average_precisions_trapezoid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_are_taken_like_arrays(dtype):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(6, 8, generator=generator).to(dtype).requires_grad_()
    gallery = torch.randn(5, 8, generator=generator).to(dtype)
    labels = torch.arange(6) % 5
    tensors = rank_gallery(queries, gallery, labels, torch.arange(5, dtype=torch.int32))
    arrays = rank_gallery(queries.detach().double().numpy(), gallery.double().numpy(), labels.numpy(), range(5))
    assert tensors.first_ranks.tolist() == arrays.first_ranks.tolist()
    assert tensors.map == arrays.map


def test_only_the_direction_of_a_feature_counts():
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(6, 8)), rng.normal(size=(5, 8))
    labels = np.arange(6) % 5
    one = rank_gallery(queries, gallery, labels, range(5))
    for scale in (1e-200, 1e200):
        rescaled = gallery * np.array([[1], [2], [1e-9], [scale], [7]])
        other = rank_gallery(queries * scale, rescaled, labels, range(5))
        assert other.first_ranks.tolist() == one.first_ranks.tolist()


def spoiled(value):
    features = np.ones((4, 3))
    features[2] = value
    return features


GOOD = np.ones((4, 3))
LABELS = np.arange(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((spoiled(0), GOOD, LABELS, LABELS), r"query_features: row 2 is a zero vector \(1 bad of 4 rows\)"),
        ((spoiled(np.nan), GOOD, LABELS, LABELS), "query_features: row 2 holds NaN or infinity"),
        ((GOOD, spoiled(np.inf), LABELS, LABELS), "gallery_features: row 2 holds NaN or infinity"),
        ((GOOD, spoiled(0), LABELS, LABELS), "gallery_features: row 2 is a zero vector"),
        ((np.ones((0, 3)), GOOD, [], LABELS), "query_features must be a non-empty matrix"),
        ((GOOD, np.ones((0, 3)), LABELS, []), "gallery_features must be a non-empty matrix"),
        ((GOOD, np.ones((4, 2)), LABELS, LABELS), "query features have 3 dimensions, gallery features 2"),
        ((GOOD[0], GOOD, LABELS, LABELS), "query_features must be a non-empty matrix"),
        ((GOOD, GOOD, LABELS[:3], LABELS), "query_labels must be 4 integers"),
        ((GOOD, GOOD, LABELS, LABELS + 0.0), "gallery_labels must be 4 integers, got float64"),
        ((GOOD, GOOD, LABELS, list("abcd")), "gallery_labels must be 4 integers"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rank_gallery(*arguments)


def test_ranks_and_ties_that_cannot_be_are_refused() -> None:
    for tie in (-1e-10, np.nan, np.inf):
        with pytest.raises(ValueError, match="tie must be a finite number from 0 up"):
            rank_similarities([[1.0, 2.0]], [0], [0, 1], tie=tie)
    for k in (0, -1):
        with pytest.raises(ValueError, match="from 1"):
            rank_similarities([[1.0]], [0], [0]).rank(k)


def test_best_scores_of_relevant_images_and_of_all_others() -> None:
    scores = [[0.1, 0.9, 0.4], [0.3, 0.2, 0.8], [0.5, 0.6, 0.7]]
    relevant, others = best_scores(np.array(scores), np.array([1, 2, 3]), np.array([1, 2, 1]))
    assert relevant.tolist() == [0.4, 0.2, -np.inf]
    assert others.tolist() == [0.9, 0.8, 0.7]
    assert best_scores(np.ones((1, 2)), np.array([1]), np.array([1, 1]))[1].tolist() == [-np.inf]
