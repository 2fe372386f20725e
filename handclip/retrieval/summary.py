"""From rankings to what is written of them: means over the draws, and tables by draw and by query."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from handclip.csv_files import csv_text
from handclip.datasets.duplicates import copied_queries
from handclip.datasets.manifest import Manifest
from handclip.metrics import RankingResult
from handclip.retrieval.ranking import Condition, Rankings

METRICS = ("rank1", "rank5", "rank10", "map", "map_trapezoid")


def summarise(
    rankings: Mapping[str, Rankings], manifests: Mapping[str, Manifest], rerank: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Return one entry for each condition; over several aspects, draw i is the mean of the aspects' draws i.

    `matched_queries` are those of each draw, of which its rates are, over all aspects; `unmatched_queries` and
    `tied_queries` are counted over all draws, and so are `copied_queries`, of which the gallery holds the very same
    photograph.

    Args:
        rankings: of each aspect.
        manifests: of each aspect, perhaps of others too; its first draws are those that were ranked.
        rerank: the parameters of re-ranking, named beside every number.
    """
    return [_summary(condition, rankings, manifests, rerank) for condition in next(iter(rankings.values()))]


def _summary(
    condition: Condition,
    rankings: Mapping[str, Rankings],
    manifests: Mapping[str, Manifest],
    rerank: Mapping[str, Any] | None,
) -> dict[str, Any]:
    by_aspect = {aspect: ranking[condition] for aspect, ranking in rankings.items()}
    by_split = list(zip(*by_aspect.values(), strict=True))
    splits = [_over(np.mean, [_values(result) for result in aspects]) for aspects in by_split]
    results = [result for aspects in by_split for result in aspects]
    return {
        **condition._asdict(),
        "rerank": rerank,
        "num_splits": len(splits),
        "mean": _over(np.mean, splits),
        "std": _over(np.std, splits),
        "splits": splits,
        "queries": sum(result.num_queries for result in by_split[0]),
        "matched_queries": [sum(result.matched_queries for result in aspects) for aspects in by_split],
        "gallery_images": [result.num_gallery for result in by_split[0]],
        "unmatched_queries": sum(result.unmatched_queries for result in results),
        "tied_queries": sum(result.tied_queries for result in results),
        "copied_queries": sum(
            len(copied_queries(manifests[aspect], manifests[aspect].draws[: len(splits)], condition.gallery_protocol))
            for aspect in by_aspect
        ),
    }


def _over(statistic: Callable[[list[float]], Any], values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(statistic([one[name] for one in values])) for name in METRICS}


def per_split_csv(rankings: Mapping[str, Rankings]) -> str:
    """Return a table with a row for each draw."""
    counted = ("queries", "gallery_images", "unmatched_queries", "tied_queries")
    lines: list[list[Any]] = [[*_DRAW, *METRICS, *counted]]
    for draw, result in _draws(rankings):
        counts = [result.num_queries, result.num_gallery, result.unmatched_queries, result.tied_queries]
        lines.append([*draw, *_values(result).values(), *counts])
    return csv_text(lines)


def per_query_csv(rankings: Mapping[str, Rankings], manifests: Mapping[str, Manifest]) -> str:
    """Return a table with a row for each query of each draw; an unmatched one has rank 0 and no AP."""
    lines: list[list[Any]] = [[*_DRAW, "image", "identity", "name", "rank", "ap", "ap_trapezoid"]]
    for draw, result in _draws(rankings):
        manifest = manifests[draw[0]]
        query = [manifest.images[index] for index in manifest.draws[draw[-1]].query]
        ranks = result.first_ranks.tolist()
        plain, trapezoid = result.average_precisions.tolist(), result.average_precisions_trapezoid.tolist()
        for image, rank, *precisions in zip(query, ranks, plain, trapezoid, strict=True):
            aps = ["" if math.isnan(value) else value for value in precisions]
            person = [image.identity, manifest.identity_names[image.identity]]
            lines.append([*draw, image.path, *person, rank, *aps])
    return csv_text(lines)


_DRAW = ("aspect", "gallery_protocol", "flip", "split")


def _draws(rankings: Mapping[str, Rankings]) -> Iterator[tuple[tuple[str, str, str, int], RankingResult]]:
    for aspect, ranking in rankings.items():
        for condition, results in ranking.items():
            for split, result in enumerate(results):
                yield (aspect, *condition, split), result


def _values(result: RankingResult) -> dict[str, float]:
    return {
        "rank1": result.rank(1),
        "rank5": result.rank(5),
        "rank10": result.rank(10),
        "map": result.map,
        "map_trapezoid": result.map_trapezoid,
    }
