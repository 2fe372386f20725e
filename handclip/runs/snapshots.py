"""The snapshots that an interrupted run goes on from: the newest two, each under a name that holds its hash.

`epoch_0003-<hash>.ckpt` was saved when three epochs were done, `epoch_0003_step_00012-<hash>.ckpt` twelve steps later.
One rename publishes content and hash together. Names say which state is the newest, as clocks may be set back.

A snapshot holds the model, the criterion (classifier, ArcFace weights, centres), the optimizer, the `TrainState` and
what is known of the best checkpoint. Learning rates, batches, augmentation and every other random number follow from
the number of the step. There is no gradient scaler: no precision that HandCLIP trains in needs one.
"""

import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from handclip.checksums import sha256_of
from handclip.errors import DamagedFileError, HandCLIPError
from handclip.files import remove_abandoned, replacing
from handclip.models.torch_files import why_refused, write_torch

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
