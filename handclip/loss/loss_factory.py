"""From the experiment file's list of losses to one criterion.

A combination is the weighted sum of its terms, and each term keeps to itself. So `cross_entropy` with `arcface` is
two heads on one embedding: a linear classifier and, beside it, ArcFace's own normalised weight vectors, each with
its own gradient; nothing is shared but the features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from handclip.config.losses import (
    ArcFaceConfig,
    CenterConfig,
    CrossEntropyConfig,
    LossConfig,
    TripletConfig,
    parse_loss,
)
from handclip.errors import ConfigError
from handclip.loss import LossTerm
from handclip.loss.arcface import ArcFaceLoss
from handclip.loss.center_loss import CenterLoss
from handclip.loss.cross_entropy_loss import CrossEntropyLoss
from handclip.loss.library import build_library_loss
from handclip.loss.triplet_loss import TripletLoss


@dataclass(frozen=True)
class LossOutput:
    """The weighted sum to minimise, and each term before its weight. All are 0-dim tensors with a graph."""

    total: Tensor
    terms: dict[str, Tensor]


class CombinedLoss(nn.Module):
    """Weighted sum of loss terms; everything they learn is in its state dict.

    Its parameters are for any optimizer; the centres of a center loss, which are none, move by themselves.

    Args:
        configs: name of each term → its options, in the order of the experiment file.
        terms: name of each term → the term.
    """

    def __init__(self, configs: Mapping[str, LossConfig], terms: Mapping[str, LossTerm]) -> None:
        super().__init__()
        self.configs = dict(configs)
        self.terms = nn.ModuleDict(terms)

    def forward(self, *, features: Tensor, labels: Tensor, neck_features: Tensor | None = None) -> LossOutput:
        """Loss of one batch. Everything is passed by name, so that nothing can change places.

        Args:
            features: (B, D) embeddings; the terms that compare images or centres see these.
            labels: (B,) class indices, 0 to `num_classes` - 1.
            neck_features: (B, D) embeddings after the BNNeck; the terms with a classifier see these where given.

        Raises:
            ValueError: a shape, a type or a label does not fit.
        """
        classifier_input = features if neck_features is None else neck_features
        values = {}
        for name, term in self.terms.items():
            values[name] = term(classifier_input if self.configs[name].uses_classifier else features, labels)
        total = torch.stack([self.configs[name].weight * value for name, value in values.items()]).sum()
        return LossOutput(total, values)


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
        config = parse_loss(loss, where=f"losses[{index}]")
        earlier = sum(other.type == config.type for other in configs.values())
        configs[f"{config.type}_{earlier + 1}" if earlier else config.type] = config
    return CombinedLoss(configs, {name: _build_term(c, num_classes, feature_dim) for name, c in configs.items()})


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
