"""Verification: are two photographs of the same person? Error rates of the answer, over all thresholds.

A comparison of two images of one person is genuine (mated), one of two people an impostor (non-mated). Accepting a
comparison whose score is at least a threshold makes two kinds of error (ISO/IEC 19795-1): the false match rate FMR(t)
is the share of impostor comparisons with score >= t, the false non-match rate FNMR(t) the share of genuine ones with
score < t.

What was sampled is people, so intervals come from resampling people: one who is drawn w times brings each of their
genuine comparisons w times, and an impostor comparison of persons a and b counts w_a w_b times.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from handclip.metrics.arrays import Floats
from handclip.metrics.products import product
from handclip.metrics.ranking import require_finite
from handclip.metrics.uncertainty import bca_interval, containing, resampling_weights, share_without_exception

Scores: TypeAlias = NDArray[np.float32]

OPERATING_FMR = 0.01
"""The false match rate that a threshold aims at where one has to be chosen."""
FMRS = (0.1, OPERATING_FMR, 0.001, 0.0001)
"""False match rates at which systems are compared; the first is one that a few dozen people suffice to measure."""
RULE_OF_30 = 30
"""Errors that a rate must rest on: with 30, it is within 30 % of the truth with 90 % confidence (ISO/IEC 19795-1)."""
FEWEST_PEOPLE = 10
"""Of fewer people no false non-match rate is given: if nine never fail, up to 28 % of all people still may, and
intervals from resampling so few are narrower than they should be."""
REPLICATES = 1_000

_LEVELS = 60
"""Resampled thresholds that are spread evenly over log FMR, and as many over FNMR."""


class ScoredSearch(Protocol):
    """Scores of Q queries against G gallery images, and whom they show."""

    @property
    def scores(self) -> NDArray[Any]:
        """(Q, G); higher is more alike."""

    @property
    def query_people(self) -> NDArray[np.int64]:
        """(Q,) identities."""

    @property
    def gallery_people(self) -> NDArray[np.int64]:
        """(G,) identities."""


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """Scores of comparisons and the people they show.

    Args:
        people: (P,) identities; what follows names them by their place here.
        genuine: (N,) scores of comparisons of two images of one person.
        genuine_people: (N,) the person.
        impostor: (M,) scores of comparisons of two people.
        impostor_pairs: (M,) the place of the query's person times P, plus that of the gallery's.

    Raises:
        ValueError: there is no genuine or no impostor comparison, or a score is not finite.
    """

    people: NDArray[np.int64]
    genuine: Scores
    genuine_people: NDArray[Any]
    impostor: Scores
    impostor_pairs: NDArray[Any]

    def __post_init__(self) -> None:
        if not len(self.genuine) or not len(self.impostor):
            raise ValueError("error rates need at least one genuine and one impostor comparison")
        require_finite(genuine=self.genuine, impostor=self.impostor)

    @classmethod
    def of(cls, searches: Iterable[ScoredSearch]) -> "ScoredPairs":
        """Take every comparison of searches: of several draws, and of several aspects of the same people.

        Raises:
            ValueError: there is no genuine or no impostor comparison, or a score is not finite.
        """
        searches = list(searches)
        everybody = [np.empty(0, np.int64)]
        for search in searches:
            everybody += [search.query_people, search.gallery_people]
        people = np.unique(np.concatenate(everybody))
        genuine, genuine_people = [np.empty(0, np.float32)], [np.empty(0, np.uint32)]
        impostor, impostor_pairs = [np.empty(0, np.float32)], [np.empty(0, np.uint32)]
        for search in searches:
            queries = np.searchsorted(people, search.query_people).astype(np.uint32)[:, None]
            gallery = np.searchsorted(people, search.gallery_people).astype(np.uint32)[None, :]
            mated = queries == gallery
            genuine.append(search.scores[mated].astype(np.float32))
            genuine_people.append(np.broadcast_to(queries, mated.shape)[mated])
            np.logical_not(mated, out=mated)
            impostor.append(search.scores[mated].astype(np.float32))
            impostor_pairs.append((queries * np.uint32(len(people)) + gallery)[mated])
        joined = np.concatenate(genuine), np.concatenate(genuine_people)
        return cls(people, *joined, np.concatenate(impostor), np.concatenate(impostor_pairs))

    @cached_property
    def scores(self) -> Scores:
        """(N + M,) all scores, rising."""
        return np.sort(np.concatenate([self.genuine, self.impostor]))

    @cached_property
    def rising(self) -> tuple[Scores, Scores]:
        """(M,) impostor and (N,) genuine scores, each rising."""
        return np.sort(self.impostor), np.sort(self.genuine)

    @cached_property
    def pairs_of_people(self) -> int:
        """How many pairs of different people were compared, whichever of the two was searched for."""
        people = len(self.people)
        compared = np.bincount(self.impostor_pairs, minlength=people**2).reshape(people, people) > 0
        return int(np.count_nonzero(np.triu(compared | compared.T)))

    @cached_property
    def mated_people(self) -> int:
        """How many people have a genuine comparison."""
        return len(np.unique(self.genuine_people))

    def fmr(self, thresholds: Any) -> Floats:
        """Return the false match rate at thresholds of any shape.

        Raises:
            ValueError: a threshold is NaN.
        """
        return np.asarray(1 - share_below(self.rising[0], thresholds))

    def fnmr(self, thresholds: Any) -> Floats:
        """Return the false non-match rate at thresholds of any shape.

        Raises:
            ValueError: a threshold is NaN.
        """
        return share_below(self.rising[1], thresholds)

    def threshold_at_fmr(self, fmr: float) -> float:
        """Return the lowest score whose FMR is at most `fmr`; just above the highest where there is none.

        Raises:
            ValueError: `fmr` is NaN.
        """
        rejected = highest_rejected(self.rising[0], fmr)
        return float(self.scores[0]) if rejected is None else _next_score(self.scores, rejected)

    def equal_error_rate(self) -> tuple[float, float]:
        """Return the equal error rate and its threshold.

        Between the highest score at which FMR > FNMR and the next, at which FMR <= FNMR, both rates are taken to change
        in a straight line; the rate is where the lines cross, the threshold the second of the two scores.
        """
        crossing = bisect_left(self.scores, 0.0, key=lambda score: float(self.fnmr(score) - self.fmr(score)))
        before = self.scores[crossing - 1]
        ends = [before, _next_score(self.scores, before)]
        rate = equal_rate(self.fmr(ends)[None], self.fnmr(ends)[None])
        return float(rate[0]), float(ends[1])


@dataclass(frozen=True)
class RateEstimate:
    """A rate with its 95 % interval over people, as far as they suffice to tell it.

    Args:
        value: the rate; None where it cannot be measured.
        low: lower end of the interval; None where there is none.
        high: upper end.
        below: the lowest rate that could be measured, where the rate is below it and so not given.
        reason: why there is no value or no interval, or why the value rests on little.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    below: float | None = None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class FixedThresholds:
    """Thresholds to be used on other people.

    Args:
        people: how many people they were fixed on.
        eer: threshold of the equal error rate, which any two people have.
        fmr: threshold of each of `FMRS`; None where there are too few people to fix it.
        reasons: why, for each of `FMRS`; empty where it is fixed.
    """

    people: int
    eer: float
    fmr: dict[float, float | None]
    reasons: dict[float, str]


