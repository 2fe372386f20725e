"""The best checkpoint of a run: taken after each epoch that is the best so far, and found where a run goes on."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from handclip.errors import CheckpointError, DamagedFileError
from handclip.models.checkpoint import Checkpoint
from handclip.parallel.processes import is_first_process, on_first
from handclip.runs.run_folder import RunFolder, Storage
from handclip.training.state import TrainState, validation_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Found:
    """What a checkpoint of another epoch, in the place of the best one, is known by."""

    epoch: int
    value: float
    sha256: str


@dataclass
class BestCheckpoint:
    """Keeps the model of the best epoch in `saved_models/<run>.pth`."""

    storage: Storage
    manifest_sha256: str
    checkpoint_of: Callable[[int, dict[str, float]], Checkpoint]
    """Returns the checkpoint of the model as it is: of which epoch, and with which metrics."""
    sha256: str = ""
    """Of its content."""
    was_repeated: bool = False
    """Whether the best epoch was trained again, from the state before it, and was not as good then."""
    _to_write: Checkpoint | None = None
    _in_its_place: _Found | None = None
    """The model of a later epoch that has taken the place of the best one, until that epoch is trained again."""

    @property
    def files(self) -> RunFolder:
        """The files of the run."""
        return self.storage.files

    def to_dict(self) -> dict[str, Any]:
        """Return what `restore` takes."""
        return {"sha256": self.sha256, "was_repeated": self.was_repeated}

    def choose(self, state: TrainState) -> None:
        """Take the model where its epoch, which was just closed, is the best: its hash goes into the snapshot."""
        if state.is_best:
            self.was_repeated, self._in_its_place = False, None
            if is_first_process():
                self._take(state)
        elif (found := self._in_its_place) and found.epoch <= state.epochs and validation_of(state.history[-1]):
            self._in_its_place = None
            self._adopt(found, state)

    def write(self, state: TrainState) -> None:
        """Write what was chosen, after the snapshot: that holds the model, too, so it can be written again."""
        if self._to_write is not None:
            with self.storage.writing():
                self._to_write.save(self.files.best, self.sha256)
            self.storage.counted_on["best"] = self.files.best
        self._to_write = None

    def _take(self, state: TrainState) -> None:
        self._to_write = self.checkpoint_of(state.epochs, validation_of(state.history[-1]))
        self.sha256 = self._to_write.sha256()

    def load(self, state: TrainState) -> Checkpoint:
        """Return it, after checking that it is the one of the best epoch.

        Raises:
            HandCLIPError: it is gone, damaged, or of another epoch.
        """
        best = Checkpoint.load(self.files.best)
        if best.sha256() != self.sha256:
            raise DamagedFileError(
                f"{self.files.best}: is not the model that epoch {state.best_epoch} of this run has left there. The "
                f"model of the last epoch is in {self.files.last}. Move them and {self.files.folder} away to train anew"
            )
        return best

    def restore(self, kept: Mapping[str, Any], state: TrainState, snapshot: str) -> None:
        """Go on from what `to_dict` has returned: check that the file is there, or write it if its model is at hand.

        Where training goes on from an older snapshot than the last one, the model of an epoch that is trained again may
        have taken its place.

        Args:
            kept: what `to_dict` has returned.
            state: restored already, as the model is.
            snapshot: names what training goes on from in errors.

        Raises:
            DamagedFileError: the best checkpoint is gone or damaged, and the model is another by now.
        """
        self.sha256, self.was_repeated = kept["sha256"], kept["was_repeated"]
        if state.best_epoch:
            self._in_its_place = on_first(lambda: self._find(state, snapshot))
            self.storage.counted_on["best"] = self.files.best

    def _find(self, state: TrainState, snapshot: str) -> _Found | None:
        """Return what is in the place of the best checkpoint, None where it is the best one."""
        try:
            found = Checkpoint.load(self.files.best)
            found_sha256 = found.sha256()
        except CheckpointError:
            found, found_sha256 = None, ""
        if found is not None and (found.epoch, found_sha256) == (state.best_epoch, self.sha256):
            return None
        if state.is_best and not state.steps:
            # Its hash is not always what it was: the config of a run that goes on may name other places.
            self._take(state)
            self.write(state)
            return None
        of_this_run = (self.files.run, self.manifest_sha256)
        monitor = state.plan.monitor
        if (
            found is None
            or found.epoch <= state.epochs
            or (found.run, found.manifest_sha256) != of_this_run
            or monitor not in found.metrics
        ):
            raise DamagedFileError(
                f"{self.files.best}: the model of epoch {state.best_epoch}, the best of this run so far, is gone or "
                f"damaged. {snapshot} is whole, but holds a later model. Put the file back, or move "
                f"{self.files.folder} and what there is of it away to train anew"
            )
        return _Found(found.epoch, found.metrics[monitor], found_sha256)

    def _adopt(self, found: _Found, state: TrainState) -> None:
        """Keep the model that has taken the place of the best one: there is no better one any more."""
        state.best_epoch, state.best_value, state.validations_without_gain = found.epoch, found.value, 0
        self.sha256, self.was_repeated = found.sha256, True
        logger.warning(
            f"Epoch {found.epoch} was trained a second time, and its model is not as good as that of the first time "
            f"({state.plan.monitor} {found.value:.4f}), which is in {self.files.best} and is kept as the best."
        )
