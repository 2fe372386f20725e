"""CLIP weights: by open_clip tag, or from a local file in OpenAI's or open_clip's layout."""

import logging
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub import get_session
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from handclip.errors import CheckpointError, ConfigError, did_you_mean
from handclip.models.checkpoint import FORMAT
from handclip.models.clip_encoder import ALIASES, architecture, has_choice_of_activation, open_clip_name

logger = logging.getLogger(__name__)

_OPENAI_MARKERS = ("input_resolution", "context_length", "vocab_size")
"""Entries that only OpenAI's own files have."""


@dataclass(frozen=True)
class ClipWeights:
    """Weights of a visual tower (None: start from random ones) and what must be known to use them rightly."""

    state_dict: Mapping[str, Tensor] | None
    quick_gelu: bool
    source: str
    preprocessing: dict[str, Any] = field(default_factory=dict)


def load_clip_weights(model: str, pretrained: str, quick_gelu: bool | Literal["auto"] = "auto") -> ClipWeights:
    """Find and read the weights that a config asks for.

    Args:
        model: a name from `clip_model_names()`.
        pretrained: an open_clip tag such as `openai`, a path, or `none`.
        quick_gelu: `auto` takes the activation from the tag, from OpenAI's marks in the file, or from the model's name:
            the short names (`vitb16`) stand for OpenAI's models, and they and open_clip's `-quickgelu` names mean
            QuickGELU. Where only the name tells, and it tells GELU, a warning says so.

    Raises:
        ConfigError: no such tag or file, or `quick_gelu` contradicts what the weights were trained with.
        CheckpointError: the file cannot be fetched or read, or holds no visual tower.
    """
    by_name = model in ALIASES or bool(architecture(model).get("quick_gelu"))
    if pretrained == "none":
        return ClipWeights(None, by_name if quick_gelu == "auto" else quick_gelu, "none (random)")

    trained_with: bool | None
    tag = open_clip.get_pretrained_cfg(open_clip_name(model), pretrained)
    if tag:
        trained_with = bool(tag.get("quick_gelu") or architecture(model).get("quick_gelu"))
        state_dict = read_state_dict(_fetch(model, pretrained, tag, trained_with and not by_name))
        preprocessing = {key: tag[key] for key in ("mean", "std", "interpolation") if key in tag}
        source = f"open_clip {pretrained}"
    else:
        path = Path(pretrained)
        if not path.is_file():
            hint = did_you_mean(pretrained, ["none", *open_clip.list_pretrained_tags_by_model(open_clip_name(model))])
            raise ConfigError(f"pretrained: '{pretrained}' is neither a file nor a set of weights of {model}.{hint}")
        state_dict = read_state_dict(path)
        trained_with = True if any(mark in state_dict for mark in _OPENAI_MARKERS) else None
        preprocessing, source = {}, str(path)
        if trained_with is None and quick_gelu == "auto" and not by_name and has_choice_of_activation(model):
            logger.warning(
                f"{path} does not tell which activation it was trained with: GELU is taken, as {model} has it. "
                "If these are OpenAI's weights, add quick_gelu: true to the config."
            )
    if quick_gelu != "auto" and trained_with is not None and quick_gelu != trained_with:
        raise ConfigError(
            f"quick_gelu: {str(quick_gelu).lower()}: {source} was trained with quick_gelu: {str(trained_with).lower()}"
        )
    if trained_with is None:
        trained_with = by_name if quick_gelu == "auto" else quick_gelu
    return ClipWeights(visual_part(state_dict, source), trained_with, source, preprocessing)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors` file, a state dict saved by torch, or OpenAI's TorchScript archive.

    Pickled code is refused. (A TorchScript archive holds a program of its own, in a language without access to files;
    for weights from strangers `.safetensors` is the safest.)

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if _is_torchscript(path):
            return dict(torch.jit.load(path, map_location="cpu").state_dict())  # type: ignore[no-untyped-call]
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise CheckpointError(f"{path}: is damaged, or is not a weights file ({_first_line(error)})") from error
    except Exception as error:  # pickle's own errors have no common base
        raise CheckpointError(
            f"{path}: holds more than plain weights and was not loaded ({_first_line(error)})"
        ) from error
    if isinstance(loaded, dict) and loaded.get("format") == FORMAT:
        raise CheckpointError(f"{path}: is a HandCLIP checkpoint; to train on from it, name it under `resume_from:`")
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise CheckpointError(f"{path}: holds no state dict")
    return {str(key).removeprefix("module."): value for key, value in loaded.items() if isinstance(value, Tensor)}


def visual_part(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the visual tower's float32 weights of a whole CLIP, or of a bare tower."""
    visual = {key.removeprefix("visual."): value for key, value in state_dict.items() if key.startswith("visual.")}
    if not visual and any(key.startswith(("conv1.", "trunk.")) for key in state_dict):
        visual = dict(state_dict)
    if not visual:
        raise CheckpointError(f"{source}: none of its {len(state_dict)} entries belongs to a CLIP image encoder")
    return {key: value.float() if value.is_floating_point() else value for key, value in visual.items()}


def _fetch(model: str, tag: str, entry: Mapping[str, Any], needs_quick_gelu: bool) -> Path:
    """Return the file of a tag from the local cache or the hub."""
    try:
        with _giving_up_at_once():
            return Path(open_clip.download_pretrained(dict(entry)))
    except Exception as error:  # every transport of the hub's client has errors of its own
        hub, url = entry.get("hf_hub"), entry.get("url")
        repository, _, file = hub.rpartition("/") if hub else ("", "", "")
        wanted = f"{file or 'open_clip_model.safetensors'} of https://huggingface.co/{repository}" if hub else url
        also = f", or {url}" if hub and url else ""
        raise CheckpointError(
            f"the weights '{tag}' of {model} are not cached here and could not be fetched ({type(error).__name__}).\n"
            f"Fetch {wanted}{also} on a machine with a network, copy the file here, and name it in the config:\n"
            f"  pretrained: path/to/the/file" + ("\n  quick_gelu: true" if needs_quick_gelu else "")
        ) from error


@contextmanager
def _giving_up_at_once() -> Iterator[None]:
    """Use the hub's cache alone where the hub cannot be reached; left to itself its client retries for a minute."""
    offline = hub_constants.HF_HUB_OFFLINE
    try:
        get_session().head(hub_constants.ENDPOINT, timeout=10)
    except Exception:  # whatever the transport raises
        hub_constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub_constants.HF_HUB_OFFLINE = offline


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
