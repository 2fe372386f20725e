"""Center loss: a learned centre per identity."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handclip.loss import LossTerm


class CenterLoss(LossTerm):
    r"""Half the mean squared distance to the centre of the own identity (Wen et al., ECCV 2016):

    $$L = \frac{1}{2B} \sum_i \lVert z_i - c_{y_i} \rVert^2$$

    (CLIP-ReID leaves out the factor ½.) The centres start from $N(0, 1)$. They want a learning rate of their own,
    and one that does not depend on this loss's small weight: see `CombinedLoss.center_parameters`.
    """

    def __init__(self, num_classes: int, feature_dim: int, lr: float = 0.5, normalize: bool = False) -> None:
        super().__init__(num_classes, feature_dim)
        self.lr = lr
        self.normalize = normalize
        self.centers = nn.Parameter(torch.randn(num_classes, feature_dim))

    def compute(self, features: Tensor, labels: Tensor) -> Tensor:
        """See the class."""
        if self.normalize:
            features = F.normalize(features)
        return (features - self.centers[labels]).square().sum() / (2 * len(labels))
