"""The two streams a person reads: results on standard output, progress and what is logged on standard error.

A progress bar and the lines logged meanwhile must go through one console, or they garble each other.

No work of hours may end because nobody can read what it says of itself: what a stream does not take, on a disk that is
full, in a pipe whose reader has ended or at a terminal that is gone, is dropped. Of results that is told at the end.
"""

import io
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import IO, TextIO, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

_WIDTH_OF_FILES = 140
"""Columns where the output goes to a file or a pipe, which wraps nothing."""

_SECONDS_BETWEEN_TENTHS, _SECONDS_BETWEEN_LINES = 10.0, 30.0
_LINES_AT_LEAST = 20
"""Of work that takes long, so many lines tell of the time so far."""


class _Stream:
    """One of this process's streams, whichever object is in its place at the moment: drops what cannot be written."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.fault: OSError | None = None
        """Why the first that was dropped could not be written."""

    def write(self, text: str) -> None:
        """Write text; characters that the stream's encoding lacks are written as `\\x..` and the like."""
        with self._dropping() as stream:
            try:
                stream.write(text)
            except UnicodeEncodeError:
                stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))

    def flush(self) -> None:
        """See to it that what was written has left this process, or is dropped."""
        with self._dropping() as stream:
            stream.flush()

    def isatty(self) -> bool:
        """Whether a person watches."""
        return self._current().isatty()

    def fileno(self) -> int:
        """Return its number.

        Raises:
            OSError: there is none.
        """
        return self._current().fileno()

    @property
    def encoding(self) -> str:
        """How it encodes characters."""
        return getattr(self._current(), "encoding", None) or "utf-8"

    def _current(self) -> TextIO:
        stream = getattr(sys, self._name)
        # While a bar shows, what others print goes through it, and what it prints itself does not. None is a stream
        # that is closed, as under cron.
        return cast(TextIO, getattr(stream, "rich_proxied_file", stream) or io.StringIO())

    @contextmanager
    def _dropping(self) -> Iterator[TextIO]:
        stream = self._current()
        try:
            yield stream
        except OSError as error:
            self.fault = self.fault or error
            _empty(stream)
        except ValueError:  # somebody has closed it
            pass


def _empty(stream: TextIO) -> None:
    """Drop what a stream still holds: Python tries to write it whenever it starts a process, and as it ends."""
    with suppress(OSError, ValueError):
        number = stream.fileno()
        kept, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, number)
            stream.flush()
        finally:
            os.dup2(kept, number)
            os.close(kept)
            os.close(nowhere)


_out, _err = _Stream("stdout"), _Stream("stderr")

stdout = Console(file=cast(IO[str], _out), width=None if _out.isatty() or "COLUMNS" in os.environ else _WIDTH_OF_FILES)
stderr = Console(file=cast(IO[str], _err), soft_wrap=True)


def show(text: RenderableType) -> None:
    """Print text on standard output, exactly as it is: not wrapped, without markup."""
    stdout.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say(sentence: str) -> None:
    """Print a sentence on standard error, exactly as it is, where that can be written."""
    print(sentence, file=stderr.file, flush=True)


def begin_printing() -> None:
    """Let the standard streams that this process was started without lead nowhere; call it before files are opened.

    The first file that is opened would have the number of a stream that is closed, and what libraries and other
    processes print would go into it.
    """
    _out.fault = _err.fault = None
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # gets the least number that is free
            os.set_inheritable(nowhere, True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def end_printing() -> None:
    """Write what the streams still hold, or drop it: Python would complain as it ends, and change the exit code."""
    _out.flush()
    _err.flush()


def unshown() -> OSError | None:
    """Return why not all that was to go to standard output has got there, None where it has."""
    return _out.fault


def is_of_printing(error: OSError) -> bool:
    """Whether an error is that of a screen which the command line's libraries print to: help, or what is misspelt."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals.get("__name__", "").partition(".")[0] not in ("rich", "typer"):
        return False
    _out.fault = _out.fault or error
    return True


class ConsoleHandler(logging.Handler):
    """Prints what is logged, plainly, above a progress bar that may be showing."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        stderr.print(self.format(record), markup=False, highlight=False)


@contextmanager
def telling() -> Iterator[None]:
    """Print what is logged meanwhile where the program has set up no logging of its own, as in a notebook.

    Work of hours would be silent there. Any handler of the logger `handclip`, or of the root logger, takes its place.
    """
    logger = logging.getLogger("handclip")
    if logger.hasHandlers():
        yield
        return
    handler, level = ConsoleHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(level or logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


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
