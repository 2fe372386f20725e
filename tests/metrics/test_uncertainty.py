from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclip.metrics import uncertainty
from handclip.metrics.uncertainty import (
    PERMUTATIONS,
    PersonSums,
    bca_interval,
    compact_letters,
    compare_tables,
    corrected_p_values,
    holm,
    permutations_for,
    resampling_weights,
    sign_flip_p_values,
    smallest_corrected_p,
)


def made_up(
    rng: np.random.Generator, people: int, *, skill: float = 1.0, columns: int = 3, counts: np.ndarray | None = None
) -> PersonSums:
    """Queries that succeed or fail together: each person, and each person in each draw, is easier or harder."""
    if counts is None:
        counts = np.repeat(rng.integers(1, 20, size=(people, 1)), columns, axis=1).astype(float)
    ability = skill + 1.5 * rng.normal(size=(people, 1)) + rng.normal(size=(people, columns))
    hits = rng.binomial(counts.astype(int), 1 / (1 + np.exp(-ability))).astype(float)
    return PersonSums(hits[..., None], counts)


def p_values(differences: np.ndarray, **options: int) -> np.ndarray:
    """Of (P, K) differences: each is that of a run to one that contributes nothing."""
    people, runs = differences.shape
    contributions = np.concatenate([differences, np.zeros((people, 1))], axis=1)
    return sign_flip_p_values(contributions, [(run, runs) for run in range(runs)], **options)


def many_metrics(rng: np.random.Generator, people: int = 9, columns: int = 4) -> PersonSums:
    counts = rng.integers(0, 6, size=(people, columns)).astype(float)
    counts[0] = 1
    return PersonSums(rng.random((people, columns, 5)) * counts[..., None], counts)


def test_the_statistic_is_the_mean_over_queries_then_columns() -> None:
    table = PersonSums(np.array([[[1.0], [0.0]], [[2.0], [3.0]]]), np.array([[1.0, 1.0], [3.0, 4.0]]))
    assert table.means == pytest.approx([(3 / 4 + 3 / 5) / 2])
    assert table.contributions.sum(axis=0) == pytest.approx(table.means)
    assert table.leave_one_out[:, 0] == pytest.approx([(2 / 3 + 3 / 4) / 2, (1 / 1 + 0 / 1) / 2])


def test_the_bootstrap_equals_a_plain_loop() -> None:
    table = many_metrics(np.random.default_rng(1))
    weights = resampling_weights(9, replicates=50, seed=3)
    assert weights.sum(axis=1).tolist() == [9] * 50
    fast = table.resampled(weights)
    for replicate, drawn in enumerate(weights):
        people = [person for person in range(9) for _ in range(int(drawn[person]))]
        for metric in range(5):
            means = []
            for column in range(4):
                queries = sum(table.counts[person, column] for person in people)
                if queries:
                    means.append(sum(table.sums[person, column, metric] for person in people) / queries)
            assert fast[replicate, metric] == pytest.approx(sum(means) / len(means), abs=1e-12)


def test_draws_that_are_kept_are_those_of_the_seed_and_cannot_be_changed() -> None:
    kept = resampling_weights(7, replicates=20, seed=5)
    with pytest.raises(ValueError, match="read-only"):
        kept[0, 0] = 1
    other = resampling_weights(7, replicates=20, seed=6)
    again = resampling_weights(7, replicates=20, seed=5)
    drawn = np.random.default_rng(5).multinomial(7, [1 / 7] * 7, size=20)
    assert np.array_equal(kept, drawn)
    assert np.array_equal(again, drawn)
    assert not np.array_equal(other, drawn)


def test_leaving_one_out_equals_a_plain_loop() -> None:
    table = many_metrics(np.random.default_rng(2))
    for person in range(9):
        rest = [other for other in range(9) if other != person]
        expected = np.mean(table.sums[rest].sum(0) / np.maximum(table.counts[rest].sum(0), 1)[:, None], axis=0)
        assert table.leave_one_out[person] == pytest.approx(expected)


