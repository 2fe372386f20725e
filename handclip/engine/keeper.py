"""What happens at the end of every epoch: validate, record, keep the best and the last, decide whether to stop."""

import csv
import io
import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from handclip.config.experiment import ExperimentConfig
from handclip.datasets.pixel_cache import PixelCache
from handclip.engine.data import TrainingData
from handclip.engine.distributed import is_first_process
from handclip.engine.hardware import peak_gpu_memory_mib, peak_memory_mib
from handclip.engine.module import TrainingModule
from handclip.engine.run_folder import RunFolder
from handclip.engine.validation import validate
from handclip.errors import ConfigError, DataError
from handclip.files import replacing, write_text
from handclip.models.checkpoint import Checkpoint, describe_model

logger = logging.getLogger(__name__)

Row = dict[str, float | int | str]


class RunKeeper(LightningCheckpoint):
    """Validates and keeps a run's records and checkpoints.

    Derives from Lightning's `Checkpoint` because those callbacks come last in an epoch, and because its own state is
    then stored with the run: an interrupted run goes on with the same history, best epoch and patience.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        data: TrainingData,
        files: RunFolder,
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
        self.manifest_sha256 = manifest_sha256
        self.precision = precision
        self.num_workers = num_workers
        self.cache = cache
        self.stop_after = stop_after
        self.training_images = sorted({image.sha256 for image in data.train}.union(earlier_images))
        self.history: list[Row] = []
        self.best_epoch = 0
        self.best_value = float("-inf")
        self.validations_without_gain = 0
        self.training_seconds = 0.0
        self._epoch_start = 0.0
        self._images = 0
        self._sums: dict[str, float] = {}
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what an interrupted run needs to go on."""
        return {
            "manifest_sha256": self.manifest_sha256,
            "precision": self.precision,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_value": self.best_value,
            "validations_without_gain": self.validations_without_gain,
            "training_seconds": self.training_seconds,
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
        self.__dict__.update(state_dict)

    @property
    def has_lost_patience(self) -> bool:
        """Whether early stopping has ended the run."""
        patience = self.config.early_stopping_patience
        return patience is not None and self.validations_without_gain >= patience

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further epoch where the run that goes on had reached its end."""
        trainer.should_stop = self._should_stop()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's sums and clock."""
        self._epoch_start = time.perf_counter()
        self._images = self._steps = 0
        self._sums = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up each loss term."""
        assert isinstance(pl_module, TrainingModule)
        self._images += pl_module.sampler.batch_length(batch_idx)
        self._steps += 1
        for name, value in {"total": outputs["loss"], **outputs["terms"]}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the epoch: a row of the history, the checkpoints, and the decision to stop."""
        assert isinstance(pl_module, TrainingModule)
        seconds = time.perf_counter() - self._epoch_start
        self.training_seconds += seconds
        epoch = trainer.current_epoch + 1
        rates = {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}
        row: Row = {
            "epoch": epoch,
            **{f"loss_{name}": float(total) / self._steps for name, total in self._sums.items()},
            **{f"lr_{name}": rate for name, rate in rates.items() if "(" not in name},
            **self._validate(pl_module, epoch),
            "images_per_second": round(self._images / seconds, 1),
            "seconds": round(seconds, 2),
            **self._peak_memory(pl_module),
        }
        self._select(row, epoch, pl_module)
        self.history.append(row)
        if is_first_process():
            write_text(self.files.folder / "metrics.csv", self._history_csv())
        for name, value in row.items():
            if name != "epoch" and trainer.logger is not None:
                trainer.logger.log_metrics({name: float(value)}, step=epoch)
        logger.info(describe_row(row, self.config.epochs) + self._time_to_go())
        # Every process calls it, as Lightning asks for; the first one writes.
        state = self.files.resume_state
        with replacing(state) if is_first_process() else nullcontext(state) as path:
            trainer.save_checkpoint(path, weights_only=False)

        if self.has_lost_patience:
            logger.info(
                f"No better {self.config.monitor} in {self.validations_without_gain} validations: training stops early."
            )
        trainer.should_stop = self._should_stop()

    def save(self, module: TrainingModule, epoch: int, metrics: dict[str, float], last: bool = False) -> None:
        """Write the best or the last checkpoint, in the first process."""
        if not is_first_process():
            return
        Checkpoint(
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
        ).save(self.files.last if last else self.files.best)

    def validate_now(self, module: TrainingModule) -> dict[str, float]:
        """Validate the model as it is."""
        return validate(
            module.model,
            self.data.val_queries,
            self.data.val_gallery,
            self.data.val_aspects,
            device=module.device,
            batch_size=self.config.eval_batch_size,
            num_workers=self.num_workers,
            cache=self.cache,
        )

    def _should_stop(self) -> bool:
        return self.has_lost_patience or (self.stop_after is not None and len(self.history) >= self.stop_after)

    def _validate(self, module: TrainingModule, epoch: int) -> dict[str, float]:
        due = epoch % self.config.validation_interval == 0 or epoch == self.config.epochs
        return self.validate_now(module) if due and self.data.val_queries else {}

    def _peak_memory(self, module: TrainingModule) -> Row:
        peaks = {"peak_memory_mib": peak_memory_mib(), "peak_gpu_memory_mib": peak_gpu_memory_mib(module.device)}
        return {name: round(peak) for name, peak in peaks.items() if peak is not None}

    def _time_to_go(self) -> str:
        epochs = self.config.epochs - len(self.history)
        seconds = epochs * self.training_seconds / len(self.history)
        return f"; {timedelta(seconds=round(seconds))} to go" if epochs else ""

    def _select(self, row: Row, epoch: int, module: TrainingModule) -> None:
        metrics = {name: float(value) for name, value in row.items() if name.startswith("val_")}
        if metrics:
            value = metrics[self.config.monitor]
            self.validations_without_gain = 0 if value > self.best_value else self.validations_without_gain + 1
            # Of equals the later one: it has learned longer.
            if value >= self.best_value:
                self.best_value, self.best_epoch = value, epoch
                self.save(module, epoch, metrics)
        elif not self.data.val_queries and epoch == self.config.epochs:
            self.best_epoch = epoch
            self.save(module, epoch, metrics)

    def _history_csv(self) -> str:
        columns = list(dict.fromkeys(name for row in self.history for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(self.history)
        return text.getvalue()


def describe_row(row: Row, epochs: int) -> str:
    """Return one line on an epoch."""
    losses = ", ".join(
        f"{name.removeprefix('loss_')} {value:.4f}" for name, value in row.items() if name.startswith("loss_")
    )
    found = {name: float(value) for name, value in row.items() if name.startswith("val_")}
    validation = f"; val Rank-1 {found['val_rank1']:.2%}, mAP {found['val_map']:.2%}" if found else ""
    return f"Epoch {row['epoch']}/{epochs}: {losses}{validation}; {row['images_per_second']} images/s"


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.detach().cpu().clone() for key, value in state.items()}
