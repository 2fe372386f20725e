"""Which evaluations of a run are there: told by what they say they measured, as the names of several begin the same."""

import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from handclip.config.experiment import ExperimentConfig
from handclip.config.naming import beginning_of_evaluations, run_name
from handclip.datasets.prepare import named_manifest
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
    places = [[evaluation_folder(config)], *(_folders_on(run_name(config), other) for other in other_data)]
    found: dict[int, Path] = {}
    likely = [
        (how, number, folder)
        for number, (one, folders) in enumerate(zip(wanted, places, strict=True))
        for how, folder in _likely(one, folders)
    ]
    for _, number, folder in sorted(likely):  # the surest first, so that nobody takes what is surely another's
        if number not in found and folder not in found.values():
            found[number] = folder
    return [found.get(number) for number in range(len(wanted))]


def _folders_on(run: str, other: ExperimentConfig) -> list[Path]:
    """Return where evaluations of a run on some data may be; the hash of a manifest can be part of the name."""
    beginning = beginning_of_evaluations(run, on=f"{other.dataset}_{other.aspect}")
    return [path.parent for path in other.eval_dir.glob(f"{glob.escape(beginning)}*/{METRICS_FILE}")]


def _likely(config: ExperimentConfig, folders: Sequence[Path]) -> Iterator[tuple[int, Path]]:
    """Yield the folders whose evaluation can be the one that a config asks for, and how surely it is."""
    there = [folder for folder in folders if (folder / METRICS_FILE).is_file()]
    manifest = _manifest_sha256(config) if there else None
    for folder in there:
        try:
            metrics = read_json_object(folder / METRICS_FILE)
        except HandCLIPError:
            yield _DAMAGED, folder
            continue
        if _is_asked_for(config, metrics) and manifest in (None, metrics.get("manifest_sha256")):
            yield _POSSIBLE if manifest is None else _SURE, folder


def _is_asked_for(config: ExperimentConfig, metrics: Mapping[str, Any]) -> bool:
    """Whether metrics are of a config's model, data set, aspect and settings, its manifest aside."""
    asked, checkpoint = asked_for(config), metrics.get("checkpoint")
    if config.test_feature != "auto":
        asked["settings"]["test_feature"] = config.test_feature
    return (
        not differences(metrics, asked)
        and (Path(checkpoint).stem if isinstance(checkpoint, str) else None) == _model(config)
        and metrics.get("training_ended") is not False
    )


def _model(config: ExperimentConfig) -> str | None:
    """Return the name of the trained model, which it keeps where a study moves."""
    return None if evaluates_baseline(config) else checkpoint_path(config).stem


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
