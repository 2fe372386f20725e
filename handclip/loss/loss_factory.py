"""From the experiment file's list of losses to one criterion.

A combination is the weighted sum of its terms, and each term keeps to itself. So `cross_entropy` with `arcface` is
two heads on one embedding: a linear classifier and, beside it, ArcFace's own normalised weight vectors, each with
its own gradient; nothing is shared but the features.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from handclip.config.losses import (
    ArcFaceConfig,
    CenterConfig,
    CrossEntropyConfig,
    LossConfig,
    LossOptions,
    TripletConfig,
    parse_loss,
)
from handclip.errors import ConfigError
from handclip.loss.arcface import ArcFaceLoss
from handclip.loss.center_loss import CenterLoss
from handclip.loss.criterion import CombinedLoss, LossTerm, TrainingCriterion
from handclip.loss.cross_entropy_loss import CrossEntropyLoss
from handclip.loss.library import build_library_loss
from handclip.loss.triplet_loss import TripletLoss


def build_loss(
    losses: Sequence[LossConfig | Mapping[str, Any]],
    num_classes: int,
    feature_dim: int,
) -> CombinedLoss:
    """Build the criterion for a list of losses.

    Args:
        losses: options of each loss, as in the experiment file (`{"type": "triplet", "margin": 0.3}`) or validated.
            A type may come twice; its second term is named `triplet_2`.
        num_classes: training identities.
        feature_dim: width of the embedding.

    Raises:
        ConfigError: no loss at all, an unknown type or option, a value out of range, fewer than two identities.
        ValueError: `feature_dim` is not positive.
    """
    if not losses:
        raise ConfigError("losses: the list is empty; name at least one, such as '- type: cross_entropy'")
    if num_classes < 2:
        raise ConfigError(f"losses: training needs at least two identities, but there are {num_classes}")
    if feature_dim < 1:
        raise ValueError(f"feature_dim must be positive, got {feature_dim}")
    configs: dict[str, LossConfig] = {}
    for index, loss in enumerate(losses):
        config = loss if isinstance(loss, LossOptions) else parse_loss(loss, where=f"losses[{index}]")
        earlier = sum(other.type == config.type for other in configs.values())
        configs[f"{config.type}_{earlier + 1}" if earlier else config.type] = config
    return CombinedLoss(configs, {name: _build_term(c, num_classes, feature_dim) for name, c in configs.items()})


def build_criterion(
    losses: Sequence[LossConfig], num_classes: int, embedding_dims: Mapping[str, int]
) -> TrainingCriterion:
    """Build the criterion of a model: the same losses on each of its embeddings, which have these widths.

    Raises:
        ConfigError: see `build_loss`.
    """
    return TrainingCriterion({name: build_loss(losses, num_classes, dim) for name, dim in embedding_dims.items()})


def _build_term(config: LossConfig, num_classes: int, feature_dim: int) -> LossTerm:
    match config:
        case CrossEntropyConfig():
            return CrossEntropyLoss(num_classes, feature_dim, config.label_smoothing)
        case TripletConfig():
            return TripletLoss(config.margin, config.soft, config.normalize)
        case CenterConfig():
            return CenterLoss(num_classes, feature_dim, config.lr, config.normalize)
        case ArcFaceConfig():
            return ArcFaceLoss(num_classes, feature_dim, config.scale, config.margin)
        case _:
            return build_library_loss(config, num_classes, feature_dim)
