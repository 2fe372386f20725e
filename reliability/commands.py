"""Starting the command line in a process group of its own, watching what it writes, and ending it at a moment.

Importing the libraries takes seconds, in which there is nothing to lose. So most commands are forked from a process
that has imported them already; `fresh` ones are started as a user starts them.
"""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

_POLL = 0.005
"""Least seconds between two looks at a folder; looking takes a fifth of the time at most."""

_PATIENCE = 300.0
"""Seconds after which a command that should have ended hangs."""

_numbers = count()
"""Of the logs of commands, of which two may work in one folder."""

_HEAVY = ["handclip.cli", "handclip.studies", "handclip.demo", "handclip.datasets.prepare", "torch._dynamo"]

# Processes that are killed leave semaphores to the tracker, which would count them aloud when all is over.
os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
# The process that commands are forked from takes its threads before it knows a command's variables, and sums depend on
# their number.
os.environ["OMP_NUM_THREADS"] = "1"
forking: ForkServerContext = multiprocessing.get_context("forkserver")
"""Starts processes that have imported what takes long; it is itself started with the first of them."""
forking.set_forkserver_preload(_HEAVY)


Ending = Callable[[float, int], bool]
"""Says when to end a command: called again and again with the seconds so far and the changes that were seen."""


def never(seconds: float, changes: int) -> bool:
    """Only watch."""
    return False


@dataclass(frozen=True)
class Ended:
    """A command that has ended; `code` is its exit code, or minus the signal that ended it."""

    code: int
    printed: str
    seconds: float
    changes: int
    """How often a file was seen to have appeared, changed or gone."""
    where: str
    """What it did last."""
    signalled: bool


def environment(cache: Path) -> dict[str, str]:
    """Return the variables of a command: its own pixel cache, and no thread pool whose sums could differ."""
    return {
        "XDG_CACHE_HOME": str(cache.absolute()),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR") or str(Path.home() / ".cache" / "matplotlib"),
    }


class Command:
    """`handclip ARGUMENTS` in a folder, started at once.

    A `fresh` one is a new Python; in any other, `before` is called first.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        variables: Mapping[str, str],
        *,
        fresh: bool = False,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.folder = folder
        self.log = folder.with_name(f"{folder.name}.{next(_numbers)}.log")
        self.start = time.perf_counter()
        self._forked: ForkServerProcess | None = None
        self._fresh: subprocess.Popen[bytes] | None = None
        if fresh:
            command = [sys.executable, "-m", "handclip", *arguments]
            with self.log.open("wb") as log:
                self._fresh = subprocess.Popen(
                    command,
                    cwd=folder,
                    env={**os.environ, **variables},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=_restore_signals,
                )
            self.pid = self._fresh.pid
        else:
            self._forked = forking.Process(
                target=_run, args=(list(arguments), str(folder), str(self.log), dict(variables), before)
            )
            self._forked.start()
            assert self._forked.pid is not None
            self.pid = self._forked.pid

    def code(self) -> int | None:
        """Return its exit code, or minus the signal that ended it; None while it runs."""
        return self._fresh.poll() if self._fresh is not None else self._forked.exitcode if self._forked else None

    def send(self, signum: signal.Signals, *, group: bool = True) -> None:
        """Send a signal to the command, and to all that it has started."""
        with suppress(ProcessLookupError):
            try:
                (os.killpg if group else os.kill)(self.pid, signum)
            except ProcessLookupError:  # it has no group of its own yet
                os.kill(self.pid, signum)

    def pause(self) -> None:
        """Let it do nothing until `go_on`."""
        self.send(signal.SIGSTOP)

    def go_on(self) -> None:
        """Undo `pause`."""
        self.send(signal.SIGCONT)

    def wait(self, ending: Ending | None = None, signum: signal.Signals = signal.SIGKILL) -> Ended:
        """Wait until it has ended, or watch it and end it at the moment that `ending` says.

        Raises:
            TimeoutError: it hangs; it was killed.
        """
        try:
            changes, last, signalled = self._watch(ending, signum) if ending is not None else self._join()
        except BaseException:
            self.send(signal.SIGKILL)
            raise
        code = self.code()
        assert code is not None
        printed = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        seconds = time.perf_counter() - self.start
        return Ended(code, printed, seconds, changes, _stage(last), signalled)

    def _join(self) -> tuple[int, str, bool]:
        with suppress(subprocess.TimeoutExpired):
            if self._fresh is not None:
                self._fresh.wait(_PATIENCE)
            elif self._forked is not None:
                self._forked.join(_PATIENCE)
        self._require_ended()
        return 0, "", False

    def _require_ended(self) -> None:
        if self.code() is None:
            raise TimeoutError(f"{self.folder}: has not ended in {_PATIENCE:.0f} seconds; see {self.log}")

    def _watch(self, ending: Ending, signum: signal.Signals) -> tuple[int, str, bool]:
        """Return the changes seen, the file that changed last, and whether the command was sent a signal."""
        seen = _look(self.folder)
        changes, last, signalled, looking = 0, "", False, 0.0
        while self.code() is None:
            time.sleep(max(_POLL, 4 * looking))
            before = time.perf_counter()
            now = _look(self.folder)
            looking, seconds = time.perf_counter() - before, before - self.start
            if changed := {path for path in now.keys() | seen.keys() if now.get(path) != seen.get(path)}:
                changes += len(changed)
                last = max(changed, key=lambda path: now.get(path, (0, 0)))
                seen = now
            if not signalled and ending(seconds, changes):
                # Ctrl-C and `kill` reach a command; a machine that goes down ends its workers as well.
                self.send(signum, group=signum == signal.SIGKILL)
                signalled = True
            if seconds > _PATIENCE:
                self._require_ended()
        return changes, last, signalled


def _run(
    arguments: list[str], folder: str, log: str, variables: dict[str, str], before: Callable[[], None] | None
) -> None:
    """Be the command, in a process that was forked for it."""
    os.setsid()
    _restore_signals()
    os.environ.update(variables)
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["handclip", *arguments]
    from handclip.cli import main

    if before is not None:
        before()
    main()


def _restore_signals() -> None:
    """A shell lets what runs in its background ignore Ctrl-C, `nohup` SIGHUP, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _look(folder: Path) -> dict[str, tuple[int, int]]:
    """Return time and size of each file below a folder, by its path there."""
    found: dict[str, tuple[int, int]] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                path = os.path.join(place, name)  # noqa: PTH118  (a thousand times a second)
                status = os.stat(path)  # noqa: PTH116
                found[os.path.relpath(path, folder)] = (status.st_mtime_ns, status.st_size)
    return found


def _stage(changed: str) -> str:
    """Name a stage of the work by the file that changed last, without what is particular to a run."""
    if not changed:
        return "start-up"
    path = Path(re.sub(r"\.tfevents\..*", ".tfevents", re.sub(r"[0-9a-f]{16,}", "…", changed)))
    if path.suffix == ".part":
        return f"writing {Path(path.stem[1:]).stem}"
    return f"{path.parts[0]}/…/{path.name}" if len(path.parts) > 2 else str(path)
