"""Saving a training so that it can go on with the very next step, and going on with it."""

import logging
from dataclasses import dataclass
from typing import Any

from handclip.errors import ConfigError, DamagedFileError, DataError
from handclip.parallel.processes import is_first_process, on_first
from handclip.runs.best_checkpoint import BestCheckpoint
from handclip.runs.provenance import Session
from handclip.runs.run_folder import Storage
from handclip.runs.snapshots import Snapshots
from handclip.training.state import TrainState
from handclip.training.step import Step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumable:
    """A training that can be interrupted after any step."""

    storage: Storage
    snapshots: Snapshots
    step: Step
    """Holds model, criterion and optimizer."""
    best: BestCheckpoint
    session: Session
    """Is told how far the run has come."""
    made_with: dict[str, str]
    """`manifest_sha256` and `precision`, which must not change."""

    def go_on(self, state: TrainState) -> bool:
        """Restore the newest snapshot that is whole; return whether there is one.

        Raises:
            DamagedFileError: none is whole, or a run that has saved a model has lost what it goes on from.
            DataError: the run was started on other images, or on the same ones in other roles.
            ConfigError: it was started in another precision.
        """
        files = self.storage.files
        newest = on_first(self.snapshots.newest)
        if newest is None:
            if files.best.exists():
                raise DamagedFileError(
                    f"{files.states}: holds no state to go on from, although epochs were trained. Put them back, or "
                    f"move {files.folder} and {files.best} away to start anew"
                )
            return False
        self.snapshots.current = self.storage.counted_on["snapshot"] = newest
        kept = self.snapshots.load(newest)
        self._require_made_alike(kept)
        state.restore(kept["state"])
        device = self.step.computation.device
        state.sums = {name: total.to(device) for name, total in state.sums.items()}
        self.step.objective.load_state_dict(kept["objective"])
        self.step.optimizer.load_state_dict(kept["optimizer"])
        self.best.restore(kept["best"], state, str(newest))
        logger.info(f"Going on from {newest}.")
        return True

    def save(self, state: TrainState) -> None:
        """Save a snapshot, in the first process: a hook.

        Raises:
            TrainingError: it cannot be written.
        """
        if not is_first_process():
            return
        content: dict[str, Any] = {
            **self.made_with,
            "state": state.to_dict(),
            "best": self.best.to_dict(),
            "objective": self.step.objective.state_dict(),
            "optimizer": self.step.optimizer.state_dict(),
        }
        with self.storage.writing():
            self.snapshots.save(content, state.epochs, state.steps)
        assert self.snapshots.current is not None
        self.storage.counted_on["snapshot"] = self.snapshots.current
        self.session.reaches(epochs=state.epochs, steps=state.steps_taken)

    def stop_here(self, state: TrainState) -> str:
        """Save the steps of the epoch under way; return what to tell of it.

        Raises:
            TrainingError: a weight is not finite, or the snapshot cannot be written.
        """
        # A run that went on from here has it already; a second one would push out the one before it.
        if state.steps and not self.snapshots.is_at(state.epochs, state.steps):
            self.step.finish()
            self.save(state)
        if state.steps == state.plan.steps_per_epoch:
            return f"All steps of epoch {state.epochs + 1} are saved. Its validation is done when training goes on."
        return self.snapshots.describe()

    def _require_made_alike(self, kept: dict[str, Any]) -> None:
        folder, now = self.storage.files.folder, self.made_with
        if kept["manifest_sha256"] != now["manifest_sha256"]:
            raise DataError(
                f"{folder}: was started with manifest {kept['manifest_sha256'][:12]}, and cannot go on with "
                f"{now['manifest_sha256'][:12]}: the data have changed"
            )
        if kept["precision"] != now["precision"]:
            raise ConfigError(
                f"{folder}: was started in {kept['precision']}, but this machine chooses {now['precision']}. Go on "
                f"where it was started, or start anew with precision: {now['precision']}"
            )
