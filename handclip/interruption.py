"""Ctrl-C (SIGINT), SIGTERM and SIGHUP: an exception that lets all tidy up, or a request that waits for a good moment.

SIGHUP says that the terminal is gone, as where a connection has broken off. It comes more than once, from the shell and
from the system, and from a session's manager after SIGTERM; so it hurries nobody who has been asked to stop already.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from handclip.errors import Interrupted

HANG_UP: int | None = getattr(signal, "SIGHUP", None)
"""Its number; Windows has none."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([] if HANG_UP is None else [signal.Signals(HANG_UP)]))


class AskedToStop(Interrupted):
    """A first signal, which leaves the time to save what was done."""


class StopRequest:
    """Whether a signal has asked to stop; `signum` says which."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.is_waited_for = False
        """Whether what is under way may never end, so that the signal must not wait for it; see `waiting`."""

    def raise_if_asked(self, advice: str = "") -> None:
        """Stop here if it was asked for.

        Raises:
            Interrupted: with the signal, and `advice` on how to go on.
        """
        if self.signum is not None:
            raise Interrupted(self.signum, advice)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """End the process when one of the signals comes, with one sentence: for the command line's own imports.

    What is ignored stays so, and nothing changes outside the main thread, as in `interruptible`, nor in another program
    that imports the command line, such as a notebook.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        _end_at_once(signum)

    with _handling(end) if _is_command_line() else nullcontext():
        yield


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` wherever the program is when a signal comes; end it where it only imports as yet.

    A signal that is ignored stays ignored. Outside the main thread, where signals cannot be handled, nothing changes.
    """
    raised: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        if _is_starting(frame):
            _end_at_once(signum)
        if _hurries_nobody(signum):
            return
        raised.append(signum)
        raise Interrupted(signum)

    with _handling(stop), _still_interrupted(raised):
        yield


@contextmanager
def stopping_later(notice: str = "") -> Iterator[StopRequest]:
    """Note the first signal instead of stopping at once; a second SIGINT or SIGTERM raises `Interrupted`.

    Within `waiting`, the first one raises `AskedToStop`.

    Args:
        notice: said on standard error when the first one comes.

    As in `interruptible`, what is ignored stays so, and nothing changes outside the main thread.
    """
    request = StopRequest()
    raised: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if _hurries_nobody(signum):
            return
        if request.signum not in (None, HANG_UP):
            raised.append(signum)
            raise Interrupted(signum)
        request.signum = signum
        # Neither print nor logging: the signal may have come in the middle of either.
        with suppress(OSError, ValueError, AttributeError):  # None in place of a stream that is closed
            os.write(sys.stderr.fileno(), f"{notice}\n".encode() if notice else b"")
        if request.is_waited_for:
            request.is_waited_for = False  # wherever in `waiting` it has come, its last line included
            raise AskedToStop(signum)

    before, _nesting.request = _nesting.request, request
    try:
        with _handling(note), _still_interrupted(raised):
            yield request
    finally:
        _nesting.request = before


@contextmanager
def waiting() -> Iterator[None]:
    """Wait, in the block, for what may never come: a first signal then raises, or has raised, `AskedToStop`.

    So it does where it has become another error in the block, see `_still_interrupted`. An error after the block, as of
    saving what was done, is one.
    """
    request = _nesting.request
    if request is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        request.is_waited_for = True
        if request.signum is not None:
            raise AskedToStop(request.signum)
        yield
    except Exception:
        if request.signum is not None:
            raise AskedToStop(request.signum) from None
        raise
    finally:
        request.is_waited_for = False


@contextmanager
def _still_interrupted(raised: Sequence[int]) -> Iterator[None]:
    """Raise `Interrupted` where it has become another error: compiled libraries that call Python do that (pydantic)."""
    try:
        yield
    except Exception:
        if raised:
            raise Interrupted(raised[-1]) from None
        raise


def _is_command_line() -> bool:
    """Whether this process was started as `handclip`, as `python -m handclip`, or by one of the scripts beside it."""
    program = Path(*sys.argv[:1])  # of none where Python is part of another program
    if program.name == "__main__.py":
        return program.parent.name == "handclip"
    return program.stem in ("handclip", "run_eval_clip", "train_stage2_loss_variants")


def _is_starting(frame: FrameType | None) -> bool:
    """Whether the command line is importing what it will call; an import in the midst of its work is none of these."""
    importing = working = False
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module == "importlib._bootstrap":
            importing, working = True, False
        elif module.startswith("handclip.") and module != "handclip.cli":
            working = True
        frame = frame.f_back
    return importing and not working


def _end_at_once(signum: int) -> NoReturn:
    # There is nothing to tidy up yet, and from an import an exception may not come out: numpy's, which PyTorch starts,
    # loses it, or fails of it with an error of its own. What was printed is kept where it can be: the signal may have
    # come while more is printed.
    with suppress(OSError, ValueError, RuntimeError, AttributeError):
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, b"Interrupted. To go on, give the same command again.\n")
    os._exit(Interrupted(signum).exit_code)


@contextmanager
def _handling(handler: "signal._HANDLER") -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    taken = [number for number, old in before.items() if old not in (signal.SIG_IGN, None)]
    _nesting.blocks += 1
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
        _nesting.blocks -= 1
        _nesting.is_stopping &= _nesting.blocks > 0
        # The command line may still hang in its last lines; another program goes on.
        if not _nesting.blocks and _nesting.last_resort is not None and not _is_command_line():
            _nesting.last_resort.cancel()
            _nesting.last_resort = None


class _Nesting:
    blocks = 0
    """How many are under way, one in another."""
    is_stopping = False
    """Whether a signal has come since the outermost began."""
    request: StopRequest | None = None
    """That of the innermost `stopping_later`."""
    last_resort: threading.Timer | None = None
    """What ends the process after a second signal."""


_nesting = _Nesting()


def _hurries_nobody(signum: int) -> bool:
    """Note that a signal has come; return whether it only repeats that the terminal is gone."""
    was_stopping, _nesting.is_stopping = _nesting.is_stopping, True
    if was_stopping and signum != HANG_UP:
        _end_for_certain(signum)
    return was_stopping and signum == HANG_UP


_PATIENCE = 10.0
"""Seconds in which a second signal has ended the program, or whatever it hangs in is left."""


def _end_for_certain(signum: int) -> None:
    """End the process some seconds later, if the exception has not: it may be lost in a destructor, or be waited on."""

    def end() -> None:
        for child in multiprocessing.active_children():
            child.kill()
        _end_at_once(signum)

    if _nesting.last_resort is None:
        _nesting.last_resort = threading.Timer(_PATIENCE, end)
        _nesting.last_resort.daemon = True
        _nesting.last_resort.start()
