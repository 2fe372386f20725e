"""The pixel cache: photographs that were decoded and squashed once, for all runs and processes of a user.

One file holds the pixels of one photograph, `<group>/<2 digits>/<SHA-256 of the photograph's file>.pix`: bytes of shape
(3, height, width), then a magic number and a CRC-32 of the file's name and pixels. A file appears by renaming and never
changes afterwards, so that reading needs no lock. Only the count of what is stored does; it is kept in a file of its
own, and counted anew from what is there whenever the limit is reached.
"""

import errno
import logging
import os
import re
import struct
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from ctypes import c_bool
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from handclip.errors import HandCLIPError
from handclip.files import replacing

logger = logging.getLogger(__name__)

_TRAILER = struct.Struct("<8sI")
_MAGIC = b"HandCLIP"
_HASH = re.compile(r"[0-9a-f]{64}")
_BLOCK = 4096
"""Bytes that file systems hand out at once; sizes are counted in whole blocks."""
_RETRY_SECONDS = 60.0
"""A full cache is asked again after so long: another run may have ended, or `handclip cache clear` been called."""
_ABANDONED_SECONDS = 3600.0
"""A half-written file that is older was left by a process that was killed."""


def pixel_folder() -> Path:
    """Return the folder of the user's pixel cache, `$XDG_CACHE_HOME/handclip/pixels`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "handclip" / "pixels"


def open_pixel_cache(gib: float) -> "PixelCache | None":
    """Return the user's pixel cache, limited to so many GiB; none for 0.

    A folder that cannot be written is said in the log; what it holds already is read all the same.
    """
    if not gib:
        return None
    cache = PixelCache(pixel_folder(), int(gib * 2**30))
    cache.try_writing()
    return cache


@dataclass(frozen=True)
class CachedImage:
    """One file of the cache: its group, its bytes on disk, and the time of its last use in seconds since 1970."""

    path: Path
    group: str
    bytes: int
    used: float

    @property
    def kind(self) -> str:
        """Its group without the versions of libraries that the group's name ends in."""
        return self.group.rpartition("-")[0] or self.group


