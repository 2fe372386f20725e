"""The pixel cache: photographs that were decoded and squashed once, for all runs and processes of a user.

One file holds the pixels of one photograph, `<group>/<2 digits>/<SHA-256 of the photograph's file>.pix`: bytes of shape
(3, height, width), then a magic number and a CRC-32 of the file's name and pixels. A file appears by renaming and never
changes afterwards, so that reading needs no lock. Only the count of what is stored does; it is kept in a file of its
own, where each process takes room for some images at once, and counted anew from what is there whenever the limit is
reached.
"""

import logging
import os
import re
import stat
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
from handclip.files import cache_folder

logger = logging.getLogger(__name__)

_TRAILER = struct.Struct("<8sI")
_MAGIC = b"HandCLIP"
_HASH = re.compile(r"[0-9a-f]{64}")
_GROUP = re.compile(r".+-[0-9a-f]{8}")
_PART = re.compile(r"[0-9a-f]{2}")
_FILE = re.compile(r"[0-9a-f]{64}\.pix|\.[0-9a-f]{64}\.pix\.[0-9a-f]{8}\.part")
"""Nothing else in the folder is ever counted or removed: a link to a disk that holds other things may stand there."""
_BLOCK = 4096
"""Bytes that file systems hand out at once; sizes are counted in whole blocks."""
_RETRY_SECONDS = 60.0
"""A full cache is asked again after so long: another run may have ended, or `handclip cache clear` been called."""
_RENEW_SECONDS = 600.0
"""A file that is loaded is marked as used again after so long."""
_IDLE_SECONDS = 3600.0
"""An image that was last used longer ago belongs to no run under way, and a half-written file to a killed process. The
same is taken of one that is to be used as much later: the clock has been set back since."""
_COUNT = "bytes"
"""The file that counts the bytes stored, beside the groups' folders."""
_AT_ONCE = 64
"""Room is taken for so many images at once, as asking for it takes about as long as writing an image."""


def pixel_folder() -> Path:
    """Return the folder of the user's pixel cache, `$XDG_CACHE_HOME/handclip/pixels`.

    Raises:
        HandCLIPError: as for `cache_folder`.
    """
    return cache_folder() / "pixels"


