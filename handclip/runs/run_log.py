"""What a run says of itself while it trains, for people: its log file, and a TensorBoard file.

Neither is needed to go on or to report, so a full disk ends neither training nor, with a traceback, its message: what
is written for good, and comes next, says what is wrong.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from handclip.errors import HandCLIPError
from handclip.files import require_regular
from handclip.parallel.processes import is_first_process
from handclip.training.state import TrainState

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


class TensorBoardFile:
    """Numbers of each epoch for TensorBoard.

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
