"""Ctrl-C (SIGINT) and SIGTERM: an exception that lets all tidy up, or a request that waits for a good moment."""

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

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal has asked to stop; `signum` says which."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def raise_if_asked(self, advice: str = "") -> None:
        """Stop here if it was asked for.

        Raises:
            Interrupted: with the signal, and `advice` on how to go on.
        """
        if self.signum is not None:
            raise Interrupted(self.signum, advice)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """End the process when SIGINT or SIGTERM comes, with one sentence: for the command line's own imports.

    What is ignored stays so, and nothing changes outside the main thread, as in `interruptible`, nor in another program
    that imports the command line, such as a notebook.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        _end_at_once(signum)

    with _handling(end) if _is_command_line() else nullcontext():
        yield


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` wherever the program is when SIGINT or SIGTERM comes; end it where it only imports as yet.

    A signal that is ignored stays ignored. Outside the main thread, where signals cannot be handled, nothing changes.
    """
    raised: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        if _is_starting(frame):
            _end_at_once(signum)
        raised.append(signum)
        raise Interrupted(signum)

    with _handling(stop), _still_interrupted(raised):
        yield


@contextmanager
def stopping_later(notice: str = "") -> Iterator[StopRequest]:
    """Note the first SIGINT or SIGTERM instead of stopping at once; a second one raises `Interrupted`.

    Args:
        notice: said on standard error when the first one comes.

    As in `interruptible`, what is ignored stays so, and nothing changes outside the main thread.
    """
    request = StopRequest()
    raised: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if request.signum is not None:
            raised.append(signum)
            raise Interrupted(signum)
        request.signum = signum
        # Neither print nor logging: the signal may have come in the middle of either.
        with suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), f"{notice}\n".encode() if notice else b"")

    with _handling(note), _still_interrupted(raised):
        yield request


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
    with suppress(OSError, ValueError, RuntimeError):
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
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
