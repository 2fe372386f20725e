"""Which products are shared among threads."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from handclip.metrics import products, rank_gallery, rerank_gallery
from handclip.metrics.products import in_threads, product, threads_of_products
from handclip.metrics.verification import ScoredPairs, verify

RANDOM = np.random.default_rng(0)


def threads() -> int:
    """Return how many NumPy's products are shared among."""
    return max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Threads of each product that is made, where two may be used."""
    found: list[int] = []
    matmul = np.matmul

    def watched(*factors: Any, **others: Any) -> Any:
        found.append(threads())
        return matmul(*factors, **others)

    monkeypatch.setattr(np, "matmul", watched)
    with threadpool_limits(limits=2, user_api="blas"):
        yield found
        assert threads() == 2


@pytest.mark.parametrize(("most", "expected"), [(5 * 6 * 7, 1), (5 * 6 * 7 - 1, 2)])
def test_a_small_product_is_made_in_one_thread(
    monkeypatch: pytest.MonkeyPatch, used: list[int], most: int, expected: int
) -> None:
    monkeypatch.setattr(products, "ONE_THREAD_UP_TO", most)
    left, right = RANDOM.integers(9, size=(5, 6)), RANDOM.integers(9, size=(6, 7))
    out = np.empty((5, 7), dtype=np.int64)
    assert product(left, right, out=out) is out
    assert used == [expected]
    np.testing.assert_array_equal(out, left @ right)


def test_products_of_many_threads_leave_no_limit_behind() -> None:
    left, right = RANDOM.normal(size=(20, 30)), RANDOM.normal(size=(30, 40))
    before = threads()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: product(left, right), range(400)))
    assert threads() == before
    expected = left @ right
    assert all(np.allclose(one, expected) for one in found)


def test_tasks_are_shared_among_threads_each_of_which_multiplies_alone(used: list[int]) -> None:
    left, right = RANDOM.normal(size=(300, 40)), RANDOM.normal(size=(40, 300))
    meeting = threading.Barrier(2, timeout=30)

    def task(number: int) -> float:
        meeting.wait()
        return number * float(np.matmul(left, right).sum())

    assert threads_of_products() == 2
    found = in_threads(task, [1, 3])
    assert used == [1, 1]
    np.testing.assert_allclose(found, np.array([1, 3]) * (left @ right).sum())


def test_a_task_that_fails_is_heard_of_and_leaves_no_limit_behind(used: list[int]) -> None:
    def task(number: int) -> None:
        raise ValueError(f"task {number}")

    with pytest.raises(ValueError, match="task 0"):
        in_threads(task, range(3))
    product(np.ones((2, 2)), np.ones((2, 2)))
    assert used == [1]


def rank() -> None:
    rank_gallery(RANDOM.normal(size=(135, 250)), RANDOM.normal(size=(256, 250)), np.arange(135), np.arange(256))


def rerank() -> None:
    features = RANDOM.normal(size=(90, 32))
    rerank_gallery(features[:40], features[40:], np.arange(40) % 10, np.arange(50) % 10, k1=5, k2=2)


def verify_people() -> None:
    own, others = np.repeat(np.arange(12), 3), np.repeat(np.arange(12), 11)
    pairs = others * 12 + (others + 1 + np.arange(len(others)) % 11) % 12
    scores = RANDOM.random(len(own)).astype(np.float32), RANDOM.random(len(pairs)).astype(np.float32)
    verify(ScoredPairs(np.arange(12), scores[0], own, scores[1], pairs), replicates=20)


@pytest.mark.parametrize("task", [rank, rerank, verify_people])
def test_small_tasks_wait_for_no_other_thread(used: list[int], task: Callable[[], None]) -> None:
    task()
    assert used
    assert set(used) == {1}
