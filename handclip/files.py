"""Writing files so that no reader ever sees half of one."""

import errno
import glob
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from handclip.errors import DamagedFileError, HandCLIPError
from handclip.interruption import stopping_later

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What the system says of a path that leads nowhere, as of a link to nothing or to itself."""


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


def at_home(path: str) -> str:
    """Return a path with home folders in place of a leading `~` or `~user`, as shells do where they see one.

    They do not see it in `--out=~/x`, in `--set data_root=~/x`, or in a file.

    Raises:
        ValueError: there is no such home folder.
    """
    found = os.path.expanduser(path)  # noqa: PTH111 (a Path takes ./~x, which shells leave alone, for ~x)
    if found.startswith("~"):
        home = path.partition("/")[0]
        raise ValueError(f"{path}: there is no home folder {home}. Of what is really called so, give the full path")
    return found


def as_text(name: str | Path) -> str:
    """Return a name as text that can be written.

    On Linux that of a file need not be UTF-8, and Python keeps such bytes as characters that cannot be encoded.
    """
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def is_there(path: Path) -> bool:
    """Whether there is anything at a path that a person has named.

    Where nobody can tell, below a folder that may not be entered or of a name that no file can have, `Path.exists`
    breaks or says False, depending on the version of Python.

    Raises:
        HandCLIPError: nobody can tell; says why.
    """
    return _status(path) is not None


def is_folder(path: Path) -> bool:
    """Whether there is a folder at a path that a person has named; raises as `is_there`."""
    return (status := _status(path)) is not None and stat.S_ISDIR(status.st_mode)


def is_file(path: Path) -> bool:
    """Whether there is a regular file at a path that a person has named; raises as `is_there`."""
    return (status := _status(path)) is not None and stat.S_ISREG(status.st_mode)


def nearest_there(path: Path) -> Path:
    """Return a path, or the nearest above it that is there, where it is not; raises as `is_there`."""
    return next(one for one in (path, *path.absolute().parents) if is_there(one))


def folders_in(folder: Path) -> list[Path]:
    """Return the folders that a folder holds, by name, but for hidden ones, as what is just being written is.

    What a link leads to, where nobody can tell, counts as a folder: it may not be read.

    Raises:
        HandCLIPError: it may not be read.
    """

    def may_be_folder(one: os.DirEntry[str]) -> bool:
        try:
            return not one.name.startswith(".") and one.is_dir()
        except OSError as error:
            return error.errno not in _NOT_THERE

    return _listed(folder, may_be_folder)


def found_in(folder: Path, pattern: str) -> list[Path]:
    """Return what has a name of a pattern in a folder, in order; `Path.glob` takes one that may not be read for empty.

    Raises:
        HandCLIPError: it may not be read.
    """
    return _listed(folder, lambda one: fnmatchcase(one.name, pattern))


def _listed(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
    with saying_why(f"{folder}: cannot be read"), os.scandir(folder) as entries:
        return sorted(folder / one.name for one in entries if wanted(one))


def require_enterable(folder: Path) -> None:
    """Check that what lies in a folder can be reached, so that an error names the folder and no file in it.

    Raises:
        HandCLIPError: it may not be entered.
    """
    with saying_why(f"{folder}: cannot be read"):
        os.stat(os.path.join(folder, os.curdir))  # noqa: PTH116, PTH118 (a Path drops the dot)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except ValueError:  # a name with NUL in it
        return None
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise HandCLIPError(f"{path}: cannot be read: {error.strerror or error}") from error


def require_writable(folder: Path) -> None:
    """Check that files can be written to a folder, or that it can be made, before hours are spent on what goes there.

    Raises:
        HandCLIPError: something that is not a folder is in its place, permission is lacking, or no folder can have
            such a name.
    """
    try:
        existing = nearest_there(folder)
    except HandCLIPError as error:
        raise HandCLIPError(f"cannot write {folder}: {error}") from error
    if not existing.is_dir():
        raise HandCLIPError(f"cannot write {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK):
        raise HandCLIPError(f"cannot write {folder}: {existing} is read-only")


def require_replaceable(path: Path) -> None:
    """Check that a file can take the place of what has its name.

    Raises:
        HandCLIPError: that is a folder.
    """
    if path.is_dir() and not path.is_symlink():
        raise HandCLIPError(f"cannot write {path}: there is a folder of that name. Move it away")


@contextmanager
def saying_why(sentence: str, kind: type[HandCLIPError] = HandCLIPError) -> Iterator[None]:
    """Turn what the system refuses in the block into an error for people: a sentence, and the reason."""
    try:
        yield
    except OSError as error:
        raise kind(f"{sentence}: {error.strerror or error}") from error


@contextmanager
def making(path: Path, *, folder: bool = False, part_of: Path | None = None) -> Iterator[Path]:
    """Yield a new file, or folder, under a temporary name beside `path`, which removes itself if it is still there.

    What killed processes have left there is removed first.

    Args:
        path: the file or folder.
        folder: which of them it is.
        part_of: what is named in errors; default `path`.

    Raises:
        HandCLIPError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        with saying_why(f"cannot write {part_of or path}"):
            (temporary if folder else path.parent).mkdir(parents=True, exist_ok=True)
            with in_use(temporary):
                remove_abandoned(path.parent, glob.escape(path.name))
                yield temporary
    finally:
        if folder:
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # a parent that is no folder was reported above
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, final_name: Callable[[], str] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` on success, remove it on failure.

    What is in the file is on the disk before it has its name, so that not even a power cut leaves half of one.
    `final_name` gives it another name when it is written, as where a hash of the content is part of the name.

    Raises:
        HandCLIPError: the folder or file cannot be written.
    """
    with making(path) as temporary:
        require_replaceable(path)
        yield temporary
        with temporary.open("r+b") as file:  # Windows refuses to sync what is open for reading only
            os.fsync(file.fileno())
        temporary.replace(path if final_name is None else path.with_name(final_name()))
        _sync_names(path.parent)


@contextmanager
def replacing_together(folder: Path, last: Sequence[str], then: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a temporary folder in `folder`; on success its files get their names in `folder`, on failure none does.

    Args:
        folder: is made where it is not there yet.
        last: names of the files that vouch for the others. Those of before are removed first, and the new ones get
            their names last: even where a kill falls between two names, they never stand beside files of others.
        then: is called when all have their names; a signal that came meanwhile waits for it, too.

    Raises:
        HandCLIPError: the folder or a file cannot be written.
    """
    with making(folder / "together", folder=True, part_of=folder) as temporary:
        yield temporary
        names = sorted(path.name for path in temporary.iterdir())
        for name in names:
            require_replaceable(folder / name)
        with stopping_later() as stop:  # it takes milliseconds, and half of it would lose what was there before
            for name in reversed(last):
                (folder / name).unlink(missing_ok=True)
            for together in ([name for name in names if name not in last], last):
                _sync_names(folder)
                for name in together:
                    (temporary / name).replace(folder / name)
            _sync_names(folder)
            then()
        stop.raise_if_asked()


def _sync_names(folder: Path) -> None:
    """See to it that names which files of a folder were given are on the disk, where the system has a way to."""
    with suppress(OSError):  # Windows opens no folders, and some network file systems do not sync them
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def in_use(temporary: Path) -> Iterator[None]:
    """Mark a temporary file, which is made, or folder as one that this process is writing.

    The mark is a lock, which the system takes away from a process that is killed. What another process has removed
    before it was marked, taking it for abandoned, is made anew.

    Raises:
        OSError: it cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # on Windows nothing is marked, and nothing that is abandoned is removed
        yield
        return
    is_folder = temporary.is_dir()
    while True:
        if is_folder:
            temporary.mkdir(exist_ok=True)
        mark = _open_for_lock(temporary, os.O_CREAT)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(mark, fcntl.LOCK_SH)  # waits for who is just removing it
        if temporary.exists():
            break
        os.close(mark)
    try:
        yield
    finally:
        os.close(mark)


def remove_abandoned(folder: Path, pattern: str = "*") -> None:
    """Remove what processes that were killed have left in a folder under temporary names.

    `pattern` is of the names that these files or folders were to get.
    """
    try:
        import fcntl
    except ImportError:
        return
    for left in folder.glob(f".{pattern}.????????.part"):
        with suppress(OSError):  # somebody is writing it, or has just finished
            mark = _open_for_lock(left)
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(mark), left.stat()):  # its name was not given to a new one meanwhile
                    (shutil.rmtree if left.is_dir() else os.unlink)(left)
            finally:
                os.close(mark)


def _open_for_lock(path: Path, flags: int = 0) -> int:
    # NFS locks for one process alone only what is open for writing, which a folder cannot be.
    return os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | flags, 0o666)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; refuses NaN, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_limited(path: Path, limit: int) -> bytes:
    """Return the bytes of a file that may come from anyone: never waits for a pipe, never fills the memory.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger; `strerror` says which.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, more than the {limit:,} that are read")
        return file.read(size)


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a file to read it; never waits for a pipe, and never reads a device without end.

    Raises:
        OSError: it cannot be read, or is no regular file; `strerror` says which.
    """
    # Opening a named pipe would wait for someone to write to it; Windows has neither the flag nor such files.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        _require_regular(os.fstat(descriptor), path)
        yield file


@contextmanager
def opened_text(path: Path) -> Iterator[TextIO]:
    """Open a file of UTF-8 text as `opened` does, with the line ends that it has."""
    with opened(path) as file, TextIOWrapper(file, encoding="utf-8", newline="") as text:
        yield text


def require_regular(path: Path) -> None:
    """Check that a path is of a regular file, before something opens it that would wait for a pipe.

    Raises:
        OSError: it is not there, or no such file; `strerror` says which.
    """
    _require_regular(path.stat(), path)


def _require_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no file but a pipe, a socket or a device", str(path))


@contextmanager
def reading(path: Path, kind: type[HandCLIPError] = HandCLIPError) -> Iterator[BufferedReader]:
    """Open a file as `opened` does, with an error for people, of the kind that is asked for."""
    try:
        with saying_why(f"{path}: cannot be read", kind), opened(path) as file:
            yield file
    except kind as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise kind(f"{path}: no such file") from None
        raise


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        HandCLIPError: the file is missing or is not JSON.
    """
    try:
        with reading(path) as file:
            return json.loads(file.read().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise HandCLIPError(f"{path}: is damaged or is not JSON ({error})") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        HandCLIPError: the file is missing or is not JSON.
        DamagedFileError: it holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path}: is damaged or is of another kind: it holds no JSON object")
    return value
