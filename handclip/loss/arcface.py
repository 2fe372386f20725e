"""ArcFace: cross-entropy with an additive angular margin."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handclip.loss.criterion import LossTerm


class ArcFaceLoss(LossTerm):
    r"""Additive angular margin loss (Deng et al., CVPR 2019): cross-entropy over $s \cos\theta_c$, where
    $\theta_c$ is the angle between the feature and the weight vector of identity $c$, and the true identity gets

    $$\cos(\theta_y + m) \text{ if } \cos\theta_y > \cos(\pi - m), \text{ else } \cos\theta_y - m \sin(\pi - m)$$

    which goes on falling as $\theta_y$ grows to $\pi$. `margin` $m$ is in radians.
    """

    def __init__(self, num_classes: int, feature_dim: int, scale: float = 30.0, margin: float = 0.5) -> None:
        super().__init__(num_classes, feature_dim)
        self.scale = scale
        self.margin = margin
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_classes, feature_dim)))

    def logits(self, features: Tensor, labels: Tensor) -> Tensor:
        """Scaled cosines (B, C) with the margin applied to the true identity."""
        features = F.normalize(features)
        weight = F.normalize(self.weight)
        cosines = features @ weight.T
        cosine = cosines.gather(1, labels[:, None])
        # The part of the feature across the weight vector is as long as the sine. sqrt(1 - cos^2) would lose half
        # of the digits near |cos| = 1 and have an infinite slope there.
        sine = torch.linalg.vector_norm(features - cosine * weight[labels], dim=1, keepdim=True)
        target = torch.where(
            cosine > math.cos(math.pi - self.margin),
            cosine * math.cos(self.margin) - sine * math.sin(self.margin),
            cosine - self.margin * math.sin(self.margin),
        )
        return self.scale * cosines.scatter(1, labels[:, None], target)

    def compute(self, features: Tensor, labels: Tensor) -> Tensor:
        """See the class."""
        return F.cross_entropy(self.logits(features, labels), labels)
