"""Error rates against closed forms, scikit-learn and brute force."""

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_searches import Scored, made_search
from sklearn.metrics import det_curve, roc_curve

from handclip.metrics.uncertainty import resampling_weights
from handclip.metrics.verification import (
    FMRS,
    OPERATING_FMR,
    RateEstimate,
    ScoredPairs,
    _resampled_rates,
    equal_rate,
    estimate_rate,
    fix_thresholds,
    in_percent,
    rate_at,
    too_few_pairs,
    too_few_people,
    verify,
)


def pairs_of(genuine: Any, impostor: Any) -> ScoredPairs:
    """Two people; whose scores are whose does not matter."""
    genuine, impostor = np.asarray(genuine, np.float32), np.asarray(impostor, np.float32)
    return ScoredPairs(
        np.arange(2), genuine, np.zeros(len(genuine), np.uint32), impostor, np.ones(len(impostor), np.uint32)
    )


few_scores = st.lists(st.integers(-5, 5), min_size=1, max_size=12)


def contains(rate: RateEstimate) -> bool:
    """Whether an interval, where there is one, holds its value, as it is and as it is shown."""
    if rate.value is None or rate.low is None or rate.high is None:
        return True
    ends = rate.low, rate.value, rate.high
    shown = [float(in_percent(end)) for end in ends]
    return sorted(ends) == list(ends) and sorted(shown) == shown


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(10, 14), st.integers(0, 99), st.sampled_from([0.0, 0.5, 3.0]), st.sampled_from([0, 1, 8]))
def test_no_interval_leaves_out_its_rate(people: int, seed: int, distance: float, scale: int):
    """Of continuous scores, of few different ones, and of a model that gives every comparison the same."""
    search = made_search(people, seed, distance=distance, images=2)
    search.scores = np.round(search.scores * scale) if scale < 8 else search.scores
    found = verify(ScoredPairs.of([search]), [0.0, 1.0], replicates=60)
    assert all(
        map(contains, [found.eer, *found.fnmr_at_fmr.values(), *(rate for two in found.at_fixed for rate in two)])
    )
    assert (found.curve.low <= found.curve.missed).all()
    assert (found.curve.missed <= found.curve.high).all()


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(0, 1) | st.floats(0, 1e-3), min_size=3, max_size=3).map(sorted))
def test_percent_keeps_the_order(rates: list[float]):
    assert contains(RateEstimate(rates[1], rates[0], rates[2]))


def test_pairs_are_told_apart_by_the_people_they_show():
    scores = np.array([[0.9, 0.1, 0.2], [0.3, 0.4, 0.8]], np.float32)
    pairs = ScoredPairs.of([Scored(scores, np.array([11, 5]), np.array([11, 5, 5])), made_search(3, images=2)])
    assert pairs.people.tolist() == [5, 7, 11, 17, 27]
    assert pairs.genuine[:3].tolist() == pytest.approx([0.9, 0.4, 0.8])
    assert pairs.genuine_people[:3].tolist() == [2, 0, 0]
    assert pairs.impostor[:3].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert pairs.impostor_pairs[:3].tolist() == [2 * 5 + 0, 2 * 5 + 0, 0 * 5 + 2]
    # 5 with 11, and three pairs of the other three people, whichever of the two is searched for.
    assert pairs.pairs_of_people == 1 + 3
    assert pairs.mated_people == 5


def test_scores_without_genuine_or_impostor_comparisons_are_refused():
    with pytest.raises(ValueError, match="at least one genuine and one impostor"):
        ScoredPairs.of([Scored(np.ones((1, 1), np.float32), np.array([1]), np.array([2]))])
    with pytest.raises(ValueError, match="at least one genuine and one impostor"):
        ScoredPairs.of([])


