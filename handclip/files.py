"""Writing files so that no reader ever sees half of one."""

import errno
import glob
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from handclip.errors import HandCLIPError


def cache_folder() -> Path:
    """Return the folder of what can be made anew, `$XDG_CACHE_HOME/handclip`, else `~/.cache/handclip`.

    Raises:
        HandCLIPError: the user has no home folder, as in some containers, and `XDG_CACHE_HOME` is not set.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "handclip"
    except RuntimeError as error:
        raise HandCLIPError(
            "there is no home folder to keep a cache in; set the environment variable XDG_CACHE_HOME to a folder"
        ) from error


def require_writable(folder: Path) -> None:
    """Check that files can be written to a folder, or that it can be made, before hours are spent on what goes there.

    Raises:
        HandCLIPError: something that is not a folder is in its place, or permission is lacking.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise HandCLIPError(f"cannot write {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK):
        raise HandCLIPError(f"cannot write {folder}: {existing} is read-only")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` on success, remove it on failure.

    What is in the file is on the disk before it has its name, so that not even a power cut leaves half of one.

    Raises:
        HandCLIPError: the folder or file cannot be written.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with in_use(temporary):
            remove_abandoned(path.parent, glob.escape(path.name))
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        raise HandCLIPError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # a parent that is no folder was reported above
            temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """Return a new name beside `path`, for what will take its place when it is whole."""
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")


@contextmanager
def in_use(temporary: Path) -> Iterator[None]:
    """Mark a temporary file, which is made, or folder as one that this process is writing.

    The mark is a lock, which the system takes away from a process that is killed.

    Raises:
        OSError: the file cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # on Windows nothing is marked, and nothing that is abandoned is removed
        yield
        return
    mark = os.open(temporary, os.O_RDONLY if temporary.is_dir() else os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(mark, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(mark)


def remove_abandoned(folder: Path, pattern: str = "*") -> None:
    """Remove what processes that were killed have left in a folder under temporary names.

    Args:
        folder: the folder.
        pattern: of the names that these files or folders were to get.
    """
    try:
        import fcntl
    except ImportError:
        return
    for left in folder.glob(f".{pattern}.????????.part"):
        with suppress(OSError):  # somebody is writing it, or has just finished
            mark = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()
            finally:
                os.close(mark)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; refuses NaN, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_limited(path: Path, limit: int) -> bytes:
    """Return the bytes of a file that may come from anyone: never waits for a pipe, never fills the memory.

    Args:
        path: the file.
        limit: how many bytes it may have.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger; `strerror` says which.
    """
    # Opening a named pipe would wait for someone to write to it; Windows has neither the flag nor such files.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "Is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no file but a pipe, a socket or a device")
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, more than the {limit:,} that are read")
        return file.read(status.st_size)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        HandCLIPError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HandCLIPError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise HandCLIPError(f"{path}: is damaged or is not JSON ({error})") from error