@dataclass(frozen=True, eq=False)
class ErrorTradeoff:
    """One kind of error against the other, over all thresholds: what a DET curve shows.

    Args:
        thresholds: (K,) rising, from one that accepts everything to one that accepts nothing.
        false: (K,) FMR or FPIR.
        missed: (K,) FNMR or FNIR.
        low: (K,) lower ends of the 95 % intervals of `missed` at each of these `false`.
        high: (K,) upper ends.
        lowest: the lowest rate of the first kind that so many people can measure; 1 where they can measure none.
        enough: whether there are people enough to measure the other kind.
    """

    thresholds: Floats
    false: Floats
    missed: Floats
    low: Floats
    high: Floats
    lowest: float
    enough: bool

    @property
    def measurable(self) -> NDArray[np.bool_]:
        """(K,) at which thresholds both rates can be measured."""
        return (self.false >= self.lowest) & self.enough


@dataclass(frozen=True, eq=False)
class Verification:
    """Error rates of one system.

    Args:
        genuine: number of genuine comparisons.
        impostor: number of impostor comparisons.
        people: number of people.
        pairs_of_people: number of pairs of different people, see `ScoredPairs.pairs_of_people`.
        curve: FMR and FNMR.
        eer: equal error rate, see `ScoredPairs.equal_error_rate`; not given of fewer than `FEWEST_PEOPLE` people, nor
            where it would be fewer than `RULE_OF_30` pairs of people.
        fnmr_at_fmr: FNMR at the lowest threshold that keeps each of `FMRS`.
        at_fixed: FMR and FNMR at each threshold that was given, under the same rules.
    """

    genuine: int
    impostor: int
    people: int
    pairs_of_people: int
    curve: ErrorTradeoff
    eer: RateEstimate
    fnmr_at_fmr: dict[float, RateEstimate]
    at_fixed: Sequence[tuple[RateEstimate, RateEstimate]]


