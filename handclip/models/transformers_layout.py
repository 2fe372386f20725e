"""CLIP's image encoder as the transformers library names it, in open_clip's names."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from handclip.errors import CheckpointError

FIRST = re.compile(r"(?P<place>(?:.*\.)?)vision_model\.embeddings\.patch_embedding\.weight$")
"""Matches a name that every file in this layout has."""

_OUTSIDE = {
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.pre_layrnorm.weight": "ln_pre.weight",  # their spelling
    "vision_model.pre_layrnorm.bias": "ln_pre.bias",
    "vision_model.post_layernorm.weight": "ln_post.weight",
    "vision_model.post_layernorm.bias": "ln_post.bias",
}
_BLOCK = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_PROJECTION = "visual_projection.weight"
_COUNT = "vision_model.embeddings.position_ids"
"""The numbers 0, 1, 2, ... that older versions of the library save."""


def from_transformers(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the visual tower of a `CLIPModel` or `CLIPVisionModelWithProjection` in open_clip's layout.

    What does not belong to CLIP's image encoder keeps its name, so that loading it says so.

    Raises:
        CheckpointError: it is the tower of another model, or lacks the projection.
    """
    if "vision_model.embeddings.class_embedding" not in tensors:
        raise CheckpointError(
            f"{source}: has the names of the transformers library, but is no CLIP: it has no class embedding, as "
            "SigLIP has none. Take the file that open_clip publishes of the same weights"
        )
    if _PROJECTION not in tensors:
        raise CheckpointError(
            f"{source}: lacks {_PROJECTION}, which the transformers library leaves out of a CLIPVisionModel. Save it "
            "as CLIPVisionModelWithProjection or CLIPModel"
        )
    tower = {"proj": tensors[_PROJECTION].T.contiguous()}
    for name, value in tensors.items():
        match = _BLOCK.fullmatch(name)
        if match is None:
            if name.startswith("vision_model.") and name != _COUNT:
                tower[_OUTSIDE.get(name, name)] = value
            continue
        number, part, kind = match.groups()
        block = f"transformer.resblocks.{number}"
        if part == _ATTENTION[0]:
            names = [name.replace(part, other) for other in _ATTENTION]
            if missing := [other for other in names if other not in tensors]:
                raise CheckpointError(f"{source}: lacks {missing[0]}, though it has {name}")
            tower[f"{block}.attn.in_proj_{kind}"] = torch.cat([tensors[other] for other in names])
        elif part not in _ATTENTION:
            tower[f"{block}.{_IN_BLOCK[part]}.{kind}" if part in _IN_BLOCK else name] = value
    return tower
