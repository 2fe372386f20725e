"""What is evaluated, on what, and by what it is told from any other evaluation."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handclip.config.experiment import ExperimentConfig
from handclip.config.naming import evaluation_name, run_name
from handclip.datasets.manifest import Manifest
from handclip.engine.data import check_not_tested_on, combined_sha256, find_manifests, people_known_from_other_aspects
from handclip.engine.distributed import first_before_others
from handclip.engine.evaluated_model import EvaluatedModel, load_evaluated_model
from handclip.engine.ranking import require_rankable
from handclip.engine.run_folder import RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A model, and the manifests that it is evaluated on, by aspect."""

    config: ExperimentConfig
    """Asks for the evaluation."""
    evaluated: EvaluatedModel
    manifests: dict[str, Manifest]
    known: dict[str, int]
    """How many test people of each aspect training knew by their other hand or side."""
    identity: dict[str, Any]
    """What makes two evaluations the same one; where the weights lie is not part of it."""

    @property
    def run(self) -> str:
        """The evaluation's name."""
        return str(self.identity["run"])

    @property
    def folder(self) -> Path:
        """Where it is written."""
        return self.config.eval_dir / self.run


def find_subject(config: ExperimentConfig) -> Subject:
    """Load the model and the manifests that a config names, and check that they may meet.

    Raises:
        HandCLIPError: one of them is missing or damaged, or the model was trained on test images.
    """
    # The model comes first: what is wrong with the config should show before images are read.
    evaluated = load_evaluated_model(config)
    manifests = first_before_others(lambda: find_manifests(config))
    for manifest in manifests.values():
        require_rankable(config, manifest)
    known = _check_people(config, evaluated, manifests)
    return Subject(config, evaluated, manifests, known, _identity(config, evaluated, manifests))


def _check_people(
    config: ExperimentConfig, evaluated: EvaluatedModel, manifests: Mapping[str, Manifest]
) -> dict[str, int]:
    """Refuse a model that was trained on test images; return how many test people it knows from other aspects."""
    identities: list[str] = []
    if evaluated.checkpoint is not None:
        _warn_of_unfinished_training(config)
        check_not_tested_on(evaluated.checkpoint.training_images, manifests, str(evaluated.path))
        if evaluated.experiment["dataset"] == config.dataset:  # the same number is another person elsewhere
            identities = evaluated.checkpoint.identities
    known = people_known_from_other_aspects(identities, manifests)
    if any(known.values()):
        logger.info(
            "Test people whose other hand or side was trained on: "
            + ", ".join(f"{aspect} {count}" for aspect, count in known.items() if count)
        )
    return known


def _warn_of_unfinished_training(config: ExperimentConfig) -> None:
    files = RunFolder.of(config)
    if config.checkpoint is None and files.folder.is_dir() and not files.result.is_file():
        logger.warning(f"Training of this run has not ended: what is evaluated is the best so far. See {files.folder}/")


def _identity(config: ExperimentConfig, evaluated: EvaluatedModel, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """Return what makes two evaluations the same one; where the weights lie is not part of it."""
    data = {"dataset": config.dataset, "aspect": config.aspect, "manifest_sha256": combined_sha256(manifests)}
    trained_on = evaluated.trained_on
    cross_domain = trained_on is not None and trained_on != data
    run, on = run_name(config), ""
    if evaluated.checkpoint is not None and (cross_domain or config.checkpoint is not None):
        run = evaluated.checkpoint.run
    if trained_on is not None and cross_domain:
        on = f"{config.dataset}_{config.aspect}"
        if config.manifest is not None or config.dataset == "folder":
            on += f"_{data['manifest_sha256'][:8]}"
        logger.info(
            f"Evaluating {run}, trained on {trained_on['dataset']} {trained_on['aspect']}, "
            f"on {config.dataset} {config.aspect}"
        )
    return {
        "run": evaluation_name(run, on=on, rerank=config.rerank),
        "dataset": config.dataset,
        "aspect": config.aspect,
        "model": config.model,
        "weights_sha256": evaluated.weights_sha256(),
        "manifest_sha256": data["manifest_sha256"],
        "trained_on": trained_on,
        "cross_domain": cross_domain,
        "settings": {
            "num_splits": config.num_splits,
            "gallery_protocols": list(config.gallery_protocols),
            "flip_settings": list(config.flip_settings),
            "test_feature": evaluated.model.test_feature,
        },
        "rerank": config.to_dict()["rerank"],
    }
