"""The files of one training run, and what is kept of its log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handclip.checksums import read_checksums, require_intact, write_checksums
from handclip.config.experiment import COMPUTED_KEYS, ExperimentConfig
from handclip.config.loading import read_yaml
from handclip.config.naming import last_name, run_name
from handclip.config.yaml_text import dump_yaml
from handclip.errors import ConfigError, DamagedFileError, HandCLIPError, TrainingError
from handclip.file_names import CHECKSUMS, CONFIG, RESULT, SNAPSHOTS
from handclip.files import require_regular, write_text


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes: `train_logs/<run>/` and `saved_models/<run>*.pth`."""

    run: str
    folder: Path
    best: Path
    last: Path

    @classmethod
    def of(cls, config: ExperimentConfig) -> "RunFolder":
        """Name the files of a config's run."""
        run = run_name(config)
        return cls(
            run, config.output_dir / run, config.save_dir / f"{run}.pth", config.save_dir / f"{last_name(run)}.pth"
        )

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.folder / CONFIG

    @property
    def snapshots(self) -> Path:
        """The folder of the snapshots that training goes on from after an interruption."""
        return self.folder / SNAPSHOTS

    @property
    def result(self) -> Path:
        """Written when training has ended: best epoch, seconds, images/s."""
        return self.folder / RESULT

    def open(self, config: ExperimentConfig, *, resume: bool) -> None:
        """Make the folder, or check that an interrupted run may go on in it.

        Raises:
            HandCLIPError: the run exists and `resume` was not asked for, or it was started with other settings.
            DamagedFileError: what it was started with is gone, or cannot be read.
        """
        existing = next((path for path in (self.folder, self.best, self.last) if path.exists()), None)
        if existing is None:
            self._write_config(config)
            return
        if not resume:
            next_step = (
                ": this run has ended, and `handclip evaluate` is next. Move it away to start anew"
                if self.result.is_file()
                else ". Add --resume to go on with this run, or move it away to start anew"
            )
            raise HandCLIPError(f"{existing} exists already{next_step}")
        if not self.config.is_file():
            if existing != self.folder:
                raise HandCLIPError(
                    f"{existing} exists, but the records of its run in {self.folder} are gone, so it cannot go on. "
                    "Move it away to start anew"
                )
            self._require_not_begun()
            self._write_config(config)
            return
        before, now = self._read_config(), config.to_dict()
        keys = sorted(COMPUTED_KEYS)
        if changed := [key for key in keys if _plain(key, before.get(key)) != _plain(key, now[key])]:
            key = changed[0]
            raise HandCLIPError(
                f"{self.folder}: was started with {key}: {before.get(key)}, and cannot go on with {now[key]}"
            )

    def _require_not_begun(self) -> None:
        """Check that the config is not there yet, and was not lost: the run may have had other settings."""
        left = [path for path in (self.snapshots, self.best, self.last) if path.exists()]
        if self.config.name in (read_checksums(self.folder) or {}):
            left.append(self.folder / CHECKSUMS)
        if left:
            raise DamagedFileError(
                f"{self.config}: is gone, although {left[0]} says that the run has begun, so it cannot go on. Put the "
                f"file back, or move {self.folder} and the run's checkpoints away to start anew"
            )

    def _write_config(self, config: ExperimentConfig) -> None:
        write_config(self.config, config)
        write_checksums(self.folder, [self.config.name])

    def _read_config(self) -> dict[str, Any]:
        advice = f"Move {self.folder} and the run's checkpoints away to start anew"
        require_intact(self.folder, [self.config.name], advice=advice)
        damaged = f"{self.config}: is damaged: it does not hold the settings of a run. {advice}"
        try:
            before = read_yaml(self.config)
        except ConfigError as error:
            raise DamagedFileError(damaged) from error
        if "experiment" not in before:
            raise DamagedFileError(damaged)
        return before


class Storage:
    """Writes to a run's folder while it trains, but not where it was removed meanwhile: it would lack the rest."""

    def __init__(self, files: RunFolder) -> None:
        self.files = files
        self.counted_on = {"config": files.config}
        """Files that are there as long as nobody removes them."""

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write something of the run while the block runs.

        Raises:
            TrainingError: it was removed, or cannot be written.
        """
        for path in self.counted_on.values():
            if not path.is_file():
                raise TrainingError(f"{path} is gone: somebody has removed it while the run was training.")
        try:
            yield
        except TrainingError:
            raise
        except HandCLIPError as error:
            raise TrainingError(f"{error}. Mend that, then go on with --resume.") from error


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Do without the line; logging would print a traceback for each."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Copy what is logged to a file, also where no command line has set up logging.

    It is for people, so a full disk ends it without a word: what is written for good and comes next says what is wrong.

    Raises:
        HandCLIPError: the file cannot be opened.
    """
    try:
        if path.exists():
            require_regular(path)
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        why = error.strerror or error
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            why = f"it is a link to {path.readlink()}, which is not there. Remove it, or make that folder"
        raise HandCLIPError(f"cannot write {path}: {why}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("handclip")
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(root.getEffectiveLevel(), logging.INFO))
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()


def write_config(path: Path, config: ExperimentConfig) -> None:
    """Write the resolved config, every key with its value."""
    write_text(path, dump_yaml(config.to_dict()))


def _plain(key: str, value: Any) -> Any:
    """Return what two values of a key are compared by; an earlier stage may lie elsewhere by now."""
    return Path(value).name if key == "resume_from" and value is not None else value
