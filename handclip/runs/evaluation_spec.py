"""What is evaluated, on what, and by what it is told from any other evaluation."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handclip.config.experiment import ExperimentConfig
from handclip.config.naming import evaluation_name, last_name, run_name
from handclip.datasets.manifest import Manifest
from handclip.file_names import RESULT
from handclip.models.checkpoint import Checkpoint
from handclip.parallel.processes import first_before_others
from handclip.retrieval.ranking import require_rankable
from handclip.runs.data import (
    check_not_tested_on,
    combined_sha256,
    find_manifests,
    people_known_from_other_aspects,
    warn_of_copies,
    warn_of_known_names,
)
from handclip.runs.evaluated_model import EvaluatedModel, load_evaluated_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSpec:
    """A model, and the manifests that it is evaluated on, by aspect."""

    config: ExperimentConfig
    """Asks for the evaluation."""
    evaluated: EvaluatedModel
    manifests: dict[str, Manifest]
    known: dict[str, int]
    """How many test people of each aspect training knew by their other hand or side."""
    training_ended: bool | None
    """Whether the training that made the model has ended; None of a baseline, and where its records are not here."""
    identity: dict[str, Any]
    """See `identity_of`."""

    @property
    def run(self) -> str:
        """The evaluation's name."""
        return str(self.identity["run"])

    @property
    def folder(self) -> Path:
        """Where it is written."""
        return self.config.eval_dir / self.run

    @property
    def training_folders(self) -> list[Path]:
        """Where the records of the training that made the model may be."""
        return training_folders(self.config, self.evaluated.checkpoint)


def find_evaluation_spec(config: ExperimentConfig) -> EvaluationSpec:
    """Load the model and the manifests that a config names, and check that they may meet.

    Raises:
        HandCLIPError: one of them is missing or damaged, or the model was trained on test images.
    """
    # The model comes first: what is wrong with the config should show before images are read.
    evaluated = load_evaluated_model(config)
    manifests = first_before_others(lambda: find_manifests(config))
    for manifest in manifests.values():
        require_rankable(config, manifest)
    if evaluated.checkpoint is not None:
        check_not_tested_on(evaluated.checkpoint.training_images, manifests, str(evaluated.path))
        warn_of_known_names(evaluated.checkpoint, manifests)
    warn_of_copies(manifests)
    known = known_people(config, evaluated.checkpoint, manifests)
    ended = training_has_ended(training_folders(config, evaluated.checkpoint))
    spec = EvaluationSpec(config, evaluated, manifests, known, ended, identity_of(config, evaluated, manifests))
    _tell_how_they_meet(spec)
    return spec


def _tell_how_they_meet(spec: EvaluationSpec) -> None:
    config, checkpoint = spec.config, spec.evaluated.checkpoint
    if spec.training_ended is False:
        logger.warning("Training of this run has not ended: what is evaluated is the best model so far.")
    if any(spec.known.values()):
        logger.info(
            "Test people whose other hand or side was trained on: "
            + ", ".join(f"{aspect} {count}" for aspect, count in spec.known.items() if count)
        )
    if checkpoint is not None and spec.identity["cross_domain"]:
        trained_on = checkpoint.trained_on
        logger.info(
            f"Evaluating {checkpoint.run}, trained on {trained_on['dataset']} {trained_on['aspect']}, "
            f"on {config.dataset} {config.aspect}"
        )


def training_folders(config: ExperimentConfig, checkpoint: Checkpoint | None) -> list[Path]:
    """Return where the records of the training that made a checkpoint may be; nowhere for a baseline."""
    if checkpoint is None:
        return []
    return [output_dir / checkpoint.run for output_dir in (config.output_dir, Path(checkpoint.config["output_dir"]))]


def training_has_ended(folders: Iterable[Path]) -> bool | None:
    """Return whether a training has ended; None where its records are in none of the folders."""
    folder = next((folder for folder in folders if folder.is_dir()), None)
    return None if folder is None else (folder / RESULT).is_file()


def known_people(
    config: ExperimentConfig, checkpoint: Checkpoint | None, manifests: Mapping[str, Manifest]
) -> dict[str, int]:
    """Count the test people of each aspect whom training knew by their other hand or side; a baseline knows nobody."""
    # The same number is another person in another data set.
    same_people = checkpoint is not None and checkpoint.trained_on["dataset"] == config.dataset
    return people_known_from_other_aspects(checkpoint.identities if checkpoint and same_people else [], manifests)


def identity_of(config: ExperimentConfig, evaluated: EvaluatedModel, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """Return what makes two evaluations the same one; where the weights lie is not part of it.

    Args:
        config: asks for the evaluation.
        evaluated: the model that it names, wherever that lies by now.
        manifests: by aspect.
    """
    asked, origin = asked_for(config), origin_of(config, evaluated.checkpoint, manifests)
    return {
        "run": origin["run"],
        "dataset": asked["dataset"],
        "aspect": asked["aspect"],
        "model": asked["model"],
        "weights_sha256": evaluated.weights_sha256(),
        "preprocessing": evaluated.model.encoder.preprocessing.to_dict(),
        "manifest_sha256": combined_sha256(manifests),
        "trained_on": origin["trained_on"],
        "cross_domain": origin["cross_domain"],
        "settings": {**asked["settings"], "test_feature": evaluated.model.test_feature},
        "rerank": asked["rerank"],
    }


def asked_for(config: ExperimentConfig) -> dict[str, Any]:
    """Return the part of an evaluation's identity that follows from its config alone."""
    return {
        "dataset": config.dataset,
        "aspect": config.aspect,
        "model": config.model,
        "settings": {
            "num_splits": config.num_splits,
            "gallery_protocols": list(config.gallery_protocols),
            "flip_settings": list(config.flip_settings),
        },
        "rerank": config.to_dict()["rerank"],
    }


def differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what is recorded otherwise than wanted, by its name: (recorded, wanted). Of a section, its entries."""
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in wanted.items():
        old = recorded.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            found |= differences(old, value)
        elif old != value:
            found[key] = (old, value)
    return found


def origin_of(
    config: ExperimentConfig, checkpoint: Checkpoint | None, manifests: dict[str, Manifest]
) -> dict[str, Any]:
    """Return the part of an evaluation's identity that follows from where its model comes from: name, and domain.

    Args:
        config: asks for the evaluation.
        checkpoint: of its model, None for a baseline.
        manifests: by aspect.
    """
    data = {"dataset": config.dataset, "aspect": config.aspect, "manifest_sha256": combined_sha256(manifests)}
    trained_on = None if checkpoint is None else checkpoint.trained_on
    cross_domain = trained_on is not None and trained_on != data
    run, on = run_name(config), ""
    if checkpoint is not None and (cross_domain or config.checkpoint is not None):
        run = checkpoint.run
        if config.checkpoint is not None and config.checkpoint.stem == last_name(run):
            run = last_name(run)
    if cross_domain:
        on = f"{config.dataset}_{config.aspect}"
        if config.manifest is not None or config.dataset == "folder":
            on += f"_{data['manifest_sha256'][:8]}"
    return {
        "run": evaluation_name(run, on=on, rerank=config.rerank),
        "trained_on": trained_on,
        "cross_domain": cross_domain,
    }
