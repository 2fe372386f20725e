from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclip.datasets.sampling import BatchShare, Item, PKBatchSampler, RandomBatchSampler, part_lengths
from handclip.errors import ConfigError, DataError

SIZES = st.lists(st.integers(1, 11), min_size=2, max_size=14)
"""Images of each identity."""


def labels_of(sizes: list[int]) -> list[int]:
    """Labels with gaps, in mixed order."""
    labels = np.repeat(np.arange(len(sizes)) * 3 + 1, sizes)
    return [int(label) for label in np.random.default_rng(0).permutation(labels)]


def epoch(sampler: PKBatchSampler | RandomBatchSampler, number: int) -> list[list[Item]]:
    sampler.set_epoch(number)
    return list(sampler)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(sizes=SIZES, p=st.integers(2, 6), k=st.integers(2, 5), seed=st.integers(0, 2**32 - 1), number=st.integers(0, 99))
def test_d22_every_batch_is_p_identities_by_k_images(sizes: list[int], p: int, k: int, seed: int, number: int) -> None:
    labels = labels_of(sizes)
    if len(sizes) < p:
        with pytest.raises(DataError, match=f"a batch needs {p} identities .* but there are {len(sizes)}"):
            PKBatchSampler(labels, p, k, seed)
        return
    sampler = PKBatchSampler(labels, p, k, seed)
    batches = epoch(sampler, number)
    assert len(batches) == len(sampler)
    for batch in batches:
        assert len(batch) == p * k
        per_identity = Counter(labels[index] for index, _ in batch)
        assert len(per_identity) == p and set(per_identity.values()) == {k}
        # Each anchor has K - 1 positives beside itself; they are other images wherever there are enough.
        for label in per_identity:
            different = {index for index, _ in batch if labels[index] == label}
            assert len(different) == min(k, labels.count(label))
        # An image that comes twice is augmented in two ways.
        assert len(set(batch)) == len(batch)
    assert {index for batch in batches for index, _ in batch} == set(range(len(labels)))
    assert sampler.small_identities == sum(size < k for size in sizes)
    # No epoch is longer than its images ask for.
    chunks = [-(-size // k) for size in sizes]
    assert len(batches) == max(max(chunks), -(-sum(chunks) // p))
    # The seed and the epoch decide, and nothing else.
    assert epoch(PKBatchSampler(labels, p, k, seed), number) == batches


@settings(derandomize=True, deadline=None, max_examples=200)
@given(images=st.integers(0, 60), batch_size=st.integers(2, 12), seed=st.integers(0, 2**32 - 1))
def test_random_batches_hold_every_image_once(images: int, batch_size: int, seed: int) -> None:
    if images < 2:
        with pytest.raises(DataError, match=f"at least two images, but there are {images}"):
            RandomBatchSampler([0] * images, batch_size, seed)
        return
    sampler = RandomBatchSampler(list(range(images)), batch_size, seed)
    batches = epoch(sampler, 0)
    sizes = [len(batch) for batch in batches]
    assert len(batches) == len(sampler)
    assert sorted(index for batch in batches for index, _ in batch) == list(range(images))
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 2
    assert max(sizes) <= batch_size or (batch_size == 2 and max(sizes) == 3)
    assert epoch(RandomBatchSampler(list(range(images)), batch_size, seed), 0) == batches


@pytest.mark.parametrize("kind", ["pk", "random"])
def test_epochs_and_seeds_differ(kind: str) -> None:
    labels = labels_of([6] * 10)

    def make(seed: int) -> PKBatchSampler | RandomBatchSampler:
        return PKBatchSampler(labels, 4, 4, seed) if kind == "pk" else RandomBatchSampler(labels, 16, seed)

    epochs = [epoch(make(0), number) for number in range(5)] + [epoch(make(1), 0)]
    indices = [[[index for index, _ in batch] for batch in batches] for batches in epochs]
    assert all(one != other for position, one in enumerate(indices) for other in indices[:position])
    assert len({seed for batches in epochs for batch in batches for _, seed in batch}) == sum(
        len(batch) for batches in epochs for batch in batches
    )


def test_going_back_to_an_epoch_gives_it_again() -> None:
    sampler = PKBatchSampler(labels_of([5] * 8), 4, 2, seed=3)
    first = epoch(sampler, 2)
    epoch(sampler, 7)
    assert epoch(sampler, 2) == first == list(sampler)


def test_seeds_of_images_fit_a_torch_generator() -> None:
    sampler = RandomBatchSampler(list(range(100)), 10, seed=0)
    assert all(0 <= seed < 2**63 for batch in sampler for _, seed in batch)


def test_an_identity_with_one_image_repeats_it_and_all_others_are_drawn() -> None:
    labels = [0, 1, 1, 1, 1, 2, 2, 2]
    sampler = PKBatchSampler(labels, 3, 4, seed=0)
    assert sampler.small_identities == 2
    (batch,) = epoch(sampler, 0)
    counts = Counter(index for index, _ in batch)
    assert counts[0] == 4
    assert all(counts[index] == 1 for index in (1, 2, 3, 4))
    assert sorted(counts[index] for index in (5, 6, 7)) == [1, 1, 2]


def test_partners_of_an_identity_change() -> None:
    """An identity meets others from epoch to epoch, so that its hardest negatives change."""
    labels = labels_of([4] * 12)
    sampler = PKBatchSampler(labels, 4, 4, seed=0)
    partners = [
        {frozenset({labels[index] for index, _ in batch}) for batch in epoch(sampler, number)} for number in range(6)
    ]
    assert all(one != other for one, other in pairwise(partners))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    sizes=SIZES, batch_size=st.integers(2, 12), processes=st.integers(1, 5), pk=st.booleans(), number=st.integers(0, 9)
)
def test_shares_are_the_batches_in_parts(
    sizes: list[int], batch_size: int, processes: int, pk: bool, number: int
) -> None:
    labels = labels_of(sizes)
    kind = (
        (lambda: PKBatchSampler(labels, 2, batch_size, 0))
        if pk
        else (lambda: RandomBatchSampler(labels, batch_size, 0))
    )
    whole, own = kind(), kind()
    batches = epoch(whole, number)
    assert [len(batch) for batch in batches] == [whole.batch_length(index) for index in range(len(whole))]
    if min(map(len, batches)) < processes:
        with pytest.raises(ConfigError, match=rf"^batch_size: \d+: {processes} devices cannot share .* that of all"):
            BatchShare(own, 0, processes)
        return
    shares = [BatchShare(own, rank, processes) for rank in range(processes)]
    # The share follows the epoch of the sampler that it shares.
    own.set_epoch(number)
    parts = [list(share) for share in shares]
    assert [len(share) for share in shares] == [len(batches)] * processes
    for batch, *of_batch in zip(batches, *parts, strict=True):
        assert [item for part in of_batch for item in part] == batch
        assert [len(part) for part in of_batch] == part_lengths(len(batch), processes)
        assert max(map(len, of_batch)) - min(map(len, of_batch)) <= 1


LABELS = labels_of([5, 1, 9, 4, 7, 2])


@pytest.mark.parametrize("sampler", [RandomBatchSampler(LABELS, 8, 3), PKBatchSampler(LABELS, 2, 4, 3)])
@pytest.mark.parametrize("processes", [1, 2])
def test_batches_that_are_done_are_left_out_and_the_others_are_the_same(
    sampler: PKBatchSampler | RandomBatchSampler, processes: int
) -> None:
    share = BatchShare(sampler, processes - 1, processes)
    sampler.set_epoch(5)
    whole = list(share)
    for first in range(len(sampler) + 1):
        sampler.set_epoch(5, first)
        assert list(share) == whole[first:]
    sampler.set_epoch(6)
    assert len(list(share)) == len(whole)
