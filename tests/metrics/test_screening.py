"""Ranks found from float32 scores are those of float64 ones, bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from handclip.metrics import RankingResult, rank_gallery, screening
from handclip.metrics.ranking import COSINE_TIE, unit_vectors

Array = NDArray[Any]
Problem = tuple[Array, Array, Array, Array]

FIELDS = ("first_ranks", "average_precisions", "average_precisions_trapezoid", "ties")


def ranked_in_float64(queries: Array, gallery: Array, query_labels: Array, gallery_labels: Array) -> RankingResult:
    """Score all pairs in float64 and count, query by query, the wrong images that score no less than a relevant one."""
    scores = unit_vectors(queries, "queries") @ unit_vectors(gallery, "gallery").T
    count = len(queries)
    first_ranks, ties = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.bool_)
    plain, trapezoid = np.full(count, np.nan), np.full(count, np.nan)
    for query, label in enumerate(query_labels):
        right = gallery_labels == label
        relevant, wrong = np.sort(scores[query, right])[::-1], scores[query, ~right]
        if not len(relevant):
            continue
        precisions = [0.0, 0.0]
        for i, score in enumerate(relevant, start=1):
            rank = i + int(np.count_nonzero(wrong >= score - COSINE_TIE))
            before = (i - 1) / (rank - 1) if rank > 1 else 1.0
            precisions = [precisions[0] + i / rank, precisions[1] + (i / rank + before) / 2]
            first_ranks[query] = first_ranks[query] or rank
        ties[query] = ((wrong >= relevant[0] - COSINE_TIE) & (wrong <= relevant[0] + COSINE_TIE)).any()
        plain[query], trapezoid[query] = np.array(precisions) / len(relevant)
    return RankingResult(first_ranks, plain, trapezoid, ties, len(gallery))


def require_the_same(problem: Problem) -> None:
    found, expected = rank_gallery(*problem), ranked_in_float64(*problem)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), err_msg=field)


@contextmanager
def screened(**sizes: int) -> Iterator[None]:
    """Screen rankings of every size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screening, "ONE_THREAD_UP_TO", 0)
        for name, value in sizes.items():
            patch.setattr(screening, name, value)
        yield


def features(random: np.random.Generator, kind: str, labels: Array, dimensions: int) -> Array:
    """Float64 features of some people, in one of the ways that make cosines hard to tell apart."""
    people = np.random.default_rng(1).normal(size=(100, dimensions))[labels]
    noise = random.normal(size=people.shape)
    if kind == "spread":
        return people + noise
    if kind == "random":
        return noise
    if kind == "clustered":
        return 1 + 1e-3 * people + 1e-3 * noise
    if kind == "collapsed":
        return np.ones_like(people)
    if kind == "duplicates":
        return np.round(people[:, :1] + noise / 3) + 10
    if kind == "steps":  # from far below a tie to far above the error of a float32 cosine
        return 1 + people[:1] + noise * 10.0 ** random.uniform(-13, -3, size=(len(labels), 1))
    if kind == "wide range":  # most entries are nothing beside the largest, or below what float32 can hold
        return (people + noise) * 10.0 ** random.uniform(-60, 0, size=people.shape)
    assert kind == "one-sided"  # every product is rounded the same way
    return 1 + 1e-6 * np.abs(noise)


KINDS = ("spread", "random", "clustered", "collapsed", "duplicates", "steps", "wide range", "one-sided")


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    kind, people = draw(st.sampled_from(KINDS)), draw(st.integers(1, 90))
    dimensions = draw(st.sampled_from([1, 2, 7, 64, 700]))
    query_labels = random.integers(0, people + 3, size=draw(st.integers(1, 40)))
    gallery_labels = random.integers(0, people, size=draw(st.integers(1, 150)))
    gallery_labels[0] = query_labels[0]
    sides = [features(random, kind, labels, dimensions) for labels in (query_labels, gallery_labels)]
    scale, dtype = draw(st.sampled_from([(1, np.float32), (3, np.float64), (1e-200, np.float64), (1e200, np.float64)]))
    queries, gallery = (np.asarray(side * scale, dtype) for side in sides)
    for side in (queries, gallery):
        side[:, 0] += ~side.any(axis=1)  # what rounding to float32 has left without any length
    return queries, gallery, query_labels, gallery_labels