def in_percent(rate: float) -> str:
    """Return a rate as percent, with one decimal or as many as two significant digits need; 0 has none."""
    decimals = 0 if rate == 0 else max(1, 1 - math.floor(math.log10(100 * abs(rate))))
    return f"{100 * rate:.{decimals}f}"


def too_few_pairs(fmr: float, pairs_of_people: int) -> str:
    """Return why an error rate at a false match rate cannot be measured; empty where it can.

    Pairs of people are counted, since images of the same two people are not independent: they must be so many that
    `RULE_OF_30` of them are expected to match falsely.
    """
    needed = round(RULE_OF_30 / fmr)
    if pairs_of_people >= needed:
        return ""
    return f"an FMR of {100 * fmr:g} % needs {needed:,} pairs of people, {_there_are(pairs_of_people)}"


def too_few_people(people: int) -> str:
    """Return why the errors of genuine comparisons of so many people cannot be measured; empty where they can."""
    if people >= FEWEST_PEOPLE:
        return ""
    return f"errors in recognizing people need {FEWEST_PEOPLE} people with a photograph to compare, there are {people}"


def _there_are(pairs_of_people: int) -> str:
    return "there is one" if pairs_of_people == 1 else f"there are {pairs_of_people:,}"


def _lowest_rate(pairs_of_people: int) -> float:
    return min(1.0, RULE_OF_30 / pairs_of_people)


def _too_low(name: str, rate: float, pairs_of_people: int) -> RateEstimate | None:
    """Tell that fewer than `RULE_OF_30` errors can be expected at a rate that was found."""
    lowest = _lowest_rate(pairs_of_people)
    if rate * pairs_of_people >= RULE_OF_30:
        return None
    if lowest == 1:
        reason = f"an {name} needs at least {RULE_OF_30} pairs of people, {_there_are(pairs_of_people)}"
        return RateEstimate(None, reason=reason)
    reason = f"{pairs_of_people:,} pairs of people measure no {name} below {in_percent(lowest)} %"
    return RateEstimate(None, below=lowest, reason=reason)


def fix_thresholds(pairs: ScoredPairs) -> FixedThresholds:
    """Fix the thresholds of the equal error rate and of each of `FMRS`, to be used on scores of other people."""
    reasons = {fmr: too_few_pairs(fmr, pairs.pairs_of_people) for fmr in FMRS}
    by_fmr = {fmr: None if reason else pairs.threshold_at_fmr(fmr) for fmr, reason in reasons.items()}
    return FixedThresholds(len(pairs.people), pairs.equal_error_rate()[1], by_fmr, reasons)


def verify(pairs: ScoredPairs, fixed: Sequence[float] = (), *, replicates: int = REPLICATES) -> Verification:
    """Measure a system, with intervals over people.

    Args:
        pairs: its scores.
        fixed: thresholds that were fixed elsewhere.
        replicates: how often people are resampled.

    Raises:
        ValueError: a threshold is not finite.
    """
    require_finite(fixed=fixed)
    eer, _ = pairs.equal_error_rate()
    thresholds = _spread_thresholds(pairs, eer, fixed)
    fmr, fnmr = _resampled_rates(pairs, thresholds, replicates)
    everybody, mated = len(pairs.people), pairs.mated_people
    unmated = too_few_people(mated)

    def fnmr_at(level: float) -> RateEstimate:
        value = float(pairs.fnmr(pairs.threshold_at_fmr(level)))
        return estimate_rate(value, rate_at(fmr, fnmr, level), replicates, mated)

    def equal_errors() -> RateEstimate:
        if unmated:
            return RateEstimate(None, reason=unmated)
        found = estimate_rate(eer, equal_rate(fmr, fnmr), replicates, mated)
        return _too_low("EER", eer, pairs.pairs_of_people) or found

    def false_matches(place: int) -> RateEstimate:
        value = float(pairs.fmr(thresholds[place]))
        found = estimate_rate(value, fmr[:, place], replicates, everybody)
        return _too_low("FMR", value, pairs.pairs_of_people) or found

    def false_non_matches(place: int) -> RateEstimate:
        if unmated:
            return RateEstimate(None, reason=unmated)
        return estimate_rate(float(pairs.fnmr(thresholds[place])), fnmr[:, place], replicates, mated)

    reasons = {level: too_few_pairs(level, pairs.pairs_of_people) or unmated for level in FMRS}
    places = np.searchsorted(thresholds, np.asarray(fixed, thresholds.dtype)).tolist()
    curve = pairs.fmr(thresholds), pairs.fnmr(thresholds)
    # At an FMR of 1 everything is accepted, and there is nothing to be uncertain about.
    ends = band(*curve, lambda level: fnmr_at(level) if level < 1 else RateEstimate(0.0, 0.0, 0.0))
    lowest = _lowest_rate(pairs.pairs_of_people)
    return Verification(
        genuine=len(pairs.genuine),
        impostor=len(pairs.impostor),
        people=everybody,
        pairs_of_people=pairs.pairs_of_people,
        curve=ErrorTradeoff(thresholds.astype(np.float64), *curve, *ends, lowest, enough=not unmated),
        eer=equal_errors(),
        fnmr_at_fmr={
            level: RateEstimate(None, reason=reason) if reason else fnmr_at(level) for level, reason in reasons.items()
        },
        at_fixed=[(false_matches(place), false_non_matches(place)) for place in places],
    )


