"""Rank-1 and verification errors of some of the queries, with intervals over people."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handclip.metrics.products import product
from handclip.metrics.ranking import COSINE_TIE, best_scores
from handclip.metrics.uncertainty import PersonSums, bca_interval, bounds_without_exception, resampling_weights
from handclip.metrics.verification import REPLICATES, RULE_OF_30, RateEstimate, estimate_rate, too_few_people
from handclip.report.report_data import Search
from handclip.report.runs import sum_by_person

Floats = NDArray[np.float64]

Rate = tuple[float, float, float]
"""A rate and the ends of its interval."""


@dataclass(frozen=True, eq=False)
class RankingOutcomes:
    """Every query of every draw and aspect.

    Args:
        paths: (Q,) image of each query.
        aspects: (Q,) its aspect.
        people: (Q,) whom it shows.
        columns: (Q,) number of its draw of its aspect.
        hits: (Q,) whether its person comes first.
        mated: (Q,) whether its person is in the gallery.
    """

    paths: NDArray[np.object_]
    aspects: NDArray[np.object_]
    people: NDArray[np.int64]
    columns: NDArray[np.int64]
    hits: NDArray[np.bool_]
    mated: NDArray[np.bool_]

    @classmethod
    def of(cls, searches: Iterable[Search]) -> "RankingOutcomes":
        """Take every query of the searches."""
        parts = []
        for column, search in enumerate(searches):
            nearest_own, nearest_other = best_scores(search.scores, search.query_people, search.gallery_people)
            paths = np.array([image.path for image in search.query], dtype=object)
            aspects = np.full(len(paths), search.aspect, dtype=object)
            # A tie counts against the model, as it does in every other ranking.
            hits, mated = nearest_own > nearest_other + COSINE_TIE, np.isfinite(nearest_own)
            parts.append((paths, aspects, search.query_people, np.full(len(paths), column), hits, mated))
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def rank1(self, chosen: NDArray[np.bool_]) -> Rate:
        """Return Rank-1 over some queries with its interval over their people."""
        there = chosen & self.mated
        persons, *sums = sum_by_person(self.people[there], self.columns[there], self.hits[there, None])
        table = PersonSums(*sums)
        ends = bca_interval(table.means, table.resampled(_weights(len(persons))), table.leave_one_out)
        low, high = bounds_without_exception(table, *ends)
        return float(table.means[0]), float(low[0]), float(high[0])


@dataclass(frozen=True, eq=False)
class VerificationErrors:
    """Errors of verification of the same Q queries at one threshold.

    Both people of a comparison are resampled, as in the section on verification, so that rates over everybody and their
    intervals are the same there and here.

    Args:
        people: P, in the queries and the galleries together; what follows names them by their place.
        queries: (Q,) the person on each query.
        columns: (Q,) number of its draw of its aspect.
        genuine: (Q,) how many comparisons are genuine.
        rejected: (Q,) how many of them are rejected.
        galleries: (C, P) how many gallery images of each person there are in each draw of each aspect.
        accepted: (N, 2) query and person of the gallery of each impostor comparison that is accepted.
    """

    people: int
    queries: NDArray[np.int64]
    columns: NDArray[np.int64]
    genuine: NDArray[np.int64]
    rejected: NDArray[np.int64]
    galleries: NDArray[np.int64]
    accepted: NDArray[np.int64]

    @classmethod
    def of(cls, searches: Sequence[Search], threshold: float) -> "VerificationErrors":
        """Compare every query of the searches with its gallery, at a threshold."""
        everybody = np.unique(
            np.concatenate([people for one in searches for people in (one.query_people, one.gallery_people)])
        )
        parts, galleries, accepted = [], [], []
        before = 0
        for column, search in enumerate(searches):
            searched, found = (np.searchsorted(everybody, of) for of in (search.query_people, search.gallery_people))
            # In float32, in which verification keeps scores and fixes thresholds.
            own, passed = searched[:, None] == found, search.scores.astype(np.float32) >= np.float32(threshold)
            of_draw = np.full(len(searched), column)
            parts.append((searched, of_draw, own.sum(axis=1), (own & ~passed).sum(axis=1)))
            galleries.append(np.bincount(found, minlength=len(everybody)))
            rows, places = np.nonzero(passed & ~own)
            accepted.append(np.stack([rows + before, found[places]], axis=1))
            before += len(searched)
        queries, columns, genuine, rejected = map(np.concatenate, zip(*parts, strict=True))
        return cls(len(everybody), queries, columns, genuine, rejected, np.stack(galleries), np.concatenate(accepted))

    def fnmr(self, chosen: NDArray[np.bool_]) -> Rate | None:
        """Return the FNMR of some queries; None where there are too few people to measure it."""
        rejected, genuine = (
            np.bincount(self.queries[chosen], counts[chosen], self.people) for counts in (self.rejected, self.genuine)
        )
        people = int(np.count_nonzero(genuine))
        if too_few_people(people):
            return None
        weights = _weights(self.people)
        failed, compared = (np.r_[of.sum(), weights @ of, of.sum() - of] for of in (rejected, genuine))
        return _as_rate(failed, compared, people)

    def fmr(self, chosen: NDArray[np.bool_]) -> Rate | None:
        """Return the FMR of some queries; None where there are too few pairs of people to measure it."""
        searches, compared = self._searches(chosen)
        rows, found = self.accepted[chosen[self.accepted[:, 0]]].T
        accepted = np.bincount(self.queries[rows] * self.people + found, minlength=self.people**2)
        accepted = accepted.reshape(compared.shape)
        pairs = np.count_nonzero(np.triu(compared + compared.T))
        if not pairs or accepted.sum() / compared.sum() * pairs < RULE_OF_30:
            return None
        people = int(np.count_nonzero(searches.any(axis=1)))
        return _as_rate(_resampled_pairs(accepted), _resampled_pairs(compared), people)

    def comparisons(self, chosen: NDArray[np.bool_]) -> tuple[int, int]:
        """Return of how many comparisons of some queries the FNMR is, and the FMR."""
        return int(self.genuine[chosen].sum()), int(self._searches(chosen)[1].sum())

    def _searches(self, chosen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """(P, C) searches for each person in each draw, and the (P, P) impostor comparisons in them."""
        searches = np.zeros((self.people, len(self.galleries)))
        np.add.at(searches, (self.queries[chosen], self.columns[chosen]), 1)
        compared = searches @ self.galleries
        np.fill_diagonal(compared, 0)
        return searches, compared


def _resampled_pairs(counts: NDArray[Any]) -> Floats:
    """Sum (P, P) counts: of all, of each resample of people, in which both people of a pair count, without each."""
    weights = _weights(len(counts)).astype(np.float32)
    drawn = np.einsum("bp,bp->b", product(weights, counts.astype(np.float32)), weights)
    total = counts.sum()
    rows: Floats = np.r_[total, drawn, total - counts.sum(axis=0) - counts.sum(axis=1)].astype(np.float64)
    return rows


def _as_rate(failed: Floats, compared: Floats, people: int) -> Rate | None:
    rows = failed / np.where(compared > 0, compared, np.nan)
    found: RateEstimate = estimate_rate(float(rows[0]), rows, REPLICATES, people)
    if found.value is None or found.low is None or found.high is None:
        return None
    return found.value, found.low, found.high


@lru_cache(maxsize=2)
def _weights(people: int) -> Floats:
    return resampling_weights(people, REPLICATES)
