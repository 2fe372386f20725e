"""Further losses, from pytorch-metric-learning, behind the same interface."""

import math
from typing import Any, cast

from torch import Tensor, nn

from handclip.config.losses import (
    CircleConfig,
    CosFaceConfig,
    MultiSimilarityConfig,
    SubCenterArcFaceConfig,
    SupConConfig,
)
from handclip.loss.criterion import LossTerm

LibraryConfig = CosFaceConfig | SubCenterArcFaceConfig | SupConConfig | CircleConfig | MultiSimilarityConfig

COSINE_EPS = 1e-7
"""Distance of a cosine from ±1 within which its angle counts as constant; about one step of float32."""


class LibraryLoss(LossTerm):
    """A loss of pytorch-metric-learning, on the features' cosines and without a miner."""

    def __init__(self, loss: nn.Module, num_classes: int | None = None, feature_dim: int | None = None) -> None:
        super().__init__(num_classes, feature_dim)
        self.loss = loss

    def compute(self, features: Tensor, labels: Tensor) -> Tensor:
        """See the library's documentation for the formula."""
        return cast(Tensor, self.loss(features, labels))


def build_library_loss(config: LibraryConfig, num_classes: int, feature_dim: int) -> LibraryLoss:
    """Build the term that `config` describes; the library is imported only here (it takes seconds)."""
    from pytorch_metric_learning import losses

    if isinstance(config, SupConConfig):
        return LibraryLoss(losses.SupConLoss(temperature=config.temperature))
    if isinstance(config, CircleConfig):
        return LibraryLoss(losses.CircleLoss(m=config.margin, gamma=config.gamma))
    if isinstance(config, MultiSimilarityConfig):
        return LibraryLoss(losses.MultiSimilarityLoss(alpha=config.alpha, beta=config.beta, base=config.base))

    class SubCenterArcFaceLoss(losses.SubCenterArcFaceLoss):  # type: ignore[misc]
        """With a finite gradient where a feature meets its centre: the library's arc cosine has none at 1."""

        def get_angles(self, cosine: Tensor) -> Tensor:
            return cast(Tensor, super().get_angles(cosine.clamp(-1 + COSINE_EPS, 1 - COSINE_EPS)))

    head: dict[str, Any] = {"num_classes": num_classes, "embedding_size": feature_dim, "scale": config.scale}
    if isinstance(config, CosFaceConfig):
        return LibraryLoss(losses.CosFaceLoss(margin=config.margin, **head), num_classes, feature_dim)
    loss = SubCenterArcFaceLoss(margin=math.degrees(config.margin), sub_centers=config.sub_centers, **head)
    return LibraryLoss(loss, num_classes, feature_dim)
