"""What a run says of itself while it trains, for people: its log file, and a TensorBoard file.

Neither is needed to go on or to report, so a full disk ends neither training nor, with a traceback, its message: what
is written for good, and comes next, says what is wrong.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch.utils.tensorboard.summary import scalar

from handclip.errors import HandCLIPError
from handclip.files import require_regular

logger = logging.getLogger(__name__)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Do without the line; logging would print a traceback for each."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Copy what is logged to a file, also where no command line has set up logging.

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


class EventFile:
    """Numbers of each epoch for TensorBoard, written at once: its own writers leave that to a thread.

    Args:
        folder: where the file goes; it is made with the first numbers.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._ended = False

    def add(self, numbers: Mapping[str, float], epoch: int) -> None:
        """Write numbers of an epoch; the first failure ends the file, and is logged."""
        if self._ended:
            return
        now = time.time()
        try:
            if self._path is None:
                self._path = self._begin(now)
            # Unbuffered, so that what could not be written is not tried again when the file is closed; and not kept
            # open, as nobody says when the last epoch was.
            with self._path.open("r+b", buffering=0) as file:
                file.seek(0, os.SEEK_END)
                for name, value in numbers.items():
                    _write(file, Event(wall_time=now, step=epoch, summary=scalar(name, value)))  # type: ignore[no-untyped-call]
        except OSError as error:
            logger.warning(f"TensorBoard's file in {self._folder} ends here: {error.strerror or error}.")
            self._ended = True

    def _begin(self, now: float) -> Path:
        self._folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(now):010}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        with (self._folder / name).open("xb", buffering=0) as file:
            _write(file, Event(wall_time=now, file_version="brain.Event:2"))
        return self._folder / name


def _write(file: BinaryIO, event: Event) -> None:
    RecordWriter(file).write(event.SerializeToString())
