"""Ranking a gallery: against sorting it, float64 alone and faiss, beside other work, and by the number of queries."""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from harness import Row, extra_memory, main, seconds_of, speedup_row
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from handclip.metrics import RankingResult, rank_gallery, rank_similarities
from handclip.metrics.ranking import COSINE_TIE, unit_vectors

Array = NDArray[Any]

IMAGES = 5_000
GALLERY, DIMENSIONS, QUERIES = 100_000, 512, (500, 1_000, 2_000)
MOST_SORTED_MIB = 300e6 / 2**20
MOST_GALLERY_MIB = 1e9 / 2**20


def plain_ranking(similarities: Array, query_labels: Array, gallery_labels: Array) -> tuple[Array, Array, Array, Array]:
    """Sort the gallery for each query by numpy, mark the right images and read CMC and both APs from the marks."""
    cmc = np.zeros(similarities.shape[1])
    first_ranks, precisions, precisions_trapezoid = [], [], []
    for scores, label in zip(similarities, query_labels, strict=True):
        matches = gallery_labels[np.argsort(-scores)] == label
        ranks = np.flatnonzero(matches) + 1
        hits = np.arange(1, len(ranks) + 1)
        before = np.where(ranks > 1, (hits - 1) / np.maximum(ranks - 1, 1), 1.0)
        cmc[ranks[0] - 1 :] += 1
        first_ranks.append(ranks[0])
        precisions.append((hits / ranks).mean())
        precisions_trapezoid.append(((hits / ranks + before) / 2).mean())
    return cmc / len(similarities), np.array(first_ranks), np.array(precisions), np.array(precisions_trapezoid)


