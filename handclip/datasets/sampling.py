"""Which images make up each training batch: P identities x K images, or images at random.

An epoch's batches depend on the seed and the epoch alone, so an interrupted run goes on exactly where it stopped. Each
image comes with a seed of its own for its augmentation.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from handclip.errors import ConfigError, DataError

Item = tuple[int, int]
"""Index of an image, and the seed of its augmentation."""


class _EpochSampler(Sampler[list[Item]]):
    def __init__(self, labels: Sequence[int], batch_size: int, seed: int) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.first_batch = 0

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch whose batches come next, and how many of them are left out because they are done."""
        self.epoch = epoch
        self.first_batch = first_batch

    def __iter__(self) -> Iterator[list[Item]]:
        first_batch = self.first_batch
        random = np.random.default_rng([self.seed, self.epoch])
        for number, batch in enumerate(self._batches(random)):
            # Drawn for those left out too: the others then get theirs.
            seeds = random.integers(2**63, size=len(batch))
            if number < first_batch:
                continue
            yield list(zip((int(index) for index in batch), (int(seed) for seed in seeds), strict=True))

    def _batches(self, random: np.random.Generator) -> list[np.ndarray]:
        raise NotImplementedError


class RandomBatchSampler(_EpochSampler):
    """Every image once an epoch, in random order, in batches of nearly equal size, at most `batch_size`.

    No batch holds a single image, which batch norm could not train on: batches of two become one of three where the
    number of images is odd.
    """

    def __init__(self, labels: Sequence[int], batch_size: int, seed: int) -> None:
        super().__init__(labels, batch_size, seed)
        if len(self.labels) < 2:
            raise DataError(f"training needs at least two images, but there are {len(self.labels)}")

    def __len__(self) -> int:
        images = len(self.labels)
        return min(-(-images // self.batch_size), images // 2)

    def batch_length(self, number: int) -> int:
        """Return how many images a batch of any epoch has, counted from 0."""
        # As np.array_split cuts: the first ones have one more.
        shortest, longer = divmod(len(self.labels), len(self))
        return shortest + (number < longer)

    def _batches(self, random: np.random.Generator) -> list[np.ndarray]:
        return np.array_split(random.permutation(len(self.labels)), len(self))


class PKBatchSampler(_EpochSampler):
    """Batches of P identities with K images each (Hermans et al. 2017), so that each anchor has K-1 positives.

    Every image is drawn at least once an epoch: an identity's images are shuffled and cut into chunks of K, the last of
    which is filled up from the same identity (one with fewer than K images repeats them, each under another
    augmentation). A batch takes P identities among those with the most chunks left; where fewer are left, others are
    drawn again.

    Raises:
        DataError: there are fewer than P identities.
    """

    def __init__(self, labels: Sequence[int], identities_per_batch: int, images_per_identity: int, seed: int) -> None:
        super().__init__(labels, identities_per_batch * images_per_identity, seed)
        self.identities_per_batch = identities_per_batch
        self.images_per_identity = images_per_identity
        self._images = [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]
        if len(self._images) < identities_per_batch:
            raise DataError(
                f"a batch needs {identities_per_batch} identities (batch_size / images_per_identity), "
                f"but there are {len(self._images)} to train on; lower batch_size or raise images_per_identity"
            )
        self._chunks = np.array([-(-len(images) // images_per_identity) for images in self._images])

    @property
    def small_identities(self) -> int:
        """Identities with fewer than K images, which repeat some within a chunk."""
        return sum(len(images) < self.images_per_identity for images in self._images)

    def __len__(self) -> int:
        # Taking the fullest identities first needs no more batches than either bound asks for.
        return int(max(self._chunks.max(), -(-self._chunks.sum() // self.identities_per_batch)))

    def batch_length(self, number: int) -> int:
        """Return how many images a batch of any epoch has: P x K."""
        return self.batch_size

    def _batches(self, random: np.random.Generator) -> list[np.ndarray]:
        chunks = [self._shuffled_chunks(images, random) for images in self._images]
        batches = []
        while any(chunks):
            left = np.array([len(own) for own in chunks])
            fullest_first = np.lexsort((random.random(len(left)), -left))
            drawn = [
                chunks[i].pop() if chunks[i] else self._shuffled_chunks(self._images[i], random)[0]
                for i in fullest_first[: self.identities_per_batch]
            ]
            batches.append(np.concatenate(drawn))
        return [batches[i] for i in random.permutation(len(batches))]

    def _shuffled_chunks(self, images: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
        k = self.images_per_identity
        order = random.permutation(images)
        lacking = -len(order) % k
        if lacking:
            pool = order[: len(order) - len(order) % k] if len(order) > k else order
            order = np.concatenate([order, random.choice(pool, lacking, replace=lacking > len(pool))])
        return np.split(order, len(order) // k)


class BatchShare(Sampler[list[Item]]):
    """One process's part of each batch; together the parts are the batch, in its order, whatever their number.

    Raises:
        ConfigError: a batch has fewer images than there are processes.
    """

    def __init__(self, batches: PKBatchSampler | RandomBatchSampler, rank: int, processes: int) -> None:
        self.batches = batches
        self.rank = rank
        self.processes = processes
        shortest = batches.batch_length(len(batches) - 1)
        if shortest < processes:
            raise ConfigError(
                f"batch_size: {batches.batch_size}: {processes} devices cannot share the shortest batch, which has "
                f"{shortest} images; raise batch_size, which is that of all devices together, or take fewer devices"
            )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Item]]:
        for batch in self.batches:
            lengths = part_lengths(len(batch), self.processes)
            start = sum(lengths[: self.rank])
            yield batch[start : start + lengths[self.rank]]


def part_lengths(length: int, processes: int) -> list[int]:
    """Return how many images of a batch each process takes: nearly as many, the first ones one more."""
    return [length // processes + (rank < length % processes) for rank in range(processes)]
