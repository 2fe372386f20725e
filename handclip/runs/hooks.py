"""What a run keeps and shows of its training, as hooks of the loop: see `handclip.training.loop`."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
from rich.progress import Progress, TaskID
from torch.utils.tensorboard import SummaryWriter

from handclip.console import ProgressLines, progress_bar
from handclip.csv_files import csv_table
from handclip.file_names import HISTORY
from handclip.files import opened, write_text
from handclip.interruption import AskedToStop, StopRequest
from handclip.loss.criterion import LossOutput
from handclip.parallel.hardware import peak_gpu_memory_mib, peak_memory_mib
from handclip.parallel.processes import is_first_process
from handclip.runs.run_folder import Storage
from handclip.runs.snapshots import Snapshots
from handclip.training.state import TrainState, describe_epoch

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_NOTES = 0.25
"""To read a loss is to wait for the GPU, and nobody reads faster than this."""


def stop_within_an_epoch(request: StopRequest) -> Callable[[TrainState, LossOutput], None]:
    """Return a hook that ends training after a step where a signal has asked for it.

    The hook raises AskedToStop.
    """

    def stop(state: TrainState, output: LossOutput) -> None:
        if request.signum is not None:
            raise AskedToStop(request.signum)

    return stop


def stop_after_an_epoch(request: StopRequest, snapshots: Snapshots) -> Callable[[TrainState], None]:
    """Return a hook that ends training after an epoch, which is saved, where a signal has asked for it."""

    def stop(state: TrainState) -> None:
        request.raise_if_asked(snapshots.describe())

    return stop


def note_peak_memory(device: torch.device) -> Callable[[TrainState], None]:
    """Return a hook that adds to an epoch's row how much memory was taken, where the system tells."""

    def note(state: TrainState) -> None:
        peaks = {"peak_memory_mib": peak_memory_mib(), "peak_gpu_memory_mib": peak_gpu_memory_mib(device)}
        state.history[-1] |= {name: round(peak) for name, peak in peaks.items() if peak is not None}

    return note


def write_history(storage: Storage) -> Callable[[TrainState], None]:
    """Return a hook that writes `metrics.csv`; it raises TrainingError where that cannot be written."""

    def write(state: TrainState) -> None:
        if not is_first_process():
            return
        with storage.writing():
            write_text(storage.files.folder / HISTORY, csv_table(state.history))

    return write


def log_epoch(state: TrainState) -> None:
    """Log a line on the last epoch, and how long the others will take."""
    logger.info(_line(state))


def complete_log(state: TrainState, log: Path) -> None:
    """Log the line of the last epoch if a process that was killed has saved its state and did not come to say so."""
    if not state.history or state.steps:
        return
    line = _line(state)
    with suppress(OSError), opened(log) as file:
        if line.partition(":")[0].encode() + b":" in file.read():
            return
    logger.info(line)


def log_early_stopping(state: TrainState) -> None:
    """Say why training ends before its last epoch."""
    if state.has_lost_patience:
        logger.info(
            f"No better {state.plan.monitor} in {state.validations_without_gain} validations: training stops early."
        )


def _line(state: TrainState) -> str:
    epochs = state.plan.epochs - state.epochs
    seconds = epochs * (state.training_seconds + state.validation_seconds) / state.epochs
    to_go = f"; {timedelta(seconds=round(seconds))} to go" if epochs else ""
    return describe_epoch(state.history[-1], state.plan.epochs) + to_go


class TensorBoardFile:
    """Numbers of each epoch for TensorBoard; nothing needs them, so a full disk ends the file, and not training.

    Args:
        folder: where the file goes; it is made with the first numbers.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._ended = False

    def add(self, state: TrainState) -> None:
        """Write the numbers of the last epoch; the first failure ends the file, and is logged."""
        if self._ended or not is_first_process():
            return
        # A thread of the writer writes, and would say itself, with a traceback, what `flush` then raises.
        said_by_threads, threading.excepthook = threading.excepthook, lambda what: None
        try:
            self._writer = self._writer or SummaryWriter(self._folder)
            for name, value in state.history[-1].items():
                if name not in ("epoch", "validation_images"):
                    self._writer.add_scalar(name, value, state.epochs)
            self._writer.flush()
        except OSError as error:
            logger.warning(f"TensorBoard's file in {self._folder} ends here: {error.strerror or error}.")
            self._ended = True
        finally:
            threading.excepthook = said_by_threads

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()


@contextmanager
def showing_progress(
    run: str, state: TrainState, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[TrainState, LossOutput], None]]:
    """Show, while the block runs, a bar over all steps of a run, or, without a terminal, lines on long epochs.

    Yields:
        A hook for each step.
    """
    plan, bar = state.plan, progress_bar()
    if not is_first_process():
        yield lambda state, output: None
    elif bar.disable:
        yield _ProgressInLines(clock)
    else:
        task = bar.add_task(run, total=plan.epochs * plan.steps_per_epoch, completed=state.steps_taken, note="")
        with bar:
            yield _ProgressInABar(bar, task, clock)


class _ProgressInABar:
    """With the loss terms of a recent step."""

    def __init__(self, bar: Progress, task: TaskID, clock: Callable[[], float]) -> None:
        self._bar = bar
        self._task = task
        self._clock = clock
        self._next_note = clock()

    def __call__(self, state: TrainState, output: LossOutput) -> None:
        self._bar.update(self._task, advance=1, description=f"epoch {state.epochs + 1}/{state.plan.epochs}")
        if self._clock() >= self._next_note:
            note = " ".join(f"{name} {float(value):.3f}" for name, value in output.terms.items())
            self._bar.update(self._task, note=note)
            self._next_note = self._clock() + _SECONDS_BETWEEN_NOTES


class _ProgressInLines:
    """Lines on the whole run follow each epoch; of its steps, those that this process has done say how fast it is."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._epoch = -1
        self._lines = ProgressLines("")

    def __call__(self, state: TrainState, output: LossOutput) -> None:
        plan = state.plan
        if state.epochs != self._epoch:
            self._epoch = state.epochs
            self._lines = ProgressLines(f"Epoch {state.epochs + 1}/{plan.epochs}, steps", state.steps, self._clock)
        self._lines(state.steps, plan.steps_per_epoch)
