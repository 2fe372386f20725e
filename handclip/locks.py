"""One process at a time writes to a folder; another is told which one does.

The lock is a file beside the folder, `.<name>.lock`, that the system releases however its holder ends. Where nothing
may be written beside the folder, as beside a volume that is mounted for it, the lock lies in it.
"""

import json
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from handclip.errors import HandCLIPError, InUseError
from handclip.files import is_folder, is_there, require_writable

_PATIENCE = 0.5
"""Seconds to wait for a process that is just letting go."""


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder, or a file, while the block runs; it need not be there yet.

    Raises:
        InUseError: another process holds it; says which, and since when.
        HandCLIPError: nothing can be written there.
    """
    require_writable(folder.parent if is_there(folder) and not is_folder(folder) else folder)
    path = lock_of(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=_PATIENCE)
        lock.acquire()
    except Timeout:
        raise _in_use(folder) from None
    except OSError as error:
        raise HandCLIPError(f"cannot write {path}: {error.strerror or error}") from error
    # Where the file system has no locks, the file itself is one, with the record of its holder in it that it needs.
    is_file_alone = isinstance(lock, SoftFileLock)
    try:
        if not is_file_alone:
            with suppress(OSError):  # a full disk; the lock holds all the same
                path.write_text(json.dumps(_own_facts()), encoding="utf-8")
        yield
    finally:
        if not is_file_alone:
            # Removed while it is held: who waits for it notices, and makes a new one.
            with suppress(OSError):
                path.unlink()
        lock.release()


@contextmanager
def holding_in_turn(folder: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """As `holding`, but where another process holds the folder, tell so once and wait until it lets go.

    Raises:
        HandCLIPError: nothing can be written there.
    """
    told = False
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(holding(folder))
                break
            except InUseError:
                if not told:
                    holder, _ = _holder(lock_of(folder))
                    tell(f"{folder} is in use by {holder}; waiting for it to finish.")
                told = True
        yield


def refuse_if_held(folder: Path) -> None:
    """Say at once what `holding` would say after a long start.

    Raises:
        InUseError: as `holding`.
    """
    if is_held(folder):
        raise _in_use(folder)


def lock_of(folder: Path) -> Path:
    """Return the lock of a folder, or of a file."""
    place = Path(os.path.realpath(folder))  # `Path.resolve` breaks at a link to itself
    inside = place.is_dir() and not os.access(place.parent, os.W_OK)
    return (place if inside else place.parent) / f".{place.name}.lock"


def is_held(folder: Path) -> bool:
    """Whether a process writes to a folder at this moment."""
    path = lock_of(folder)
    try:
        if not path.exists():
            return False
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _in_use(folder: Path) -> InUseError:
    holder, how = _holder(lock_of(folder))
    return InUseError(f"{folder} is being written by {holder}. Wait until it has ended, or end it{how}")


def _own_facts() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().isoformat(" ", "seconds"),
        "command": shlex.join(sys.argv),
    }


def _holder(path: Path) -> tuple[str, str]:
    """Return who holds a lock, and how to end it."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        pid, host = int(facts["pid"]), facts["host"]
        holder = f"process {pid} on {host}, since {facts['since']} ({facts['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process", ""
    return holder, f"{'' if host == socket.gethostname() else f' on {host}'}: kill {pid}"
