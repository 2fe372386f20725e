"""Open-set identification: who is it, if anybody in the gallery at all?

Every query is searched for twice (ISO/IEC 19795-1). In the gallery with its mates, it is missed where no mate comes
first or the first one's score is below the threshold: the share of missed searches is the false negative
identification rate FNIR(t). In the gallery without its mates, whatever scores at least the threshold is a false alarm:
the share of such searches is the false positive identification rate FPIR(t).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handclip.metrics.arrays import Floats
from handclip.metrics.ranking import COSINE_TIE, best_scores, require_finite
from handclip.metrics.uncertainty import PersonSums, resampling_weights
from handclip.metrics.verification import (
    REPLICATES,
    RULE_OF_30,
    ErrorTradeoff,
    RateEstimate,
    ScoredSearch,
    Scores,
    band,
    estimate_rate,
    highest_rejected,
    rate_at,
    share_below,
    too_few_people,
)

FPIRS = (0.1, 0.01)
"""False positive identification rates at which systems are compared."""
RULE_OF_3 = 3
"""False alarms that must be expected for a rate to be given at all: were there fewer, a system without any could not be
told from one that has them, since with none in N independent searches the rate is below 3/N with 95 % confidence
(ISO/IEC 19795-1). Three do not measure a rate, however: up to `RULE_OF_30` a reason to doubt it goes with it."""

_MOST_THRESHOLDS = 100


@dataclass(frozen=True, eq=False)
class OpenSetSearches:
    """What the two searches for each query found.

    Args:
        mated: (N,) score of the best mate of each query that has one, -infinity where it does not come first.
        mated_people: (N,) identity of those queries.
        non_mated: (M,) highest score in the gallery without the query's mates.
        non_mated_people: (M,) identity of those queries.

    Raises:
        ValueError: there is no mated or no non-mated search, or a score is NaN or infinite in any other way.
    """

    mated: Scores
    mated_people: NDArray[np.int64]
    non_mated: Scores
    non_mated_people: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.mated) or not len(self.non_mated):
            raise ValueError("open-set identification needs at least one mated and one non-mated search")
        require_finite(mated=self.mated[self.mated != -np.inf], non_mated=self.non_mated)

    @classmethod
    def of(cls, searches: Iterable[ScoredSearch]) -> "OpenSetSearches":
        """Search for every query of several draws or aspects, each in its own gallery.

        A mate that scores no higher than another person does not come first.

        Raises:
            ValueError: there is no mated or no non-mated search, or a score is not finite.
        """
        mated, mated_people = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
        others, others_people = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
        for search in searches:
            best_mate, best_other = best_scores(search.scores, search.query_people, search.gallery_people)
            has_mate, has_other = np.isfinite(best_mate), np.isfinite(best_other)
            is_first = best_mate > best_other + COSINE_TIE
            mated.append(np.where(is_first, best_mate, -np.inf)[has_mate].astype(np.float32))
            mated_people.append(search.query_people[has_mate])
            others.append(best_other[has_other].astype(np.float32))
            others_people.append(search.query_people[has_other])
        joined = np.concatenate(mated), np.concatenate(mated_people)
        return cls(*joined, np.concatenate(others), np.concatenate(others_people))

    @cached_property
    def rising(self) -> tuple[Scores, Scores]:
        """(N,) mated and (M,) non-mated scores, each rising."""
        return np.sort(self.mated), np.sort(self.non_mated)

    def fnir(self, thresholds: Any) -> Floats:
        """Return the false negative identification rate at thresholds of any shape.

        Raises:
            ValueError: a threshold is NaN.
        """
        return share_below(self.rising[0], thresholds)

    def fpir(self, thresholds: Any) -> Floats:
        """Return the false positive identification rate at thresholds of any shape.

        Raises:
            ValueError: a threshold is NaN.
        """
        return np.asarray(1 - share_below(self.rising[1], thresholds))

    def threshold_at_fpir(self, fpir: float) -> float:
        """Return the lowest threshold whose FPIR is at most `fpir`: just above a score of a non-mated search.

        Raises:
            ValueError: `fpir` is NaN.
        """
        rejected = highest_rejected(self.rising[1], fpir)
        return float(self.rising[1][0] if rejected is None else np.nextafter(rejected, np.float32(np.inf)))


@dataclass(frozen=True, eq=False)
class OpenSet:
    """Error rates of open-set identification.

    Args:
        mated: number of mated searches.
        non_mated: number of non-mated searches.
        people: number of people searched for without mates.
        curve: FPIR from 1 to 0, and FNIR from 1 - Rank-1 to 1. People are counted, since searches for one person are
            not independent.
        fnir_accepting_all: FNIR where every answer is accepted, which is 1 - Rank-1 over all searches together.
        fnir_at_fpir: FNIR at the lowest threshold that keeps each of `FPIRS`.
    """

    mated: int
    non_mated: int
    people: int
    curve: ErrorTradeoff
    fnir_accepting_all: RateEstimate
    fnir_at_fpir: dict[float, RateEstimate]


def too_few_alarms(fpir: float, people: int) -> str:
    """Return why an error rate at a false positive identification rate is not to be given; empty where it is."""
    needed = round(RULE_OF_3 / fpir)
    if people >= needed:
        return ""
    return f"an FPIR of {100 * fpir:g} % needs at least {needed:,} people, there are {people:,}"


def few_alarms(fpir: float, people: int) -> str:
    """Return why an error rate at a false positive identification rate is to be read with care; empty where not."""
    if people >= round(RULE_OF_30 / fpir):
        return ""
    return (
        f"FNIR at FPIR {100 * fpir:g} % rests on few people (of {people:,}, {people * fpir:g} are expected to cause a "
        f"false alarm, fewer than {RULE_OF_30})"
    )


def identify(searches: OpenSetSearches, *, replicates: int = REPLICATES) -> OpenSet:
    """Measure open-set identification, with intervals over the people that are searched for; the gallery is fixed."""
    everybody = np.unique(np.concatenate([searches.mated_people, searches.non_mated_people]))
    thresholds = _spread_thresholds(searches)
    rates = []
    for scores, identities in (
        (searches.mated, searches.mated_people),
        (searches.non_mated, searches.non_mated_people),
    ):
        codes = np.searchsorted(everybody, identities)
        below = np.zeros((len(everybody), 1, len(thresholds)))
        np.add.at(below[:, 0], codes, (scores[:, None] < thresholds).astype(np.float64))
        table = PersonSums(below, np.bincount(codes, minlength=len(everybody))[:, None].astype(np.float64))
        with np.errstate(invalid="ignore"):  # of resamples none of whose people has such a search
            resampled = table.resampled(resampling_weights(len(everybody), replicates))
            rates.append(np.vstack([table.means[None], resampled, table.leave_one_out]))
    # Sums in another order differ by rounding, which must not decide whether a rate is 0.
    fnir, fpir = np.clip(rates[0], 0, 1), np.clip(1 - rates[1], 0, 1)
    fnir[0], fpir[0] = searches.fnir(thresholds), searches.fpir(thresholds)
    mated, non_mated = (len(np.unique(people)) for people in (searches.mated_people, searches.non_mated_people))
    unmated = too_few_people(mated)

    def fnir_at(level: float) -> RateEstimate:
        value = float(searches.fnir(searches.threshold_at_fpir(level)))
        return estimate_rate(value, rate_at(fpir, fnir, level), replicates, mated)

    def fnir_at_fpir(level: float) -> RateEstimate:
        if reason := too_few_alarms(level, non_mated) or unmated:
            return RateEstimate(None, reason=reason)
        found = fnir_at(level)
        return replace(found, reason=found.reason or few_alarms(level, non_mated))

    ends = band(fpir[0], fnir[0], fnir_at)
    lowest = min(1.0, RULE_OF_30 / non_mated)
    accepting_all = estimate_rate(float(fnir[0, 0]), fnir[:, 0], replicates, mated)
    return OpenSet(
        mated=len(searches.mated),
        non_mated=len(searches.non_mated),
        people=non_mated,
        curve=ErrorTradeoff(thresholds.astype(np.float64), fpir[0], fnir[0], *ends, lowest, enough=not unmated),
        fnir_accepting_all=RateEstimate(None, reason=unmated) if unmated else accepting_all,
        fnir_at_fpir={level: fnir_at_fpir(level) for level in FPIRS},
    )


def _spread_thresholds(searches: OpenSetSearches) -> Scores:
    """All scores at which a rate changes where they are few, else evenly many of both kinds."""
    kinds = [np.unique(scores[np.isfinite(scores)]) for scores in (searches.mated, searches.non_mated)]
    spread = [
        kind[np.unique(np.linspace(0, len(kind) - 1, min(len(kind), _MOST_THRESHOLDS // 2)).astype(np.intp))]
        for kind in kinds
        if len(kind)
    ]
    joined = np.unique(np.concatenate(spread))
    return np.append(joined, np.nextafter(joined[-1], np.float32(np.inf)))
