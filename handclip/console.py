"""The two streams a person reads: results on standard output, progress and what is logged on standard error.

A progress bar and the lines logged meanwhile must go through one console, or they garble each other.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

_WIDTH_OF_FILES = 140
"""Columns where the output goes to a file or a pipe, which wraps nothing."""

_SECONDS_BETWEEN_TENTHS, _SECONDS_BETWEEN_LINES = 10.0, 30.0
_LINES_AT_LEAST = 20
"""Of work that takes long, so many lines tell of the time so far."""

stdout = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH_OF_FILES)
stderr = Console(stderr=True, soft_wrap=True)


class ConsoleHandler(logging.Handler):
    """Prints what is logged, plainly, above a progress bar that may be showing."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        stderr.print(self.format(record), markup=False, highlight=False)


def progress_bar() -> Progress:
    """Return a bar with elapsed time and time to go, which shows only at a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("to go"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )


@contextmanager
def progress_over(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far the block has come, and the time to go; yield the function to call with (done, total).

    At a terminal it is a bar; elsewhere, in a log say, it is a line now and then.
    """
    if not stderr.is_terminal:
        yield ProgressLines(description)
        return
    with progress_bar() as bar:
        task = bar.add_task(description, total=None, note="")
        yield lambda done, total: bar.update(task, completed=done, total=total)


class ProgressLines:
    """Progress in lines that are logged: one for each tenth of the work, and one every 30 seconds, less often later.

    They are 10 seconds apart at least. Work of a few seconds has none, nor has the end of any: what comes next is line
    enough.

    Args:
        description: what each line begins with.
        first: how much was done before, as by the process that this one goes on from.
        clock: seconds.
    """

    def __init__(self, description: str, first: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._description = description
        self._first = first
        self._clock = clock
        self._start = self._said_at = clock()
        self._said = first

    def __call__(self, done: int, total: int) -> None:
        """Log a line if it is time for one."""
        if not self._first < done < total:
            return
        now = self._clock()
        seconds = now - self._start
        if 10 * done // total > 10 * self._said // total:
            least = _SECONDS_BETWEEN_TENTHS
        else:
            least = max(_SECONDS_BETWEEN_LINES, seconds / _LINES_AT_LEAST)
        if now - self._said_at < least:
            return
        self._said_at, self._said = now, done
        to_go = timedelta(seconds=round(seconds / (done - self._first) * (total - done)))
        logger.info(f"{self._description}: {done:,} of {total:,} ({100 * done // total}%); {to_go} to go")
