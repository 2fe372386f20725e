"""How far to trust a mean over queries, when what was sampled is people.

The photographs of one person succeed or fail together, so a query is not an independent observation; a person is. All
that follows takes a run as sums per person: with $s_{pc}$ the sum of a metric over person $p$'s queries in column $c$
(one draw of one aspect) and $n_{pc}$ their number, the mean that is reported is

$$\\theta = \\frac{1}{C} \\sum_c \\frac{\\sum_p s_{pc}}{\\sum_p n_{pc}}$$

which is the average over queries, then draws, then aspects. A person stays one person in all draws and aspects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handclip.metrics.arrays import Floats
from handclip.metrics.ranking import require_finite

REPLICATES = 10_000
PERMUTATIONS = 20_000
"""How many permutations are drawn for every pair of runs."""
MOST_PERMUTATIONS = 500_000
"""How many are drawn at most for pairs whose significance fewer leave open."""
LEVEL = 0.05
"""Significance level; an interval covers 1 - LEVEL."""
FEW_PEOPLE = 20
"""Intervals over fewer people are too short to be trusted."""

TIE = 1e-12
"""Rates that are nearer to each other than this are the same; sums in another order differ by rounding."""
EXACT_UP_TO = 14
"""With so many people or fewer all 2^people ways of swapping are gone through instead of drawn."""

_SIGNS_AT_ONCE = 10_000
_NUMBERS_AT_ONCE = 2_000_000
_MOST_GROUPS = 3
"""For each run. In noisy comparisons their number grows exponentially."""
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, eq=False)
class PersonSums:
    """One run's outcomes, summed over each person's queries.

    Args:
        sums: (P, C, M) sums of M metrics for P people in C columns.
        counts: (P, C) how many queries each sum is over.

    Raises:
        ValueError: a shape does not fit, a number is not finite, there are fewer than two people, or a column has no
            query at all.
    """

    sums: Floats
    counts: Floats

    def __post_init__(self) -> None:
        if self.sums.ndim != 3 or self.counts.shape != self.sums.shape[:2]:
            raise ValueError(f"sums {self.sums.shape} and counts {self.counts.shape} do not fit together")
        if len(self.counts) < 2:
            raise ValueError("uncertainty over people needs at least two of them")
        require_finite(sums=self.sums, counts=self.counts)
        if not self.counts.sum(axis=0).all():
            raise ValueError("a column has no query")

    @property
    def means(self) -> Floats:
        """(M,) the reported means."""
        means: Floats = _mean_over_columns(self.sums.sum(axis=0)[None], self.counts.sum(axis=0)[None])[0]
        return means

    @property
    def contributions(self) -> Floats:
        """(P, M) what each person adds to the means; the sum over people is the mean."""
        per_column: Floats = self.sums / self.counts.sum(axis=0)[:, None]
        contributions: Floats = per_column.mean(axis=1)
        return contributions

    @property
    def leave_one_out(self) -> Floats:
        """(P, M) the means without each person."""
        return _mean_over_columns(self.sums.sum(axis=0) - self.sums, self.counts.sum(axis=0) - self.counts)

    def resampled(self, weights: Floats) -> Floats:
        """Return the (B, M) means when each person is there as often as (B, P) `weights` says."""
        people, columns, metrics = self.sums.shape
        sums = (weights @ self.sums.reshape(people, -1)).reshape(-1, columns, metrics)
        return _mean_over_columns(sums, weights @ self.counts)


def _mean_over_columns(sums: Floats, counts: Floats) -> Floats:
    """(B, C, M) sums over (B, C) counts, averaged over the columns that have queries."""
    has_queries = counts > 0
    means = sums / np.where(has_queries, counts, 1.0)[..., None]
    averages: Floats = means.sum(axis=1) / has_queries.sum(axis=1)[:, None]
    return averages


@lru_cache(maxsize=1)  # drawing takes longer than all that is computed from it, and a report compares many blocks
def resampling_weights(people: int, replicates: int = REPLICATES, seed: int = 0) -> Floats:
    """Return (replicates, people): how often each person is drawn when as many are drawn with replacement; read-only.

    The last answer is kept, for the comparisons of the same people that follow.
    """
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=replicates)
    weights = drawn.astype(np.float64)
    weights.flags.writeable = False
    return weights


def containing(estimate: ArrayLike, low: ArrayLike, high: ArrayLike) -> tuple[Floats, Floats]:
    """Return the ends of intervals, moved out to their estimates where they leave them out.

    Those of a rate that every resample gives again do by a rounding, and BCa's shift can by more.
    """
    return np.minimum(low, estimate), np.maximum(high, estimate)


def bca_interval(estimate: Floats, replicates: Floats, leave_one_out: Floats) -> tuple[Floats, Floats]:
    """Bias-corrected and accelerated bootstrap interval (Efron, 1987) at 1 - LEVEL, see also `containing`.

    Of resamples that give the estimate again, up to `TIE`, half count as below it.

    Args:
        estimate: (K,) rates, or differences of rates, on the sample itself.
        replicates: (B, K) values on resamples.
        leave_one_out: (P, K) values without each person, which tell the acceleration.

    Returns:
        (K,) lower and (K,) upper ends.

    Raises:
        ValueError: a value on the sample or on a resample is not finite.
    """
    require_finite(estimate=estimate, replicates=replicates)
    normal = NormalDist()
    skew = leave_one_out.mean(axis=0) - leave_one_out
    spread = (skew**2).sum(axis=0) ** 1.5
    acceleration = (skew**3).sum(axis=0) / (6 * np.where(spread > 0, spread, 1.0))
    smallest = 1 / len(replicates)
    low, high = np.empty(len(estimate)), np.empty(len(estimate))
    for k, column in enumerate(np.ascontiguousarray(replicates.T)):
        excess = column - estimate[k]
        below = (np.count_nonzero(excess < -TIE) + np.count_nonzero(excess <= TIE)) / (2 * len(column))
        bias = normal.inv_cdf(min(max(below, smallest), 1 - smallest))
        shifted = [bias + normal.inv_cdf(level) for level in (LEVEL / 2, 1 - LEVEL / 2)]
        levels = [normal.cdf(bias + shift / (1 - float(acceleration[k]) * shift)) for shift in shifted]
        low[k], high[k] = _quantiles(column, levels)
    return containing(estimate, low, high)


def _quantiles(values: Floats, levels: Sequence[float]) -> Floats:
    """What `np.quantile` returns, in half the time: there are two for each of thousands of differences."""
    places = np.array(levels) * (len(values) - 1)
    below = places.astype(np.intp)
    above = np.minimum(below + 1, len(values) - 1)
    ordered = np.partition(values, [*below, *above])
    quantiles: Floats = ordered[below] + (places - below) * (ordered[above] - ordered[below])
    return quantiles


def share_without_exception(people: int) -> float:
    """Return the least share of all people who succeed, with confidence 1 - LEVEL, where so many did without exception.

    Were a share q of all people to fail now and then, none of P would with probability (1 - q)^P; that is LEVEL at
    q = 1 - LEVEL^(1/P), the exact one-sided bound (Clopper and Pearson, 1934).
    """
    return float(LEVEL ** (1 / people))


def bounds_without_exception(table: PersonSums, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Open the intervals of metrics in which every query of every person succeeds, or every one fails.

    Resampling people who are all alike gives an interval without width; `share_without_exception` stands in for the end
    that is open.

    Args:
        table: what the intervals are of.
        low: (M,) lower ends.
        high: (M,) upper ends.

    Returns:
        (M,) lower and (M,) upper ends.
    """
    share = share_without_exception(len(table.counts))
    all_succeed = (table.sums == table.counts[..., None]).all(axis=(0, 1))
    all_fail = (table.sums == 0).all(axis=(0, 1))
    return np.where(all_succeed, share, low), np.where(all_fail, 1 - share, high)


