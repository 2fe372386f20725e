"""What every image encoder offers, whatever its architecture, and which part of it trains."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from handclip.datasets.transforms import Preprocessing
from handclip.errors import ConfigError


@dataclass(frozen=True)
class EncoderWeights:
    """What an encoder is made from, and what must be known to use it rightly."""

    state_dict: Mapping[str, Tensor] | None = None
    """Weights at the native input size, without those of a classifier or a text tower; None starts from random ones."""
    source: str = "none"
    """Where they come from, for the record."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """What of the input is not as the encoder has it by itself, by the names of `Preprocessing`."""
    quick_gelu: bool | None = None
    """Whether the activation is that of OpenAI's ViTs, x * sigmoid(1.702 x), and not GELU; None of other encoders."""


RANDOM = EncoderWeights()


class ImageEncoder(nn.Module):
    """Maps a batch of images to one or more named embeddings, and knows its own preprocessing."""

    preprocessing: Preprocessing
    embedding_dims: dict[str, int]
    """Name and dimension of each embedding, in the order in which they are joined."""
    facts: dict[str, str | bool | None]
    """What identifies the architecture and its weights beyond its name: activation, source of the weights."""

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Encode images of shape (B, 3, height, width), normalised; each embedding is (B, D)."""

    @abstractmethod
    def blocks(self) -> Sequence[Sequence[nn.Module | nn.Parameter]]:
        """Return the encoder in blocks from input to output: what `freeze: all_but_last_N` counts.

        What follows the last block (a final norm, a projection) belongs to it.
        """

    def new_parameters(self) -> Sequence[nn.Parameter]:
        """Return the parameters that no pre-trained weights cover; they get the learning rate of new layers."""
        return ()

    def checkpoint_gradients(self) -> None:
        """Keep only each block's input for the backward pass, which computes the rest of the block a second time.

        Raises:
            ConfigError: the encoder cannot; unless it says otherwise, because it has batch norm.
        """
        raise ConfigError(
            f"gradient_checkpointing: {self.facts['architecture']} has batch norm, and computing a block twice would "
            "update its running statistics twice; it is for vision transformers"
        )


def freeze_encoder(encoder: ImageEncoder, freeze: str) -> None:
    """Set `requires_grad` of the encoder's parameters.

    Args:
        encoder: the image encoder.
        freeze: `none`, `all`, or `all_but_last_N`.

    Raises:
        ConfigError: the encoder has fewer than N blocks.
    """
    encoder.requires_grad_(freeze == "none")
    if freeze in ("none", "all"):
        return
    trainable = int(freeze.removeprefix("all_but_last_"))
    blocks = encoder.blocks()
    if trainable > len(blocks):
        raise ConfigError(f"freeze: {freeze}: the encoder has only {len(blocks)} blocks")
    for block in blocks[-trainable:]:
        for part in block:
            part.requires_grad_(True)


def set_frozen_batch_norm_to_eval(module: nn.Module) -> None:
    """Put each batch-norm layer whose parameters are frozen in eval mode, so that its statistics stay as they are."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.weight is not None and not layer.weight.requires_grad:
            layer.eval()