class PixelCache:
    """Pixels by group (how they were computed) and by the SHA-256 of the photograph's file.

    Never more than `limit_bytes`, and one image more for each process that writes at the same moment. Those that were
    used least recently go first, but none that was used since this cache was opened: where the images of one run do not
    fit, a part of them stays, and the others are decoded each time.

    Processes may share a cache by being forked or by pickling; each checks a file on first use and trusts it from then.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._opened = time.time()
        self._full_until = 0.0
        self._checked: defaultdict[str, set[str]] = defaultdict(set)
        # Shared with worker processes, so that one of them says that the disk is full and all of them stop.
        self._storing = RawValue(c_bool, True)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if get_spawning_popen() is None:  # only a process that is being started can inherit shared memory
            del state["_storing"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"_storing": RawValue(c_bool, True), **state})

    def load(self, group: str, sha256: str, height: int, width: int) -> Tensor | None:
        """Return pixels of shape (3, height, width), or none if they are not stored or are damaged.

        The tensor is a private mapping of the file: it takes no memory of its own, and writing to it changes neither
        the file nor what others see.
        """
        path = self._path(group, sha256)
        count = 3 * height * width
        size = count + _TRAILER.size
        try:
            whole = path.stat().st_size == size
            content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if whole else None
        except (OSError, RuntimeError):  # torch's, where the file was removed in between
            return None
        checked = self._checked[group]
        if content is None or (sha256 not in checked and not _is_intact(content, group, sha256)):
            logger.warning(f"{path}: is damaged; the photograph is decoded anew")
            with suppress(OSError):
                path.unlink()
            return None
        if sha256 not in checked:
            checked.add(sha256)
            with suppress(OSError):
                _mark_used(path)
        return content[:count].view(3, height, width)

    def store(self, group: str, sha256: str, pixels: Tensor) -> None:
        """Keep uint8 pixels of shape (3, height, width) if there is room. A disk that fails is said once in the log."""
        if not self._storing.value or time.monotonic() < self._full_until or not _HASH.fullmatch(sha256):
            return
        data = pixels.numpy().tobytes()
        try:
            if not self._reserve(_on_disk(len(data) + _TRAILER.size)):
                self._full_until = time.monotonic() + _RETRY_SECONDS
                return
            path = self._path(group, sha256)
            with replacing(path) as temporary, _open_private(temporary, os.O_WRONLY | os.O_EXCL) as file:
                file.write(data)
                file.write(_trailer(group, sha256, data))
                file.flush()
                _mark_used(file.fileno())
            self._checked[group].add(sha256)
        except (HandCLIPError, OSError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not (isinstance(cause, OSError) and cause.errno == errno.ENOENT):  # cleared at this moment
                self._give_up(error)

    def claim(self, group: str, hashes: Iterable[str]) -> None:
        """Mark those of a run's images that are stored as used, so that the run does not displace its own."""
        for sha256 in hashes:
            with suppress(OSError):
                _mark_used(self._path(group, sha256))

    def try_writing(self) -> None:
        """Find out whether the folder can be written; if not, say so in the log and store nothing."""
        try:
            self._reserve(0)  # which also makes room where the limit was larger before
        except (OSError, ImportError) as error:
            self._give_up(error)

    def images(self) -> list[CachedImage]:
        """Return all that is stored, in no order."""
        return [image for image in self._files() if image.path.suffix == ".pix"]

    def clear(self) -> list[CachedImage]:
        """Remove everything and return what was removed. What other processes store meanwhile may remain.

        Raises:
            HandCLIPError: the folder cannot be written.
        """
        if not self.folder.exists():
            return []
        try:
            with self._locked():
                images = self.images()
                for file in self._files():
                    file.path.unlink(missing_ok=True)
                (self.folder / _COUNT).unlink()
                for folder in sorted(self.folder.rglob("*/"), reverse=True):
                    with suppress(OSError):  # another process has just stored an image there
                        folder.rmdir()
                with suppress(OSError):
                    self.folder.rmdir()
        except OSError as error:
            raise HandCLIPError(f"cannot clear {self.folder}: {error.strerror or error}") from error
        return images

    def _path(self, group: str, sha256: str) -> Path:
        return self.folder / group / sha256[:2] / f"{sha256}.pix"

    def _files(self) -> Iterator[CachedImage]:
        for group in _folders(self.folder):
            for part in _folders(group.path):
                with suppress(FileNotFoundError), os.scandir(part.path) as entries:
                    for entry in entries:
                        with suppress(FileNotFoundError):  # removed by another process meanwhile
                            status = entry.stat(follow_symlinks=False)
                            yield CachedImage(Path(entry.path), group.name, _on_disk(status.st_size), status.st_mtime)

    def _reserve(self, size: int) -> bool:
        """Add `size` to the count of bytes if the limit allows it, displacing what was not used for longest."""
        with self._locked() as count:
            total = _read_count(count)
            if total is None or total + size > self.limit_bytes:
                total = self._make_room(self.limit_bytes - max(size, self.limit_bytes // 20))
            fits = total + size <= self.limit_bytes
            _write_count(count, total + size if fits else total)
            return fits

    def _make_room(self, wanted: int) -> int:
        """Remove what is old until `wanted` bytes are left, if the total is more; return what is left."""
        files = sorted(self._files(), key=lambda file: file.used)
        total = sum(file.bytes for file in files)
        abandoned = time.time() - _ABANDONED_SECONDS
        for file in files:
            old = self._opened if file.path.suffix == ".pix" else abandoned
            if file.used < old and total > wanted:
                file.path.unlink(missing_ok=True)
                total -= file.bytes
        return total

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """Hold the count of bytes against other processes; a process that is killed lets go of it."""
        import fcntl  # Windows lacks it, and goes without a cache

        path = self.folder / _COUNT
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.folder.chmod(0o700)  # these are photographs of people
                file = _open_private(path, os.O_RDWR)
            except FileNotFoundError:  # the cache was cleared in between
                continue
            with file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if _is_at(path, file):  # else it was cleared while we waited
                    yield file
                    return

    def _give_up(self, error: Exception) -> None:
        if self._storing.value:
            self._storing.value = False
            reason = (error.strerror or error) if isinstance(error, OSError) else error
            logger.warning(f"The pixel cache in {self.folder} cannot be added to, so images are decoded anew: {reason}")


_COUNT = "bytes"
"""The file that counts the bytes stored, beside the groups' folders."""


def _read_count(file: BinaryIO) -> int | None:
    text = file.read()
    return int(text) if text.isdigit() else None


def _write_count(file: BinaryIO, total: int) -> None:
    file.seek(0)
    file.truncate()
    file.write(b"%d" % total)


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _is_intact(content: Tensor, group: str, sha256: str) -> bool:
    data = content.numpy().tobytes()
    return data[-_TRAILER.size :] == _trailer(group, sha256, data[: -_TRAILER.size])


def _trailer(group: str, sha256: str, pixels: bytes) -> bytes:
    return _TRAILER.pack(_MAGIC, zlib.crc32(pixels, zlib.crc32(f"{group}/{sha256}".encode())))


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _open_private(path: Path, flags: int) -> BinaryIO:
    """Open a file for its owner only, making it if need be."""
    mode = "wb" if flags & os.O_WRONLY else "r+b"
    return open(path, mode, opener=lambda name, _: os.open(name, flags | os.O_CREAT, 0o600))  # type: ignore[return-value]


def _mark_used(file: Path | int) -> None:
    """Set a file's time to this machine's clock, which is not always that of the file system."""
    now = time.time()
    os.utime(file, (now, now))


def _folders(path: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
