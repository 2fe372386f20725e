"""Ranking every draw of a manifest under every condition."""

import itertools
from typing import NamedTuple

from handclip.config.experiment import ExperimentConfig
from handclip.datasets.manifest import Draw, Manifest
from handclip.errors import DataError
from handclip.metrics import RankingResult, rank_gallery, rerank_gallery
from handclip.metrics.reranking import require_several_images
from handclip.retrieval.features import FeatureTable


class Condition(NamedTuple):
    """Under which a draw is ranked."""

    gallery_protocol: str
    flip: str


Rankings = dict[Condition, list[RankingResult]]
"""The result of each draw."""


def require_rankable(config: ExperimentConfig, manifest: Manifest) -> None:
    """Check what can be checked before hours are spent on embedding images.

    Raises:
        DataError: the data set has none of the gallery protocols, a draw in whose gallery is nobody who is searched
            for, or galleries in which re-ranking cannot help.
    """
    protocols = _protocols(config, manifest)
    if not protocols:
        raise DataError(
            f"gallery_protocols: {', '.join(config.gallery_protocols)}: {manifest.dataset} has only "
            f"{', '.join(manifest.gallery_protocols)}"
        )
    for protocol in protocols:
        for number, draw in enumerate(manifest.draws[: config.num_splits], start=1):
            gallery = getattr(draw, protocol)
            if not manifest.identities(draw.query) & manifest.identities(gallery):
                raise DataError(
                    f"{manifest.dataset} {manifest.aspect} cannot be evaluated: in draw {number}, {protocol} has no "
                    "image of anybody who is searched for. Prepare the data set anew, or leave the aspect out"
                )
            if config.rerank is not None:
                try:
                    require_several_images(_identities(manifest, gallery))
                except ValueError as error:
                    raise DataError(f"rerank: {manifest.dataset} {manifest.aspect}, {protocol}: {error}") from error


def rank_draws(config: ExperimentConfig, manifest: Manifest, features: FeatureTable) -> Rankings:
    """Rank each draw under each condition that the data set has, re-ranked where the config says so.

    Raises:
        DataError: there is nothing to measure, or features cannot be ranked.
    """
    conditions = [Condition(*one) for one in itertools.product(_protocols(config, manifest), config.flip_settings)]
    draws = manifest.draws[: config.num_splits]
    return {one: [_rank_draw(config, manifest, draw, one, features) for draw in draws] for one in conditions}


def _protocols(config: ExperimentConfig, manifest: Manifest) -> list[str]:
    return [protocol for protocol in config.gallery_protocols if protocol in manifest.gallery_protocols]


def _rank_draw(
    config: ExperimentConfig, manifest: Manifest, draw: Draw, condition: Condition, features: FeatureTable
) -> RankingResult:
    sides = draw.query, getattr(draw, condition.gallery_protocol)
    vectors = [features.of(manifest, side, condition.flip) for side in sides]
    labels = [_identities(manifest, side) for side in sides]
    try:
        if config.rerank is None:
            return rank_gallery(*vectors, *labels)
        rerank = config.rerank
        return rerank_gallery(*vectors, *labels, k1=rerank.k1, k2=rerank.k2, lambda_=rerank.lambda_)
    except ValueError as error:
        raise DataError(f"{manifest.dataset} {manifest.aspect} cannot be evaluated: {error}") from error


def _identities(manifest: Manifest, indices: tuple[int, ...]) -> list[int]:
    return [manifest.images[index].identity for index in indices]
