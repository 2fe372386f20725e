"""Comparing two runs over people: bootstrap intervals and the permutation test, against loops over resamples."""

from collections.abc import Iterator

import numpy as np
from harness import Row, main, seconds_of, speedup_row
from numpy.typing import NDArray

from handclip.metrics.uncertainty import PersonSums, resampling_weights, sign_flip_p_values

Floats = NDArray[np.float64]

PEOPLE, QUERIES, METRICS, RESAMPLES = 200, 1_000, 5, 10_000
PAIRS = [(metric, METRICS + metric) for metric in range(METRICS)]
"""The same metric of the two runs."""


class TwoRuns:
    """Made-up outcomes of two runs on the same queries: (QUERIES, METRICS) each, five queries a person."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.person = random.permutation(np.arange(QUERIES) % PEOPLE)
        ability = random.normal(size=(PEOPLE, 1))[self.person] + random.normal(size=(QUERIES, METRICS))
        self.runs = [(ability + random.normal(size=ability.shape) > bar).astype(np.float64) for bar in (-0.9, -0.8)]

    def tables(self) -> list[PersonSums]:
        counts = np.bincount(self.person, minlength=PEOPLE)[:, None].astype(np.float64)
        sums = []
        for run in self.runs:
            of_people = np.zeros((PEOPLE, METRICS))
            np.add.at(of_people, self.person, run)
            sums.append(PersonSums(of_people[:, None], counts))
        return sums


def plain_bootstrap(problem: TwoRuns, drawn: NDArray[np.int64]) -> list[Floats]:
    """(RESAMPLES, METRICS) means of each run over the queries of the (RESAMPLES, PEOPLE) drawn people."""
    queries_of = [np.flatnonzero(problem.person == person) for person in range(PEOPLE)]
    means: list[list[Floats]] = [[], []]
    for people in drawn:
        rows = np.concatenate([queries_of[person] for person in people])
        for of_run, run in zip(means, problem.runs, strict=True):
            of_run.append(run[rows].mean(axis=0))
    return [np.array(of_run) for of_run in means]


def plain_permutation_test(problem: TwoRuns, swaps: NDArray[np.bool_]) -> Floats:
    """(METRICS,) p-values of the difference when the (RESAMPLES, PEOPLE) given people swap their two runs."""
    one, other = problem.runs
    observed = np.abs(one.mean(axis=0) - other.mean(axis=0))
    as_far = np.zeros(METRICS)
    for people in swaps:
        swapped = people[problem.person, None]
        difference = np.where(swapped, other, one).mean(axis=0) - np.where(swapped, one, other).mean(axis=0)
        as_far += np.abs(difference) >= observed - 1e-10  # rounding must not decide about equality
    p_values: Floats = (1 + as_far) / (1 + RESAMPLES)
    return p_values


def plain_comparison(
    problem: TwoRuns, drawn: NDArray[np.int64], swaps: NDArray[np.bool_]
) -> tuple[list[Floats], Floats]:
    return plain_bootstrap(problem, drawn), plain_permutation_test(problem, swaps)


def bootstrap(tables: list[PersonSums]) -> list[Floats]:
    weights = resampling_weights(PEOPLE, RESAMPLES)
    return [table.resampled(weights) for table in tables]


def permutation_test(tables: list[PersonSums]) -> Floats:
    contributions = np.concatenate([table.contributions for table in tables], axis=1)
    return sign_flip_p_values(contributions, PAIRS, permutations=RESAMPLES)


def comparison(problem: TwoRuns) -> tuple[list[Floats], Floats]:
    tables = problem.tables()
    return bootstrap(tables), permutation_test(tables)


def swaps_drawn() -> NDArray[np.bool_]:
    """The people whom `sign_flip_p_values` swaps: the same numbers of the same generator, in the same order."""
    random = np.random.default_rng(0)
    rows = min(10_000, 2_000_000 // (PEOPLE + 2 * METRICS))
    parts = []
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        eights = random.integers(0, 256, size=(PEOPLE, -(-size // 8)), dtype=np.uint8)
        parts.append(np.unpackbits(eights, axis=1, count=size).T.astype(np.bool_))
    return np.concatenate(parts)


def drawn_people() -> NDArray[np.int64]:
    """(RESAMPLES, PEOPLE) people, as often as `resampling_weights` says."""
    weights = resampling_weights(PEOPLE, RESAMPLES).astype(np.int64)
    return np.array([np.repeat(np.arange(PEOPLE), of_replicate) for of_replicate in weights])


def plain_draws() -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Draw the people of each resample and who swaps in each permutation, one after the other."""
    random = np.random.default_rng(0)
    drawn = np.array([random.choice(PEOPLE, size=PEOPLE) for _ in range(RESAMPLES)])
    return drawn, np.array([random.integers(0, 2, size=PEOPLE, dtype=np.bool_) for _ in range(RESAMPLES)])


def comparison_with_draws(problem: TwoRuns) -> None:
    resampling_weights.cache_clear()
    comparison(problem)


def rows() -> Iterator[Row]:
    problem = TwoRuns()
    draws = drawn_people(), swaps_drawn()
    (means, p_values), (plain_means, plain_p_values) = comparison(problem), plain_comparison(problem, *draws)
    np.testing.assert_allclose(means, plain_means, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(p_values, plain_p_values)
    what = f"bootstrap and permutation test of two runs, {QUERIES:,} queries of {PEOPLE} people, {RESAMPLES:,} each"
    proof = f"given the same draws, {METRICS} metrics: all resampled means to 1e-12, p-values equal"
    reference_seconds = seconds_of(lambda: plain_comparison(problem, *draws))
    yield speedup_row(
        what,
        "a Python loop over resamples, numpy within each",
        seconds=seconds_of(lambda: comparison(problem), repeats=9, warm_up=1),
        reference_seconds=reference_seconds,
        target=50,
        same_work=proof,
        note="people drawn beforehand on both sides, as for every comparison of the same people after the first",
    )
    yield speedup_row(
        f"{what}: the first time, with drawing the people",
        "the same loop, drawing as well",
        seconds=seconds_of(lambda: comparison_with_draws(problem), repeats=5),
        reference_seconds=seconds_of(plain_draws) + reference_seconds,
        same_work=proof,
    )


if __name__ == "__main__":
    main(rows)
