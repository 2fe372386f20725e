"""Losses of the training stages: every term maps a batch of features and its labels to one scalar.

Build the weighted sum with `handclip.loss.loss_factory.build_loss`.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

LABEL_TYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class LossTerm(nn.Module, ABC):
    """One loss. Owns what exists only for training: classifier weights, centres.

    Calling it checks the batch and computes in float32 outside any autocast: margins, squared distances and
    log-sum-exps lose their meaning in the eight bits of bfloat16.
    """

    def __init__(self, num_classes: int | None = None, feature_dim: int | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.feature_dim = feature_dim

    @abstractmethod
    def compute(self, features: Tensor, labels: Tensor) -> Tensor:
        """The formula, on checked input: features (B, D) in float32 and labels (B,) in int64."""

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Loss of one batch.

        Args:
            features: (B, D), any floating-point type.
            labels: (B,) integers; below `num_classes` where the term has one weight vector per class.

        Returns:
            0-dim float32 tensor, connected to the features' graph.

        Raises:
            ValueError: a shape, a type or a label does not fit.
        """
        self._check(features, labels)
        with torch.autocast(device_type=features.device.type, enabled=False):
            return self.compute(features.float(), labels.long())

    def _check(self, features: Tensor, labels: Tensor) -> None:
        name = type(self).__name__
        if features.ndim != 2 or not features.is_floating_point():
            raise ValueError(
                f"{name}: features must be floating-point of shape (batch, dim), "
                f"got {_describe(features)}; are features and labels swapped?"
            )
        if labels.ndim != 1 or labels.dtype not in LABEL_TYPES:
            raise ValueError(f"{name}: labels must be integers of shape (batch,), got {_describe(labels)}")
        if len(features) != len(labels) or len(labels) == 0:
            raise ValueError(f"{name}: {len(features)} features for {len(labels)} labels")
        if self.feature_dim is not None and features.shape[1] != self.feature_dim:
            raise ValueError(f"{name}: built for {self.feature_dim} feature dimensions, got {features.shape[1]}")
        if self.num_classes is not None:
            low, high = (int(bound) for bound in torch.aminmax(labels))
            if low < 0 or high >= self.num_classes:
                raise ValueError(f"{name}: labels must lie in 0..{self.num_classes - 1}, got {low}..{high}")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
