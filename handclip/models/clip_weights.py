"""CLIP weights: by open_clip tag, or from a local file in OpenAI's or open_clip's layout."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import open_clip
from torch import Tensor

from handclip.errors import ConfigError
from handclip.models import transformers_layout
from handclip.models.clip_encoder import ALIASES, architecture, has_choice_of_activation, open_clip_name
from handclip.models.encoder import EncoderWeights
from handclip.models.input_description import (
    OPENAI,
    Description,
    agreed,
    beside_clip,
    of_tag,
    require_known,
    shown,
    with_given,
)
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

_WHOLE = re.compile(r"(?P<place>(?:.*?\.)?)visual\.")
_TOWER = re.compile(r"(?P<place>(?:.*?\.)?)(?:(?<!\d\.)conv1\.weight$|trunk\.)")
_OPENAI_MARKERS = ("input_resolution", "context_length", "vocab_size")
"""Entries that only OpenAI's own files have."""


def load_clip_weights(
    model: str,
    pretrained: str,
    quick_gelu: bool | Literal["auto"] = "auto",
    *,
    tag: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> EncoderWeights:
    """Find and read the weights that a config asks for.

    Args:
        model: a name from `clip_model_names()`.
        pretrained: an open_clip tag such as `openai`, a path, or `none`.
        quick_gelu: `auto` takes the activation from the tag, from OpenAI's marks in the file, from what stands beside
            it, or from the model's name: the short names (`vitb16`) stand for OpenAI's models, and they and open_clip's
            `-quickgelu` names mean QuickGELU. Where only the name tells, and it tells GELU, a warning says so.
        tag: the published weights that a file holds or was trained from.
        preprocessing: what the config itself says of the input, by the names of `Preprocessing`.

    Raises:
        ConfigError: no such tag or file, `quick_gelu` contradicts what the weights were trained with, or it is not
            known how the input of a file is normalised.
        CheckpointError: the file cannot be fetched or read, or holds no visual tower.
    """
    by_name = model in ALIASES or bool(architecture(model).get("quick_gelu"))
    given = dict(preprocessing or {})
    entry = open_clip.get_pretrained_cfg(open_clip_name(model), pretrained)
    if tag is not None and (entry or pretrained == "none"):
        raise ConfigError(f"pretrained_tag: is read only where `pretrained` is a weights file, not {pretrained}")
    if pretrained == "none":
        return EncoderWeights(None, "none (random)", given, by_name if quick_gelu == "auto" else quick_gelu)

    if entry:
        path, described = _fetch(model, pretrained, entry), of_tag(model, pretrained)
        source = described.source
        state_dict = whole_model(read_state_dict(path), str(path))
    else:
        path = weights_file(model, pretrained, open_clip.list_pretrained_tags_by_model(open_clip_name(model)))
        source = pretrained
        state_dict = whole_model(read_state_dict(path), source)
        described = _describe(model, path, state_dict, tag, given)
        require_known(model, path, [*described.values, *given])
    trained_with = described.quick_gelu
    if trained_with is None:
        if quick_gelu == "auto" and not by_name and has_choice_of_activation(model):
            logger.warning(
                f"{path} does not tell which activation it was trained with: GELU is taken, as {model} has it. "
                "If these are OpenAI's weights, add quick_gelu: true to the config."
            )
        trained_with = by_name if quick_gelu == "auto" else quick_gelu
    elif quick_gelu not in ("auto", trained_with):
        raise ConfigError(
            f"quick_gelu: {shown(quick_gelu)}: {source} was trained with quick_gelu: {shown(trained_with)}"
        )
    used = with_given(described.values, given, source)
    return EncoderWeights(visual_part(state_dict, source), source, used, trained_with)


def _describe(
    model: str, path: Path, state_dict: Mapping[str, Tensor], tag: str | None, given: Mapping[str, Any]
) -> Description:
    """Return what is known of a file, by its tag, by OpenAI's marks in it, and by what stands beside it."""
    found = [of_tag(model, tag)] if tag is not None else []
    if any(mark in state_dict for mark in _OPENAI_MARKERS):
        found.append(OPENAI)
    transformers = any(transformers_layout.FIRST.match(name) for name in state_dict)
    if beside := beside_clip(path, model, transformers=transformers, given=given):
        found.append(beside)
    return agreed(found, given, path)


def is_published_clip(model: str, pretrained: str) -> bool:
    """Whether open_clip publishes such weights of a model; else they are a file."""
    return bool(open_clip.get_pretrained_cfg(open_clip_name(model), pretrained))


def whole_model(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the CLIP in a file, or its bare tower, in the layout that it has.

    Raises:
        CheckpointError: there is none, or several.
    """
    for first in (_WHOLE, transformers_layout.FIRST, _TOWER):
        model = one_model(tensors, first, source)
        if model is not None:
            return model
    raise not_found(
        tensors,
        "CLIP image encoder (visual.conv1.weight or visual.trunk, as OpenAI and open_clip name it; "
        "vision_model.embeddings.patch_embedding.weight, as transformers does; or conv1.weight of a bare tower)",
        source,
    )


def visual_part(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the visual tower's float32 weights of a whole CLIP, or of a bare tower.

    Raises:
        CheckpointError: transformers' layout, and not all of it is there.
    """
    if any(transformers_layout.FIRST.match(key) for key in state_dict):
        return in_float32(transformers_layout.from_transformers(state_dict, source))
    visual = {key.removeprefix("visual."): value for key, value in state_dict.items() if key.startswith("visual.")}
    return in_float32(visual or state_dict)


def _fetch(model: str, tag: str, entry: Mapping[str, Any]) -> Path:
    repository, _, file = (entry.get("hf_hub") or "").rpartition("/")
    on_hub = on_the_hub(repository, file or "open_clip_model.safetensors") if repository else None
    places = [on_hub, entry.get("url")]
    return fetch(lambda: open_clip.download_pretrained(dict(entry)), model, tag, places, f"pretrained_tag: {tag}")
