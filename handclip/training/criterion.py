"""The criterion of a whole model: the configured losses on each of its embeddings."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from handclip.config.losses import LossConfig
from handclip.loss.loss_factory import LossOutput, build_loss
from handclip.models.embedding_model import Embedding


class TrainingCriterion(nn.Module):
    """One combined loss for each embedding, summed.

    Terms keep their name where the model has one embedding, and become `embedding/term` where it has several.
    """

    def __init__(self, losses: Sequence[LossConfig], num_classes: int, embedding_dims: Mapping[str, int]) -> None:
        super().__init__()
        self.by_embedding = nn.ModuleDict(
            {name: build_loss(losses, num_classes, dim) for name, dim in embedding_dims.items()}
        )

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
