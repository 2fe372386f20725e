"""Whether an evaluation's metrics say of its model, and of how that was evaluated, what still follows from it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from handclip.audit.findings import Finding, Outcome, compared
from handclip.audit.folder import kept_manifests, not_here, recorded_file, working_directory
from handclip.config.experiment import ExperimentConfig
from handclip.datasets.manifest import Manifest
from handclip.file_names import METRICS_FILE, PROVENANCE, RESULT
from handclip.models.checkpoint import Checkpoint
from handclip.models.registry import family_of
from handclip.runs.evaluated_model import checkpoint_path, evaluates_baseline, load_evaluated_model
from handclip.runs.evaluation_spec import (
    asked_for,
    identity_of,
    known_people,
    origin_of,
    training_folders,
    training_has_ended,
)
from handclip.runs.provenance import read_provenance

_ELSEWHERE = ("weights_sha256", "manifest_sha256")
"""Of an evaluation's identity these have findings of their own."""


def check_model(folder: Path, config: ExperimentConfig, metrics: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare with the model itself where it is here, and else with what is known without it."""
    path = None if evaluates_baseline(config) else str(checkpoint_path(config))
    said = f"the config, {path or 'a baseline'}"
    yield compared(f"{METRICS_FILE}: checkpoint", metrics, {"checkpoint": path}, said)
    if lost := _lost_model(path, folder, config):
        yield lost
        yield from _check_without_model(folder, config, metrics)
        return
    located = config if path is None else config.model_copy(update={"checkpoint": recorded_file(path, folder)})
    evaluated = load_evaluated_model(located)
    weights = evaluated.weights_sha256()
    found = f"the weights of {evaluated.path or 'the baseline, built anew'}, {weights[:12]}"
    yield compared(f"{METRICS_FILE}: weights_sha256", metrics, {"weights_sha256": weights}, found)
    facts = json.loads(json.dumps(evaluated.facts()))
    yield compared(
        f"{METRICS_FILE}: facts of the model", metrics, facts, "experiment, losses, seed, sizes, epochs, ..."
    )
    # Not `located`: a name depends on whether a checkpoint was asked for.
    manifests = kept_manifests(folder, config)
    computed = {**identity_of(config, evaluated, manifests), **_known(config, evaluated.checkpoint, manifests)}
    yield _compare_identity(metrics, computed)
    trainings = [recorded_file(str(place), folder) for place in training_folders(config, evaluated.checkpoint)]
    yield from _compare_end(metrics, training_has_ended(filter(None, trainings)))


def _compare_end(metrics: Mapping[str, Any], ended: bool | None) -> Iterator[Finding]:
    """Say where the model was evaluated before its training had ended; None where its records are not here."""
    recorded = metrics["training_ended"]
    if recorded is False:
        since = ", and has since: evaluate the run again" if ended else ""
        yield Finding("training", Outcome.NOTE, f"had not ended when its best model until then was evaluated{since}")
    elif ended is False:
        said = f"training_ended: {recorded} is recorded, but {RESULT} of that training is not there"
        yield Finding(f"{METRICS_FILE}: training_ended", Outcome.DIFFERS, said)


def _lost_model(path: str | None, folder: Path, config: ExperimentConfig) -> Finding | None:
    """Say that the checkpoint, or the weights of a baseline, are not here, where they are not."""
    if path is not None:
        return not_here("checkpoint", path, folder) if recorded_file(path, folder) is None else None
    if config.pretrained == "none":
        return None
    if family_of(config.model).publishes(config.model, config.pretrained):
        return Finding("model", Outcome.NOT_CHECKED, f"a baseline of published weights ({config.pretrained})")
    weights = Path(config.pretrained)
    if not weights.is_absolute() and working_directory(folder) != Path.cwd():  # another file could have its name here
        return Finding("weights", Outcome.NOT_CHECKED, f"{weights} is of another working directory")
    return None if weights.is_file() else not_here("weights", config.pretrained)


def _check_without_model(folder: Path, config: ExperimentConfig, metrics: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare with what follows from the config, the manifests and the provenance alone."""
    computed = asked_for(config)
    if evaluates_baseline(config):
        manifests = kept_manifests(folder, config)
        computed |= {**origin_of(config, None, manifests), **_known(config, None, manifests)}
    yield _compare_identity(metrics, computed)
    if provenance := read_provenance(folder):
        recorded = {"run": provenance["run"], "weights_sha256": provenance["starts_from_sha256"]}
        said = f"{PROVENANCE}, {recorded['weights_sha256'][:12]}"
        yield compared(f"{METRICS_FILE}: run and weights_sha256", metrics, recorded, said)


def _known(
    config: ExperimentConfig, checkpoint: Checkpoint | None, manifests: Mapping[str, Manifest]
) -> dict[str, int]:
    return {"test_people_known_from_other_aspects": sum(known_people(config, checkpoint, manifests).values())}


def _compare_identity(metrics: Mapping[str, Any], computed: Mapping[str, Any]) -> Finding:
    """Compare what an evaluation is told from others by."""
    identity = json.loads(json.dumps({key: value for key, value in computed.items() if key not in _ELSEWHERE}))
    return compared(f"{METRICS_FILE}: identity", metrics, identity, ", ".join(identity))
