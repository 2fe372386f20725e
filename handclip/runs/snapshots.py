"""Saving a training so that it can go on with the very next step, and going on with it: `Resumable`.

Kept are the newest two snapshots, each under a name that holds its hash.

`epoch_0003-<hash>.ckpt` was saved when three epochs were done, `epoch_0003_step_00012-<hash>.ckpt` twelve steps later.
One rename publishes content and hash together. Names say which state is the newest, as clocks may be set back.

A snapshot holds the model, the criterion (classifier, ArcFace weights, centres), the optimizer, the `TrainState` and
what is known of the best checkpoint. Learning rates, batches, augmentation and every other random number follow from
the number of the step. There is no gradient scaler: no precision that HandCLIP trains in needs one.
"""

import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from handclip.checksums import sha256_of
from handclip.errors import ConfigError, DamagedFileError, DataError, HandCLIPError
from handclip.files import remove_abandoned, replacing
from handclip.models.torch_files import why_refused, write_torch
from handclip.parallel.processes import is_first_process, on_first
from handclip.runs.best_checkpoint import BestCheckpoint
from handclip.runs.provenance import Session
from handclip.runs.run_folder import Storage
from handclip.training.state import TrainState
from handclip.training.step import Step

logger = logging.getLogger(__name__)

_NAME = re.compile(r"epoch_(\d+)(?:_step_(\d+))?-([0-9a-f]{16})\.ckpt")


class Snapshots:
    """The folder of a run's snapshots."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.current: Path | None = None
        """The one that this process has gone on from or has saved last, which is whole."""

    def paths(self) -> list[Path]:
        """Return those there are, newest first, whole or not."""
        return sorted(filter(_is_named, self.folder.glob("*.ckpt")), key=_position, reverse=True)

    def newest(self) -> Path | None:
        """Return the state to go on from, None where none was saved; a damaged one is named in a warning.

        Raises:
            DamagedFileError: there are states, and none is whole.
        """
        self.current, damaged = self.find()
        for other in damaged:
            assert self.current is not None
            logger.warning(f"{other}: is damaged. Training goes on from {self.current.name}, the one before it.")
        return self.current

    def find(self) -> tuple[Path | None, list[Path]]:
        """Return the newest state that is whole, None where none was saved, and those after it, which are damaged.

        Raises:
            DamagedFileError: there are states, and none is whole.
        """
        damaged: list[Path] = []
        for path in self.paths():
            if _is_whole(path):
                return path, damaged
            damaged.append(path)
        if damaged:
            names = " and ".join(str(path) for path in damaged)
            are = "are" if len(damaged) > 1 else "is"
            raise DamagedFileError(
                f"{names} {are} damaged, and there is no other state to go on from. Move {self.folder.parent} and the "
                "run's checkpoints away to start anew"
            )
        return None, []

    def epochs(self) -> int:
        """Return how many whole epochs the newest state has behind it, whether it is whole itself or not."""
        return _position(paths[0])[0] if (paths := self.paths()) else 0

    def is_at(self, epochs: int, steps: int) -> bool:
        """Whether this process has gone on from the state of this position, or has saved it last."""
        return self.current is not None and self.current.name.startswith(f"{_stem(epochs, steps)}-")

    def describe(self) -> str:
        """Return a sentence on what an interrupted run has saved."""
        paths = self.paths()
        return f"Everything up to {_in_words(paths[0])} is saved." if paths else "No step of this run is saved yet."

    def save(self, content: dict[str, Any], epochs: int, steps: int) -> None:
        """Write a snapshot, and remove all but it and the one before.

        Args:
            content: plain values and tensors.
            epochs: whole epochs that are done.
            steps: those done of the next one.

        Raises:
            HandCLIPError: it cannot be written; those before it are untouched then.
        """
        stem, sha256 = _stem(epochs, steps), ""

        def name() -> str:
            return f"{stem}-{sha256[:16]}.ckpt"

        with replacing(self.folder / f"{stem}.ckpt", name) as temporary, temporary.open("wb") as file:
            sha256 = write_torch(content, file)
        before, self.current = self.current, self.folder / name()
        for other in self.paths():
            if other not in (before, self.current):
                with suppress(OSError):  # what cannot be removed stays
                    other.unlink(missing_ok=True)
        # The next one has another name: it would not take away what a process that was killed has left of this one.
        remove_abandoned(self.folder)

    def load(self, path: Path) -> dict[str, Any]:
        """Return the content of a snapshot; nothing in it is executed.

        Raises:
            DamagedFileError: it does not have the hash that its name holds, or would run code.
        """
        refused = f"{path}: is not a state that training may go on from"
        if not _is_whole(path):
            raise DamagedFileError(refused)
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle's and zip's own errors have no common base
            raise DamagedFileError(f"{refused} ({why_refused(error)})") from error
        return content


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

    def go_on(self, state: TrainState) -> None:
        """Restore the newest snapshot that is whole, if there is one.

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
                    f"{files.snapshots}: holds no state to go on from, although epochs were trained. Put them back, or "
                    f"move {files.folder} and {files.best} away to start anew"
                )
            return
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
            later = " Its validation is done when training goes on." if state.validation_is_due else ""
            return f"All steps of epoch {state.epochs + 1} are saved.{later}"
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


def _stem(epochs: int, steps: int) -> str:
    return f"epoch_{epochs:04}_step_{steps:05}" if steps else f"epoch_{epochs:04}"


def _is_named(path: Path) -> bool:
    return _NAME.fullmatch(path.name) is not None


def _in_words(path: Path) -> str:
    epochs, steps = _position(path)
    return f"epoch {epochs + 1}, step {steps}" if steps else f"epoch {epochs}"


def _position(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _is_whole(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    try:
        return match is not None and sha256_of(path).startswith(match[3])
    except (HandCLIPError, OSError):
        return False
