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
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from handclip.metrics.arrays import Floats
from handclip.metrics.ranking import require_finite

Values: TypeAlias = NDArray[np.float32] | Floats

MOST_IMPOSTORS = 1_000_000
"""Impostor scores that a fit uses at most; of more, so many are drawn."""
FEW_PAIRS = 30
"""A bin of a reliability diagram with fewer comparisons is merged with the next."""

_INVERSE_PENALTY = 1e3
"""So weak that it only keeps the slope finite where genuine and impostor scores do not overlap."""
_CONVERGED, _RESOLVED = 1e-20, 1e-8
"""Newton's decrement as a share of the cost: where the last step follows, and below which steps need no checking: by
then they are whole, and the cost changes too little to be compared in float64."""
_MOST_STEPS = 100
"""A dozen are usual; more than these are rounding's doing."""


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
    r"""Fit logistic regression in which both kinds weigh alike in total, so that its log odds are the LLR.

    With scores $x$ whose weighted mean is 0 and variance 1, $y = \pm 1$ and weights $v$ that sum to the number $n$ of
    scores, it is the exact minimum of

    $$\frac{w^2}{2} + 1000 \sum_i v_i \log(1 + e^{-y_i (w x_i + b)})$$

    The first term only matters where the kinds hardly overlap, or not at all. Scores that are all the same, but for
    rounding, tell nothing: slope and offset are 0.

    Args:
        genuine: (N,) scores.
        impostor: (M,) scores.

    Raises:
        ValueError: a score is not finite.
    """
    require_finite(genuine=genuine, impostor=impostor)
    drawn = thinned(impostor)
    scores = np.concatenate([genuine, drawn]).astype(np.float64)
    signs = np.repeat([1.0, -1.0], [len(genuine), len(drawn)])
    weights = _alike(len(genuine), len(drawn))
    centre = float(np.average(scores, weights=weights))
    spread = float(np.sqrt(np.average((scores - centre) ** 2, weights=weights)))
    rounding = max(np.finfo(genuine.dtype).eps, np.finfo(impostor.dtype).eps)
    if spread <= rounding * np.abs(scores).max():
        return Calibration(0.0, 0.0)
    penalty = 1 / (_INVERSE_PENALTY * len(scores))
    slope, offset = _fit_line(signs, (scores - centre) / spread, weights, penalty)
    return Calibration(slope / spread, offset - slope / spread * centre)


def _fit_line(signs: Floats, scores: Floats, weights: Floats, penalty: float) -> tuple[float, float]:
    """Return slope and offset with the least penalty * slope^2 / 2 + sum(weights * log(1 + exp(-signs * line))).

    The cost is strictly convex, so its minimum is the only one, and Newton's steps, halved until they lower it, lead
    there.
    """
    columns = np.stack([scores, np.ones_like(scores)])
    ridge = np.diag([penalty, 0.0])

    def cost_of(line: Floats) -> float:
        return float(weights @ np.logaddexp(0, -signs * (line @ columns)) + line @ ridge @ line / 2)

    line = np.zeros(2)
    for _ in range(_MOST_STEPS):
        margins = signs * (line @ columns)
        wrong = weights * expit(-margins)
        gradient = ridge @ line - columns @ (signs * wrong)
        step = np.linalg.solve(ridge + columns * (wrong * expit(margins)) @ columns.T, gradient)
        cost, decrement = cost_of(line), gradient @ step
        while decrement > _RESOLVED * cost and cost_of(line - step) > cost - 1e-4 * gradient @ step:
            step /= 2
        line = line - step
        if decrement <= _CONVERGED * cost:
            break
    return float(line[0]), float(line[1])


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
