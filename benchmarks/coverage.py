"""How often 95 % intervals over people hold the truth: the table of docs/comparison.md, by simulation."""

import argparse
import math

import numpy as np
from numpy.typing import NDArray

from handclip.metrics.uncertainty import PersonSums, bca_interval, bounds_without_exception, resampling_weights

PEOPLE = (20, 40, 71, 190)
SKILLS = {0.66: 1.02, 0.94: 3.94}
"""Log-odds of a query of middling difficulty that give these means."""
DRAWS, MOST_QUERIES = 10, 20
SHARED, OWN, DRAW = 1.2, 0.9, 1.0
"""Standard deviations of what a person, a person in one run and a person in one draw add to the log-odds."""

parser = argparse.ArgumentParser()
parser.add_argument("--trials", type=int, default=2_000)
parser.add_argument("--resamples", type=int, default=2_000)
options = parser.parse_args()


def true_mean(skill: float) -> float:
    """Share of successes among all people; the spread of all three sources is normal."""
    points, weights = np.polynomial.hermite_e.hermegauss(101)
    spread = math.sqrt(SHARED**2 + OWN**2 + DRAW**2)
    return float((weights / (1 + np.exp(-(skill + spread * points)))).sum() / weights.sum())


def two_runs(rng: np.random.Generator, people: int, skill: float) -> list[PersonSums]:
    """Equally good runs on the same queries, which both find easier with some people."""
    counts = np.repeat(rng.integers(1, MOST_QUERIES, size=(people, 1)), DRAWS, axis=1)
    shared = skill + SHARED * rng.normal(size=(people, 1))
    tables = []
    for _ in range(2):
        log_odds = shared + OWN * rng.normal(size=(people, 1)) + DRAW * rng.normal(size=(people, DRAWS))
        hits = rng.binomial(counts, 1 / (1 + np.exp(-log_odds)))
        tables.append(PersonSums(hits[..., None].astype(np.float64), counts.astype(np.float64)))
    return tables


def coverage(people: int, skill: float) -> tuple[float, float]:
    """Shares of trials whose interval of a mean, and of a difference, holds the truth."""
    rng = np.random.default_rng(people)
    weights = resampling_weights(people, options.resamples)
    truth = true_mean(skill)
    of_mean = of_difference = 0
    for _ in range(options.trials):
        one, other = two_runs(rng, people, skill)
        one_resampled, other_resampled = one.resampled(weights), other.resampled(weights)
        interval = bca_interval(one.means, one_resampled, one.leave_one_out)
        of_mean += holds(bounds_without_exception(one, *interval), truth)
        left_out = one.leave_one_out - other.leave_one_out
        of_difference += holds(bca_interval(one.means - other.means, one_resampled - other_resampled, left_out), 0.0)
    return of_mean / options.trials, of_difference / options.trials


def holds(interval: tuple[NDArray[np.float64], NDArray[np.float64]], truth: float) -> bool:
    """Whether an interval holds the truth."""
    low, high = interval
    return bool(low[0] <= truth <= high[0])


def main() -> None:
    """Print the table and its standard error."""
    for mean, skill in SKILLS.items():
        assert round(true_mean(skill), 2) == mean, true_mean(skill)
    print("| people | " + " | ".join(f"mean {mean} | difference, {mean}" for mean in SKILLS) + " |")
    print("| ---: |" + " ---: |" * 2 * len(SKILLS))
    for people in PEOPLE:
        shares = [share for skill in SKILLS.values() for share in coverage(people, skill)]
        print(f"| {people} | " + " | ".join(f"{share:.2f}" for share in shares) + " |", flush=True)
    errors = [math.sqrt(share * (1 - share) / options.trials) for share in (0.95, 0.85)]
    print(f"{options.trials:,} trials; standard error {errors[0]:.3f} (at 0.95) to {errors[1]:.3f} (at 0.85)")


if __name__ == "__main__":
    main()