def test_normally_distributed_scores_have_the_rates_of_the_closed_form():
    rng = np.random.default_rng(0)
    pairs = pairs_of(rng.normal(3, 1, 200_000), rng.normal(0, 1, 1_000_000))
    normal = NormalDist()
    rate, threshold = pairs.equal_error_rate()
    assert rate == pytest.approx(normal.cdf(-1.5), rel=0.01)
    assert threshold == pytest.approx(1.5, abs=0.01)
    for fmr in FMRS:
        assert pairs.fnmr(pairs.threshold_at_fmr(fmr)) == pytest.approx(
            normal.cdf(normal.inv_cdf(1 - fmr) - 3), rel=0.02
        )


@settings(derandomize=True, deadline=None, max_examples=60)
@given(few_scores, few_scores)
def test_rates_are_those_of_scikit_learn(genuine: list[int], impostor: list[int]):
    pairs = pairs_of(genuine, impostor)
    labels, scores = np.repeat([1, 0], [len(genuine), len(impostor)]), np.array([*genuine, *impostor])
    fmr, tmr, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(pairs.fmr(thresholds[1:]), fmr[1:])
    np.testing.assert_allclose(pairs.fnmr(thresholds[1:]), 1 - tmr[1:])
    fmr, fnmr, thresholds = det_curve(labels, scores)
    finite = np.isfinite(thresholds)
    np.testing.assert_allclose(pairs.fmr(thresholds[finite]), fmr[finite])
    np.testing.assert_allclose(pairs.fnmr(thresholds[finite]), fnmr[finite])


