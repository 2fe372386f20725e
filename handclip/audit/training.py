"""Whether a training run's records and checkpoints are still what it wrote."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from handclip.audit.findings import Finding, Outcome, compared, guarded
from handclip.audit.folder import check_folder, holds_text, not_here, read_config, recorded_file
from handclip.audit.images import ImageChecker, audit_manifest
from handclip.checksums import sha256_of
from handclip.config.experiment import ExperimentConfig
from handclip.csv_files import csv_rows
from handclip.datasets.manifest import Manifest
from handclip.datasets.prepare import manifests_cache, named_manifest, places_of_manifests
from handclip.errors import HandCLIPError
from handclip.file_names import HISTORY, PROVENANCE, RESULT, STATES
from handclip.files import opened_text, read_json_object
from handclip.models.checkpoint import Checkpoint
from handclip.runs.data import combined_hash, combined_sha256, default_root, layout_of
from handclip.runs.provenance import read_provenance, weights_sha256
from handclip.runs.result import RECORDS
from handclip.runs.snapshots import Snapshots


def audit_training(folder: Path, images: ImageChecker) -> Iterator[Finding]:
    """Yield what is found of a training run."""
    complete = (folder / RESULT).exists()
    recent = holds_text(folder / RESULT, '"checkpoint_sha256"')
    yield from check_folder(folder, RECORDS, complete=complete, recent=recent)
    if not complete:
        yield Finding(
            RESULT, Outcome.NOT_CHECKED, "not there: training has not ended; `handclip train --resume` goes on"
        )
        yield from guarded(STATES, lambda: _check_states(folder))
        return

    def check() -> Iterator[Finding]:
        result, config = read_json_object(folder / RESULT), read_config(folder)
        provenance = read_provenance(folder) or {}
        for which in ("checkpoint", "last_checkpoint"):
            yield from guarded(which, lambda which=which: _check_own(which, folder, result, provenance))  # type: ignore[misc]
        yield from guarded(HISTORY, lambda: [_check_history(folder, config, result)])
        if provenance:
            yield from guarded(PROVENANCE, lambda: [_check_manifests(result, provenance)])
        yield from _check_data(folder, config, result, images)

    yield from guarded(RESULT, check)


def audit_checkpoint(path: Path) -> Iterator[Finding]:
    """Yield what is found of a checkpoint by itself."""

    def check() -> Iterator[Finding]:
        checkpoint = Checkpoint.load(path)
        weights = weights_sha256(checkpoint.model_state)
        yield Finding(
            path.name,
            Outcome.MATCHES,
            f"its own hash; {checkpoint.run}, epoch {checkpoint.epoch}, weights_sha256 {weights[:12]}",
        )

    yield from guarded(path.name, check)


def _check_states(folder: Path) -> Iterator[Finding]:
    newest, damaged = Snapshots(folder / STATES).find()
    for path in damaged:
        yield Finding(f"checkpoints/{path.name}", Outcome.DIFFERS, f"{path}: is damaged; the one before it is whole")
    if newest is None:
        yield Finding(STATES, Outcome.NOT_CHECKED, "no state was saved yet")
    else:
        yield Finding(
            f"checkpoints/{newest.name}", Outcome.MATCHES, "the newest whole state, which training goes on from"
        )


def _check_own(which: str, folder: Path, result: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator[Finding]:
    """Check one of the two checkpoints of a run."""
    path = recorded_file(result[which], folder)
    if path is None:
        yield not_here(which, result[which], folder)
        return
    if f"{which}_sha256" in result:
        computed = {f"{which}_sha256": sha256_of(path)}
        yield compared(f"{RESULT}: {which}_sha256", result, computed, f"the bytes of {path}")
    checkpoint = Checkpoint.load(path)
    facts: dict[str, Any] = {"run": checkpoint.run, "manifest_sha256": checkpoint.manifest_sha256}
    facts |= {"best_epoch" if which == "checkpoint" else "epochs": checkpoint.epoch}
    yield compared(f"{which}: facts", result, facts, f"run, epoch {checkpoint.epoch}, manifest")
    key = "weights_sha256" if which == "checkpoint" else "last_weights_sha256"
    if key in provenance:
        weights = weights_sha256(checkpoint.model_state)
        yield compared(
            f"{PROVENANCE}: {key}", provenance, {key: weights}, f"the weights in {path.name}, {weights[:12]}"
        )


def _check_history(folder: Path, config: ExperimentConfig, result: Mapping[str, Any]) -> Finding:
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
    return compared(HISTORY, result, computed, f"{len(history)} epochs, {said}")


def _check_manifests(result: Mapping[str, Any], provenance: Mapping[str, Any]) -> Finding:
    """Compare the data that the run began with and those that it ended with."""
    began, ended = combined_hash(provenance["manifest_sha256"]), result["manifest_sha256"]
    what = f"{PROVENANCE}: manifest_sha256"
    if began == ended:
        return Finding(what, Outcome.MATCHES, f"{RESULT}, {ended[:12]}")
    return Finding(what, Outcome.DIFFERS, f"the run began with manifest {began[:12]}, but {RESULT} says {ended[:12]}")


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
    files = next((files for files in found if _hash_of(files) == result["manifest_sha256"]), found[0])
    for file in files.values():
        yield from audit_manifest(file, images)

    def check() -> Iterator[Finding]:
        now = combined_sha256({aspect: Manifest.load(file) for aspect, file in files.items()})
        place = next(iter(files.values())).parent if config.manifest is None else config.manifest
        yield compared(f"{RESULT}: manifest_sha256", result, {"manifest_sha256": now}, f"{place}, {now[:12]}")

    yield from guarded("manifests", check)


def _manifest_files(folder: Path, config: ExperimentConfig) -> Iterator[dict[str, Path]]:
    """Yield the manifests of all aspects at each place where those of a run may lie, if they are there."""
    places = []
    if config.manifest is not None:
        places.append(recorded_file(str(config.manifest), folder))
    else:
        root = default_root(config)
        places.append(recorded_file(str(root / "manifests"), folder))
        if (of_then := recorded_file(str(root), folder)) is not None:
            places += places_of_manifests(layout_of(config), of_then, manifests_cache(), config.pattern)
    for place in places:
        if place is not None:
            files = {aspect: named_manifest(place, aspect) for aspect in config.aspects}
            if all(file.is_file() for file in files.values()):
                yield files


def _hash_of(files: Mapping[str, Path]) -> str:
    """Return the hash of some manifests; nothing of damaged ones, of which it is said when they are checked."""
    try:
        return combined_sha256({aspect: Manifest.load(file) for aspect, file in files.items()})
    except HandCLIPError:
        return ""