@settings(derandomize=True, deadline=None, max_examples=400)
@given(
    problem=problems(),
    queries_at_once=st.integers(1, 50),
    images_at_once=st.sampled_from([1, 5, 64, 1000]),
    entries=st.sampled_from([700, 5000, 10**6]),
    sparse=st.sampled_from([0, 1, 8, 10**6]),
    crowd=st.sampled_from([1, 64, 10**6]),
)
def test_ranks_aps_and_ties_are_those_of_float64(
    problem: Problem, queries_at_once: int, images_at_once: int, entries: int, sparse: int, crowd: int
) -> None:
    sizes = {"_QUERIES": queries_at_once, "_IMAGES": images_at_once, "_ENTRIES": entries}
    with screened(**sizes, _SPARSE=sparse, _CROWD=crowd):
        require_the_same(problem)


@pytest.mark.parametrize("relevant", [1, 10, 100])
@pytest.mark.parametrize("kind", ["spread", "random", "clustered", "collapsed"])
def test_rankings_large_enough_to_be_screened_are_those_of_float64(kind: str, relevant: int) -> None:
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(1200) // relevant % 100)
    sides = [features(random, kind, of_side, 128) for of_side in (labels[:500], labels)]
    assert screening.pays(500, 1200, 128)
    require_the_same((*sides, labels[:500], labels))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_any_float32_product_within_the_bound_gives_the_same_ranks(problem: Problem, seed: int) -> None:
    """As another library might round it, at its worst: every score is as wrong as the bound allows."""
    random = np.random.default_rng(seed)
    matmul = np.matmul

    def worst(left: Array, right: Array, **others: Any) -> Array:
        if left.dtype != np.float32:
            return np.asarray(matmul(left, right, **others))
        exact = left.astype(np.float64) @ right.astype(np.float64)
        left_over = (left.shape[1] - 1) * 2.0**-24  # after rounding both factors, and the result
        return (exact + left_over * random.choice([-1, 1], exact.shape)).astype(np.float32)

    with screened(_CROWD=1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "matmul", worst)
        require_the_same(problem)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dimensions", [1, 2, 3, 7, 64, 700, 5000])
def test_no_float32_product_is_further_off_than_the_bound(kind: str, dimensions: int) -> None:
    units = unit_vectors(features(np.random.default_rng(0), kind, np.arange(30), dimensions), "features")
    narrow = units.astype(np.float32)
    one_after_the_other = [[np.cumsum(one * other)[-1] for one in narrow] for other in narrow]
    for product in (narrow @ narrow.T, np.array(one_after_the_other)):
        assert product.dtype == np.float32
        assert np.abs(product - units @ units.T).max() <= screening._error(dimensions)


def test_a_query_with_a_crowd_of_near_ties_alone_goes_the_long_way() -> None:
    random = np.random.default_rng(0)
    gallery = random.normal(size=(1000, 32))
    gallery[:500] = gallery[0]
    queries = np.concatenate([gallery[:1], gallery[500:]])
    relevant = {0: 0} | {query: 499 + query for query in range(1, 501)}

    def relevant_to(some: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.array([relevant[query] for query in some]), np.ones(len(some), dtype=np.int64)

    units = unit_vectors(queries, "queries"), unit_vectors(gallery, "gallery")
    left = []
    for some, ranks, ties, found in screening.screened_ranks(*units, np.arange(501), relevant_to, COSINE_TIE):
        left += some[~found].tolist()
        assert (ranks[found] == 1).all()
        assert not ties[found].any()
    assert left == [0]
