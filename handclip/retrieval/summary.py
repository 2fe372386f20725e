"""From rankings to what is written of them: means over the draws, and tables by draw and by query."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from handclip.csv_files import csv_text
from handclip.datasets.duplicates import copied_queries
from handclip.datasets.manifest import Manifest
from handclip.metrics import RankingResult
from handclip.retrieval.ranking import Rankings

METRICS = ("rank1", "rank5", "rank10", "map", "map_trapezoid")


def summarise(
    rankings: Mapping[str, Rankings], manifests: Mapping[str, Manifest], rerank: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Return one entry for each setting; over several aspects, draw i is the mean of the aspects' draws i.

    `matched_queries` are those of each draw, of which its rates are, over all aspects; `unmatched_queries` and
    `tied_queries` are counted over all draws, and so are `copied_queries`, of which the gallery holds the very same
    photograph.

    Args:
        rankings: of each aspect.
        manifests: of each aspect, perhaps of others too; its first draws are those that were ranked.
        rerank: the parameters of re-ranking, named beside every number.
    """
    entries = []
    for setting in next(iter(rankings.values())):
        by_aspect = [[_values(result) for result in ranking[setting]] for ranking in rankings.values()]
        splits = [
            {name: float(np.mean([values[name] for values in draws])) for name in METRICS}
            for draws in zip(*by_aspect, strict=True)
        ]
        results = [result for ranking in rankings.values() for result in ranking[setting]]
        entries.append(
            {
                "gallery_protocol": setting[0],
                "flip": setting[1],
                "rerank": rerank,
                "num_splits": len(splits),
                "mean": {name: float(np.mean([split[name] for split in splits])) for name in METRICS},
                "std": {name: float(np.std([split[name] for split in splits])) for name in METRICS},
                "splits": splits,
                "queries": sum(ranking[setting][0].num_queries for ranking in rankings.values()),
                "matched_queries": [
                    sum(result.matched_queries for result in draws)
                    for draws in zip(*(ranking[setting] for ranking in rankings.values()), strict=True)
                ],
                "gallery_images": [ranking[setting][0].num_gallery for ranking in rankings.values()],
                "unmatched_queries": sum(result.unmatched_queries for result in results),
                "tied_queries": sum(result.tied_queries for result in results),
                "copied_queries": sum(
                    len(copied_queries(manifests[aspect], manifests[aspect].draws[: len(splits)], setting[0]))
                    for aspect in rankings
                ),
            }
        )
    return entries


def per_split_csv(rankings: Mapping[str, Rankings]) -> str:
    """Return a table with a row for each draw."""
    counted = ("queries", "gallery_images", "unmatched_queries", "tied_queries")
    lines: list[list[Any]] = [["aspect", "gallery_protocol", "flip", "split", *METRICS, *counted]]
    for aspect, ranking in rankings.items():
        for (protocol, flip), results in ranking.items():
            for split, result in enumerate(results):
                counts = [result.num_queries, result.num_gallery, result.unmatched_queries, result.tied_queries]
                lines.append([aspect, protocol, flip, split, *_values(result).values(), *counts])
    return csv_text(lines)


def per_query_csv(rankings: Mapping[str, Rankings], manifests: Mapping[str, Manifest]) -> str:
    """Return a table with a row for each query of each draw; an unmatched one has rank 0 and no AP."""
    columns = ["aspect", "gallery_protocol", "flip", "split", "image", "identity", "name", "rank", "ap", "ap_trapezoid"]
    lines: list[list[Any]] = [columns]
    for aspect, ranking in rankings.items():
        manifest = manifests[aspect]
        for (protocol, flip), results in ranking.items():
            for split, result in enumerate(results):
                query = [manifest.images[index] for index in manifest.draws[split].query]
                ranks = result.first_ranks.tolist()
                plain, trapezoid = result.average_precisions.tolist(), result.average_precisions_trapezoid.tolist()
                for image, rank, *precisions in zip(query, ranks, plain, trapezoid, strict=True):
                    aps = ["" if math.isnan(value) else value for value in precisions]
                    person = [image.identity, manifest.identity_names[image.identity]]
                    lines.append([aspect, protocol, flip, split, image.path, *person, rank, *aps])
    return csv_text(lines)


def _values(result: RankingResult) -> dict[str, float]:
    return {
        "rank1": result.rank(1),
        "rank5": result.rank(5),
        "rank10": result.rank(10),
        "map": result.map,
        "map_trapezoid": result.map_trapezoid,
    }
