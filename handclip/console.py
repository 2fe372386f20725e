"""The two streams a person reads: results on standard output, progress and what is logged on standard error.

A progress bar and the lines logged meanwhile must go through one console, or they garble each other.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_WIDTH_OF_FILES = 140
"""Columns where the output goes to a file or a pipe, which wraps nothing."""

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
    """Show a bar while the block runs; yield the function to call with (done, total)."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=None, note="")
        yield lambda done, total: bar.update(task, completed=done, total=total)