@settings(derandomize=True, deadline=None, max_examples=60)
@given(few_scores, few_scores)
def test_rates_are_monotone_and_invariant_under_increasing_maps(genuine: list[int], impostor: list[int]):
    pairs = pairs_of(genuine, impostor)
    thresholds = np.arange(-6, 7)
    assert (np.diff(pairs.fmr(thresholds)) <= 0).all()
    assert (np.diff(pairs.fnmr(thresholds)) >= 0).all()
    mapped = pairs_of(np.exp(genuine), np.exp(impostor))
    assert mapped.equal_error_rate()[0] == pytest.approx(pairs.equal_error_rate()[0])
    for fmr in (0.0, 0.1, 0.5, 1.0):
        assert mapped.fnmr(mapped.threshold_at_fmr(fmr)) == pairs.fnmr(pairs.threshold_at_fmr(fmr))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(few_scores, few_scores, st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_the_threshold_is_the_lowest_score_that_keeps_the_rate(genuine: list[int], impostor: list[int], fmr: float):
    pairs = pairs_of(genuine, impostor)
    keeping = [score for score in sorted({*genuine, *impostor}) if pairs.fmr(score) <= fmr]
    threshold = pairs.threshold_at_fmr(fmr)
    assert pairs.fmr(threshold) <= fmr
    if keeping:
        assert threshold == keeping[0]
    else:
        assert threshold > max(impostor)


@pytest.mark.parametrize(
    ("genuine", "impostor", "rate"),
    [
        ([2, 3], [0, 1], 0.0),
        ([0, 1], [2, 3], 1.0),
        ([1, 1], [1, 1], 0.5),
        # FMR 1/2 and FNMR 0 at 2, FMR 0 and FNMR 1/4 at 3: the lines cross at 1/6.
        ([2, 3, 4, 5], [1, 2], 1 / 6),
    ],
)
def test_equal_error_rate_by_hand(genuine: list[int], impostor: list[int], rate: float):
    assert pairs_of(genuine, impostor).equal_error_rate()[0] == pytest.approx(rate)


def test_resampled_rates_are_those_of_brute_force():
    pairs = ScoredPairs.of([made_search(4, seed, distance=1.0, images=2) for seed in range(3)])
    thresholds, replicates = np.sort(np.array([-9, -0.5, 0, 0.3, 1, 2, 9], np.float32)), 20
    fmr, fnmr = _resampled_rates(pairs, thresholds, replicates)
    weights = np.vstack([np.ones(4), resampling_weights(4, replicates), 1 - np.eye(4)])
    assert fmr.shape == fnmr.shape == (25, 7)
    for row, of_people in enumerate(weights):
        probe, reference = np.divmod(pairs.impostor_pairs, 4)
        impostor = of_people[probe] * of_people[reference]
        genuine = of_people[pairs.genuine_people]
        for column, threshold in enumerate(thresholds):
            if impostor.sum():
                assert fmr[row, column] == pytest.approx(impostor[pairs.impostor >= threshold].sum() / impostor.sum())
            else:
                assert np.isnan(fmr[row, column])
            assert fnmr[row, column] == pytest.approx(genuine[pairs.genuine < threshold].sum() / genuine.sum())


def test_curves_are_read_where_they_cross_and_where_they_reach_a_level():
    falling, rising = np.array([[1.0, 0.6, 0.2, 0.0]]), np.array([[0.0, 0.2, 0.4, 1.0]])
    assert equal_rate(falling, rising) == pytest.approx([1 / 3])
    assert rate_at(falling, rising, 0.4) == pytest.approx([0.3])
    assert rate_at(falling, rising, 1.0) == pytest.approx([0.0])
    assert rate_at(falling, rising, 0.0) == pytest.approx([1.0])
    assert np.isnan(rate_at(falling * np.nan, rising, 0.4)).all()


def test_a_rate_without_exception_gets_the_exact_bound_for_people():
    rows = np.zeros(1 + 10 + 20)
    assert estimate_rate(0.0, rows, 10, 20) == RateEstimate(0.0, 0.0, pytest.approx(1 - 0.05 ** (1 / 20)))
    assert estimate_rate(1.0, rows + 1, 10, 20) == RateEstimate(1.0, pytest.approx(0.05 ** (1 / 20)), 1.0)
    untold = estimate_rate(0.2, np.full(1 + 10 + 2, np.nan), 10, 2)
    assert untold == RateEstimate(0.2, reason="no interval can be told from 2 people")


@pytest.mark.parametrize(
    ("rate", "shown"),
    [(0, "0"), (1, "100.0"), (0.5, "50.0"), (0.012345, "1.2"), (0.001, "0.10"), (0.0096, "0.96"), (0.00012, "0.012")],
)
def test_percent_have_at_least_two_significant_digits(rate: float, shown: str):
    assert in_percent(rate) == shown


def test_intervals_hold_the_true_rate():
    true = NormalDist().cdf(-1.0)
    held = 0
    for seed in range(30):
        eer = verify(ScoredPairs.of([made_search(40, seed, distance=2.0, images=2)]), replicates=200).eer
        assert eer.low is not None and eer.value is not None and eer.high is not None
        assert eer.low <= eer.value <= eer.high
        held += eer.low <= true <= eer.high
    assert held >= 26


def test_verification_holds_curves_rates_and_counts():
    pairs = ScoredPairs.of([made_search(60, seed, images=2) for seed in range(2)])
    found = verify(pairs, [1.0, 2.0], replicates=100)
    assert (found.genuine, found.impostor, found.people, found.pairs_of_people) == (240, 14_160, 60, 1_770)
    assert pairs.mated_people == 60
    assert (found.curve.false[0], found.curve.missed[0], found.curve.false[-1], found.curve.missed[-1]) == (1, 0, 0, 1)
    np.testing.assert_allclose(found.curve.false, pairs.fmr(found.curve.thresholds))
    np.testing.assert_allclose(found.curve.missed, pairs.fnmr(found.curve.thresholds))
    for threshold, (fmr, fnmr) in zip([1.0, 2.0], found.at_fixed, strict=True):
        assert (fmr.value, fnmr.value) == pytest.approx((float(pairs.fmr(threshold)), float(pairs.fnmr(threshold))))
        assert fmr.low < fmr.value < fmr.high
    assert found.fnmr_at_fmr[0.1].value == pairs.fnmr(pairs.threshold_at_fmr(0.1))
    assert (found.curve.false[0], found.curve.low[0], found.curve.high[0]) == (1, 0, 0)
    for fmr, low, high in zip(found.curve.false, found.curve.low, found.curve.high, strict=True):
        assert contains(RateEstimate(float(pairs.fnmr(pairs.threshold_at_fmr(fmr))), low, high))
    assert found.curve.lowest == 30 / 1_770
    assert found.curve.measurable.tolist() == (found.curve.false >= 30 / 1_770).tolist()
    assert found.curve.measurable.any()
    assert not found.curve.measurable.all()


def test_rates_that_too_few_pairs_of_people_were_compared_for_are_not_given():
    assert too_few_pairs(0.01, 3_000) == ""
    assert too_few_pairs(0.01, 2_999) == "an FMR of 1 % needs 3,000 pairs of people, there are 2,999"
    # Thirty people, however often they are photographed, are 435 pairs.
    pairs = ScoredPairs.of([made_search(30, seed, images=4) for seed in range(5)])
    found = verify(pairs, replicates=20)
    assert [fmr for fmr, one in found.fnmr_at_fmr.items() if one.value is not None] == [0.1]
    assert found.fnmr_at_fmr[0.001].reason == "an FMR of 0.1 % needs 30,000 pairs of people, there are 435"
    fixed = fix_thresholds(pairs)
    assert fixed.fmr[0.01] is None
    assert "435" in fixed.reasons[0.01]
    assert fixed.eer == pairs.equal_error_rate()[1]
    assert fixed.people == 30


def test_rates_that_come_out_too_low_to_be_measured_are_not_given():
    pairs = ScoredPairs.of([made_search(30, distance=9.0, images=2)])
    few, many = 7.0, 1.0
    assert pairs.fmr(few) * 435 < 30 < pairs.fmr(many) * 435
    found = verify(pairs, [few, many], replicates=20)
    reason = "435 pairs of people measure no {} below 6.9 %"
    assert found.eer == RateEstimate(None, below=30 / 435, reason=reason.format("EER"))
    (low, missed), (high, _) = found.at_fixed
    assert low == RateEstimate(None, below=30 / 435, reason=reason.format("FMR"))
    assert missed.value == pairs.fnmr(few)
    assert (high.value, high.reason) == (pairs.fmr(many), "")


@pytest.mark.parametrize("people", [2, 9])
def test_of_few_people_no_error_in_recognizing_them_is_given(people: int):
    # So hard that there are enough equal errors where nine people are compared.
    found = verify(ScoredPairs.of([made_search(people, distance=-9.0, images=2)]), [0.0], replicates=20)
    reason = f"errors in recognizing people need 10 people with a photograph to compare, there are {people}"
    assert found.eer == RateEstimate(None, reason=reason)
    assert found.at_fixed[0][1] == RateEstimate(None, reason=reason)
    assert all(one.value is None for one in found.fnmr_at_fmr.values())
    assert not found.curve.measurable.any()
    assert too_few_people(10) == ""
    assert verify(ScoredPairs.of([made_search(10, distance=-9.0, images=2)]), replicates=20).eer.value is not None


def test_people_without_a_mate_do_not_measure_who_is_recognized():
    search = made_search(40, images=2)
    search.gallery_people = np.where(search.gallery_people < 100, search.gallery_people, search.gallery_people + 1_000)
    pairs = ScoredPairs.of([search])
    assert pairs.mated_people == 10
    assert verify(pairs, replicates=20).fnmr_at_fmr[0.1].value is not None
    search.gallery_people[search.gallery_people == 7] = 1_007
    found = verify(ScoredPairs.of([search]), replicates=20)
    assert found.pairs_of_people > 300
    assert "there are 9" in found.fnmr_at_fmr[0.1].reason


def test_thresholds_are_fixed_where_there_are_enough_people():
    pairs = ScoredPairs.of([made_search(78, images=2)])
    fixed = fix_thresholds(pairs)
    assert OPERATING_FMR in fixed.fmr
    enough = {fmr: pairs.threshold_at_fmr(fmr) for fmr in (0.1, 0.01)}
    assert fixed.fmr == {**enough, 0.001: None, 0.0001: None}
    assert fixed.reasons[0.01] == ""
