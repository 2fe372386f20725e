"""Lightning's loop over epochs and batches, set up so that `RunKeeper` decides when it ends and what is kept."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from handclip.datasets.torch_dataset import ImageLoader
from handclip.datasets.workers import plain_worker_errors
from handclip.interruption import StopRequest, interruptible, stopping_later
from handclip.parallel.hardware import computing_in
from handclip.parallel.lightning_environment import JoinedProcesses
from handclip.parallel.processes import current, is_first_process
from handclip.runs.keeper import RunKeeper
from handclip.runs.module import TrainingModule
from handclip.runs.progress import StartRecorder, TrainingProgress
from handclip.training.compilation import naming_compile

logger = logging.getLogger(__name__)


def fit(
    module: TrainingModule, loader: ImageLoader, keeper: RunKeeper, state: Path | None, device: torch.device
) -> None:
    """Train until the keeper says that it is enough.

    Args:
        module: what is trained, with its optimizer.
        loader: yields the batches of an epoch.
        keeper: validates, records and saves.
        state: what an interrupted run goes on from.
        device: of this process.

    Raises:
        HandCLIPError: the loss diverges, or data or files fail.
        Interrupted: a signal has asked to stop.
    """
    run, epochs, precision = keeper.files.run, keeper.config.epochs, keeper.precision
    progress = [TrainingProgress(run, epochs, len(loader))] if is_first_process() else []
    with _quiet_lightning():
        trainer = Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            **_lightning_devices(device),
            precision="bf16-mixed" if precision == "bfloat16" else "32-true",
            # RunKeeper ends it: Lightning would not even start where the last epoch lacks but its validation.
            max_epochs=-1,
            logger=False,
            plugins=[keeper.states],
            callbacks=[*progress, StartRecorder(keeper.session), keeper],
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
        )
        # Lightning would answer SIGTERM with an exchange between processes, and SLURM's warning with a job of its own.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        if state is not None:
            logger.info(f"Going on from {state}.")
        with _stop_request() as keeper.stop_request, plain_worker_errors(), computing_in(precision), naming_compile():
            try:
                trainer.fit(module, loader, ckpt_path=state, weights_only=True)
            except RuntimeError:
                # A signal to all processes of a command may end a worker that has only just started.
                keeper.stop_request.raise_if_asked()
                raise
    # It may have come after the last step that looks for it.
    keeper.stop_request.raise_if_asked(keeper.states.describe())


@contextmanager
def _stop_request() -> Iterator[StopRequest]:
    """Let a signal wait for the end of the step; where processes share it, each would find another end."""
    if current().size > 1:
        with interruptible():
            yield StopRequest()
    else:
        with stopping_later("Stopping after what is under way. A second signal stops at once.") as request:
            yield request


def _lightning_devices(device: torch.device) -> dict[str, Any]:
    """Return the devices of this machine, and how those of all machines go together."""
    if (processes := current()).size == 1:
        return {"devices": [device.index or 0] if device.type == "cuda" else 1}
    return {
        "devices": list(range(processes.local_size)) if device.type == "cuda" else processes.local_size,
        "num_nodes": processes.nodes,
        # Buffers need no exchange: the statistics of synchronised batch norms are the same everywhere.
        "strategy": DDPStrategy(cluster_environment=JoinedProcesses(), broadcast_buffers=False),
    }


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence what Lightning says of its own; its advice does not apply to loaders and logs made like these."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [lightning.level for lightning in loggers]
    for lightning in loggers:
        lightning.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for lightning, level in zip(loggers, levels, strict=True):
            lightning.setLevel(level)