def estimate_rate(value: float, rows: Floats, replicates: int, people: int) -> RateEstimate:
    """Return a rate with its interval over people.

    Where no comparison fails, or each does, resampling gives an interval without width: `share_without_exception`
    stands in for the end that is open. The interval holds both the value and the rate on the sample as `rows` has it,
    which is read off a coarser curve.

    Args:
        value: the rate.
        rows: (1 + B + P,) the rate on the sample, on B resamples of people, and without each person; NaN where those
            who were drawn have no comparison.
        replicates: B.
        people: how many could have failed.

    Raises:
        ValueError: the rate itself is not finite.
    """
    require_finite(rate=value)
    known = [part[np.isfinite(part)] for part in (rows[1 : 1 + replicates], rows[1 + replicates :])]
    if min(map(len, known)) == 0:
        return RateEstimate(value, reason=f"no interval can be told from {people} people")
    (low,), (high,) = bca_interval(rows[:1], *(part[:, None] for part in known))
    share = share_without_exception(people)
    low, high = min(low, share if value == 1 else value), max(high, 1 - share if value == 0 else value)
    return RateEstimate(value, float(low), float(high))


def band(falling: Floats, rising: Floats, estimate: Callable[[float], RateEstimate]) -> tuple[Floats, Floats]:
    """Return the (K,) lower and (K,) upper ends of the intervals along a curve; NaN where there are none.

    Args:
        falling: (K,) one rate at rising thresholds.
        rising: (K,) the other.
        estimate: the other rate at the lowest threshold that keeps the first.
    """
    levels, places = np.unique(falling, return_inverse=True)
    found = [estimate(level) for level in levels.tolist()]
    low, high = np.array([(one.low, one.high) for one in found], dtype=np.float64)[places].T
    # Several thresholds can give the same rate; there the curve goes straight up.
    return containing(rising, low, high)


def equal_rate(falling: Floats, rising: Floats) -> Floats:
    """Return where R pairs of curves cross.

    Args:
        falling: (R, K) rates that fall with the threshold.
        rising: (R, K) rates that rise with it; in the end at least as high.

    Returns:
        (R,) rates.
    """
    return _where_zero_is_reached(falling - rising, falling)


def rate_at(falling: Floats, rising: Floats, level: float) -> Floats:
    """Return the (R,) rising rates where (R, K) falling rates reach a level; see `equal_rate`."""
    return _where_zero_is_reached(falling - level, rising)


def _where_zero_is_reached(difference: Floats, rates: Floats) -> Floats:
    """Interpolate (R, K) rates where (R, K) falling differences, the last of which is at most 0, reach 0."""
    after = np.argmax(difference <= 0, axis=1)[:, None]
    before = np.maximum(after - 1, 0)
    (d0, d1), (r0, r1) = ([np.take_along_axis(of, at, 1)[:, 0] for at in (before, after)] for of in (difference, rates))
    part = np.where(d0 > d1, d0 / np.where(d0 > d1, d0 - d1, 1), 1.0)
    return np.asarray(np.where(np.isnan(d0), np.nan, r0 + part * (r1 - r0)), dtype=np.float64)


def share_below(rising: Scores, thresholds: Any) -> Floats:
    """Return which share of rising scores is below thresholds, of any shape.

    Raises:
        ValueError: a threshold is NaN.
    """
    _refuse_nan(thresholds)
    below = np.searchsorted(rising, np.asarray(thresholds, rising.dtype), side="left")
    return np.asarray(below / len(rising), dtype=np.float64)


