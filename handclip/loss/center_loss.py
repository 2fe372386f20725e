"""Center loss: a learned centre per identity."""

import torch
import torch.nn.functional as F
from torch import Tensor

from handclip.loss.criterion import LossTerm


class CenterLoss(LossTerm):
    r"""Half the mean squared distance to the centre of the own identity (Wen et al., ECCV 2016):

    $$L = \frac{1}{2B} \sum_i \lVert z_i - c_{y_i} \rVert^2$$

    (CLIP-ReID leaves out the factor ½.) The centres start from $N(0, 1)$ and are no parameters: in training mode, each
    backward pass moves them by `lr` against their own gradient, whatever this loss is multiplied by in the total; times
    0, they stay. An optimizer of the other weights would move them by its own rate times this loss's small weight, so
    hardly at all.
    """

    centers: Tensor

    def __init__(self, num_classes: int, feature_dim: int, lr: float = 0.5, normalize: bool = False) -> None:
        super().__init__(num_classes, feature_dim)
        self.lr = lr
        self.normalize = normalize
        self.register_buffer("centers", torch.randn(num_classes, feature_dim))

    def compute(self, features: Tensor, labels: Tensor) -> Tensor:
        """See the class."""
        if self.normalize:
            features = F.normalize(features)
        moving = self.training and torch.is_grad_enabled()
        centers = self.centers.detach().requires_grad_(moving)
        loss = (features - centers[labels]).square().sum() / (2 * len(labels))
        if moving:
            factor: list[Tensor] = []
            loss.register_hook(factor.append)  # type: ignore[no-untyped-call]
            centers.register_hook(lambda gradient: self._move(gradient, factor[-1]))  # type: ignore[no-untyped-call]
        return loss

    def _move(self, gradient: Tensor, factor: Tensor) -> None:
        # Multiplied by 0, the gradient says nothing. Asking for that in Python would wait for the GPU.
        self.centers.add_(torch.where(factor == 0, 0.0, gradient / factor), alpha=-self.lr)