@pytest.mark.parametrize("people", [2, 59])
def test_where_nobody_fails_the_interval_is_the_exact_bound_for_people(people: int) -> None:
    counts = np.full((people, 2), 3.0)
    values = np.stack([counts, 0 * counts, counts / 2], axis=-1)
    intervals, _ = compare_tables([PersonSums(values, counts)])
    always = intervals.low[0, 0]
    # With this share of people who never fail, all of them are such in one sample out of twenty.
    assert always**people == pytest.approx(0.05)
    assert intervals.low[0] == pytest.approx([always, 0, 0.5])
    assert intervals.high[0] == pytest.approx([1, 1 - always, 0.5])
    if people == 59:
        assert always == pytest.approx(0.9505, abs=5e-5)


def test_interval_ends_are_quantiles_of_the_resampled_means() -> None:
    """Symmetric and without acceleration, BCa is the plain percentile interval."""
    replicates = np.random.default_rng(0).permuted(np.linspace(-1, 1, 1_000)[:, None], axis=0)
    low, high = bca_interval(np.zeros(1), replicates, np.array([[-1.0], [1.0]]))
    assert [low.item(), high.item()] == pytest.approx(np.quantile(replicates, [0.025, 0.975]))


@st.composite
def any_runs(draw: st.DrawFn) -> list[PersonSums]:
    """Two runs on the same queries of a few people, whose rates are any, or the same of all in all queries."""
    people, columns = draw(st.integers(2, 6)), draw(st.integers(1, 3))
    counts = draw(st.lists(st.integers(1, 7), min_size=people, max_size=people))
    rates = st.sampled_from([0.0, 0.1, 1 / 3, 0.7, 1.0]) | st.floats(0, 1)
    runs = []
    for _ in range(2):
        rate = st.just(draw(rates)) if draw(st.booleans()) else rates
        # Summed one query after the other, as they are read.
        sums = [[sum([draw(rate)] * count) for _ in range(columns)] for count in counts]
        runs.append(PersonSums(np.array(sums)[..., None], np.array([counts] * columns, float).T))
    return runs


@settings(derandomize=True, deadline=None, max_examples=150)
@given(any_runs())
def test_no_interval_leaves_out_its_estimate(runs: list[PersonSums]) -> None:
    intervals, paired = compare_tables(runs)
    means = np.array([run.means for run in runs])
    for estimate, low, high in ((means, intervals.low, intervals.high), (paired.differences, paired.low, paired.high)):
        assert (low <= estimate).all()
        assert (estimate <= high).all()
        for digits in (1, 3):  # as they are shown
            shown = [[float(f"{100 * value:.{digits}f}") for value in values.flat] for values in (low, estimate, high)]
            assert (np.diff(shown, axis=0) >= 0).all()


def test_rounding_does_not_decide_how_many_resamples_give_the_estimate_again() -> None:
    rng = np.random.default_rng(0)
    replicates = 0.1 + rng.integers(-2, 4, size=(1_000, 1)) / 10  # one in six is the estimate
    left_out = rng.normal(size=(5, 1))
    low, high = bca_interval(np.array([0.1]), replicates, left_out)
    for part in (1e-16, -1e-16):
        rounded = replicates + part * np.arange(1_000)[:, None] % 1e-14
        again = bca_interval(np.array([0.1]), rounded, left_out)
        assert [again[0].item(), again[1].item()] == pytest.approx([low.item(), high.item()], abs=1e-10)


def test_one_failure_is_enough_to_be_resampled() -> None:
    counts = np.full((20, 2), 3.0)
    sums = counts.copy()
    sums[0, 0] = 2
    table = PersonSums(sums[..., None], counts)
    intervals, _ = compare_tables([table])
    resampled = bca_interval(table.means, table.resampled(resampling_weights(20)), table.leave_one_out)
    assert (intervals.low.item(), intervals.high.item()) == (resampled[0].item(), resampled[1].item())


