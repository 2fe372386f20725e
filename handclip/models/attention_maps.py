"""Where a model looks: attention rollout for vision transformers, Grad-CAM for networks with a last feature map.

Neither proves what identifies a hand. A map says which parts of the image had a large share in what the model gave,
by one way of sharing it out, and the two ways are not comparable number by number.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from handclip.errors import HandCLIPError
from handclip.models.embedding_model import EmbeddingModel, evaluating
from handclip.models.mbanet import MBANetEncoder
from handclip.models.resnet import ResNetEncoder

ROLLOUT = "attention rollout"
GRAD_CAM = "Grad-CAM"
SPATIAL_ATTENTION = "spatial attention"


def attention_maps(model: EmbeddingModel, images: Tensor) -> dict[str, Tensor]:
    r"""Map where a model looks in each image.

    - Attention rollout: vision transformers whose feature is the class token.
    - Grad-CAM: every other model with a last feature map. What is explained is $\langle f, \hat f \rangle$: the feature
      that is compared and its own direction, which is held fixed. MBA-Net's three branches count as one map with the
      channels of all three.
    - Spatial attention: MBA-Net. How much each position is attended to in its last module of that kind. The module's
      gamma is part of the method's name: with a gamma of 0 the module adds nothing, wherever it attends to.

    The model is evaluated in float32 and left as it was: its modes, hooks and gradients.

    Args:
        model: the model.
        images: (B, 3, H, W), normalised, on the model's device.

    Returns:
        By the method's name, maps of shape (B, h, w) at the model's own resolution, at least 0 and scaled so that each
        image's largest value is 1. A map without a positive value stays 0 throughout.

    Raises:
        HandCLIPError: neither method fits the model.
    """
    encoder = model.encoder
    with evaluating(model), torch.autocast(images.device.type, enabled=False):
        tower: Any = getattr(encoder, "tower", None)
        if isinstance(tower, VisionTransformer) and tower.attn_pool is None and tower.pool_type == "tok":
            found = rollout(attention_weights(model, images))[:, 0, 1:]
            return {ROLLOUT: _scaled(found.reshape(-1, *tower.grid_size))}
        maps = {GRAD_CAM: _scaled(_grad_cam(model, images))}
        if isinstance(encoder, MBANetEncoder):
            maps[f"{SPATIAL_ATTENTION} (gamma {encoder.sam_att4.gamma.item():.3f})"] = _scaled(
                _spatial_attention(model, images)
            )
        return maps


def rollout(attentions: Sequence[Tensor]) -> Tensor:
    r"""Follow attention from the last block back to the input (Abnar and Zuidema 2020, "Quantifying Attention Flow").

    $R = \tilde A_L \cdots \tilde A_1$ with $\tilde A_l = (A_l + I) / 2$: the identity stands for the connection that
    goes around each block.

    Args:
        attentions: A_1 to A_L, each (B, N, N), averaged over the heads; row i is what token i takes from the others.

    Returns:
        (B, N, N): what each token holds of each token of the input. Rows sum to 1.
    """
    followed = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    for attention in attentions:
        with_identity = attention + torch.eye(attention.shape[-1], device=attention.device)
        followed = with_identity / with_identity.sum(dim=-1, keepdim=True) @ followed
    return followed


def attention_weights(model: EmbeddingModel, images: Tensor) -> list[Tensor]:
    """Return the attention of each block of an open_clip vision transformer, (B, N, N), averaged over its heads.

    The blocks themselves compute their output without ever holding the weights, so that these are computed again from
    the blocks' input.
    """
    weights: list[Tensor] = []

    def keep(attention: nn.MultiheadAttention, arguments: tuple[Tensor, ...]) -> None:
        tokens = arguments[0]
        query, key = (
            (tokens @ matrix.T + bias).view(*tokens.shape[:2], attention.num_heads, -1).transpose(1, 2)
            for matrix, bias in zip(
                attention.in_proj_weight.chunk(3)[:2], attention.in_proj_bias.chunk(3)[:2], strict=True
            )
        )
        weights.append((query @ key.mT / attention.head_dim**0.5).softmax(dim=-1).mean(dim=1))

    tower: Any = model.encoder.tower
    with ExitStack() as hooks, torch.no_grad():
        for block in tower.transformer.resblocks:
            hooks.enter_context(block.attn.register_forward_pre_hook(keep))
        model.embed(images)
    return weights


def grad_cam(feature_map: Tensor, gradient: Tensor) -> Tensor:
    r"""Weigh the channels of a feature map by their gradient's average (Selvaraju et al. 2017, "Grad-CAM").

    $\mathrm{ReLU}(\sum_c \alpha_c F_c)$, where $\alpha_c$ is the mean over all positions of the target's gradient.

    Args:
        feature_map: F, (B, C, h, w).
        gradient: of the target with respect to F, same shape.

    Returns:
        (B, h, w).
    """
    return (gradient.mean(dim=(2, 3), keepdim=True) * feature_map).sum(dim=1).relu()


def _grad_cam(model: EmbeddingModel, images: Tensor) -> Tensor:
    kept: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: Any, output: Tensor) -> Tensor | None:
        if module in kept:
            return None  # MBA-Net calls layer4 three times; the first is the global branch, whose last map it is.
        # What lies before the map is cut off: it needs neither memory nor a gradient, frozen or not.
        kept[module] = output.detach().requires_grad_()
        return kept[module]

    last = _last_modules(model)
    with ExitStack() as hooks, torch.enable_grad():
        for module in last:
            hooks.enter_context(module.register_forward_hook(keep))
        feature = model.embed(images)
        target = (feature * normalize(feature.detach(), dim=1)).sum()
    outputs = [kept[module] for module in last]
    gradients = torch.autograd.grad(target, outputs)
    joined = (torch.cat([_as_map(model, part) for part in parts], dim=1) for parts in (outputs, gradients))
    return grad_cam(*(part.detach() for part in joined))


def _last_modules(model: EmbeddingModel) -> list[nn.Module]:
    """Return the modules whose outputs are the last feature maps; the feature depends on the image through them."""
    encoder = model.encoder
    if isinstance(encoder, MBANetEncoder):
        return [encoder.backbone.layer4, encoder.sam_att4, encoder.cam_att4]
    if isinstance(encoder, ResNetEncoder):
        return [encoder.trunk.layer4]
    tower = getattr(encoder, "tower", None)
    if isinstance(tower, ModifiedResNet):
        return [tower.layer4]
    if isinstance(tower, VisionTransformer):
        return [tower.transformer]
    if isinstance(tower, TimmModel) and hasattr(tower.trunk, "stages"):
        return [tower.trunk.stages[-1]]
    raise HandCLIPError(
        f"where {encoder.facts['architecture']} looks cannot be shown: its tower is built by timm and has no last "
        "feature map that Grad-CAM could explain, and attention rollout follows open_clip's own towers only"
    )


def _as_map(model: EmbeddingModel, output: Tensor) -> Tensor:
    """Return the (B, C, h, w) map of a module's output; a transformer's tokens lose the class token."""
    if output.ndim == 4:
        return output
    tower: Any = model.encoder.tower
    patches: Tensor = output[:, 1:].mT.reshape(len(output), -1, *tower.grid_size)
    return patches


def _spatial_attention(model: EmbeddingModel, images: Tensor) -> Tensor:
    """Return how much each position is attended to by MBA-Net's last spatial attention, on average over the queries."""
    attended: list[Tensor] = []

    def keep(module: Any, arguments: tuple[Tensor, ...]) -> None:
        query, key = module.query_conv(arguments[0]), module.key_conv(arguments[0])
        weights = (query.flatten(2).mT @ key.flatten(2)).softmax(dim=-1)
        attended.append(weights.mean(dim=1).view(-1, *query.shape[2:]))

    module: Any = model.encoder.sam_att4
    with module.register_forward_pre_hook(keep), torch.no_grad():
        model.embed(images)
    return attended[0]


def _scaled(maps: Tensor) -> Tensor:
    largest = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, maps / largest.clamp(min=torch.finfo(maps.dtype).tiny), 0.0)
