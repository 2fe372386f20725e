"""A file system of a few megabytes that only one process sees: it can be filled, enlarged and made read-only."""

import contextlib
import ctypes
import io
import logging
import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import forking

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
_PATIENCE = 300


def on_a_small_disk(test: Callable[..., None], disk: Path, *arguments: Any) -> None:
    """Call `test(SmallDisk, *arguments)` in a process of its own, with a new file system at `disk`.

    Skips where this process may not mount one.
    """
    disk.mkdir(exist_ok=True)
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only the superuser of a Linux machine can mount a small file system")
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("this container may not mount a file system")
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = forking.Process(target=_apart, args=(theirs, test, disk, arguments))
    process.start()
    theirs.close()
    process.join(_PATIENCE)
    if process.exitcode is None:
        process.kill()
    failure = ours.recv() if ours.poll() else f"exit code {process.exitcode}"
    assert failure == "", failure


def _apart(answer: Any, test: Callable[..., None], disk: Path, arguments: tuple[Any, ...]) -> None:
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS):
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "none", str(disk)], check=True)
        os.environ["XDG_CACHE_HOME"] = str(disk.with_name("cache"))
        test(SmallDisk(disk), *arguments)
        answer.send("")
    except BaseException:
        answer.send(traceback.format_exc())


@dataclass(frozen=True)
class Answer:
    """What a command line printed, and its exit code."""

    code: int
    printed: str


@dataclass(frozen=True)
class SmallDisk:
    """A file system in memory."""

    folder: Path

    def leave(self, free: int) -> None:
        """Leave so many bytes free."""
        status = os.statvfs(self.folder)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        self._remount(f"size={used + free}")

    def enlarge(self) -> None:
        """Leave more than enough."""
        self._remount("size=1g")

    def make_read_only(self) -> None:
        """Refuse to write, as a file system does that has found itself damaged."""
        self._remount("ro")

    def make_writable(self) -> None:
        """Undo it."""
        self._remount("rw")

    def handclip(self, *arguments: object) -> Answer:
        """Run `handclip ARGUMENTS` in the folder that this process is in."""
        from handclip.cli import main

        sys.argv = ["handclip", *map(str, arguments)]
        printed, code = io.StringIO(), 0
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
        logging.getLogger("handclip").handlers.clear()
        return Answer(code, printed.getvalue())

    def _remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.folder)], check=True)