def untied_similarities(relevant: int) -> tuple[Array, Array, Array]:
    """Float32 scores, no two alike within a row: sorting leaves the order of equal ones to chance."""
    random = np.random.default_rng(0)
    gallery_labels = random.permutation(np.arange(IMAGES) // relevant)
    query_labels = random.permutation(np.arange(IMAGES) // relevant)
    right = query_labels[:, None] == gallery_labels
    scores = random.normal(size=(IMAGES, IMAGES)) + 3 * right
    places = np.argsort(np.argsort(scores, axis=1), axis=1)
    return (places / IMAGES).astype(np.float32), query_labels, gallery_labels


def require_equal(result: RankingResult, expected: tuple[Array, Array, Array, Array]) -> None:
    """Stop unless every rank is the same, and every average to rounding."""
    cmc, first_ranks, precisions, precisions_trapezoid = expected
    np.testing.assert_array_equal(result.first_ranks, first_ranks)
    np.testing.assert_allclose(result.cmc, cmc, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.average_precisions, precisions, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.average_precisions_trapezoid, precisions_trapezoid, rtol=0, atol=1e-12)


def against_sorting(relevant: int, target: float) -> Iterator[Row]:
    """Time both, and the memory of the fast one."""
    problem = untied_similarities(relevant)
    found: list[RankingResult] = []
    with extra_memory() as extra:
        found.append(rank_similarities(*problem))
    require_equal(found[0], plain_ranking(*problem))
    what = f"ranking {IMAGES:,} x {IMAGES:,} from given similarities, {relevant} relevant each"
    yield speedup_row(
        what,
        "numpy argsort of the gallery for each query",
        seconds=seconds_of(lambda: rank_similarities(*problem), repeats=5),
        reference_seconds=seconds_of(lambda: plain_ranking(*problem), repeats=3),
        target=target,
        extra_mib=extra[0],
        same_work="all ranks equal, CMC and both APs to 1e-12",
    )
    if relevant > 1:
        megabytes = extra[0] * 2**20 / 1e6
        enough = extra[0] < MOST_SORTED_MIB
        yield Row(f"{what}: memory", "", "under 300 MB", f"{megabytes:.1f} MB", enough, extra_mib=extra[0])


def fastest_in_turn(*functions: Callable[[], Any], repeats: int) -> list[float]:
    """Return the fewest seconds that each takes; they take turns, so that what else runs slows all of them."""
    seconds = [[seconds_of(function) for function in functions] for _ in range(repeats)]
    return [min(of_function) for of_function in zip(*seconds, strict=True)]


def require_same_ranks(result: RankingResult, expected: RankingResult) -> None:
    """Stop unless ranks, both APs and ties are the same to the last bit."""
    for name in ("first_ranks", "average_precisions", "average_precisions_trapezoid", "ties"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), err_msg=name)


@contextmanager
def busy_core() -> Iterator[None]:
    """Let another process hold a core meanwhile."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        time.sleep(0.5)
        try:
            yield
        finally:
            process.kill()


def small_rankings() -> Iterator[Row]:
    """Time many small rankings beside a process that holds a core."""
    random = np.random.default_rng(0)
    count, (queries, gallery, dimensions) = 160, (135, 256, 250)
    labels = np.arange(queries) % 128, np.arange(gallery) % 128
    problems = [[random.normal(size=(images, dimensions)) for images in (queries, gallery)] for _ in range(count)]

    def rank() -> list[RankingResult]:
        return [rank_gallery(*problem, *labels) for problem in problems]

    def rank_in_one_thread() -> list[RankingResult]:
        with threadpool_limits(limits=1):
            return rank()

    for result, expected in zip(rank(), rank_in_one_thread(), strict=True):
        require_same_ranks(result, expected)
    with busy_core():
        seconds, reference_seconds = fastest_in_turn(rank, rank_in_one_thread, repeats=5)
    yield speedup_row(
        f"{count} rankings of {queries} x {gallery} x {dimensions} while another process holds a core",
        "the same with one thread for all",
        seconds=seconds,
        reference_seconds=reference_seconds,
        target=0.8,
        same_work="ranks, APs and ties equal",
    )


def by_float64(queries: Array, gallery: Array, query_labels: Array, gallery_labels: Array) -> RankingResult:
    """Rank by a float64 product of all pairs."""
    scores = unit_vectors(queries, "queries") @ unit_vectors(gallery, "gallery").T
    return rank_similarities(scores, query_labels, gallery_labels, tie=COSINE_TIE)


def top_100(queries: Array, gallery: Array) -> Callable[[], Any]:
    """Return faiss's exact search for the 100 nearest, of features that are normalised and indexed already."""
    import faiss

    units = [unit_vectors(side, "features").astype(np.float32) for side in (queries, gallery)]
    index = faiss.IndexFlatIP(DIMENSIONS)
    index.add(units[1])
    return lambda: index.search(units[0], 100)


def against_products(queries: int, images: int, relevant: int, repeats: int) -> Iterator[Row]:
    """Time ranking against what only multiplies and selects."""
    random = np.random.default_rng(0)
    people = random.standard_normal((images // relevant, DIMENSIONS), dtype=np.float32)
    labels = [np.arange(count) % len(people) for count in (queries, images)]
    sides = [features(random, people, of_side) for of_side in labels]
    what = f"rank_gallery, {queries:,} x {images:,} x {DIMENSIONS}, {relevant} relevant each"

    def rank() -> RankingResult:
        return rank_gallery(*sides, *labels)

    if queries * images <= IMAGES**2:
        require_same_ranks(rank(), by_float64(*sides, *labels))
        seconds, reference_seconds = fastest_in_turn(rank, lambda: by_float64(*sides, *labels), repeats=repeats)
        yield speedup_row(
            what,
            "float64 cosines of all pairs",
            seconds=seconds,
            reference_seconds=reference_seconds,
            target=1.5,
            same_work="ranks, APs and ties equal to the last bit",
        )
    if importlib.util.find_spec("faiss") is not None:
        seconds, reference_seconds = fastest_in_turn(rank, top_100(*sides), repeats=repeats)
        yield speedup_row(
            what,
            "faiss IndexFlatIP, top 100, features normalised and indexed before",
            seconds=seconds,
            reference_seconds=reference_seconds,
            target=1,
            note="other work: faiss keeps the best 100 by float32 scores, we count for exact ranks",
        )


def features(random: np.random.Generator, people: Array, labels: Array) -> Array:
    """Float32 photographs near the place of their person."""
    noise = random.standard_normal((len(labels), DIMENSIONS), dtype=np.float32)
    noise *= 2
    noise += people[labels]
    return noise


def large_gallery() -> Iterator[Row]:
    """Time and memory of a gallery of 100,000 for growing numbers of queries."""
    random = np.random.default_rng(0)
    people = random.standard_normal((GALLERY // 10, DIMENSIONS), dtype=np.float32)
    gallery_labels = np.arange(GALLERY) // 10
    query_labels = np.arange(QUERIES[-1]) // 20  # 100 people
    gallery, queries = features(random, people, gallery_labels), features(random, people, query_labels)

    few = rank_gallery(queries[:20], gallery, query_labels[:20], gallery_labels)
    units = [side.astype(np.float64) for side in (queries[:20], gallery)]
    units = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in units]
    require_equal(few, plain_ranking(units[0] @ units[1].T, query_labels[:20], gallery_labels))
    del units

    def rank(count: int) -> Callable[[], RankingResult]:
        return lambda: rank_gallery(queries[:count], gallery, query_labels[:count], gallery_labels)

    seconds = [seconds_of(rank(count)) for count in QUERIES[:-1]]
    with extra_memory() as extra:
        seconds.append(seconds_of(rank(QUERIES[-1])))
    slope, constant = np.polyfit(QUERIES, seconds, 1)
    off = max(abs(constant + slope * count - second) / second for count, second in zip(QUERIES, seconds, strict=True))
    times = ", ".join(f"{second:.2f} s for {count:,}" for count, second in zip(QUERIES, seconds, strict=True))
    what = f"rank_gallery, {QUERIES[-1]:,} x {GALLERY:,} x {DIMENSIONS}"
    proof = "20 queries: all ranks equal to sorting float64 cosines"
    yield Row(
        f"{what}: memory",
        "",
        "under 1 GB",
        f"{extra[0] * 2**20 / 1e9:.2f} GB",
        extra[0] < MOST_GALLERY_MIB,
        seconds[-1],
        extra_mib=extra[0],
        same_work=proof,
        note="beyond the features; float64 unit vectors are most of it",
    )
    yield Row(
        f"{what}: time by queries",
        "a straight line through three sizes",
        "linear: within 15 %",
        f"{100 * off:.0f} % off",
        bool(off < 0.15),
        seconds[-1],
        note=f"{times}; {constant:.2f} s + {1000 * slope:.2f} ms a query",
    )


def rows() -> Iterator[Row]:
    yield from against_sorting(1, 15)
    yield from against_sorting(10, 4)
    yield from small_rankings()
    for relevant in (1, 10):
        yield from against_products(IMAGES, IMAGES, relevant, repeats=9)
    yield from against_products(20_000, GALLERY, 10, repeats=1)
    yield from large_gallery()


if __name__ == "__main__":
    main(rows)
