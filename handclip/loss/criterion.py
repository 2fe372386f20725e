"""What training minimises: single losses, their weighted sum, and the sum of these over the embeddings of a model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from handclip.config.losses import LossConfig
from handclip.models.embedding_model import Embedding

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


class TrainingCriterion(nn.Module):
    """One combined loss for each embedding, summed.

    Terms keep their name where the model has one embedding, and become `embedding/term` where it has several.
    """

    def __init__(self, by_embedding: Mapping[str, CombinedLoss]) -> None:
        super().__init__()
        self.by_embedding = nn.ModuleDict(by_embedding)

    def forward(self, *, embeddings: Mapping[str, Embedding], labels: Tensor) -> LossOutput:
        """Return the sum and every unweighted term; `labels` are class indices of shape (B,)."""
        totals, terms = [], {}
        for name, criterion in self.by_embedding.items():
            embedding = embeddings[name]
            output = criterion(features=embedding.features, neck_features=embedding.neck_features, labels=labels)
            totals.append(output.total)
            prefix = f"{name}/" if len(self.by_embedding) > 1 else ""
            terms.update({prefix + term: value for term, value in output.terms.items()})
        return LossOutput(torch.stack(totals).sum(), terms)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