def test_intervals_over_people_cover_what_they_should_and_intervals_over_queries_do_not() -> None:
    """400 samples of 60 people; by chance alone coverage strays by 0.022 (two standard errors) from 0.95."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2_000_000, 2))
    truth = float(np.mean(1 / (1 + np.exp(-(1.0 + 1.5 * noise[:, 0] + noise[:, 1])))))
    weights = resampling_weights(60, replicates=1_000)
    covered = covered_by_queries = 0
    for _ in range(400):
        table = made_up(rng, 60)
        low, high = bca_interval(table.means, table.resampled(weights), table.leave_one_out)
        covered += bool(low[0] <= truth <= high[0])
        mean = float(table.means[0])
        half = 1.96 * np.sqrt(mean * (1 - mean) / table.counts.sum())
        covered_by_queries += mean - half <= truth <= mean + half
    assert 0.91 <= covered / 400 <= 0.98
    assert covered_by_queries / 400 < 0.7


def test_identical_runs_do_not_differ() -> None:
    table = made_up(np.random.default_rng(0), 40)
    _, paired = compare_tables([table, table])
    assert paired.pairs == [(0, 1)]
    assert paired.p_values.tolist() == paired.adjusted.tolist() == [[1.0]]
    assert [paired.differences.item(), paired.low.item(), paired.high.item()] == [0, 0, 0]
    assert not paired.significant(0, runs=2).any()


@pytest.mark.parametrize("people", [12, 40])
def test_the_test_keeps_its_level_where_runs_differ_by_chance_only(people: int) -> None:
    """400 pairs of runs that are equally good: p-values are spread evenly, up to three standard errors."""
    rng = np.random.default_rng(5)
    differences = rng.normal(size=(people, 400)) * rng.integers(1, 20, size=(people, 1))
    found = p_values(differences, permutations=999)
    for level in (0.05, 0.2, 0.5, 0.8):
        assert abs(float(np.mean(found <= level)) - level) < 3 * np.sqrt(level * (1 - level) / 400) + 1e-3


def test_whole_people_are_swapped_not_queries() -> None:
    """Ten people of 50 queries each whose runs differ by chance: a test over queries would find it significant."""
    differences = np.array([[50.0], [50], [50], [50], [50], [50], [-50], [-50], [-50], [50]]) / 500
    assert p_values(differences).item() == pytest.approx(2 * (1 + 10 + 45 + 120) / 2**10)


def test_a_planted_difference_is_found_and_measured() -> None:
    rng = np.random.default_rng(0)
    worse = made_up(rng, 60, skill=0.0)
    better = made_up(rng, 60, skill=2.0, counts=worse.counts)
    _, paired = compare_tables([worse, better])
    assert paired.adjusted.item() < 0.001
    assert paired.low.item() < paired.differences.item() < paired.high.item() < 0
    assert paired.differences.item() == pytest.approx(worse.means.item() - better.means.item())
    (first, _), (again, _) = compare_tables([worse]), compare_tables([worse])
    assert first.low == again.low < worse.means < first.high == again.high


def test_few_people_are_permuted_exactly() -> None:
    differences = np.array([[0.3], [0.2], [0.1]])
    assert p_values(differences).item() == 2 / 8
    drawn = p_values(differences, permutations=40_000, exact_up_to=2).item()
    assert drawn == pytest.approx(2 / 8, abs=0.01)
    assert p_values(np.ones((60, 1))).item() == pytest.approx(1 / 20_001), "no drawn one is zero"
    # 0.1 + 0.2 - 0.3 is not 0 in floating point; all signs that give |0.3 + 0.3| must count.
    assert p_values(np.array([[0.1], [0.2], [0.3]])).item() == 2 / 8
    assert p_values(np.array([[0.1], [0.2], [-0.3]])).item() == 1.0


def test_all_pairs_at_once_equal_each_by_itself() -> None:
    rng = np.random.default_rng(4)
    tables = [made_up(rng, 20)]
    tables += [made_up(rng, 20, counts=tables[0].counts) for _ in range(3)]
    _, together = compare_tables(tables)
    assert together.pairs == list(combinations(range(4), 2))
    for place, (i, j) in enumerate(together.pairs):
        _, alone = compare_tables([tables[i], tables[j]])
        for values in ("differences", "low", "high", "p_values"):
            assert getattr(together, values)[place] == pytest.approx(getattr(alone, values)[0])
    assert together.adjusted[:, 0] == pytest.approx(holm(together.p_values[:, 0]))


def test_the_same_however_many_signs_and_pairs_are_worked_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Summed in other blocks, the exact p-values stay, and drawn ones stray by chance only."""
    differences = np.random.default_rng(0).normal(0.2, 1, size=(12, 7))
    exact, drawn = p_values(differences), p_values(differences, exact_up_to=0)
    monkeypatch.setattr(uncertainty, "_SIGNS_AT_ONCE", 1_001)
    assert np.array_equal(p_values(differences), exact)
    assert p_values(differences, exact_up_to=0) == pytest.approx(drawn, abs=0.02)
    assert drawn == pytest.approx(exact, abs=0.02)


