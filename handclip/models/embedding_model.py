"""An image encoder and what turns its embeddings into the feature that is compared."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from handclip.models.encoder import ImageEncoder, set_frozen_batch_norm_to_eval


class Embedding(NamedTuple):
    """One named embedding of a batch, shape (B, D) each.

    `features` go to the metric losses; `neck_features` to the classifiers. They are the same where there is no neck.
    """

    features: Tensor
    neck_features: Tensor


class EmbeddingModel(nn.Module):
    """Image encoder with an optional neck on each of its embeddings.

    The neck stands between the embedding, which the metric losses shape, and the classifiers. `bnneck` is a batch-norm
    layer without bias (Luo et al. 2019, "Bag of Tricks and a Strong Baseline for Deep Person Re-identification");
    `hidden` is linear, batch norm, leaky ReLU and dropout (Baisa et al. 2022, "Multi-Branch with Attention Network for
    Hand-Based Person Recognition"), and is for training: what it gives is by default not what is compared.
    """

    def __init__(self, encoder: ImageEncoder, *, neck: str = "none", test_feature: str = "auto") -> None:
        super().__init__()
        self.encoder = encoder
        make_neck = _NECKS[neck]
        self.necks = nn.ModuleDict({name: make_neck(dim) for name, dim in encoder.embedding_dims.items() if make_neck})
        after = test_feature == "after_neck" or (test_feature == "auto" and neck == "bnneck")
        self.test_feature = "after_neck" if after else "before_neck"

    def forward(self, images: Tensor) -> dict[str, Embedding]:
        """Encode images of shape (B, 3, height, width) for training."""
        return self.add_necks(self.encoder(images))

    def add_necks(self, encoded: Mapping[str, Tensor]) -> dict[str, Embedding]:
        """Return what the encoder gave, each embedding with what its neck makes of it."""
        embeddings = {}
        for name, features in encoded.items():
            neck_features = self.necks[name](features.float()) if name in self.necks else features
            embeddings[name] = Embedding(features, neck_features)
        return embeddings

    def embed(self, images: Tensor) -> Tensor:
        """Return the feature that is compared, shape (B, sum of D): the embeddings joined, not normalised.

        It is computed as in evaluation, and the model's mode is left unchanged: with a batch's own statistics, or with
        dropout, it would depend on who shares the batch, or on chance.
        """
        with evaluating(self):
            if self.test_feature == "before_neck":
                return torch.cat(list(self.encoder(images).values()), dim=1)
            return torch.cat([embedding.neck_features for embedding in self(images).values()], dim=1)

    @property
    def feature_dim(self) -> int:
        """Dimension of what `embed` returns."""
        return sum(self.encoder.embedding_dims.values())

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, in which batch norm of frozen layers stays in eval."""
        super().train(mode)
        set_frozen_batch_norm_to_eval(self.encoder)
        return self


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and each of its modules back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _bnneck(dim: int) -> nn.Module:
    neck = nn.BatchNorm1d(dim)
    neck.bias.requires_grad_(False)
    return neck


def _hidden_layer(dim: int) -> nn.Module:
    linear, norm = nn.Linear(dim, dim), nn.BatchNorm1d(dim)
    nn.init.kaiming_normal_(linear.weight, mode="fan_out")
    nn.init.zeros_(linear.bias)
    nn.init.normal_(norm.weight, 1.0, 0.02)
    return nn.Sequential(linear, norm, nn.LeakyReLU(0.1), nn.Dropout(0.5))


_NECKS: dict[str, Callable[[int], nn.Module] | None] = {"none": None, "bnneck": _bnneck, "hidden": _hidden_layer}