def open_pixel_cache(gib: float) -> "PixelCache | None":
    """Return the user's pixel cache, limited to so many GiB; none for 0, or where there can be none (on Windows, say).

    What is wrong with the folder is said in the log; what it holds already is read all the same.
    """
    if not gib:
        return None
    try:
        import fcntl  # noqa: F401
    except ImportError:
        logger.info("There is no pixel cache on Windows, so images are decoded anew each time.")
        return None
    try:
        folder = pixel_folder()
    except HandCLIPError as error:
        logger.info(f"There is no pixel cache, so images are decoded anew each time: {error}")
        return None
    cache = PixelCache(folder, int(gib * 2**30))
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

    A group's name ends in `-` and eight hexadecimal digits.

    Never more than `limit_bytes`, and 64 images more for each process that stores at the same time. Those that were
    used least recently go first, but none that was used within the hour, by another run perhaps, or since this cache
    was opened: where the images of one run do not fit, a part of them stays, and the others are decoded each time. (A
    limit that is lower than before displaces what was used within the hour, too.)

    Processes may share a cache by being forked or by pickling. A file is checked each time that it is loaded, which
    takes a hundredth of the time of decoding a photograph: disks and other programs may spoil it at any moment.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._opened = time.time()
        self._full_until = 0.0
        self._checked: defaultdict[str, dict[str, tuple[int, int, int]]] = defaultdict(dict)
        self._claimed: defaultdict[str, set[str]] = defaultdict(set)
        self._damaged: set[Path] = set()
        # Bytes that were counted already, and the process that may store them: not those that it forks.
        self._room, self._owner = 0, os.getpid()
        # Shared with worker processes, so that one of them says that the disk is full and all of them stop.
        self._storing = RawValue(c_bool, True)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_room": 0}
        if get_spawning_popen() is None:  # only a process that is being started can inherit shared memory
            del state["_storing"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"_storing": RawValue(c_bool, True), **state})

    def __str__(self) -> str:
        return f"{self.folder}, at most {self.limit_bytes / 2**30:g} GiB"

    def load(self, group: str, sha256: str, height: int, width: int) -> Tensor | None:
        """Return pixels of shape (3, height, width), or none if they are not stored or are damaged.

        They are read into memory rather than mapped, so that the file may change or vanish afterwards.
        """
        path = self._path(group, sha256)
        if path is None:
            return None
        count = 3 * height * width
        content = bytearray(count + _TRAILER.size)
        try:
            with path.open("rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                whole = status.st_size == len(content) and file.readinto(content) == len(content)
        except OSError:
            return None
        # Checking takes longer than reading, so what has not been touched since is not checked again.
        checked, touched = self._checked[group], (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        data, trailer = memoryview(content)[:count], content[count:]
        if not whole or (checked.get(sha256) != touched and trailer != _trailer(group, sha256, data)):
            self._remove_damaged(path)
            return None
        checked[sha256] = touched
        now = time.time()
        if not max(self._opened, now - _RENEW_SECONDS) <= status.st_mtime <= now + _RENEW_SECONDS:
            with suppress(OSError):
                _mark_used(path)
        return torch.frombuffer(content, dtype=torch.uint8, count=count).view(3, height, width)

    def store(self, group: str, sha256: str, pixels: Tensor) -> None:
        """Keep uint8 pixels of shape (3, height, width) if there is room. A disk that fails is said once in the log."""
        path = self._path(group, sha256)
        if path is None or not self._storing.value or time.monotonic() < self._full_until:
            return
        data = pixels.contiguous().numpy().data.cast("B")
        try:
            if not self._take_room(_on_disk(len(data) + _TRAILER.size)):
                self._full_until = time.monotonic() + _RETRY_SECONDS
                return
            self._write(path, data, _trailer(group, sha256, data))
        except FileNotFoundError:  # cleared at this moment
            pass
        except OSError as error:
            self._give_up(error)

    def claim(self, group: str, hashes: Iterable[str]) -> None:
        """Mark those of a run's images that are stored as used, so that the run does not displace its own.

        Each is marked once: later ones with the same images cost next to nothing.
        """
        new = set(hashes) - self._claimed[group]
        self._claimed[group] |= new
        for sha256 in new:
            with suppress(OSError):
                if path := self._path(group, sha256):
                    _mark_used(path)

    def try_writing(self) -> None:
        """Find out whether the folder can be written; if not, say so in the log and store nothing."""
        try:
            self._reserve(0)  # which also makes room where the limit was larger before
        except OSError as error:
            self._give_up(error)

    def images(self) -> list[CachedImage]:
        """Return all that is stored, in no order.

        Raises:
            HandCLIPError: the folder cannot be read.
        """
        try:
            return [image for image in self._files() if image.path.suffix == ".pix"]
        except OSError as error:
            raise HandCLIPError(f"cannot read the pixel cache in {self.folder}: {error.strerror or error}") from error

    def clear(self) -> list[CachedImage]:
        """Remove everything and return what was removed. What other processes store meanwhile may remain.

        Raises:
            HandCLIPError: the folder cannot be read or written.
        """
        images = self.images()
        try:
            if not self.folder.exists():
                return []
            with self._locked():
                for file in self._files():
                    file.path.unlink(missing_ok=True)
                (self.folder / _COUNT).unlink()
                groups = [Path(group.path) for group in _folders(self.folder, _GROUP)]
                parts = [Path(part.path) for group in groups for part in _folders(group, _PART)]
                for folder in (*parts, *groups, self.folder):
                    with suppress(OSError):  # it holds other files, or another process has just stored an image there
                        folder.rmdir()
        except OSError as error:
            raise HandCLIPError(f"cannot clear {self.folder}: {error.strerror or error}") from error
        return images

    def _path(self, group: str, sha256: str) -> Path | None:
        """Return where an image is kept; nowhere if its name is no hash, which nobody must make a path of."""
        return self.folder.joinpath(group, sha256[:2], f"{sha256}.pix") if _HASH.fullmatch(sha256) else None

    def _write(self, path: Path, data: memoryview, trailer: bytes) -> None:
        temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
        try:  # what `files.replacing` does, without looking after folders for each image
            try:
                file = _open_private(temporary, os.O_WRONLY | os.O_EXCL)
            except FileNotFoundError:
                for folder in (self.folder, path.parent.parent, path.parent):
                    _make_private(folder)
                file = _open_private(temporary, os.O_WRONLY | os.O_EXCL)
            with file:
                file.write(data)
                file.write(trailer)
                file.flush()
                _mark_used(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def _remove_damaged(self, path: Path) -> None:
        if path in self._damaged:
            return
        logger.warning(f"{path}: is damaged; the photograph is decoded anew")
        try:
            path.unlink()
        except FileNotFoundError:
            pass
        except OSError:  # it will be met again
            self._damaged.add(path)

    def _files(self) -> Iterator[CachedImage]:
        for group in _folders(self.folder, _GROUP):
            for part in _folders(group.path, _PART):
                with suppress(FileNotFoundError), os.scandir(part.path) as entries:
                    for entry in entries:
                        with suppress(FileNotFoundError):  # removed by another process meanwhile
                            if _FILE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                                status = entry.stat(follow_symlinks=False)
                                size = _on_disk(status.st_size)
                                yield CachedImage(Path(entry.path), group.name, size, status.st_mtime)

    def _take_room(self, size: int) -> bool:
        """Whether `size` bytes may be stored, of the room that this process has or is given now."""
        if self._owner != os.getpid():
            self._room, self._owner = 0, os.getpid()
        if self._room < size:
            self._room += self._reserve(size)
        if self._room < size:
            return False
        self._room -= size
        return True

    def _reserve(self, size: int) -> int:
        """Add to the count of bytes what the limit allows, displacing what was not used for longest.

        Returns:
            What was added: `size` for each of some images at once, `size` near the limit, or 0.
        """
        with self._locked() as count:
            text = count.read()
            total = int(text) if text.isdigit() else None
            if total is None or total + size > self.limit_bytes:
                total = self._make_room(self.limit_bytes - max(size, self.limit_bytes // 20))
            reserved = next((n * size for n in (_AT_ONCE, 1) if total + n * size <= self.limit_bytes), 0)
            # Always as long: ext4 writes a file that was emptied first to disk at once, which takes a millisecond.
            count.seek(0)
            count.write(b"%020d" % (total + reserved))
            count.truncate()
            return reserved

    def _make_room(self, wanted: int) -> int:
        """Remove what is old until `wanted` bytes are left, if the total is more, and what killed processes left.

        Returns:
            The bytes that are left.
        """
        now = time.time()
        idle = now - _IDLE_SECONDS
        used = {file: file.used if file.used <= now + _IDLE_SECONDS else 0.0 for file in self._files()}
        total = sum(file.bytes for file in used)
        for file in sorted(used, key=used.__getitem__):
            is_whole = file.path.suffix == ".pix"
            old = self._opened if is_whole else idle
            enough = wanted if used[file] < idle else self.limit_bytes
            if used[file] < old and (total > enough or not is_whole):
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
                file = _open_private(path, os.O_RDWR)
            except FileNotFoundError:  # a new folder, or it was cleared in between
                _make_private(self.folder)
                continue
            with file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if _is_still(file, path):  # else it was cleared while we waited
                    yield file
                    return

    def _give_up(self, error: OSError) -> None:
        if self._storing.value:
            self._storing.value = False
            reason = error.strerror or error
            logger.warning(f"The pixel cache in {self.folder} cannot be added to, so images are decoded anew: {reason}")


def _is_still(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _trailer(group: str, sha256: str, pixels: memoryview) -> bytes:
    return _TRAILER.pack(_MAGIC, zlib.crc32(pixels, zlib.crc32(f"{group}/{sha256}".encode())))


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _open_private(path: Path, flags: int) -> BinaryIO:
    """Open a file for its owner only, making it if need be."""
    mode = "wb" if flags & os.O_WRONLY else "r+b"
    return open(path, mode, opener=lambda name, _: os.open(name, flags | os.O_CREAT, 0o600))  # type: ignore[return-value]


def _make_private(folder: Path) -> None:
    """Make a folder for its owner only, as these are photographs of people; one that is there stays as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        with suppress(FileNotFoundError):  # removed by another process meanwhile
            if not stat.S_ISDIR(folder.lstat().st_mode) and not folder.is_dir():
                raise


def _mark_used(file: Path | int) -> None:
    """Set a file's time to this machine's clock, which is not always that of the file system."""
    now = time.time()
    os.utime(file, (now, now))


def _folders(path: str | Path, name: re.Pattern[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if name.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
