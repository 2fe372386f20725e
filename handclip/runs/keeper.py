"""What happens at the end of every epoch: validate, record, keep the best and the last, decide whether to stop.

And what happens where a signal asks to stop: the state is saved after the step, or in the middle of a validation, which
is then done when training goes on.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from torch import Tensor

from handclip.config.experiment import ExperimentConfig
from handclip.console import ProgressLines
from handclip.csv_files import csv_table
from handclip.datasets.pixel_cache import PixelCache
from handclip.errors import (
    CheckpointError,
    ConfigError,
    DamagedFileError,
    DataError,
    HandCLIPError,
    Interrupted,
    TrainingError,
)
from handclip.file_names import HISTORY, LOG
from handclip.files import opened, write_text
from handclip.interruption import AskedToStop, StopRequest
from handclip.models.checkpoint import Checkpoint, describe_model
from handclip.parallel.hardware import peak_gpu_memory_mib, peak_memory_mib
from handclip.parallel.processes import is_first_process, on_first
from handclip.runs.data import TrainingData
from handclip.runs.module import TrainingModule
from handclip.runs.provenance import Session
from handclip.runs.run_folder import RunFolder
from handclip.runs.run_log import EventFile
from handclip.runs.snapshots import Snapshots
from handclip.training.validation import validate

logger = logging.getLogger(__name__)

Row = dict[str, float | int | str]


@dataclass(frozen=True)
class _Best:
    """What a best checkpoint of an epoch is known by."""

    epoch: int
    value: float
    sha256: str


class RunKeeper(LightningCheckpoint):
    """Validates and keeps a run's records and checkpoints.

    Derives from Lightning's `Checkpoint` because those callbacks come last in an epoch, and because its own state is
    then stored with the run: an interrupted run goes on with the same history, best epoch and patience.
    """

    def __init__(
        self,
        *,
        config: ExperimentConfig,
        data: TrainingData,
        files: RunFolder,
        states: Snapshots,
        session: Session,
        manifest_sha256: str,
        precision: str,
        num_workers: int,
        stop_after: int | None = None,
        earlier_images: Sequence[str] = (),
        cache: PixelCache | None = None,
    ) -> None:
        self.config = config
        self.data = data
        self.files = files
        self.states = states
        self.session = session
        self.manifest_sha256 = manifest_sha256
        self.precision = precision
        self.num_workers = num_workers
        self.cache = cache
        self.stop_after = stop_after
        self.training_images = sorted({image.sha256 for image in data.train}.union(earlier_images))
        self.history: list[Row] = []
        self.best_epoch = 0
        self.best_value = float("-inf")
        self.best_sha256 = ""
        """Of the content of the best checkpoint; empty in runs of earlier versions."""
        self.best_was_repeated = False
        """Whether the best epoch was trained again, from the state before it, and was not as good then."""
        self.validations_without_gain = 0
        self.training_seconds = 0.0
        self.validation_seconds = 0.0
        self.stop_request = StopRequest()
        self._events = EventFile(files.folder / "tensorboard")
        self._best_is_written = False
        self._in_place_of_best: _Best | None = None
        """The model of a later epoch that has taken the place of the best one, until that epoch is trained again."""
        self._begin_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return what an interrupted run needs to go on."""
        return {
            "manifest_sha256": self.manifest_sha256,
            "precision": self.precision,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_value": self.best_value,
            "best_sha256": self.best_sha256,
            "best_was_repeated": self.best_was_repeated,
            "validations_without_gain": self.validations_without_gain,
            "training_seconds": self.training_seconds,
            "validation_seconds": self.validation_seconds,
            "epoch_so_far": {
                "steps": self._steps,
                "images": self._images,
                "seconds": time.perf_counter() - self._epoch_start if self._steps else 0.0,
                "sums": {name: total.cpu() for name, total in self._sums.items()},
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo `state_dict`.

        Raises:
            DataError: the run was started on other images, or on the same ones in other roles.
            ConfigError: it was started in another precision.
        """
        if state_dict["manifest_sha256"] != self.manifest_sha256:
            raise DataError(
                f"{self.files.folder}: was started with manifest {state_dict['manifest_sha256'][:12]}, "
                f"and cannot go on with {self.manifest_sha256[:12]}: the data have changed"
            )
        if state_dict["precision"] != self.precision:
            raise ConfigError(
                f"{self.files.folder}: was started in {state_dict['precision']}, but this machine chooses "
                f"{self.precision}. Go on where it was started, or start anew with precision: {self.precision}"
            )
        self._begin_epoch(**state_dict.get("epoch_so_far", {}))
        for name in self.state_dict().keys() & state_dict.keys() - {"epoch_so_far"}:
            setattr(self, name, state_dict[name])

    @property
    def has_lost_patience(self) -> bool:
        """Whether early stopping has ended the run."""
        patience = self.config.early_stopping_patience
        return patience is not None and self.validations_without_gain >= patience

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further epoch where the run that goes on had reached its end."""
        assert isinstance(pl_module, TrainingModule)
        if self.best_epoch:
            self._in_place_of_best = on_first(lambda: self._require_best(pl_module))
            self._best_is_written = True
        self._epoch_start += time.perf_counter()
        if self.history and not self._steps:
            self._complete_log()
        trainer.should_stop = self._should_stop()
        if self._steps == len(pl_module.sampler):
            self._close_epoch(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's sums and clock."""
        self._begin_epoch()
        self._epoch_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up each loss term, and stop here where a signal asks for it.

        Raises:
            Interrupted: the state is saved.
            TrainingError: it cannot be.
        """
        assert isinstance(pl_module, TrainingModule)
        self._images += pl_module.sampler.batch_length(batch_idx)
        self._steps += 1
        for name, value in {"total": outputs["loss"], **outputs["terms"]}.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        # The last step is saved with its epoch.
        if self.stop_request.signum is not None and self._steps < len(pl_module.sampler):
            pl_module.require_finite()
            self._save_state(trainer, pl_module, trainer.current_epoch, self._steps)
            self.stop_request.raise_if_asked(self.states.describe())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the steps of this epoch where a signal has come while a batch was waited for.

        Raises:
            TrainingError: a weight is not finite, or files cannot be written.
        """
        assert isinstance(pl_module, TrainingModule)
        # A run that went on from here has this state already.
        if isinstance(exception, AskedToStop) and self._steps and not self.states.is_at(len(self.history), self._steps):
            pl_module.require_finite()
            self._save_state(trainer, pl_module, len(self.history), self._steps)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the epoch: a row of the history, the state, the best checkpoint, and the decision to stop.

        Raises:
            Interrupted: a signal has asked to stop; the state is saved.
            TrainingError: a weight is not finite, or files cannot be written.
        """
        assert isinstance(pl_module, TrainingModule)
        pl_module.require_finite()
        self._close_epoch(trainer, pl_module)

    def _close_epoch(self, trainer: Trainer, module: TrainingModule) -> None:
        """Do what follows the last step of an epoch, at once or, after a signal, when training goes on."""
        seconds = time.perf_counter() - self._epoch_start
        epoch = len(self.history) + 1
        try:
            validation = self._validate(module, epoch)
        except AskedToStop as stopped:
            self._epoch_start = time.perf_counter() - seconds
            # A run that went on from here has this state already; a second one would push out the one before it.
            if not self.states.is_at(epoch - 1, self._steps):
                self._save_state(trainer, module, epoch - 1, self._steps)
            advice = f"All steps of epoch {epoch} are saved. Its validation is done when training goes on."
            raise Interrupted(stopped.signum, advice) from None
        self.training_seconds += seconds
        self.validation_seconds += time.perf_counter() - self._epoch_start - seconds
        rates = {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}
        row: Row = {
            "epoch": epoch,
            **{f"loss_{name}": float(total) / self._steps for name, total in self._sums.items()},
            **{f"lr_{name}": rate for name, rate in rates.items() if "(" not in name},
            **validation,
            **({"validation_images": len(self.data.val_queries)} if validation else {}),
            "images_per_second": round(self._images / seconds, 1),
            "seconds": round(seconds, 2),
            **self._peak_memory(module),
        }
        best = self._select(row, epoch, module)
        self.history.append(row)
        self._begin_epoch()
        self.write_history()
        # The state comes first: it holds the model too, so that the best checkpoint can be written from it; and whoever
        # reads that the epoch is done may end the training.
        self._save_state(trainer, module, epoch, 0)
        logger.info(self._describe_last_epoch())
        if best is not None:
            self._save_best(best, self.best_sha256)
        if is_first_process():
            constant = ("epoch", "validation_images")
            self._events.add({name: float(value) for name, value in row.items() if name not in constant}, epoch)
        self.stop_request.raise_if_asked(self.states.describe())

        if self.has_lost_patience:
            logger.info(
                f"No better {self.config.monitor} in {self.validations_without_gain} validations: training stops early."
            )
        trainer.should_stop = self._should_stop()

    def save_last(self, module: TrainingModule) -> None:
        """Write the last checkpoint, in the first process.

        Raises:
            TrainingError: it cannot be written.
        """
        if is_first_process():
            with self.storing():
                self._checkpoint(module, len(self.history), _validation(self.history[-1])).save(self.files.last)

    def write_history(self) -> None:
        """Write `metrics.csv`, in the first process.

        Raises:
            TrainingError: it cannot be written.
        """
        if is_first_process():
            with self.storing():
                write_text(self.files.folder / HISTORY, csv_table(self.history))

    def load_best(self) -> Checkpoint:
        """Return the best checkpoint, after checking that it is the one of the best epoch.

        Raises:
            HandCLIPError: it is gone, damaged, or of another epoch.
        """
        best = Checkpoint.load(self.files.best)
        if self.best_sha256 and best.sha256() != self.best_sha256:
            raise DamagedFileError(
                f"{self.files.best}: is not the model that epoch {self.best_epoch} of this run has left there. The "
                f"model of the last epoch is in {self.files.last}. Move them and {self.files.folder} away to train anew"
            )
        return best

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Write something of the run, but not where it was removed meanwhile: it would be there without the rest.

        Raises:
            TrainingError: it was removed, or cannot be written.
        """
        best = self.files.best if self._best_is_written else None
        counted_on = [self.files.config, self.states.current, best] if is_first_process() else []
        if lost := [path for path in counted_on if path is not None and not path.is_file()]:
            raise TrainingError(f"{lost[0]} is gone: somebody has removed it while the run was training.")
        try:
            yield
        except TrainingError:
            raise
        except HandCLIPError as error:
            raise TrainingError(f"{error}. Mend that, then go on with --resume.") from error

    def _checkpoint(self, module: TrainingModule, epoch: int, metrics: dict[str, float]) -> Checkpoint:
        return Checkpoint(
            run=self.files.run,
            epoch=epoch,
            config=self.config.to_dict(),
            **describe_model(module.model),
            identities=self.data.identities,
            training_images=self.training_images,
            manifest_sha256=self.manifest_sha256,
            metrics=metrics,
            model_state=_on_cpu(module.model.state_dict()),
            criterion_state=_on_cpu(module.criterion.state_dict()),
        )

    def validate_now(self, module: TrainingModule) -> dict[str, float]:
        """Validate the model as it is.

        Raises:
            AskedToStop: a signal has asked to stop.
        """
        lines = ProgressLines(f"Epoch {len(self.history) + 1}/{self.config.epochs}, images embedded for validation")

        def progress(done: int, images: int) -> None:
            self._stop_validating_if_asked()
            if is_first_process():
                lines(done, images)

        self._stop_validating_if_asked()
        return validate(
            module.model,
            self.data.val_queries,
            self.data.val_gallery,
            self.data.val_aspects,
            device=module.device,
            batch_size=self.config.eval_batch_size,
            num_workers=self.num_workers,
            cache=self.cache,
            progress=progress,
        )

    def _stop_validating_if_asked(self) -> None:
        if self.stop_request.signum is not None:
            raise AskedToStop(self.stop_request.signum)

    def _begin_epoch(
        self, steps: int = 0, images: int = 0, seconds: float = 0.0, sums: dict[str, Tensor] | None = None
    ) -> None:
        """Start the epoch's sums, or go on with them; the clock is started when training is."""
        self._steps, self._images, self._sums = steps, images, dict(sums or {})
        self._epoch_start = -seconds

    def _save_state(self, trainer: Trainer, module: TrainingModule, epochs: int, steps: int) -> None:
        with self.storing():
            # Every process calls it, as Lightning asks for; the first one writes.
            trainer.save_checkpoint(self.states.place(epochs, steps), weights_only=False)
        self.session.reaches(epochs=epochs, steps=module.steps_taken)

    def _save_best(self, best: Checkpoint, sha256: str) -> None:
        with self.storing():
            best.save(self.files.best, sha256)
        self._best_is_written = True

    def _require_best(self, module: TrainingModule) -> _Best | None:
        """Check that the best checkpoint of the run that goes on is there, or write it if the state holds that model.

        Where training goes on from an older state than the last one, the model of an epoch that is trained again may
        have taken its place.

        Returns:
            That model, None where the best checkpoint is in its place.

        Raises:
            DamagedFileError: the best checkpoint is gone or damaged, and the state holds another model.
        """
        try:
            found = Checkpoint.load(self.files.best)
        except CheckpointError:
            found = None
        sha256 = found.sha256() if found is not None else ""
        if found is not None and found.epoch == self.best_epoch and self.best_sha256 in ("", sha256):
            return None
        if self.best_epoch == len(self.history) and not self._steps:
            best = self._checkpoint(module, self.best_epoch, _validation(self.history[-1]))
            # Not always what it was: the config of a run that goes on may name other places.
            self.best_sha256 = best.sha256()
            self._save_best(best, self.best_sha256)
            return None
        of_this_run = (self.files.run, self.manifest_sha256)
        if (
            found is None
            or found.epoch <= len(self.history)
            or (found.run, found.manifest_sha256) != of_this_run
            or self.config.monitor not in found.metrics
        ):
            raise DamagedFileError(
                f"{self.files.best}: the model of epoch {self.best_epoch}, the best of this run so far, is gone or "
                f"damaged. {self.states.current} is whole, but holds a later model. Put the file back, or move "
                f"{self.files.folder} and what there is of it away to train anew"
            )
        return _Best(found.epoch, found.metrics[self.config.monitor], sha256)

    def _adopt(self, best: _Best) -> None:
        """Keep the model that has taken the place of the best one: there is no better one any more."""
        self.best_epoch, self.best_value, self.best_sha256 = best.epoch, best.value, best.sha256
        self.best_was_repeated = True
        self.validations_without_gain = 0
        logger.warning(
            f"Epoch {best.epoch} was trained a second time, and its model is not as good as that of the first time "
            f"({self.config.monitor} {best.value:.4f}), which is in {self.files.best} and is kept as the best."
        )

    def _should_stop(self) -> bool:
        epochs = self.config.epochs if self.stop_after is None else min(self.stop_after, self.config.epochs)
        return self.has_lost_patience or len(self.history) >= epochs

    def _validate(self, module: TrainingModule, epoch: int) -> dict[str, float]:
        due = epoch % self.config.validation_interval == 0 or epoch == self.config.epochs
        return self.validate_now(module) if due and self.data.val_queries else {}

    def _peak_memory(self, module: TrainingModule) -> Row:
        peaks = {"peak_memory_mib": peak_memory_mib(), "peak_gpu_memory_mib": peak_gpu_memory_mib(module.device)}
        return {name: round(peak) for name, peak in peaks.items() if peak is not None}

    def _describe_last_epoch(self) -> str:
        return describe_row(self.history[-1], self.config.epochs, len(self.data.val_queries)) + self._time_to_go()

    def _complete_log(self) -> None:
        """Log the line of the last epoch if a process that was killed has saved its state and not come to say so."""
        line = self._describe_last_epoch()
        with suppress(OSError), opened(self.files.folder / LOG) as log:
            if line.partition(":")[0].encode() + b":" in log.read():
                return
        logger.info(line)

    def _time_to_go(self) -> str:
        epochs = self.config.epochs - len(self.history)
        seconds = epochs * (self.training_seconds + self.validation_seconds) / len(self.history)
        return f"; {timedelta(seconds=round(seconds))} to go" if epochs else ""

    def _select(self, row: Row, epoch: int, module: TrainingModule) -> Checkpoint | None:
        """Return the model where it is the best so far."""
        if metrics := _validation(row):
            value = metrics[self.config.monitor]
            self.validations_without_gain = 0 if value > self.best_value else self.validations_without_gain + 1
            # Of equals the later one: it has learned longer.
            if value < self.best_value:
                if self._in_place_of_best is not None and epoch >= self._in_place_of_best.epoch:
                    self._adopt(self._in_place_of_best)
                    self._in_place_of_best = None
                return None
            self.best_value = value
        elif self.data.val_queries or epoch < self.config.epochs:
            return None
        self.best_epoch, self.best_was_repeated, self._in_place_of_best = epoch, False, None
        if not is_first_process():
            return None
        best = self._checkpoint(module, epoch, metrics)
        self.best_sha256 = best.sha256()
        return best


def describe_row(row: Row, epochs: int, val_images: int) -> str:
    """Return one line on an epoch, whose validation was on so many images."""
    losses = ", ".join(
        f"{name.removeprefix('loss_')} {value:.4f}" for name, value in row.items() if name.startswith("loss_")
    )
    validation = ""
    if found := _validation(row):
        of = f"of {val_images:,} validation images"
        validation = f"; Rank-1 {found['val_rank1']:.2%}, mAP {found['val_map']:.2%} {of}"
    return f"Epoch {row['epoch']}/{epochs}: {losses}{validation}; {row['images_per_second']} images/s"


def _validation(row: Row) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name.startswith("val_")}


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.detach().cpu().clone() for key, value in state.items()}
