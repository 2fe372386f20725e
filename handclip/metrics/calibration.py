"""What a score is worth as evidence.

A similarity is not a probability. Calibration turns it into a log-likelihood ratio (LLR): how much more often two
photographs of the same person have this score than photographs of two people. Here it is the natural logarithm. The
cost of log-likelihood ratios is that of Brümmer and du Preez (2006): 0 for ratios that tell everything, 1 bit for
ratios that tell nothing, more than 1 for ratios that mislead.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from handclip.metrics.ranking import require_finite

Floats: TypeAlias = NDArray[np.float64]
Values: TypeAlias = NDArray[np.float32] | Floats

MOST_IMPOSTORS = 1_000_000
"""Impostor scores that a fit uses at most; of more, so many are drawn."""
FEW_PAIRS = 30
"""A bin of a reliability diagram with fewer comparisons is merged with the next."""

_INVERSE_PENALTY = 1e3
"""So weak that it only keeps the slope finite where genuine and impostor scores do not overlap."""


@dataclass(frozen=True)
class Calibration:
    """A straight line from scores to log-likelihood ratios: slope * score + offset."""

    slope: float
    offset: float

    def llr(self, scores: Values) -> Floats:
        """Return natural log-likelihood ratios of scores.

        Raises:
            ValueError: a score is not finite.
        """
        require_finite(scores=scores)
        return np.asarray(self.slope * scores.astype(np.float64) + self.offset)


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often predictions come true, for prior odds of 1: as if half of the comparisons were genuine.

    Args:
        predicted: (B,) mean predicted probability of each bin, rising.
        observed: (B,) share of genuine comparisons, both kinds weighing alike in total.
        genuine: (B,) number of genuine comparisons.
        impostor: (B,) number of impostor comparisons.
    """

    predicted: Floats
    observed: Floats
    genuine: NDArray[np.int64]
    impostor: NDArray[np.int64]


def fit_calibration(genuine: Values, impostor: Values) -> Calibration:
    """Fit logistic regression in which both kinds weigh alike in total, so that its log odds are the LLR.

    Args:
        genuine: (N,) scores.
        impostor: (M,) scores.

    Raises:
        ValueError: a score is not finite.
    """
    require_finite(genuine=genuine, impostor=impostor)
    drawn = thinned(impostor)
    scores = np.concatenate([genuine, drawn]).astype(np.float64)
    is_genuine = np.arange(len(scores)) < len(genuine)
    weights = _alike(len(genuine), len(drawn)) * len(scores)
    centre = float(np.average(scores, weights=weights))
    spread = float(np.sqrt(np.average((scores - centre) ** 2, weights=weights))) or 1.0
    model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=1_000)
    model.fit(((scores - centre) / spread)[:, None], is_genuine, sample_weight=weights)
    slope = float(model.coef_[0, 0]) / spread
    return Calibration(slope, float(model.intercept_[0]) - slope * centre)


def cosine_as_probability(cosines: Values) -> Floats:
    """Return the LLR that someone would assume who takes (1 + cosine) / 2 for a probability at even odds.

    Raises:
        ValueError: a cosine is not finite.
    """
    require_finite(cosines=cosines)
    inside = np.clip(cosines.astype(np.float64), -1 + 1e-6, 1 - 1e-6)
    return np.asarray(2 * np.arctanh(inside))


def cllr(genuine: Floats, impostor: Floats) -> float:
    r"""Return the cost of natural log-likelihood ratios in bits (Brümmer and du Preez, 2006).

    $$\frac12 \left(\frac1N \sum_i \log_2(1 + e^{-g_i}) + \frac1M \sum_j \log_2(1 + e^{h_j})\right)$$

    Args:
        genuine: (N,) ratios g of genuine comparisons.
        impostor: (M,) ratios h of impostor comparisons.

    Raises:
        ValueError: a ratio is not finite.
    """
    require_finite(genuine=genuine, impostor=impostor)
    costs = np.logaddexp(0, -genuine).mean() + np.logaddexp(0, impostor).mean()
    return float(costs / (2 * np.log(2)))


def minimum_cllr(genuine: Values, impostor: Values) -> float:
    """Return the cost in bits of the best rising function of the scores, which pool-adjacent-violators finds.

    It is what the scores' order is worth. The function is fitted on these very scores, so that no calibration that was
    fitted elsewhere, or that is a straight line, can be expected to reach it.

    Args:
        genuine: (N,) scores.
        impostor: (M,) scores; of more than `MOST_IMPOSTORS` so many are drawn.

    Raises:
        ValueError: a score is not finite.
    """
    require_finite(genuine=genuine, impostor=impostor)
    drawn = thinned(impostor)
    scores = np.concatenate([genuine, drawn]).astype(np.float64)
    is_genuine = np.arange(len(scores)) < len(genuine)
    weights = _alike(len(genuine), len(drawn))
    probability = IsotonicRegression(y_min=0, y_max=1).fit_transform(scores, is_genuine, sample_weight=weights)
    right = np.where(is_genuine, probability, 1 - probability)
    # Of scores that do not overlap the sum is 0, whose sign rounding would decide.
    return max(0.0, -float((weights * np.log2(right)).sum()))


def reliability(genuine: Floats, impostor: Floats, bins: int = 10) -> Reliability:
    """Return a reliability diagram of natural log-likelihood ratios at prior odds of 1.

    Bins hold the same share of all comparisons, both kinds weighing alike in total; equal predictions share one, and
    bins of fewer than `FEW_PAIRS` comparisons are merged with the next.

    Args:
        genuine: (N,) ratios of genuine comparisons.
        impostor: (M,) ratios of impostor comparisons.
        bins: at most so many.

    Raises:
        ValueError: a ratio is not finite.
    """
    require_finite(genuine=genuine, impostor=impostor)
    ratios = np.concatenate([genuine, impostor])
    order = np.argsort(ratios, kind="stable")
    ratios, is_genuine = ratios[order], order < len(genuine)
    weights = _alike(len(genuine), len(impostor))[order]
    predicted = np.exp(-np.logaddexp(0, -ratios))
    mass = np.cumsum(weights) / weights.sum()
    wanted = np.searchsorted(mass, np.arange(1, bins) / bins)
    # A bin starts where a new value does.
    starts = [0]
    for start in np.searchsorted(ratios, ratios[wanted], side="left").tolist():
        if start - starts[-1] >= FEW_PAIRS and len(ratios) - start >= FEW_PAIRS:
            starts.append(start)
    masses, sums, hits = (np.add.reduceat(of, starts) for of in (weights, weights * predicted, weights * is_genuine))
    counts = np.add.reduceat(is_genuine.astype(np.int64), starts)
    sizes = np.diff([*starts, len(ratios)])
    return Reliability(sums / masses, hits / masses, counts, sizes - counts)


def thinned(impostor: Values, most: int = MOST_IMPOSTORS) -> Values:
    """Return impostor scores, or as many of them as may be, drawn at random in the same way every time."""
    if len(impostor) <= most:
        return impostor
    return impostor[np.random.default_rng(0).choice(len(impostor), most, replace=False, shuffle=False)]


def _alike(genuine: int, impostor: int) -> Floats:
    """Weights that sum to 1, half of it for either kind."""
    return np.repeat([0.5 / genuine, 0.5 / impostor], [genuine, impostor])
