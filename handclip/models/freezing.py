"""Which part of an image encoder trains."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from handclip.errors import ConfigError
from handclip.models.encoder import ImageEncoder


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