def highest_rejected(rising: Scores, rate: float) -> np.float32 | None:
    """Return the highest of rising scores that has to be rejected to keep a rate of false matches; None of none.

    Raises:
        ValueError: the rate is NaN.
    """
    _refuse_nan(rate)
    allowed = int(rate * len(rising) + 1e-9)
    return None if allowed >= len(rising) else rising[len(rising) - allowed - 1]


def _refuse_nan(thresholds: Any) -> None:
    """Any comparison with NaN is false, and would go unseen."""
    if np.isnan(thresholds).any():
        raise ValueError("a threshold, or the rate at which one is sought, is NaN")


def _next_score(scores: Scores, score: np.float32) -> float:
    """The next higher of some rising scores, or the next higher number."""
    place = np.searchsorted(scores, score, side="right")
    return float(scores[place] if place < len(scores) else np.nextafter(score, np.float32(np.inf)))


def _spread_thresholds(pairs: ScoredPairs, eer: float, fixed: Sequence[float]) -> Scores:
    """Thresholds between which rates may be interpolated: all scores where they are few, else even over both rates."""
    scores = pairs.scores
    ends = [scores[:1], np.nextafter(scores[-1:], np.float32(np.inf)), np.asarray(fixed, scores.dtype)]
    if len(scores) <= _LEVELS:
        return np.unique(np.concatenate([scores, *ends]))
    around = np.clip(eer * np.linspace(0.5, 1.5, 11), 0, 1)
    by_fmr = np.concatenate([np.geomspace(1 / len(pairs.impostor), 1, _LEVELS), FMRS, around])
    by_fnmr = np.concatenate([np.linspace(0, 1, _LEVELS), around])
    places = [
        np.ceil((1 - by_fmr) * (len(pairs.impostor) - 1)).astype(np.intp),
        np.round(by_fnmr * (len(pairs.genuine) - 1)).astype(np.intp),
    ]
    spread = [rising[place] for rising, place in zip(pairs.rising, places, strict=True)]
    exact = np.array([pairs.threshold_at_fmr(level) for level in FMRS], scores.dtype)
    return np.unique(np.concatenate([*spread, exact, *ends]))


def _resampled_rates(pairs: ScoredPairs, thresholds: Scores, replicates: int) -> tuple[Floats, Floats]:
    """Return FMR and FNMR at K rising thresholds: (1 + B + P, K) each, see `estimate_rate`."""
    people = len(pairs.people)
    weights = np.vstack([np.ones(people), resampling_weights(people, replicates)]).astype(np.float32)
    left_out = np.ones((people, people)) - np.eye(people)

    # How many thresholds each score reaches; the last of them is beyond all scores.
    reached = np.searchsorted(thresholds, pairs.genuine, side="right")
    codes = reached * people + pairs.genuine_people
    per_person = np.bincount(codes, minlength=len(thresholds) * people).reshape(-1, people).astype(np.float64)
    rejected = np.cumsum(per_person, axis=0)
    totals = per_person.sum(axis=0)
    all_weights = np.vstack([weights, left_out])
    fnmr = _share(product(all_weights, rejected.T), all_weights @ totals)

    reached = np.searchsorted(thresholds, pairs.impostor, side="right").astype(np.uint16)
    order = np.argsort(reached, kind="stable")
    ends = np.cumsum(np.bincount(reached, minlength=len(thresholds) + 1))
    accepted = np.zeros((people, people), np.float32)
    matches = np.zeros((len(thresholds), 1 + replicates + people))
    for place in range(len(thresholds) - 1, -1, -1):
        # Scores that reach this threshold and not the next.
        chosen = order[ends[place] : ends[place + 1]]
        if len(chosen):
            added = np.bincount(pairs.impostor_pairs[chosen], minlength=people**2)
            accepted += added.reshape(people, people).astype(np.float32)
            drawn = np.einsum("bp,bp->b", product(weights, accepted), weights)
            alone = accepted.sum(axis=0, dtype=np.float64) + accepted.sum(axis=1, dtype=np.float64)
            matches[place] = np.concatenate([drawn, alone.sum() / 2 - alone])
        elif place + 1 < len(thresholds):
            matches[place] = matches[place + 1]
    # The lowest threshold accepts every comparison.
    return _share(matches.T, matches[0]), fnmr


def _share(counts: Floats, totals: Floats) -> Floats:
    """(R, K) counts as shares of (R,) totals; NaN where there is nothing to share."""
    known = np.where(totals > 0, totals, np.nan)[:, None]
    return np.asarray(counts / known, dtype=np.float64)
