"""Calibration against closed forms, and what it must do for scores of other people."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from handclip.metrics.calibration import (
    FEW_PAIRS,
    cllr,
    cosine_as_probability,
    fit_calibration,
    minimum_cllr,
    reliability,
    thinned,
)

few_scores = st.lists(st.integers(-4, 4), min_size=1, max_size=12)


def normal_scores(genuine: int, impostor: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.6, 0.1, genuine), rng.normal(0.3, 0.1, impostor)


def test_normally_distributed_scores_are_calibrated_as_the_closed_form():
    # log N(0.6, 0.1) - log N(0.3, 0.1) is the line 30 s - 13.5, whatever the numbers of either kind.
    calibration = fit_calibration(*normal_scores(20_000, 60_000))
    assert calibration.slope == pytest.approx(30, rel=0.03)
    assert calibration.offset == pytest.approx(-13.5, rel=0.03)
    assert calibration.llr(np.array([0.45])) == pytest.approx(0, abs=0.1)


def test_calibration_improves_the_cost_on_a_held_out_draw():
    calibration = fit_calibration(*normal_scores(300, 3_000, seed=1))
    genuine, impostor = normal_scores(300, 3_000, seed=2)
    before = cllr(cosine_as_probability(genuine), cosine_as_probability(impostor))
    after = cllr(calibration.llr(genuine), calibration.llr(impostor))
    assert minimum_cllr(genuine, impostor) < after < before / 2
    assert after == pytest.approx(minimum_cllr(genuine, impostor), abs=0.05)


def newton_fit(genuine: NDArray[np.float64], impostor: NDArray[np.float64]) -> tuple[float, float]:
    """The documented minimum by plain Newton steps, with more digits where the machine has them."""
    scores = np.concatenate([genuine, impostor]).astype(np.longdouble)
    signs = np.repeat([1.0, -1.0], [len(genuine), len(impostor)])
    weights = np.repeat([0.5 / len(genuine), 0.5 / len(impostor)], [len(genuine), len(impostor)]) * len(scores)
    centre = (weights * scores).sum() / weights.sum()
    spread = np.sqrt((weights * (scores - centre) ** 2).sum() / weights.sum())
    x = (scores - centre) / spread

    def cost(slope: np.longdouble, offset: np.longdouble) -> np.longdouble:
        return slope**2 / 2 + 1_000 * (weights * np.logaddexp(0, -signs * (slope * x + offset))).sum()

    slope = offset = np.longdouble(0)
    for _ in range(60):
        margins = signs * (slope * x + offset)
        wrong = 1_000 * weights / (1 + np.exp(margins))
        curved = wrong / (1 + np.exp(-margins))
        down = np.array([(signs * wrong * x).sum() - slope, (signs * wrong).sum()])
        a, b, c = 1 + (curved * x**2).sum(), (curved * x).sum(), curved.sum()
        step = np.array([c * down[0] - b * down[1], a * down[1] - b * down[0]]) / (a * c - b**2)
        # As large a step as lowers the cost; near the minimum, where rounding would decide, the whole one.
        part = np.longdouble(1)
        while down @ step > 1e-9 and cost(slope + part * step[0], offset + part * step[1]) > cost(slope, offset):
            part /= 2
        slope, offset = slope + part * step[0], offset + part * step[1]
    return float(slope / spread), float(offset - slope / spread * centre)


@st.composite
def any_scores(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A few or many of either kind, near or far apart, with or without ties and outliers, in any unit."""
    sizes = draw(st.tuples(st.integers(1, 300), st.integers(1, 300)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    heavy = draw(st.booleans())
    genuine, impostor = (rng.standard_t(1, size) if heavy else rng.normal(size=size) for size in sizes)
    genuine = genuine + draw(st.sampled_from([-1.0, 0.0, 0.5, 3.0, 5.0, 8.0]))  # at 5 they hardly overlap, at 8 never
    if draw(st.booleans()):
        genuine, impostor = np.round(genuine), np.round(impostor)
    unit, origin = draw(st.sampled_from([1e-9, 1e-2, 1.0, 1e6])), draw(st.sampled_from([0.0, 1.0, -50.0]))
    return unit * (genuine + origin), unit * (impostor + origin)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(any_scores())
def test_the_fit_is_exact(scores: tuple[NDArray[np.float64], NDArray[np.float64]]):
    calibration = fit_calibration(*scores)
    if np.ptp(np.concatenate(scores)) == 0:
        assert (calibration.slope, calibration.offset) == (0, 0)
        return
    slope, offset = newton_fit(*scores)
    assert calibration.slope == pytest.approx(slope, rel=1e-8, abs=1e-12 / np.ptp(np.concatenate(scores)))
    # An offset of nearly 0 is the difference of two large numbers, to whose size rounding is relative.
    largest = np.abs(np.concatenate(scores)).max()
    assert calibration.offset == pytest.approx(offset, rel=1e-8, abs=1e-8 * abs(slope) * largest + 1e-12)


def test_the_fit_of_many_scores_is_that_of_maximum_likelihood():
    """Its weak penalty is not seen where the scores overlap: the means of either kind come out as they are."""
    genuine, impostor = normal_scores(2_000, 30_000)
    calibration = fit_calibration(genuine, impostor)
    missed = 1 / (1 + np.exp(calibration.llr(genuine)))
    accepted = 1 / (1 + np.exp(-calibration.llr(impostor)))
    assert missed.mean() == pytest.approx(accepted.mean(), rel=1e-9)
    assert (missed * genuine).mean() == pytest.approx((accepted * impostor).mean(), rel=2e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_that_only_rounding_tells_apart_say_nothing(dtype: type[np.floating]):
    one = np.nextafter(dtype(1), dtype(0))
    calibration = fit_calibration(np.array([1, 1, one], dtype), np.array([one, one, 1, one], dtype))
    assert (calibration.slope, calibration.offset) == (0, 0)
    assert fit_calibration(np.full(3, 0.1, dtype), np.full(7, 0.1, dtype)).llr(np.array([0.1, 0.9])).tolist() == [0, 0]


def test_scores_that_do_not_overlap_keep_the_slope_finite():
    calibration = fit_calibration(np.array([0.8, 0.9]), np.array([0.1, 0.2]))
    assert np.isfinite([calibration.slope, calibration.offset]).all()
    assert calibration.llr(np.array([0.8]))[0] > 0 > calibration.llr(np.array([0.2]))[0]


def test_cost_by_hand():
    assert cllr(np.zeros(3), np.zeros(5)) == pytest.approx(1)
    assert cllr(np.array([np.log(3)]), np.array([-np.log(7)])) == pytest.approx((np.log2(4 / 3) + np.log2(8 / 7)) / 2)
    assert cllr(np.full(2, 800.0), np.full(2, -800.0)) == 0


def test_minimum_cost_by_hand():
    apart = minimum_cllr(np.array([2.0, 3.0]), np.array([0.0, 1.0]))
    assert f"{apart:.3f}" == "0.000"
    assert minimum_cllr(np.array([1.0]), np.array([1.0, 1.0, 1.0])) == pytest.approx(1)
    # The order says the opposite of the truth, so that pooling leaves one block.
    assert minimum_cllr(np.array([0.0, 1.0]), np.array([2.0])) == pytest.approx(1)
    # Blocks 0 | 1, 1 | 2 with half of either kind in the middle one.
    assert minimum_cllr(np.array([1.0, 2.0]), np.array([0.0, 1.0])) == pytest.approx(0.5)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(few_scores, few_scores)
def test_no_rising_function_costs_less_than_the_minimum(genuine: list[int], impostor: list[int]):
    own, other = np.array(genuine, float), np.array(impostor, float)
    minimum = minimum_cllr(own, other)
    assert 0 <= minimum <= 1 + 1e-9
    assert minimum <= cllr(own, other) + 1e-9
    calibration = fit_calibration(own, other)
    if calibration.slope >= 0:
        assert minimum <= cllr(calibration.llr(own), calibration.llr(other)) + 1e-9
    assert minimum_cllr(np.exp(own), np.exp(other)) == pytest.approx(minimum, abs=1e-9)


def test_a_cosine_read_as_a_probability():
    cosines = np.array([-1.0, 0.0, 0.8, 1.0])
    odds = np.exp(cosine_as_probability(cosines))
    np.testing.assert_allclose(odds / (1 + odds), (1 + cosines) / 2, atol=1e-6)


def test_predictions_that_are_right_lie_on_the_diagonal():
    genuine, impostor = normal_scores(40_000, 80_000)
    diagram = reliability(30 * genuine - 13.5, 30 * impostor - 13.5)
    assert len(diagram.predicted) == 10
    np.testing.assert_allclose(diagram.observed, diagram.predicted, atol=0.02)
    assert (diagram.genuine.sum(), diagram.impostor.sum()) == (40_000, 80_000)
    masses = diagram.genuine / 80_000 + diagram.impostor / 160_000
    np.testing.assert_allclose(masses, 0.1, atol=1e-3)


def test_bins_of_few_comparisons_are_merged():
    genuine, impostor = normal_scores(40, 60)
    diagram = reliability(30 * genuine - 13.5, 30 * impostor - 13.5)
    assert (diagram.genuine + diagram.impostor >= FEW_PAIRS).all()
    assert 1 < len(diagram.predicted) <= 3
    assert (diagram.genuine.sum(), diagram.impostor.sum()) == (40, 60)


def test_equal_predictions_share_a_bin():
    diagram = reliability(np.zeros(100), np.zeros(300))
    assert diagram.predicted == pytest.approx([0.5])
    assert diagram.observed == pytest.approx([0.5])
    assert (diagram.genuine.tolist(), diagram.impostor.tolist()) == ([100], [300])


def test_only_too_many_impostors_are_thinned_and_always_alike():
    scores = np.arange(100.0)
    assert thinned(scores, 100) is scores
    drawn = thinned(scores, 10)
    assert len(set(drawn.tolist())) == 10
    np.testing.assert_array_equal(drawn, thinned(scores, 10))