def repetitions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Record how many pairs are tested with how many permutations."""
    seen = []

    def spy(contributions: np.ndarray, pairs: list[tuple[int, int]], permutations: int = PERMUTATIONS) -> np.ndarray:
        seen.append((len(pairs), permutations))
        return sign_flip_p_values(contributions, pairs, permutations=permutations)

    monkeypatch.setattr(uncertainty, "sign_flip_p_values", spy)
    return seen


def test_a_large_difference_is_found_among_many_runs() -> None:
    """46 runs of 5 % and 95 %: 1,035 pairs, for which 20,000 permutations could find nothing significant."""
    rng = np.random.default_rng(0)
    counts = np.full((71, 10), 5.0)
    rates = [0.95 if run % 2 else 0.05 for run in range(46)]
    tables = [PersonSums(rng.binomial(5, rate, (71, 10, 1)).astype(float), counts) for rate in rates]
    contributions = np.stack([table.contributions for table in tables], axis=1)
    pairs = list(combinations(range(46), 2))
    _, corrected = corrected_p_values(contributions, pairs)
    for (i, j), p in zip(pairs, corrected[:, 0], strict=True):
        assert p < 0.05 or rates[i] == rates[j]


def test_a_significant_difference_does_not_rest_on_a_handful_of_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 300 differences is planted whose exact p-value 20,000 permutations would meet two or three times."""
    people, runs = 60, 300
    contributions = np.random.default_rng(3).normal(size=(people, runs + 1)) / people
    contributions -= contributions.mean(axis=0)  # runs 1 to 299 are exactly as good as the last, which gets nothing
    contributions[:, -1] = 0
    contributions[:, 0] = np.where(np.arange(people) < 15, -1, 1) / people
    exact = 2 * sum(comb(60, k) for k in range(45, 61)) / 2**60
    assert exact * 20_000 < 3
    assert exact * runs < 0.05
    seen = repetitions(monkeypatch)
    pairs = [(run, runs) for run in range(runs)]
    found, corrected = corrected_p_values(contributions[..., None], pairs)
    assert seen == [(300, 20_000), (1, 30_000), (1, 300_000)]
    assert found[0] == pytest.approx(exact, rel=0.4)
    assert corrected[0] < 0.05
    assert (corrected[1:] == 1).all()
    again, _ = corrected_p_values(contributions[..., None], pairs)
    assert np.array_equal(found, again)


