"""NaN and infinity are refused by name wherever numbers come into the metrics: an average would carry them unseen."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from made_searches import Scored
from numpy.typing import NDArray

from handclip.metrics import rank_gallery, rank_similarities, rerank_gallery, reranked_distances
from handclip.metrics.calibration import (
    Calibration,
    cllr,
    cosine_as_probability,
    fit_calibration,
    minimum_cllr,
    reliability,
)
from handclip.metrics.embedding_space import measure_space, principal_plane, project_pca, project_tsne
from handclip.metrics.open_set import OpenSetSearches
from handclip.metrics.ranking import best_scores, require_finite
from handclip.metrics.uncertainty import PersonSums, bca_interval
from handclip.metrics.verification import ScoredPairs, estimate_rate, verify

PEOPLE = np.array([0, 0, 1, 1])
Values = NDArray[Any]


def good(*shape: int) -> Values:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def pairs() -> ScoredPairs:
    return ScoredPairs.of([Scored(good(4, 4), PEOPLE, PEOPLE)])


def sums(values: Values) -> PersonSums:
    return PersonSums(values, np.ones(values.shape[:2]))


ENTRIES: dict[str, tuple[Callable[[Values], Any], tuple[int, ...]]] = {
    "rank_gallery, queries": (lambda values: rank_gallery(values, good(4, 3), PEOPLE, PEOPLE), (4, 3)),
    "rank_gallery, gallery": (lambda values: rank_gallery(good(4, 3), values, PEOPLE, PEOPLE), (4, 3)),
    "rank_similarities": (lambda values: rank_similarities(values, PEOPLE, PEOPLE), (4, 4)),
    "rerank_gallery, queries": (lambda values: rerank_gallery(values, good(4, 3), PEOPLE, PEOPLE), (4, 3)),
    "rerank_gallery, gallery": (lambda values: rerank_gallery(good(4, 3), values, PEOPLE, PEOPLE), (4, 3)),
    "reranked_distances": (lambda values: reranked_distances(values, good(4, 3)), (4, 3)),
    "best_scores": (lambda values: best_scores(values, PEOPLE, PEOPLE), (4, 4)),
    "verification": (lambda values: ScoredPairs.of([Scored(values, PEOPLE, PEOPLE)]), (4, 4)),
    "a fixed threshold": (lambda values: verify(pairs(), values.tolist(), replicates=10), (2,)),
    "open-set identification": (lambda values: OpenSetSearches.of([Scored(values, PEOPLE, PEOPLE)]), (4, 4)),
    "fit_calibration, genuine": (lambda values: fit_calibration(values, good(5)), (5,)),
    "fit_calibration, impostor": (lambda values: fit_calibration(good(5), values), (5,)),
    "Calibration.llr": (lambda values: Calibration(1.0, 0.0).llr(values), (5,)),
    "cosine_as_probability": (cosine_as_probability, (5,)),
    "cllr, genuine": (lambda values: cllr(values, good(5)), (5,)),
    "cllr, impostor": (lambda values: cllr(good(5), values), (5,)),
    "minimum_cllr, genuine": (lambda values: minimum_cllr(values, good(5)), (5,)),
    "minimum_cllr, impostor": (lambda values: minimum_cllr(good(5), values), (5,)),
    "reliability, genuine": (lambda values: reliability(values, good(5)), (5,)),
    "reliability, impostor": (lambda values: reliability(good(5), values), (5,)),
    "PersonSums": (sums, (3, 2, 1)),
    "PersonSums, counts": (lambda values: PersonSums(np.ones((3, 2, 1)), values), (3, 2)),
    "bca_interval, estimate": (lambda values: bca_interval(values, good(9, 2), good(4, 2)), (2,)),
    "bca_interval, replicates": (lambda values: bca_interval(good(2), values, good(4, 2)), (9, 2)),
    "estimate_rate": (lambda values: estimate_rate(float(values[0]), good(9), 5, 3), (1,)),
    "measure_space": (lambda values: measure_space(values, PEOPLE), (4, 3)),
    "project_pca": (project_pca, (4, 3)),
    "principal_plane": (principal_plane, (4, 3)),
    "project_tsne": (project_tsne, (4, 3)),
}


@pytest.mark.promise("not-finite-results")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_number_that_is_not_finite_is_refused(entry: str, bad: float) -> None:
    call, shape = ENTRIES[entry]
    values = good(*shape)
    values.flat[-1] = bad
    with pytest.raises(ValueError, match=r"not finite|holds NaN or infinity"):
        call(values)


@pytest.mark.parametrize(
    ("of", "rate"),
    [
        *((ScoredPairs, rate) for rate in ("fmr", "fnmr", "threshold_at_fmr")),
        *((OpenSetSearches, rate) for rate in ("fnir", "fpir", "threshold_at_fpir")),
    ],
)
def test_a_threshold_that_is_nan_is_refused(of: type[ScoredPairs | OpenSetSearches], rate: str) -> None:
    with pytest.raises(ValueError, match="is NaN"):
        getattr(of.of([Scored(good(4, 4), PEOPLE, PEOPLE)]), rate)(np.nan)


def test_the_error_names_the_numbers_and_counts_the_bad_ones() -> None:
    with pytest.raises(ValueError, match=r"impostor: 2 of 1,000 are not finite"):
        require_finite(genuine=np.ones(3), impostor=np.r_[np.ones(998), np.nan, np.inf])


@pytest.mark.promise("exact-similarities")
def test_products_of_half_precision_are_made_in_float32() -> None:
    """In float16 a sum of 2,048 equal products would stop growing."""
    features = np.full((4, 4096), 1 / 64, dtype=np.float16)
    numbers = measure_space(features, PEOPLE)
    assert numbers.within == pytest.approx(0, abs=1e-6)
    assert numbers.uniformity == pytest.approx(0, abs=1e-5)
    assert rank_gallery(features, features, PEOPLE, PEOPLE).tied_queries == 4
