"""How far a training run has come: a live bar, and what `provenance.json` says."""

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from handclip.console import ProgressLines, progress_bar
from handclip.runs.module import TrainingModule
from handclip.runs.provenance import Session

_SECONDS_BETWEEN_NOTES = 0.25
"""To read a loss is to wait for the GPU, and nobody reads faster than this."""


class TrainingProgress(Callback):
    """A bar over all steps of a run, with the loss terms of a recent step; without a terminal, lines on long epochs."""

    def __init__(
        self, run: str, epochs: int, steps_per_epoch: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self._clock = clock
        self._next_note = clock()
        self._bar = progress_bar()
        self._task = self._bar.add_task(run, total=epochs * steps_per_epoch, note="")
        self._lines: ProgressLines | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar, from where the run goes on."""
        assert isinstance(pl_module, TrainingModule)
        self._bar.update(self._task, completed=pl_module.steps_taken)
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by a step."""
        if self._bar.disable:
            self._say_how_far_the_epoch_is(trainer.current_epoch + 1, batch_idx + 1)
            return
        self._bar.update(self._task, advance=1, description=f"epoch {trainer.current_epoch + 1}/{self.epochs}")
        if self._clock() >= self._next_note:
            note = " ".join(f"{name} {float(value):.3f}" for name, value in outputs["terms"].items())
            self._bar.update(self._task, note=note)
            self._next_note = self._clock() + _SECONDS_BETWEEN_NOTES

    def _say_how_far_the_epoch_is(self, epoch: int, steps: int) -> None:
        # Lines on the whole run follow each epoch; of its steps, those that this process has done say how fast it is.
        if self._lines is None:
            self._lines = ProgressLines(f"Epoch {epoch}/{self.epochs}, steps", steps, self._clock)
        self._lines(steps, self.steps_per_epoch)
        if steps == self.steps_per_epoch:
            self._lines = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar away when training breaks off."""
        self._bar.stop()


class StartRecorder(Callback):
    """Tells a session at which epoch and step it begins to train, counted from 0 over the whole run."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._started = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Record where this process begins."""
        assert isinstance(pl_module, TrainingModule)
        if not self._started:
            self._session.starts_at(epochs=trainer.current_epoch, steps=pl_module.steps_taken)
            self._started = True
