"""Whether an evaluation was done before: this very one, whose numbers may be used again, or another in its place."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from handclip.checksums import faults
from handclip.config.loading import read_yaml
from handclip.errors import DamagedFileError, HandCLIPError
from handclip.file_names import (
    ATTRIBUTES,
    CHECKSUMS,
    CONFIG,
    COST,
    ENVIRONMENT,
    EXPLANATIONS,
    FEATURES,
    METRICS_FILE,
    PER_QUERY,
    PER_SPLIT,
)
from handclip.files import read_json_object
from handclip.runs.artifacts import manifest_file
from handclip.runs.evaluation_spec import EvaluationSpec, differences

logger = logging.getLogger(__name__)


def evaluation_files(aspects: Iterable[str]) -> list[str]:
    """Return the names of what an evaluation writes, but for what is added later and for its provenance."""
    manifests = [manifest_file(Path(), aspect).name for aspect in aspects]
    kept = [FEATURES, ATTRIBUTES, EXPLANATIONS, *manifests]
    return [*kept, CONFIG, ENVIRONMENT, PER_SPLIT, PER_QUERY, COST, METRICS_FILE]


def earlier_metrics(spec: EvaluationSpec, *, reuse: bool) -> dict[str, Any] | None:
    """Return the metrics of the very same evaluation, None where there is none to use again.

    Args:
        spec: what is evaluated.
        reuse: False only looks whether another evaluation is in its place.

    Raises:
        HandCLIPError: another one is.
    """
    path = spec.folder / METRICS_FILE
    if not path.exists() or (before := _undamaged_metrics(spec.folder)) is None:
        return None
    differing = differences(before, spec.identity)
    while_training = before.get("training_ended") is False
    if reuse and while_training and spec.training_ended and differing.keys() <= {"weights_sha256"}:
        logger.info(f"{spec.folder} was made before training had ended, so it is evaluated again.")
        return None
    for key, (old, wanted) in differing.items():
        holds = f"an evaluation with {key}: {old}, not {wanted}"
        if key == "weights_sha256" and while_training:
            holds = "the evaluation of an earlier model of this run, made before its training had ended"
        raise HandCLIPError(f"{path} holds {holds}. Add --overwrite to replace it, or choose another eval_dir")
    if not reuse:
        return None
    if found := _faults(spec.folder, spec.manifests):
        logger.warning(f"{'; '.join(found)}, so it is evaluated again.")
        return None
    # Not part of its identity, as no number depends on it; but what it keeps of people does.
    explained, wanted = read_yaml(spec.folder / CONFIG).get("explained_images"), spec.config.explained_images
    if explained != wanted:
        logger.info(
            f"{spec.folder} was made with explained_images: {explained}, not {wanted}, so it is evaluated again."
        )
        return None
    return before


def _undamaged_metrics(folder: Path) -> dict[str, Any] | None:
    """Return the metrics of an earlier evaluation, None where they are damaged and so cannot say whose they are."""
    path = folder / METRICS_FILE
    try:
        # Of what is wrong with the list `_faults` tells.
        if found := [fault for fault in faults(folder, [METRICS_FILE]) if fault.startswith(f"{path}:")]:
            raise DamagedFileError(found[0])
        return read_json_object(path)
    except HandCLIPError as error:
        logger.warning(f"{error}, so it is evaluated again.")
        return None


def _faults(folder: Path, aspects: Iterable[str]) -> list[str]:
    """Return why an evaluation cannot be used again; nothing where all of it is there and as it was written."""
    names = evaluation_files(aspects)
    if lacking := [name for name in (*names, CHECKSUMS) if not (folder / name).is_file()]:
        return [f"{folder} lacks {', '.join(lacking)}"]
    return faults(folder, names, all_listed=True)
