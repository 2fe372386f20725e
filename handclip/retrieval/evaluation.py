"""Evaluating a model by the protocol: from here come the numbers of the matrix.

1. Each image of the draws is embedded once, and once more as its mirror image where `flip: sum` adds the two.
2. In each draw every query ranks the gallery by the cosine of their features, under every condition: a gallery protocol
   and a flip setting.
3. Rank-k and mAP are means over the queries of a draw, then over the draws, then over the aspects.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from handclip.config.experiment import ExperimentConfig
from handclip.datasets.manifest import Manifest
from handclip.parallel.processes import on_first
from handclip.retrieval.features import Embedder, FeatureTable, embed_images, images_of_draws
from handclip.retrieval.ranking import Rankings, rank_draws
from handclip.retrieval.summary import summarise


@dataclass(frozen=True)
class Retrieval:
    """What a model makes of all draws."""

    features: FeatureTable
    rankings: dict[str, Rankings]
    """By aspect; in the first process alone."""
    images_per_second: float
    """Embedded, a mirrored image being another one."""

    def results(self, manifests: Mapping[str, Manifest], rerank: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return `results` of `metrics.json`, with those of each aspect where there are several."""
        results: dict[str, Any] = {"results": summarise(self.rankings, manifests, rerank)}
        if len(self.rankings) > 1:
            results["per_aspect"] = {
                aspect: {
                    "manifest_sha256": manifests[aspect].sha256,
                    "results": summarise({aspect: ranking}, manifests, rerank),
                }
                for aspect, ranking in self.rankings.items()
            }
        return results


def retrieve(
    config: ExperimentConfig,
    manifests: Mapping[str, Manifest],
    embedder: Embedder,
    progress: Callable[[int, int], None],
) -> Retrieval:
    """Embed the images of all draws, and rank each draw under every condition.

    Args:
        config: says how many draws, and which conditions.
        manifests: by aspect.
        embedder: makes the features.
        progress: called with (images embedded, images in all).

    Raises:
        DataError: an image cannot be read, or there is nothing to measure.
        HandCLIPError: a feature is not finite.
    """
    start = time.perf_counter()
    images = {aspect: images_of_draws(config, manifest) for aspect, manifest in manifests.items()}
    features = embed_images(embedder, manifests, images, config.flip_settings, progress)
    seconds = time.perf_counter() - start
    rankings: dict[str, Rankings] = {}

    def rank() -> None:
        rankings.update({aspect: rank_draws(config, manifest, features) for aspect, manifest in manifests.items()})

    on_first(rank)
    return Retrieval(features, rankings, len(features.images) * len(features.by_flip) / seconds)
