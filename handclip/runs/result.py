"""What a training run reports at its end: `result.json`, and the checksums of its records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from handclip.checksums import read_checksums, require_intact, sha256_of, write_checksums
from handclip.errors import CheckpointError, DamagedFileError
from handclip.file_names import CONFIG, ENVIRONMENT, HISTORY, RESULT
from handclip.files import read_json_object, write_json
from handclip.locks import holding
from handclip.parallel.launching import is_first_launched
from handclip.runs.run_folder import RunFolder
from handclip.training.state import Row, TrainState

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
    """Of the file; None while training has not ended, as is `last_checkpoint_sha256`."""
    last_checkpoint_sha256: str | None = None
    best_was_repeated: bool = False
    """The best epoch was trained again from the state before it, as the one after it was damaged, and was not as good
    then: `metrics.csv` is of the second time, the checkpoint of the first."""

    @classmethod
    def of(
        cls, files: RunFolder, state: TrainState, environment: Mapping[str, Any], manifest_sha256: str, repeated: bool
    ) -> "TrainingResult":
        """Return what a run reports of where it has come to.

        Args:
            files: of the run.
            state: how far it has come.
            environment: what it runs on.
            manifest_sha256: the hash of its data.
            repeated: see `best_was_repeated`.
        """
        images = sum(float(row["images_per_second"]) * float(row["seconds"]) for row in state.history)
        seconds = sum(float(row["seconds"]) for row in state.history)
        return cls(
            run=files.run,
            checkpoint=files.best,
            last_checkpoint=files.last,
            folder=files.folder,
            best_epoch=state.best_epoch,
            best_was_repeated=repeated,
            epochs=state.epochs,
            seconds=round(state.training_seconds, 1),
            images_per_second=round(images / seconds, 1),
            finished=state.has_ended,
            peak_memory_mib=_highest(state.history, "peak_memory_mib"),
            peak_gpu_memory_mib=_highest(state.history, "peak_gpu_memory_mib"),
            manifest_sha256=manifest_sha256,
            **{name: environment[name] for name in ("device", "processor", "cores", "precision")},
        )


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
    try:
        result = TypeAdapter(TrainingResult).validate_python(read_json_object(files.result))
    except ValidationError as error:
        fault = error.errors()[0]
        raise DamagedFileError(
            f"{files.result}: {fault['loc'][0]}: {fault['msg'].lower()}. It is damaged, or was written by another "
            f"version of HandCLIP. {anew}"
        ) from None
    if not files.best.is_file():
        raise CheckpointError(f"{files.best}: is gone, although {files.result} says that the run has ended")
    if sha256_of(files.best) != result.checkpoint_sha256:
        beside = f" The model of the last epoch is in {files.last}." if files.last.is_file() else ""
        raise DamagedFileError(
            f"{files.best}: is damaged or was changed: it is not what {files.result} recorded.{beside} {anew}"
        )
    if RESULT not in (read_checksums(files.folder) or {}) and is_first_launched():
        with holding(files.folder):  # it was killed between the two
            write_checksums(files.folder, RECORDS)
    return replace(result, checkpoint=files.best, last_checkpoint=files.last, folder=files.folder)


def _highest(history: Sequence[Row], name: str) -> int | None:
    return max((int(row[name]) for row in history if name in row), default=None)
