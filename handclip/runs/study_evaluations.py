"""Which evaluations of a run are there: told by what they say they measured, as the names of several begin the same."""

import glob
from collections.abc import Sequence
from pathlib import Path

from handclip.config.experiment import ExperimentConfig
from handclip.config.naming import beginning_of_evaluations, run_name
from handclip.datasets.manifest import named_manifest
from handclip.errors import HandCLIPError
from handclip.file_names import METRICS_FILE
from handclip.files import read_json_object
from handclip.runs.data import combined_hash
from handclip.runs.evaluate import evaluation_folder
from handclip.runs.evaluated_model import checkpoint_path, evaluates_baseline
from handclip.runs.evaluation_spec import asked_for, differences

_SURE, _POSSIBLE, _DAMAGED = range(3)
"""It was made on this very manifest; on which manifest cannot be told now; it cannot say what it is of."""


def evaluations_there(config: ExperimentConfig, other_data: Sequence[ExperimentConfig]) -> list[Path | None]:
    """Return the folder of each evaluation of a run, None for one that is not there; no folder is given twice.

    Where the manifest that a config names is gone, an evaluation on any manifest of such data may be the one.

    Args:
        config: the run's own, whose evaluation comes first.
        other_data: the evaluations on data that the run is not trained on.
    """
    wanted = (config, *other_data)
    likely = []
    for number, one in enumerate(wanted):
        folders = [evaluation_folder(config)] if number == 0 else _folders_on(run_name(config), one)
        there = [folder for folder in folders if (folder / METRICS_FILE).is_file()]
        manifest = _manifest_sha256(one) if there else None
        likely += [(how, number, folder) for folder in there if (how := _match(one, manifest, folder)) is not None]
    found: dict[int, Path] = {}
    for _, number, folder in sorted(likely):  # the surest first, so that nobody takes what is surely another's
        if number not in found and folder not in found.values():
            found[number] = folder
    return [found.get(number) for number in range(len(wanted))]


def _folders_on(run: str, other: ExperimentConfig) -> list[Path]:
    """Return where evaluations of a run on some data may be; the hash of a manifest can be part of the name."""
    beginning = beginning_of_evaluations(run, on=f"{other.dataset}_{other.aspect}")
    return [path.parent for path in other.eval_dir.glob(f"{glob.escape(beginning)}*/{METRICS_FILE}")]


def _match(config: ExperimentConfig, manifest: str | None, folder: Path) -> int | None:
    """Return how surely an evaluation is the one that a config asks for, None where it is not.

    Args:
        config: says model, data and settings.
        manifest: the hash of the manifest that it names; None where any may be meant.
        folder: of the evaluation.
    """
    try:
        metrics = read_json_object(folder / METRICS_FILE)
    except HandCLIPError:
        return _DAMAGED
    asked, checkpoint = asked_for(config), metrics.get("checkpoint")
    if config.test_feature != "auto":
        asked["settings"]["test_feature"] = config.test_feature
    if differences(metrics, asked) or metrics.get("training_ended") is False:
        return None
    # A model keeps its name where a study moves.
    model = None if evaluates_baseline(config) else checkpoint_path(config).stem
    if (Path(checkpoint).stem if isinstance(checkpoint, str) else None) != model:
        return None
    if manifest is None:
        return _POSSIBLE
    return _SURE if metrics.get("manifest_sha256") == manifest else None


def _manifest_sha256(config: ExperimentConfig) -> str | None:
    """Return the hash of the manifest that a config names; None where it names none, or it cannot be read now."""
    if config.manifest is None:
        return None
    try:
        files = {aspect: named_manifest(config.manifest, aspect) for aspect in config.aspects}
        hashes = {aspect: read_json_object(file).get("sha256") for aspect, file in files.items()}
    except HandCLIPError:
        return None
    texts = {aspect: sha256 for aspect, sha256 in hashes.items() if isinstance(sha256, str)}
    return combined_hash(texts) if texts.keys() == hashes.keys() else None
