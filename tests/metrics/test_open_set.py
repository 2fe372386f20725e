"""Open-set identification against searches done one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_searches import Scored, made_search

from handclip.metrics.open_set import OpenSetSearches, few_alarms, identify, too_few_alarms


def test_every_query_is_searched_for_with_and_without_its_mates():
    scores = np.array([[0.9, 0.5, 0.4], [0.7, 0.6, 0.1], [0.2, 0.3, 0.1], [0.5, 0.5, 0.2]], np.float32)
    searches = OpenSetSearches.of([Scored(scores, np.array([1, 2, 9, 2]), np.array([1, 2, 2]))])
    # The second query is beaten and the last one only as good as another person; nobody in the gallery is 9.
    assert searches.mated.tolist() == [np.float32(0.9), -np.inf, -np.inf]
    assert searches.mated_people.tolist() == [1, 2, 2]
    assert searches.non_mated.tolist() == pytest.approx([0.5, 0.7, 0.3, 0.5])
    assert searches.non_mated_people.tolist() == [1, 2, 9, 2]


def test_a_query_whose_mates_are_the_whole_gallery_has_no_search_without_them():
    with pytest.raises(ValueError, match="one mated and one non-mated"):
        OpenSetSearches.of([Scored(np.ones((1, 2), np.float32), np.array([1]), np.array([1, 1]))])


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(2, 8), st.integers(0, 3), st.integers(0, 1_000), st.floats(-3, 6, width=32))
def test_rates_are_those_of_single_searches(people: int, strangers: int, seed: int, threshold: float):
    search = made_search(people, seed, strangers=strangers)
    missed, alarms = [], []
    for scores, person in zip(search.scores, search.query_people, strict=True):
        mates = search.gallery_people == person
        alarms.append(scores[~mates].max() >= threshold)
        if mates.any():
            first = np.argmax(scores)
            missed.append(not mates[first] or scores[first] < threshold)
    searches = OpenSetSearches.of([search])
    assert searches.fnir(threshold) == pytest.approx(np.mean(missed))
    assert searches.fpir(threshold) == pytest.approx(np.mean(alarms))


def test_curves_go_from_accepting_everything_to_accepting_nothing():
    search = made_search(50, strangers=5)
    searches = OpenSetSearches.of([search])
    found = identify(searches, replicates=100)
    assert (found.mated, found.non_mated, found.people) == (50, 55, 55)
    wrong = np.mean(search.gallery_people[search.scores[:50].argmax(axis=1)] != search.query_people[:50])
    assert (found.curve.false[0], found.curve.missed[0]) == (1, pytest.approx(wrong))
    assert (found.curve.false[-1], found.curve.missed[-1]) == (0, 1)
    np.testing.assert_allclose(found.curve.false, searches.fpir(found.curve.thresholds), atol=1e-9)
    np.testing.assert_allclose(found.curve.missed, searches.fnir(found.curve.thresholds), atol=1e-9)
    assert (np.diff(found.curve.false) <= 0).all()
    assert (np.diff(found.curve.missed) >= 0).all()
    assert (found.curve.low <= found.curve.missed).all()
    assert (found.curve.missed <= found.curve.high).all()
    at = found.fnir_at_fpir[0.1]
    threshold = searches.threshold_at_fpir(0.1)
    assert searches.fpir(threshold) <= 0.1 < searches.fpir(np.nextafter(np.float32(threshold), np.float32(-9)))
    assert at.value == searches.fnir(threshold)
    assert at.low < at.value < at.high
    all_accepted = found.fnir_accepting_all
    assert all_accepted.value == pytest.approx(wrong)
    assert all_accepted.low < wrong < all_accepted.high
    assert found.curve.lowest == 30 / 55
    assert found.curve.measurable.tolist() == (found.curve.false >= 30 / 55).tolist()


def test_intervals_hold_the_true_rate():
    # The rate of a very large sample of the same gallery size stands for the truth.
    truth = OpenSetSearches.of([made_search(40, seed) for seed in range(1_000, 1_300)])
    true = truth.fnir(truth.threshold_at_fpir(0.1))
    held = 0
    for seed in range(30):
        at = identify(OpenSetSearches.of([made_search(40, seed)]), replicates=200).fnir_at_fpir[0.1]
        held += at.low <= true <= at.high
    assert held >= 26


def test_rates_that_too_few_people_were_searched_for_are_doubted_or_not_given():
    assert too_few_alarms(0.1, 30) == ""
    assert too_few_alarms(0.1, 29) == "an FPIR of 10 % needs at least 30 people, there are 29"
    assert few_alarms(0.1, 300) == ""
    assert few_alarms(0.1, 299) != ""
    found = identify(OpenSetSearches.of([made_search(40, seed) for seed in range(20)]), replicates=20)
    assert found.fnir_at_fpir[0.1].value is not None
    assert found.fnir_at_fpir[0.1].reason == (
        "FNIR at FPIR 10 % rests on few people (of 40, 4 are expected to cause a false alarm, fewer than 30)"
    )
    assert found.fnir_at_fpir[0.01].value is None
    assert found.fnir_at_fpir[0.01].reason == "an FPIR of 1 % needs at least 300 people, there are 40"


def test_of_few_people_no_error_in_recognizing_them_is_given():
    found = identify(OpenSetSearches.of([made_search(9, strangers=30)]), replicates=20)
    for rate in (found.fnir_accepting_all, found.fnir_at_fpir[0.1]):
        assert rate.value is None
        assert "need 10 people" in rate.reason
    assert not found.curve.measurable.any()
