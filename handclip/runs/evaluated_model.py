"""Which model an experiment evaluates, and what is known of it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from handclip.config.experiment import ExperimentConfig
from handclip.config.naming import options_of, run_name, stage_of
from handclip.errors import ConfigError, missing_file
from handclip.files import is_there
from handclip.models.builder import build_model, model_from_checkpoint
from handclip.models.checkpoint import Checkpoint, check_same_model
from handclip.models.embedding_model import EmbeddingModel
from handclip.models.flops import count_flops
from handclip.models.registry import family_of
from handclip.runs.provenance import weights_sha256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluatedModel:
    """A model with the experiment that made it; `checkpoint` and `path` are None for a baseline."""

    model: EmbeddingModel
    experiment: dict[str, Any]
    checkpoint: Checkpoint | None
    path: Path | None

    @property
    def trained_on(self) -> dict[str, str] | None:
        """Data set, aspect and manifest that it was trained on."""
        return None if self.checkpoint is None else self.checkpoint.trained_on

    def weights_sha256(self) -> str:
        """Return a hash of the weights alone."""
        return weights_sha256(self.model.state_dict())

    def facts(self) -> dict[str, Any]:
        """Return how it was made, and what it costs."""
        trained = self.checkpoint is not None
        size = self.model.encoder.preprocessing
        return {
            "experiment": self.experiment["experiment"],
            "variant": self.experiment["variant"],
            "stage": stage_of(self.experiment["variant"], self.experiment["resume_from"]),
            "family": family_of(self.experiment["model"]).key,
            "losses": [loss["type"] for loss in self.experiment["losses"]] if trained else [],
            "seed": self.experiment["seed"],
            "options": options_of(self.experiment),
            "trained_epochs": self.checkpoint.epoch if self.checkpoint else 0,
            "input_size": [size.height, size.width],
            "feature_dim": self.model.feature_dim,
            "parameters": sum(parameter.numel() for parameter in self.model.encoder.parameters()),
            "gflops_per_image": count_flops(self.model) / 1e9,
        }


def load_evaluated_model(config: ExperimentConfig) -> EvaluatedModel:
    """Build the baseline, or load the trained model.

    Raises:
        HandCLIPError: it is missing, damaged, or not the one that the config describes.
    """
    if evaluates_baseline(config):
        # Only `pretrained: none` draws weights; the same seed then gives the model that training starts from.
        torch.manual_seed(config.seed)
        return EvaluatedModel(build_model(config), config.to_dict(), None, None)
    path = checkpoint_path(config)
    if not is_there(path) and config.checkpoint is None:
        raise ConfigError(f"this run is not trained yet, {path} is not there: give `handclip train` the same arguments")
    if not is_there(path):
        raise missing_file(path, "*.pth", key="checkpoint")
    checkpoint = Checkpoint.load(path)
    check_same_model(checkpoint, config.to_dict(), path)
    model = model_from_checkpoint(checkpoint, str(path), config.test_feature)
    return EvaluatedModel(model, checkpoint.config, checkpoint, path)


def evaluates_baseline(config: ExperimentConfig) -> bool:
    """Whether an experiment evaluates a model that it has not trained, and no checkpoint."""
    return config.variant == "baseline" and config.checkpoint is None


def checkpoint_path(config: ExperimentConfig) -> Path:
    """Return the checkpoint that a `finetuned` config evaluates."""
    return config.checkpoint or config.save_dir / f"{run_name(config)}.pth"


def choose_model(config: ExperimentConfig, trained: ExperimentConfig | None) -> ExperimentConfig:
    """Choose between the model trained on the data of an evaluation, and the one trained on the file's own data.

    Args:
        config: the experiment with other data than its file names.
        trained: the experiment with the file's data, None where there is no such change.

    Returns:
        `config`, with the other model's checkpoint where its own run was not trained (cross-domain). A named
        checkpoint is kept.

    Raises:
        ConfigError: neither was trained.
    """
    if trained is None or config.variant == "baseline" or config.checkpoint is not None:
        return config
    own, other = checkpoint_path(config), checkpoint_path(trained)
    if own == other or (is_there(own) and not is_there(other)):
        return config
    if is_there(own):
        logger.info(
            f"Evaluating {own.stem}, which was trained on these data. For the model trained on {_data(trained)} "
            f"add --set checkpoint={other}"
        )
        return config
    if not is_there(other):
        raise ConfigError(
            f"no model to evaluate on {_data(config)}: neither {own} (trained on it) nor {other} (trained on "
            f"{_data(trained)}) is there. Train one of them, or name another with --set checkpoint=..."
        )
    return config.model_copy(update={"checkpoint": other})


def _data(config: ExperimentConfig) -> str:
    return f"{config.dataset} {config.aspect}"
