"""Self-describing checkpoints: model, preprocessing, config and metrics in one file that loads without running code.

Each holds the SHA-256 of its content, so that one that has changed on the disk is never taken for what was trained.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handclip import __version__
from handclip.config.experiment import INPUT_KEYS
from handclip.config.naming import LAST, last_name
from handclip.errors import CheckpointError
from handclip.files import replacing
from handclip.models.embedding_model import EmbeddingModel
from handclip.models.first_bytes import format_of
from handclip.models.torch_files import refusing, write_torch

FORMAT = "handclip-checkpoint"
_VERSION = 4


@dataclass(frozen=True)
class Checkpoint:
    """What `saved_models/<run>.pth` holds."""

    run: str
    epoch: int
    config: dict[str, Any]
    encoder_facts: dict[str, Any]
    embedding_dims: dict[str, int]
    preprocessing: dict[str, Any]
    identities: list[str]
    """Name of each training class, in the classifiers' order."""
    training_images: list[str]
    """Hash of each image it was trained on, in this stage or an earlier one, sorted."""
    manifest_sha256: str
    metrics: dict[str, float]
    model_state: dict[str, Tensor]
    criterion_state: dict[str, Tensor]

    @property
    def trained_on(self) -> dict[str, str]:
        """Data set, aspect and manifest that it was trained on."""
        named = {key: self.config[key] for key in ("dataset", "aspect")}
        return {**named, "manifest_sha256": self.manifest_sha256}

    def sha256(self) -> str:
        """Return the SHA-256 of the content: everything but the tensors as canonical JSON, then each tensor by name."""
        states = ("model_state", "criterion_state")
        plain = {name: value for name, value in self.__dict__.items() if name not in states}
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
        for state in states:
            for name, value in sorted(getattr(self, state).items()):
                digest.update(json.dumps([state, name, str(value.dtype), list(value.shape)]).encode())
                digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def save(self, path: str | Path, sha256: str = "") -> None:
        """Write the file beside its final name and rename it.

        Args:
            path: the file.
            sha256: that of the content, where it is known.
        """
        facts = {"format": FORMAT, "version": _VERSION, "handclip": __version__, "sha256": sha256 or self.sha256()}
        content = {**facts, **self.__dict__}
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            write_torch(content, file)

    @classmethod
    def load(cls, path: str | Path) -> "Checkpoint":
        """Read a checkpoint; nothing in it is executed.

        Raises:
            CheckpointError: the file is missing, damaged, refused, or not a HandCLIP checkpoint.
        """
        path = Path(path)
        with refusing(path, "checkpoint", _other_than(path)):
            # What is no pickle is of another program, as safetensors are.
            is_pickled = format_of(path) != "safetensors"
            loaded = torch.load(path, map_location="cpu", weights_only=True) if is_pickled else None
        if not isinstance(loaded, dict) or loaded.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}: is not a HandCLIP checkpoint. Weights of OpenAI or open_clip are named under `pretrained:`"
            )
        if (version := loaded.get("version")) != _VERSION:
            raise CheckpointError(f"{path}: has format version {version}; this HandCLIP reads {_VERSION}")
        if missing := sorted(cls.__dataclass_fields__.keys() - loaded.keys()):
            raise CheckpointError(f"{path}: is damaged: it lacks {', '.join(missing)}")
        checkpoint = cls(**{name: loaded[name] for name in cls.__dataclass_fields__})
        if not checkpoint._has_hash(loaded.get("sha256")):
            raise CheckpointError(
                f"{path}: is damaged or was changed: its content does not have the SHA-256 that it records. "
                f"{_other_than(path)}"
            )
        return checkpoint

    def _has_hash(self, recorded: object) -> bool:
        try:
            return self.sha256() == recorded
        except (AttributeError, TypeError, ValueError):  # damage has put something else in place of a tensor or a text
            return False


def _other_than(path: Path) -> str:
    """Return what to use instead of a damaged checkpoint."""
    is_last = path.stem.endswith(LAST)
    other = path.with_stem(path.stem.removesuffix(LAST) if is_last else last_name(path.stem))
    model = "best" if is_last else "last"
    beside = f"The model of its run's {model} epoch is in {other}. " if other != path and other.is_file() else ""
    return f"{beside}To have it again, move it and its run's folder away and train again"


def describe_model(model: EmbeddingModel) -> dict[str, Any]:
    """Return the part of a checkpoint that says what the model is."""
    return {
        "encoder_facts": dict(model.encoder.facts),
        "embedding_dims": dict(model.encoder.embedding_dims),
        "preprocessing": model.encoder.preprocessing.to_dict(),
    }


def check_same_model(checkpoint: Checkpoint, config: Mapping[str, Any], path: Path, *, same_neck: bool = True) -> None:
    """Check that a checkpoint is of the model and preprocessing that a config describes.

    Args:
        checkpoint: what the file holds.
        config: the config's values.
        path: names the file in errors.
        same_neck: whether the neck must be the same too; a later stage may have another one.

    Raises:
        CheckpointError: names the first key that differs.
    """
    size, preprocessing = config["input_size"], checkpoint.preprocessing
    wanted = {**config, "input_size": [size, size] if isinstance(size, int) else size}
    trained = {
        **{key: checkpoint.config[key] for key in ("model", "embedding", *(["neck"] if same_neck else []))},
        **{key: fact for key, fact in checkpoint.encoder_facts.items() if key in config},
        **{key: preprocessing[name] for name, key in INPUT_KEYS.items()},
        "input_size": [preprocessing["height"], preprocessing["width"]],
    }
    for key, value in trained.items():
        if value is not None and wanted[key] not in (None, "auto", value):
            said, asked = (str(one).lower() if isinstance(one, bool) else one for one in (value, config[key]))
            raise CheckpointError(f"{path}: was trained with {key}: {said}, but the config says {key}: {asked}")
