"""Weights of ResNets and MBA-Nets: by timm tag, or from a local file in torchvision's, timm's or MBA-Net's layout."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from torch import Tensor

from handclip.errors import CheckpointError
from handclip.models.encoder import EncoderWeights
from handclip.models.input_description import beside_resnet, with_given
from handclip.models.mbanet import ATTENTION, MBANETS
from handclip.models.resnet import IMAGENET
from handclip.models.weights import (
    fetch,
    in_float32,
    not_found,
    on_the_hub,
    one_model,
    read_state_dict,
    weights_file,
)

logger = logging.getLogger(__name__)

_HUB_FILE = "model.safetensors"
_RESNET = re.compile(r"(?P<place>(?:.*\.)?)layer1\.0\.conv1\.weight$")
_MBANET = re.compile(rf"(?P<place>(?:.*?\.)?)(?:{'|'.join(ATTENTION)})\.")
_CLASSIFIER = ("fc.",)
_HEADS = ("reduction_g.", "reduction_s.", "reduction_c.", "reduction_p")
"""What the authors of MBA-Net call its heads, and those of the part branch of later networks."""


def load_resnet_weights(
    model: str, pretrained: str, *, preprocessing: Mapping[str, Any] | None = None
) -> EncoderWeights:
    """Find and read the weights that a config asks for.

    Args:
        model: a name from `RESNETS` or `MBANETS`.
        pretrained: a timm tag of the ResNet, such as `tv2_in1k`, a path, or `none`.
        preprocessing: what the config itself says of the input. Else `mean` and `std` are those of the tag, of timm's
            `config.json` beside the file, or ImageNet's, as all published weights have.

    Raises:
        ConfigError: no such tag or file.
        CheckpointError: the file cannot be fetched or read, or contradicts itself.
    """
    given = dict(preprocessing or {})
    if pretrained == "none":
        return EncoderWeights(None, "none (random)", given)
    tags = _published(model)
    if pretrained in tags:
        entry: Any = timm.get_pretrained_cfg(f"{_backbone(model)}.{pretrained}")
        repository = str(entry.hf_hub_id)
        places = [on_the_hub(repository, _HUB_FILE), entry.url]
        path = fetch(lambda: hf_hub_download(repository, _HUB_FILE), model, pretrained, places)
        source, known = f"timm {pretrained}", {"mean": entry.mean, "std": entry.std}
    else:
        not_clips = " CLIP's weights do not fit it; tv2_in1k are torchvision's of ImageNet."
        path = weights_file(model, pretrained, tags, not_clips if pretrained == "openai" and tags else "")
        described = beside_resnet(path, given)
        source, known = pretrained, dict(described.values) if described else {}
    used = with_given({**IMAGENET, **known}, given, source)
    tensors = read_state_dict(path)
    found = one_model(tensors, _MBANET, source) if model in MBANETS else None
    found = found or one_model(tensors, _RESNET, source)
    if found is None:
        raise not_found(tensors, "ResNet (layer1.0.conv1.weight, as torchvision and timm name it)", source)
    state_dict = in_float32(found)
    own = mbanet_state(state_dict, source) if model in MBANETS else _without(_CLASSIFIER, state_dict)
    return EncoderWeights(own, source, used)


def is_published_resnet(model: str, pretrained: str) -> bool:
    """Whether timm publishes such weights of a model; else they are a file."""
    return pretrained in _published(model)


def _backbone(model: str) -> str:
    return MBANETS[model][0] if model in MBANETS else model


def _published(model: str) -> list[str]:
    resnet = _backbone(model)
    return [name.removeprefix(f"{resnet}.") for name in timm.list_pretrained(f"{resnet}.*")]


def mbanet_state(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return an encoder's entries from a ResNet's file, or from one in the layout of MBA-Net's authors.

    The latter names layer2 to layer4 once more for each attention branch; those must be the same tensors.

    Raises:
        CheckpointError: names the entries of a branch that are not those of the trunk.
    """
    if not any(key.startswith(("backbone.", *ATTENTION)) for key in state_dict):
        return {f"backbone.{key}": value for key, value in _without(_CLASSIFIER, state_dict).items()}
    entries: dict[str, Tensor] = {}
    differing = []
    for key, value in _without(_HEADS, state_dict).items():
        trunk_key = _trunk_key(key)
        if trunk_key is None or trunk_key not in state_dict:
            entries[key] = value
        elif not torch.equal(value, state_dict[trunk_key]):
            differing.append(f"{key} from {trunk_key}")
    if differing:
        raise CheckpointError(
            f"{source}: the branches should share layer2 to layer4, but {len(differing)} entries differ "
            f"(such as {differing[0]})"
        )
    if heads := sorted({key.partition(".")[0] for key in state_dict if key.startswith(_HEADS)}):
        logger.info(f"{source}: left out the heads {', '.join(heads)}, which belong to the identities trained on.")
    return entries


def _trunk_key(key: str) -> str | None:
    """Return the trunk's name of what `layer3s.` or `backbone.layer3s.`, say, names again; None for anything else."""
    stage, _, rest = key.removeprefix("backbone.").partition(".")
    is_alias = stage[:-1] in ("layer2", "layer3", "layer4") and stage[-1:] in ("s", "c")
    return f"backbone.{stage[:-1]}.{rest}" if is_alias else None


def _without(prefixes: tuple[str, ...], state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state_dict.items() if not key.startswith(prefixes)}
