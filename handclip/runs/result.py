"""What a training run reports at its end: `result.json`, and the checksums of its records."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from handclip.checksums import read_checksums, require_intact, sha256_of, write_checksums
from handclip.errors import CheckpointError, DamagedFileError
from handclip.file_names import CONFIG, ENVIRONMENT, HISTORY, RESULT
from handclip.files import read_json_object, write_json
from handclip.locks import holding
from handclip.parallel.launching import is_first_launched
from handclip.runs.run_folder import RunFolder

RECORDS = (CONFIG, ENVIRONMENT, HISTORY, RESULT)
"""What a run that has ended vouches for with checksums."""


@dataclass(frozen=True)
class TrainingResult:
    """What a finished (or deliberately stopped) run reports; memory is None where the system does not tell."""

    run: str
    checkpoint: Path
    last_checkpoint: Path
    folder: Path
    best_epoch: int
    epochs: int
    seconds: float
    images_per_second: float
    finished: bool
    peak_memory_mib: int | None
    peak_gpu_memory_mib: int | None
    device: str
    processor: str
    cores: int
    precision: str
    manifest_sha256: str
    checkpoint_sha256: str | None = None
    """Of the file; None in runs of versions that did not record it, as in `last_checkpoint_sha256`."""
    last_checkpoint_sha256: str | None = None
    best_was_repeated: bool = False
    """The best epoch was trained again from the state before it, as the one after it was damaged, and was not as good
    then: `metrics.csv` is of the second time, the checkpoint of the first."""


def write_result(result: TrainingResult, files: RunFolder) -> None:
    """Write `result.json`, then the checksums of all records.

    Raises:
        HandCLIPError: they cannot be written.
    """
    places = {"checkpoint": str(files.best), "last_checkpoint": str(files.last), "folder": str(files.folder)}
    write_json(files.result, {**result.__dict__, **places})
    write_checksums(files.folder, RECORDS)


def read_result(files: RunFolder) -> TrainingResult:
    """Return what a run that has ended reported.

    Raises:
        HandCLIPError: a record or the best checkpoint is gone, damaged, or by another version.
    """
    anew = f"Move {files.folder} and the run's checkpoints away to train anew"
    require_intact(files.folder, RECORDS, advice=anew)
    values = read_json_object(files.result)
    if not files.best.is_file():
        raise CheckpointError(f"{files.best}: is gone, although {files.result} says that the run has ended")
    required = {field.name for field in fields(TrainingResult) if field.default is MISSING}
    if missing := sorted(required - values.keys()):
        raise CheckpointError(
            f"{files.result}: lacks {missing[0]}; it is damaged, or was written by another version of HandCLIP"
        )
    if (recorded := values.get("checkpoint_sha256")) is not None and sha256_of(files.best) != recorded:
        beside = f" The model of the last epoch is in {files.last}." if files.last.is_file() else ""
        raise DamagedFileError(
            f"{files.best}: is damaged or was changed: it is not what {files.result} recorded.{beside} {anew}"
        )
    if recorded is not None and RESULT not in (read_checksums(files.folder) or {}) and is_first_launched():
        with holding(files.folder):  # it was killed between the two
            write_checksums(files.folder, RECORDS)
    known = {field.name: values[field.name] for field in fields(TrainingResult) if field.name in values}
    return TrainingResult(**{**known, "checkpoint": files.best, "last_checkpoint": files.last, "folder": files.folder})
