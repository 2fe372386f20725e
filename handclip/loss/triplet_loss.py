"""Batch-hard triplet loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from handclip.loss.criterion import LossTerm


class TripletLoss(LossTerm):
    r"""Batch-hard triplet loss (Hermans et al., arXiv:1703.07737).

    For each anchor $a$ the farthest image of its identity, $p$, and the nearest image of another, $n$, by the
    Euclidean distance $d$ of normalised (`normalize`) or raw features:

    $$L = \mathrm{mean}_a \max(0, d_{ap} - d_{an} + m) \quad\text{or, soft,}\quad
      \mathrm{mean}_a \log(1 + e^{d_{ap} - d_{an}})$$

    Anchors without a positive or without a negative do not count in the mean; where none is left the loss is zero
    and so is its gradient.
    """

    def __init__(self, margin: float = 0.3, soft: bool = False, normalize: bool = True) -> None:
        super().__init__()
        self.margin = margin
        self.soft = soft
        self.normalize = normalize

    def compute(self, features: Tensor, labels: Tensor) -> Tensor:
        """See the class."""
        if self.normalize:
            features = F.normalize(features)
        positive, negative, usable = _mine_hardest(features.detach(), labels)
        # Only the mined pairs are differentiated: vector_norm, unlike a square root of a sum, has gradient zero
        # and not infinity where an image meets its duplicate.
        gap = torch.linalg.vector_norm(features - features[positive], dim=1)
        gap = gap - torch.linalg.vector_norm(features - features[negative], dim=1)
        loss = F.softplus(gap) if self.soft else F.relu(gap + self.margin)
        return (loss * usable).sum() / usable.sum().clamp(min=1)


def _mine_hardest(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per anchor: index of the hardest positive, index of the hardest negative, and whether it has both."""
    # The default expands |a - b|^2, which leaves nothing of the distance between near-duplicates.
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels[None, :]
    positives = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    hardest_positive = distances.masked_fill(~positives, -torch.inf).argmax(dim=1)
    hardest_negative = distances.masked_fill(same, torch.inf).argmin(dim=1)
    return hardest_positive, hardest_negative, positives.any(dim=1) & ~same.all(dim=1)
