from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from handclip.datasets.inspection import ImageFacts
from handclip.datasets.manifest import Exclusions
from handclip.datasets.preparation import Preparation
from handclip.datasets.splits import Identity, SeededDraws, all_paths, assemble_manifest

DRAWS = SeededDraws(seed=0, dataset="11k", aspect="dorsal_r")


def identity(label: int, count: int) -> Identity:
    return Identity(label, f"{label:07}", tuple(f"{label}_{number}.jpg" for number in range(count)))


people = st.dictionaries(st.integers(0, 10_000), st.integers(1, 9), max_size=12).map(
    lambda counts: [identity(label, count) for label, count in counts.items()]
)


@given(people, people, st.integers(0, 2**32), st.integers(1, 4))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_splits_are_partitions(train, test, seed, num_draws):
    splits = SeededDraws(seed, "11k", "dorsal_r").split(train, test, num_draws)
    assert splits.train | splits.val == all_paths(train)
    assert not splits.train & splits.val
    assert splits.test == all_paths(test)
    assert len(splits.draws) == num_draws
    for one in train:
        assert len(splits.val.intersection(one.paths)) == 1
    for draw in splits.draws:
        assert draw.query | draw.gallery == splits.test
        assert not draw.query & draw.gallery
        assert not draw.gallery_all
        for one in test:
            assert len(draw.gallery.intersection(one.paths)) == 1


@given(people, st.randoms(use_true_random=False))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_draws_depend_on_nothing_but_the_identity(test, random):
    expected = DRAWS.split([], test, 3)
    shuffled = [Identity(one.label, one.name, tuple(random.sample(one.paths, len(one.paths)))) for one in test]
    random.shuffle(shuffled)
    assert DRAWS.split([], shuffled, 3) == expected
    some = shuffled[: len(shuffled) // 2]
    for number, draw in enumerate(DRAWS.split([], some, 2).draws):
        assert draw.gallery == expected.draws[number].gallery & all_paths(some)


def test_single_image_identity_is_val_or_gallery():
    splits = DRAWS.split([identity(1, 1)], [identity(2, 1)], 2)
    assert (splits.train, splits.val) == (frozenset(), {"1_0.jpg"})
    assert [(draw.query, draw.gallery) for draw in splits.draws] == [(frozenset(), {"2_0.jpg"})] * 2


def test_every_part_of_the_key_changes_the_draws():
    test = [identity(label, 50) for label in range(20)]
    expected = DRAWS.split(test, test, 2)
    galleries = {frozenset(draw.gallery) for draw in expected.draws} | {frozenset(expected.val)}
    for other in (
        SeededDraws(1, "11k", "dorsal_r"),
        SeededDraws(0, "hd", "dorsal_r"),
        SeededDraws(0, "11k", "dorsal_l"),
    ):
        galleries |= {frozenset(draw.gallery) for draw in other.split([], test, 2).draws}
    assert len(galleries) == 9


def test_draws_are_uniform():
    one = identity(7, 4)
    counts = dict.fromkeys(one.paths, 0)
    for draw in DRAWS.split([], [one], 2000).draws:
        counts[min(draw.gallery)] += 1
    # Five standard deviations of a binomial of 2,000 trials with probability 1/4 are 97.
    assert all(abs(count - 500) < 97 for count in counts.values())


def test_draws_do_not_change_between_releases():
    splits = DRAWS.split([identity(1, 100)], [identity(2, 100)], 3)
    assert sorted(splits.val) == ["1_32.jpg"]
    assert [min(draw.gallery) for draw in splits.draws] == ["2_97.jpg", "2_99.jpg", "2_50.jpg"]


def test_shuffle_is_a_permutation_that_ignores_order():
    names = [f"name {number}" for number in range(30)]
    shuffled = DRAWS.shuffled(names, "half")
    assert shuffled == DRAWS.shuffled(reversed(names), "half")
    assert sorted(shuffled) == sorted(names) != shuffled
    assert [name for name in shuffled if name in names[:10]] == DRAWS.shuffled(names[:10], "half")


def test_assembled_images_are_sorted_by_identity_and_path():
    train, test = [identity(10, 3), identity(9, 2)], [identity(2000, 2), identity(300, 3)]
    facts = {path: ImageFacts("0" * 64, 1) for path in all_paths([*train, *test])}
    manifest = assemble_manifest(
        Preparation("11k", Path("data")),
        "dorsal_r",
        [*test, *train],
        DRAWS.split(train, test, 2),
        facts,
        Exclusions(missing_images=4),
    )
    assert [image.identity for image in manifest.images] == [9] * 2 + [10] * 3 + [300] * 3 + [2000] * 2
    assert manifest.train_all == (0, 1, 2, 3, 4)
    assert manifest.test == (5, 6, 7, 8, 9)
    assert manifest.identity_names[300] == "0000300"
    assert manifest.missing_images == 4
    assert manifest.root.is_absolute()
