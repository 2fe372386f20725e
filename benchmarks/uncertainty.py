"""Comparing runs over people, as a report does: bootstrap intervals and permutation tests, against Python loops.

The reference loops over resamples and, in each, works on the outcomes of all queries by numpy: the first thing to
write. Who is drawn is drawn once for all runs and pairs on both sides, and BCa intervals are read from the resampled
means by the same function. A second reference, told in the notes, sums the outcomes of each person first and loops over
resamples of those few numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np
from harness import Row, main, seconds_of, speedup_row
from numpy.typing import NDArray

from handclip.metrics.uncertainty import (
    PERMUTATIONS,
    REPLICATES,
    PersonSums,
    bca_interval,
    compare_tables,
    resampling_weights,
)

Floats = NDArray[np.float64]
Draws = tuple[NDArray[np.int64], NDArray[np.bool_]]
"""(REPLICATES, PEOPLE) drawn people, and (PERMUTATIONS, PEOPLE) whether a person swaps."""
Comparison = tuple[list[Floats], list[Floats], Floats]
"""Lower and upper ends of all runs, then of all pairs; and the (pairs, METRICS) p-values."""

PEOPLE, QUERIES, METRICS = 200, 1_000, 5
BARS = (-0.9, -0.9, -0.3, -0.3, 0.3)
"""What a query must reach to succeed, in each run; so far apart that no p-value needs further permutations."""


class Runs:
    """Made-up outcomes of runs on the same queries: (QUERIES, METRICS) each, five queries a person."""

    def __init__(self, number: int) -> None:
        random = np.random.default_rng(0)
        self.person = random.permutation(np.arange(QUERIES) % PEOPLE)
        ability = random.normal(size=(PEOPLE, 1))[self.person] + random.normal(size=(QUERIES, METRICS))
        outcomes = [(ability + random.normal(size=ability.shape) > bar).astype(np.float64) for bar in BARS]
        self.outcomes = outcomes[:number]
        self.pairs = list(combinations(range(number), 2))

    def tables(self) -> list[PersonSums]:
        counts = np.bincount(self.person, minlength=PEOPLE)[:, None].astype(np.float64)
        return [PersonSums(sums[:, None], counts) for sums in self.sums_of_people()]

    def means(self) -> list[Floats]:
        """(METRICS,) of each run, for both sides: resamples that equal them count half, which rounding would decide."""
        return [table.means for table in self.tables()]

    def sums_of_people(self) -> list[Floats]:
        """(PEOPLE, METRICS) for each run."""
        sums = [np.zeros((PEOPLE, METRICS)) for _ in self.outcomes]
        for of_run, run in zip(sums, self.outcomes, strict=True):
            np.add.at(of_run, self.person, run)
        return sums


def plain_draws() -> Draws:
    """Draw the people of each resample and who swaps in each permutation, one after the other."""
    random = np.random.default_rng(0)
    drawn = np.array([random.choice(PEOPLE, size=PEOPLE) for _ in range(REPLICATES)])
    return drawn, np.array([random.integers(0, 2, size=PEOPLE, dtype=np.bool_) for _ in range(PERMUTATIONS)])


def draws_of_handclip(runs: Runs) -> Draws:
    """The same people as `compare_tables` draws: the same numbers of the same generators, in the same order."""
    weights = resampling_weights(PEOPLE).astype(np.int64)
    drawn = np.array([np.repeat(np.arange(PEOPLE), of_replicate) for of_replicate in weights])
    random = np.random.default_rng(0)
    rows = min(10_000, 2_000_000 // (PEOPLE + METRICS * len(runs.outcomes)))
    parts = []
    for start in range(0, PERMUTATIONS, rows):
        size = min(rows, PERMUTATIONS - start)
        eights = random.integers(0, 256, size=(PEOPLE, -(-size // 8)), dtype=np.uint8)
        parts.append(np.unpackbits(eights, axis=1, count=size).T.astype(np.bool_))
    return drawn, np.concatenate(parts)


def intervals(
    runs: Runs, means: Sequence[Floats], resampled: Sequence[Floats], left_out: Sequence[Floats]
) -> Comparison:
    """BCa intervals of runs and pairs; without p-values."""
    of_runs = [bca_interval(*of_run) for of_run in zip(means, resampled, left_out, strict=True)]
    of_pairs = [
        bca_interval(means[i] - means[j], resampled[i] - resampled[j], left_out[i] - left_out[j]) for i, j in runs.pairs
    ]
    low, high = zip(*of_runs, *of_pairs, strict=True)
    return list(low), list(high), np.empty((len(runs.pairs), METRICS))


def plain_comparison(runs: Runs, draws: Draws) -> Comparison:
    """Loop over resamples, permutations, runs and pairs, on the outcomes of queries."""
    drawn, swaps = draws
    queries_of = [np.flatnonzero(runs.person == person) for person in range(PEOPLE)]
    resampled: list[list[Floats]] = [[] for _ in runs.outcomes]
    for people in drawn:
        rows = np.concatenate([queries_of[person] for person in people])
        for of_run, run in zip(resampled, runs.outcomes, strict=True):
            of_run.append(run[rows].mean(axis=0))
    means = runs.means()
    others = [runs.person != person for person in range(PEOPLE)]
    left_out = [np.array([run[of_others].mean(axis=0) for of_others in others]) for run in runs.outcomes]
    low, high, p_values = intervals(runs, means, [np.array(of_run) for of_run in resampled], left_out)
    for k, (i, j) in enumerate(runs.pairs):
        one, other = runs.outcomes[i], runs.outcomes[j]
        as_far = np.zeros(METRICS)
        for people in swaps:
            swapped = people[runs.person, None]
            difference = np.where(swapped, other, one).mean(axis=0) - np.where(swapped, one, other).mean(axis=0)
            as_far += np.abs(difference) >= np.abs(means[i] - means[j]) - 1e-10  # rounding must not decide
        p_values[k] = (1 + as_far) / (1 + PERMUTATIONS)
    return low, high, p_values


def plain_comparison_of_sums(runs: Runs, draws: Draws) -> Comparison:
    """Do the same on sums for each person: less to add up in each resample, and a difference changes its sign."""
    drawn, swaps = draws
    sums, counts = runs.sums_of_people(), np.bincount(runs.person, minlength=PEOPLE)
    resampled: list[list[Floats]] = [[] for _ in sums]
    for people in drawn:
        queries = counts[people].sum()
        for of_run, of_people in zip(resampled, sums, strict=True):
            of_run.append(of_people[people].sum(axis=0) / queries)
    means = runs.means()
    left_out = [(of_people.sum(axis=0) - of_people) / (QUERIES - counts)[:, None] for of_people in sums]
    low, high, p_values = intervals(runs, means, [np.array(of_run) for of_run in resampled], left_out)
    signs = np.where(swaps, -1.0, 1.0)
    for k, (i, j) in enumerate(runs.pairs):
        differences = (sums[i] - sums[j]) / QUERIES
        as_far = np.zeros(METRICS)
        for of_people in signs:
            as_far += np.abs(of_people @ differences) >= np.abs(means[i] - means[j]) - 1e-10
        p_values[k] = (1 + as_far) / (1 + PERMUTATIONS)
    return low, high, p_values


def comparison(runs: Runs) -> Comparison:
    """What a report calls, on people that were not drawn before."""
    resampling_weights.cache_clear()
    of_runs, of_pairs = compare_tables(runs.tables())
    return [*of_runs.low, *of_pairs.low], [*of_runs.high, *of_pairs.high], of_pairs.p_values


def require_equal(found: Comparison, expected: Comparison) -> None:
    """Stop unless all intervals are the same to rounding, and all p-values to the last bit."""
    for ends, expected_ends in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(ends, expected_ends, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found[2], expected[2])


def compared(number: int, note: str) -> Row:
    """Time the comparison of so many runs, with all that is drawn for it."""
    runs = Runs(number)
    draws = draws_of_handclip(runs)
    drawing = seconds_of(plain_draws)
    seconds = seconds_of(lambda: comparison(runs), repeats=7, warm_up=1)
    expected: list[Comparison] = []

    def timed(loop: Callable[[Runs, Draws], Comparison]) -> float:
        return drawing + seconds_of(lambda: expected.append(loop(runs, draws)))

    of_queries, of_sums = timed(plain_comparison), timed(plain_comparison_of_sums)
    for answer in expected:
        require_equal(comparison(runs), answer)
    drawing_people = seconds_of(lambda: resampling_weights.__wrapped__(PEOPLE), repeats=3)
    notes = [
        f"{of_sums / seconds:.1f}x a loop over resamples of sums for each person ({of_sums:.1f} s)",
        f"drawing the people is {100 * drawing_people / seconds:.0f} % of the time",
        note,
    ]
    return speedup_row(
        f"bootstrap and permutation test of {number} runs and {len(runs.pairs)} "
        f"difference{'s' if number > 2 else ''} between them, with fresh draws, "
        f"{QUERIES:,} queries of {PEOPLE} people, {REPLICATES:,} resamples and {PERMUTATIONS:,} permutations",
        "a Python loop over resamples, runs and pairs, numpy on all queries within each; drawing as well",
        seconds=seconds,
        reference_seconds=of_queries,
        target=50,
        same_work=f"given the same draws, {METRICS} metrics: ends of all intervals to 1e-12, p-values equal",
        note="; ".join(filter(None, notes)),
    )


def rows() -> Iterator[Row]:
    yield compared(len(BARS), "five runs are the loss variants of one model, as a study compares them")
    yield compared(
        2,
        "people are drawn for a single difference here, and numpy can draw them no faster with the numbers that "
        "published intervals come from",
    )


if __name__ == "__main__":
    main(rows)
