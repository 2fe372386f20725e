"""Whether a training run's records and checkpoints are still what it wrote."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from handclip.audit.findings import Finding, Outcome, compared, guarded
from handclip.audit.folder import check_folder, not_here, read_config, recorded_file
from handclip.audit.images import ImageChecker, audit_manifest
from handclip.checksums import sha256_of
from handclip.config.experiment import ExperimentConfig, TrainingConfig
from handclip.csv_files import csv_rows
from handclip.datasets.manifest import Manifest, named_manifest
from handclip.datasets.prepare import manifests_cache, places_of_manifests
from handclip.errors import HandCLIPError
from handclip.file_names import HISTORY, PROVENANCE, RESULT, SNAPSHOTS
from handclip.files import opened_text, read_json_object
from handclip.models.checkpoint import Checkpoint
from handclip.runs.data import combined_hash, combined_sha256, default_root, layout_of
from handclip.runs.provenance import read_provenance, weights_sha256
from handclip.runs.result import RECORDS
from handclip.runs.snapshots import Snapshots


def audit_training(folder: Path, images: ImageChecker) -> Iterator[Finding]:
    """Yield what is found of a training run."""
    complete = (folder / RESULT).exists()
    yield from check_folder(folder, RECORDS, complete=complete)
    if complete:
        yield from guarded(RESULT, _check_result, folder, images)
        return
    yield Finding(RESULT, Outcome.NOT_CHECKED, "not there: training has not ended; `handclip train --resume` goes on")
    yield from guarded(SNAPSHOTS, _check_states, folder)


def _check_result(folder: Path, images: ImageChecker) -> Iterator[Finding]:
    result, config = read_json_object(folder / RESULT), read_config(folder)
    provenance = read_provenance(folder) or {}
    for which in ("checkpoint", "last_checkpoint"):
        yield from guarded(which, _check_own, which, folder, result, provenance)
    yield from guarded(HISTORY, _check_history, folder, config, result)
    if provenance:
        yield from guarded(PROVENANCE, _check_manifests, result, provenance)
    yield from _check_data(folder, config, result, images)


def audit_checkpoint(path: Path) -> Iterator[Finding]:
    """Yield what is found of a checkpoint by itself."""
    checkpoint = Checkpoint.load(path)
    facts = f"epoch {checkpoint.epoch}, weights_sha256 {weights_sha256(checkpoint.model_state)[:12]}"
    yield Finding(path.name, Outcome.MATCHES, f"its own hash; {checkpoint.run}, {facts}")


def _check_states(folder: Path) -> Iterator[Finding]:
    newest, damaged = Snapshots(folder / SNAPSHOTS).find()
    for path in damaged:
        yield Finding(f"checkpoints/{path.name}", Outcome.DIFFERS, f"{path}: is damaged; the one before it is whole")
    if newest is None:
        yield Finding(SNAPSHOTS, Outcome.NOT_CHECKED, "no state was saved yet")
    else:
        found = "the newest whole state, which training goes on from"
        yield Finding(f"checkpoints/{newest.name}", Outcome.MATCHES, found)


def _check_own(which: str, folder: Path, result: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator[Finding]:
    """Check one of the two checkpoints of a run."""
    path = recorded_file(result[which], folder)
    if path is None:
        yield not_here(which, result[which], folder)
        return
    computed = {f"{which}_sha256": sha256_of(path)}
    yield compared(f"{RESULT}: {which}_sha256", result, computed, f"the bytes of {path}")
    checkpoint = Checkpoint.load(path)
    facts: dict[str, Any] = {"run": checkpoint.run, "manifest_sha256": checkpoint.manifest_sha256}
    facts |= {"best_epoch" if which == "checkpoint" else "epochs": checkpoint.epoch}
    yield compared(f"{which}: facts", result, facts, f"run, epoch {checkpoint.epoch}, manifest")
    key = "weights_sha256" if which == "checkpoint" else "last_weights_sha256"
    if key in provenance:
        weights = weights_sha256(checkpoint.model_state)
        found = f"the weights in {path.name}, {weights[:12]}"
        yield compared(f"{PROVENANCE}: {key}", provenance, {key: weights}, found)


def _check_history(folder: Path, config: TrainingConfig, result: Mapping[str, Any]) -> Iterator[Finding]:
    """Select the best epoch again: of equals the later one, and the last where nothing was validated."""
    with opened_text(folder / HISTORY) as file:
        header, *rows = csv_rows(file)
    history = [dict(zip(header, row, strict=True)) for row in rows]
    validated = {int(row["epoch"]): float(row[config.monitor]) for row in history if row.get(config.monitor)}
    best = max(validated, key=lambda epoch: (validated[epoch], epoch), default=len(history))
    said = f"the best by {config.monitor} is {best}"
    if result.get("best_was_repeated"):
        best = int(result["best_epoch"])
        said = f"the best is {best} as it was trained first; {RESULT} says that it was trained again, and that is here"
    computed = {"epochs": len(history), "best_epoch": best}
    yield compared(HISTORY, result, computed, f"{len(history)} epochs, {said}")


def _check_manifests(result: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare the data that the run began with and those that it ended with."""
    began, ended = combined_hash(provenance["manifest_sha256"]), result["manifest_sha256"]
    what = f"{PROVENANCE}: manifest_sha256"
    if began == ended:
        yield Finding(what, Outcome.MATCHES, f"{RESULT}, {ended[:12]}")
    else:
        found = f"the run began with manifest {began[:12]}, but {RESULT} says {ended[:12]}"
        yield Finding(what, Outcome.DIFFERS, found)


def _check_data(
    folder: Path, config: ExperimentConfig, result: Mapping[str, Any], images: ImageChecker
) -> Iterator[Finding]:
    """Check what it was trained on, where the manifests lie where the config, the data set or the cache has them."""
    found = list(_manifest_files(folder, config))
    if not found:
        named = config.manifest or f"that of {default_root(config)}"
        advice = "its evaluation keeps a copy of the manifest"
        yield Finding("manifests", Outcome.NOT_CHECKED, f"{named} is not there; {advice}")
        return
    # Of damaged ones it is said when they are checked.
    files = next((files for files in found if _hash_if_whole(files) == result["manifest_sha256"]), found[0])
    for file in files.values():
        yield from audit_manifest(file, images)
    if now := _hash_if_whole(files):
        place = next(iter(files.values())).parent if config.manifest is None else config.manifest
        yield compared(f"{RESULT}: manifest_sha256", result, {"manifest_sha256": now}, f"{place}, {now[:12]}")
    else:
        yield Finding(f"{RESULT}: manifest_sha256", Outcome.NOT_CHECKED, "a manifest cannot be read")


def _manifest_files(folder: Path, config: ExperimentConfig) -> Iterator[dict[str, Path]]:
    """Yield the manifests of all aspects at each place where those of a run may lie, if they are there."""
    root = default_root(config)
    places = [recorded_file(str(config.manifest or root / "manifests"), folder)]
    if config.manifest is None and (of_then := recorded_file(str(root), folder)) is not None:
        places += places_of_manifests(layout_of(config), of_then, manifests_cache(), config.pattern)
    for place in filter(None, places):
        files = {aspect: named_manifest(place, aspect) for aspect in config.aspects}
        if all(file.is_file() for file in files.values()):
            yield files


def _hash_if_whole(files: Mapping[str, Path]) -> str:
    try:
        return combined_sha256({aspect: Manifest.load(file) for aspect, file in files.items()})
    except HandCLIPError:
        return ""