def sign_flip_p_values(
    contributions: Floats,
    pairs: Sequence[tuple[int, int]],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    exact_up_to: int = EXACT_UP_TO,
) -> Floats:
    """Two-sided p-values of two runs being alike, from swapping their outcomes person by person.

    With M drawn permutations p = (1 + #) / (1 + M), # counting those whose difference is as far from 0 as the observed
    one (Phipson and Smyth, 2010); with few people every permutation is gone through, and p is their exact share.

    Args:
        contributions: (P, R) what each person adds to the mean of each run.
        pairs: (K) pairs of runs.
        permutations: how many to draw.
        seed: of the draw.
        exact_up_to: most people for which all permutations are enumerated.

    Returns:
        (K,) p-values.
    """
    people, runs = contributions.shape
    exact = people <= exact_up_to
    total = 2**people if exact else permutations
    rows = min(_SIGNS_AT_ONCE, max(1, _NUMBERS_AT_ONCE // (people + runs)))
    rng = np.random.default_rng(seed)
    # Sums of the same numbers in another order differ by rounding, which must not decide about equality.
    tolerance = 1e-10 * np.abs(contributions).sum(axis=0)
    means = contributions.sum(axis=0)
    observed = [abs(means[i] - means[j]) - tolerance[i] - tolerance[j] for i, j in pairs]
    as_far = np.zeros(len(pairs))
    for start in range(0, total, rows):
        size = min(rows, total - start)
        if exact:
            swapped = ((np.arange(start, start + size) >> np.arange(people)[:, None]) & 1).astype(np.float64)
        else:
            eights = rng.integers(0, 256, size=(people, -(-size // 8)), dtype=np.uint8)
            swapped = np.unpackbits(eights, axis=1, count=size).astype(np.float64)
        # Swapping flips the sign of a person's part of a difference, which is the difference of the flipped parts.
        sums = means[:, None] - (2 * contributions.T) @ swapped
        difference = np.empty(size)
        for k, (i, j) in enumerate(pairs):
            np.abs(np.subtract(sums[i], sums[j], out=difference), out=difference)
            as_far[k] += np.count_nonzero(difference >= observed[k])
    p_values: Floats = as_far / total if exact else (1 + as_far) / (1 + total)
    return p_values


def corrected_p_values(contributions: Floats, pairs: Sequence[tuple[int, int]]) -> tuple[Floats, Floats]:
    """Return the (K, M) p-values of pairs of runs, and the same after Holm's correction over pairs, metric by metric.

    `PERMUTATIONS` are drawn for all pairs. Where three standard errors of the draw leave open which side of `LEVEL` the
    corrected value is on, it is repeated with 100, then with 1,000 for each pair that is corrected for, up to
    `MOST_PERMUTATIONS`.

    Args:
        contributions: (P, R, M) what each person adds to each metric's mean of each run.
        pairs: (K) pairs of runs.
    """
    people, _, metrics = contributions.shape
    shape = (len(pairs), metrics)
    # All metrics of a run are swapped together, as if they were runs of their own.
    columns = contributions.reshape(people, -1)
    tests = [(metrics * i + metric, metrics * j + metric) for i, j in pairs for metric in range(metrics)]
    p_values = sign_flip_p_values(columns, tests).reshape(shape)
    drawn = np.full(shape, PERMUTATIONS)
    if people > EXACT_UP_TO:
        most = permutations_for(len(pairs))
        for permutations in (min(100 * len(pairs), most), most):
            reach = 3 * np.sqrt(p_values / drawn)
            can_pass = _holm_by_metric(np.maximum(p_values - reach, 0.0)) < LEVEL
            can_fail = _holm_by_metric(np.minimum(p_values + reach, 1.0)) >= LEVEL
            is_open = can_pass & can_fail & (drawn < permutations)
            if is_open.any():
                repeated = [test for test, again in zip(tests, is_open.flat, strict=True) if again]
                used = sorted({column for test in repeated for column in test})
                place = {column: index for index, column in enumerate(used)}
                repeated = [(place[i], place[j]) for i, j in repeated]
                p_values[is_open] = sign_flip_p_values(columns[:, used], repeated, permutations=permutations)
                drawn[is_open] = permutations
    return p_values, _holm_by_metric(p_values)


def _holm_by_metric(p_values: Floats) -> Floats:
    return np.stack([holm(of_metric) for of_metric in p_values.T], axis=1)


def holm(p_values: Floats) -> Floats:
    """Return (K,) p-values adjusted for being K in number (Holm, 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p_values[order]))
    return adjusted


def permutations_for(pairs: int) -> int:
    """Return how many permutations are drawn at most when so many pairs of runs are corrected for.

    The smallest p-value that M permutations can give is 1/(1 + M), and Holm's correction multiplies it by the number of
    pairs: with 1,000 for each, 49 of them may be as far from 0 as the observed difference and it is still significant.
    """
    return max(PERMUTATIONS, min(1_000 * pairs, MOST_PERMUTATIONS))


def smallest_corrected_p(people: int, pairs: int) -> float:
    """Return the smallest p-value that so many people and pairs of runs can give after Holm's correction.

    Of all 2^people permutations, at least the observed one and the one that swaps everybody are as far from 0.
    """
    return min(1.0, pairs * max(2.0 ** (1 - people), 1 / (1 + permutations_for(pairs))))


def compact_letters(significant: NDArray[np.bool_], longest: int = 8) -> list[str] | None:
    """Return the letters of R runs, two of which share one if and only if they do not differ significantly.

    Insertion and absorption (Piepho, 2004), then letters that others make superfluous are dropped.

    Args:
        significant: (R, R) symmetric; put the best run first and it gets an `a`.
        longest: how many characters can still be read.

    Returns:
        The letters of each run; None where those of a run would be longer than `longest`, or more groups turn up on the
        way than could be told apart.
    """
    runs = range(len(significant))
    groups = {frozenset(runs)}
    for i, j in combinations(runs, 2):
        if significant[i, j]:
            split = {group for group in groups if {i, j} <= group}
            halves = {group - {run} for group in split for run in (i, j)}
            candidates = (groups - split) | halves
            # Groups that are not split lay in no other before, and so lie in no half of another.
            groups = candidates - {half for half in halves if any(half < other for other in candidates)}
            if len(groups) > _MOST_GROUPS * len(runs):
                return None
    kept = sorted(groups, key=sorted)
    for group in sorted(groups, key=lambda group: (len(group), sorted(group))):
        others = [other for other in kept if other != group]
        shared_elsewhere = all(any({i, j} <= other for other in others) for i in group for j in group)
        if shared_elsewhere:
            kept = others
    names = [*_LETTERS, *(f"({number + 1})" for number in range(len(_LETTERS), len(kept)))]
    letters = ["".join(name for name, group in zip(names, kept, strict=False) if run in group) for run in runs]
    return letters if max(map(len, letters)) <= longest else None


@dataclass(frozen=True, eq=False)
class Intervals:
    """(R, M) lower and upper ends of the intervals of R runs' means."""

    low: Floats
    high: Floats


@dataclass(frozen=True, eq=False)
class PairedDifferences:
    """All differences between runs, first minus second, for each pair and metric: (K, M) each.

    `adjusted` are the p-values after Holm's correction over the K pairs, metric by metric.
    """

    pairs: Sequence[tuple[int, int]]
    differences: Floats
    low: Floats
    high: Floats
    p_values: Floats
    adjusted: Floats

    def significant(self, metric: int, runs: int) -> NDArray[np.bool_]:
        """Return the symmetric (runs, runs) matrix of which pairs differ in a metric after the correction."""
        matrix = np.zeros((runs, runs), dtype=np.bool_)
        for (i, j), p in zip(self.pairs, self.adjusted[:, metric], strict=True):
            matrix[i, j] = matrix[j, i] = p < LEVEL
        return matrix


def compare_tables(tables: Sequence[PersonSums]) -> tuple[Intervals, PairedDifferences]:
    """Return the intervals of runs on the same queries, and every pairwise difference.

    Args:
        tables: with the same people, columns, metrics and counts; rows of the same person stand in the same place.

    Raises:
        ValueError: they do not count the same queries.
    """
    if any(not np.array_equal(table.counts, tables[0].counts) for table in tables):
        raise ValueError("paired runs must have the same queries")
    people, _, metrics = tables[0].sums.shape
    weights = resampling_weights(people)
    means = [table.means for table in tables]
    resampled = [table.resampled(weights) for table in tables]
    left_out = [table.leave_one_out for table in tables]
    ends = [
        bounds_without_exception(table, *bca_interval(*run))
        for table, *run in zip(tables, means, resampled, left_out, strict=True)
    ]
    intervals = Intervals(np.array([low for low, _ in ends]), np.array([high for _, high in ends]))

    pairs = list(combinations(range(len(tables)), 2))
    shape = (len(pairs), metrics)
    differences, low, high = np.empty(shape), np.empty(shape), np.empty(shape)
    for k, (i, j) in enumerate(pairs):
        differences[k] = means[i] - means[j]
        # The same people are drawn for all runs, so that what they have in common cancels out.
        low[k], high[k] = bca_interval(differences[k], resampled[i] - resampled[j], left_out[i] - left_out[j])
    contributions = np.stack([table.contributions for table in tables], axis=1)
    p_values, adjusted = corrected_p_values(contributions, pairs)
    return intervals, PairedDifferences(pairs, differences, low, high, p_values, adjusted)
