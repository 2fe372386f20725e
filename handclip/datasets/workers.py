"""The processes that read batches: as many as shared memory has room for, and none is waited for in vain."""

import logging
import multiprocessing.queues
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from torch._C import _remove_worker_pids
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from handclip.cores import free_shared_memory, processes_sharing_cores
from handclip.errors import HandCLIPError
from handclip.interruption import HANG_UP
from handclip.plurals import counted

logger = logging.getLogger(__name__)

MORE_SHARED_MEMORY = "a container gets more by docker's --shm-size=1g"

_LABELS_AND_CHOICES = 4 * 4096
"""Bytes of a batch beside its images, in whole pages."""

_LOCKS = 2**18
"""Bytes for the locks by which processes are started: each takes a page."""


class Workers(_MultiProcessingDataLoaderIter):
    """Ends its processes, whoever asks for it, in a limited time: the end of the loader, or that of Python.

    One may hang in a drive, or be frozen; and it leaves SIGTERM to this process.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._owner = os.getpid()
        try:
            super().__init__(loader)
        finally:  # a signal may have come when only some had started
            for worker in getattr(self, "_workers", ()):
                worker._popen.terminate = worker._popen.kill

    def _shutdown_workers(self) -> None:
        # Workers that were forked later have copies of this, which are collected there at any time.
        if os.getpid() != self._owner:
            return
        # PyTorch would wait some seconds for each in turn, and without a limit for the thread that pins memory, which
        # waits for them.
        if getattr(self, "_worker_pids_set", False):
            self._worker_pids_set = False
            _remove_worker_pids(id(self))  # their end is no error any more
        killing = threading.Timer(_PATIENCE, self._kill_workers)
        killing.daemon = True
        if running := not (getattr(self, "_shutdown", True) or sys.is_finalizing()):
            killing.start()
        try:
            super()._shutdown_workers()
        except BaseException:
            self._kill_workers()
            raise
        finally:
            if running:
                killing.cancel()

    def _kill_workers(self) -> None:
        for worker in self._workers:
            worker.kill()


_PATIENCE = 5.0
"""Seconds in which all processes have to end when they are asked to."""


def workers_with_room(wanted: int, batch_bytes: int) -> tuple[int, int]:
    """Return how many processes can read at once, and how many batches each may have ready: two, or one.

    Args:
        wanted: processes.
        batch_bytes: of the images of the largest batch.
    """
    free = free_shared_memory()
    if free is None:
        return wanted, 2
    # Two more are in use: that of the step before, until the one that has just come takes its place.
    room = (free // processes_sharing_cores() - _LOCKS) // (batch_bytes + _LABELS_AND_CHOICES) - 2
    return (wanted, 2) if room >= 2 * wanted else (max(0, min(wanted, room)), 1)


@cache  # each validation has a loader of its own
def say_fewer(wanted: int, workers: int) -> None:
    """Log, once, that shared memory has no room for the processes that were asked for."""
    free = (free_shared_memory() or 0) / 2**20
    instead = counted(workers, "process reads", "processes read") if workers else "the main process reads"
    logger.warning(
        f"Shared memory (/dev/shm) has {free:,.0f} MiB free, too little for the batches of "
        f"{counted(wanted, 'worker process', 'worker processes')}: {instead} the images, which may be slower; "
        f"{MORE_SHARED_MEMORY}."
    )


def begin(worker: int) -> None:
    """Let the process that a worker reads for decide when to stop, and tell it of a batch that cannot be handed over.

    A terminal sends Ctrl-C to every process of a command, one that is closed SIGHUP, and a cluster SIGTERM: a worker
    that ended of it would take the step under way with it. Only a second SIGTERM ends it; its parent kills one that
    hangs.
    """

    def end_next_time(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if HANG_UP is not None:
        signal.signal(HANG_UP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_next_time)
    # Python's own answer is to print the error and to drop the batch, for which its parent would wait for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = _tell_instead  # type: ignore[attr-defined]


def _tell_instead(results: "multiprocessing.queues.Queue[Any]", error: Exception, lost: tuple[Any, ...]) -> None:
    told = HandCLIPError(
        f"a process that reads images could not hand over a batch ({error}). With a lower num_workers or batch size "
        f"less is needed; {MORE_SHARED_MEMORY}"
    )
    wrapped = ExceptionWrapper((type(told), told, None), where="in a worker process")  # type: ignore[no-untyped-call]
    results.put((lost[0], wrapped))
    # PyTorch leaves the file for which there was no room; only this thread of this process makes any.
    for left in Path("/dev/shm").glob(f"torch_{os.getpid()}_*"):
        left.unlink(missing_ok=True)


def step_back(worker: int) -> None:
    """Begin, and use the time that the training step leaves.

    The threads of a step share its work evenly; one that has to wait for its core keeps all of them waiting.
    """
    begin(worker)
    if hasattr(os, "nice"):
        os.nice(_NICENESS)


_NICENESS = 10


@contextmanager
def plain_worker_errors() -> Iterator[None]:
    """Give an error of a worker process the message it had there; DataLoader puts a whole traceback into it.

    Raises:
        HandCLIPError: as raised in the worker; or the system has ended the worker.
    """
    try:
        yield
    except Exception as error:
        if how := _how_a_worker_ended(error):
            raise HandCLIPError(
                f"a process that reads images was ended from outside ({how}), for want of memory, perhaps; with a "
                "lower num_workers less is needed"
            ) from error
        if not isinstance(error, HandCLIPError):
            raise
        kind = f"{type(error).__module__}.{type(error).__qualname__}: "
        _, found, message = str(error).rpartition(kind)
        if not found:
            raise
        raise type(error)(message.strip()) from None


def _how_a_worker_ended(error: BaseException) -> str:
    # Ended in the middle of a batch that it was handing over, a worker breaks the connection.
    if isinstance(error, EOFError | ConnectionError):
        return str(error) or type(error).__name__
    # At any other moment PyTorch raises in the midst of whatever this process does. What that was may fail of it with
    # an error of its own, as the writing of a file does.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RuntimeError) and str(cause).startswith("DataLoader worker"):
            return str(cause).strip()
        cause = cause.__cause__ or cause.__context__
    return ""