@pytest.mark.parametrize(
    ("people", "pairs", "smallest"),
    [(5, 1, 2 / 32), (14, 465, 465 / 2**13), (14, 10, 10 / 2**13), (71, 1, 1 / 20_001), (71, 1891, 1891 / 500_001)],
)
def test_the_smallest_corrected_p_value_is_what_people_and_pairs_allow(
    people: int, pairs: int, smallest: float
) -> None:
    assert smallest_corrected_p(people, pairs) == pytest.approx(smallest)
    assert smallest_corrected_p(2, 300) == 1
    found, corrected = corrected_p_values(np.array([[[1.0], [0.0]]] * 5), [(0, 1)])
    assert found.item() == corrected.item() == smallest_corrected_p(5, 1)
    for many in (1, 20, 21, 300, 5000):  # enough permutations are drawn for something to be significant
        assert permutations_for(many) >= PERMUTATIONS
        assert smallest_corrected_p(100, many) <= 0.01


def test_holm_by_hand() -> None:
    # Holm (1979): 0.01 * 4, then 0.02 * 3, then 0.03 * 2 (raised to the one before), then 0.04 * 1 (raised).
    assert holm(np.array([0.03, 0.01, 0.04, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]


def test_letters_by_hand() -> None:
    significant = np.zeros((4, 4), dtype=bool)
    for i, j in [(0, 2), (0, 3), (1, 3)]:
        significant[i, j] = significant[j, i] = True
    assert compact_letters(significant) == ["a", "ab", "bc", "c"]
    assert compact_letters(np.zeros((3, 3), dtype=bool)) == ["a", "a", "a"]
    assert compact_letters(~np.eye(3, dtype=bool)) == ["a", "b", "c"]


def test_a_letter_that_others_make_superfluous_is_dropped() -> None:
    # Runs 0, 1 and 2 do not differ, but each two of them also share a third that the rest differs from.
    alike = {(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (1, 4), (2, 4), (0, 5), (2, 5)}
    significant = np.array([[i != j and (min(i, j), max(i, j)) not in alike for j in range(6)] for i in range(6)])
    assert compact_letters(significant) == ["ab", "ac", "bc", "a", "c", "b"]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_runs_share_a_letter_if_and_only_if_they_do_not_differ(graph: tuple[int, set[tuple[int, int]]]) -> None:
    runs, pairs = graph
    significant = np.zeros((runs, runs), dtype=bool)
    for i, j in pairs:
        if i != j:
            significant[i, j] = significant[j, i] = True
    letters = compact_letters(significant, longest=100)
    assert letters is not None
    assert all(letters)
    assert letters[0].startswith("a")
    for i, j in combinations(range(runs), 2):
        assert bool(set(letters[i]) & set(letters[j])) == (not significant[i, j])


def test_many_runs_have_marks_of_their_own_where_they_can_be_read() -> None:
    letters = compact_letters(~np.eye(60, dtype=bool))
    assert letters is not None
    assert (letters[25:27], letters[52], len(set(letters))) == (["z", "A"], "(53)", 60)
    # Runs in a row that differ from all that are further away than 7, or 8.
    apart = np.abs(np.subtract.outer(np.arange(20), np.arange(20)))
    letters = compact_letters(apart > 7)
    assert letters is not None
    assert max(map(len, letters)) == 8
    assert compact_letters(apart > 8) is None
    # Who differs from whom is a coin toss among 80 runs: millions of groups, which would take hours.
    upper = np.triu(np.random.default_rng(0).random((80, 80)) < 0.3, k=1)
    assert compact_letters(upper | upper.T) is None


def test_what_does_not_fit_is_refused() -> None:
    counts = np.ones((3, 2))
    with pytest.raises(ValueError, match="do not fit together"):
        PersonSums(np.ones((3, 1, 1)), counts)
    with pytest.raises(ValueError, match="at least two"):
        PersonSums(np.ones((1, 2, 1)), counts[:1])
    with pytest.raises(ValueError, match="column has no query"):
        PersonSums(np.ones((3, 2, 1)), counts * [1, 0])
    with pytest.raises(ValueError, match="same queries"):
        compare_tables([PersonSums(np.ones((3, 2, 1)), counts), PersonSums(np.ones((3, 2, 1)), counts * 2)])
