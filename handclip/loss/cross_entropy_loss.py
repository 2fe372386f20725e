"""Cross-entropy over the training identities, with its own linear classifier."""

import torch.nn.functional as F
from torch import Tensor, nn

from handclip.loss.criterion import LossTerm


class CrossEntropyLoss(LossTerm):
    r"""Softmax cross-entropy of a linear classifier $p = \mathrm{softmax}(W z + b)$, averaged over the batch:

    $$L = (1 - \varepsilon)(-\log p_y) + \frac{\varepsilon}{C} \sum_c -\log p_c$$

    $\varepsilon$ is the label smoothing (Szegedy et al., CVPR 2016). $W \sim N(0, 0.001^2)$ and $b = 0$ at the
    start, so that all identities begin equally likely whatever the scale of the features.
    """

    def __init__(self, num_classes: int, feature_dim: int, label_smoothing: float = 0.0) -> None:
        super().__init__(num_classes, feature_dim)
        self.label_smoothing = label_smoothing
        self.classifier = nn.Linear(feature_dim, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def compute(self, features: Tensor, labels: Tensor) -> Tensor:
        """See the class."""
        return F.cross_entropy(self.classifier(features), labels, label_smoothing=self.label_smoothing)
