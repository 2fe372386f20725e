"""An image encoder and what turns its embeddings into the feature that is compared."""

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from handclip.models.encoder import ImageEncoder
from handclip.models.freezing import set_frozen_batch_norm_to_eval


class Embedding(NamedTuple):
    """One named embedding of a batch, shape (B, D) each.

    `features` go to the metric losses; `neck_features` to the classifiers. They are the same where there is no neck.
    """

    features: Tensor
    neck_features: Tensor


class EmbeddingModel(nn.Module):
    """Image encoder with an optional BNNeck for each of its embeddings.

    The BNNeck (Luo et al. 2019, "Bag of Tricks and a Strong Baseline for Deep Person Re-identification") is a
    batch-norm layer without bias between the embedding, which the metric losses shape, and the classifiers.
    """

    def __init__(self, encoder: ImageEncoder, *, bnneck: bool = False, test_feature: str = "after_neck") -> None:
        super().__init__()
        self.encoder = encoder
        self.necks = nn.ModuleDict({name: _neck(dim) for name, dim in encoder.embedding_dims.items()} if bnneck else {})
        self.test_feature = test_feature

    def forward(self, images: Tensor) -> dict[str, Embedding]:
        """Encode images of shape (B, 3, height, width) for training."""
        embeddings = {}
        for name, features in self.encoder(images).items():
            neck_features = self.necks[name](features.float()) if name in self.necks else features
            embeddings[name] = Embedding(features, neck_features)
        return embeddings

    def embed(self, images: Tensor) -> Tensor:
        """Return the feature that is compared, shape (B, sum of D): the embeddings joined, not normalised."""
        use_neck = self.test_feature == "after_neck"
        parts = [e.neck_features if use_neck else e.features for e in self(images).values()]
        return torch.cat(parts, dim=1)

    @property
    def feature_dim(self) -> int:
        """Dimension of what `embed` returns."""
        return sum(self.encoder.embedding_dims.values())

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, in which batch norm of frozen layers stays in eval."""
        super().train(mode)
        set_frozen_batch_norm_to_eval(self.encoder)
        return self


def _neck(dim: int) -> nn.BatchNorm1d:
    neck = nn.BatchNorm1d(dim)
    neck.bias.requires_grad_(False)
    return neck
