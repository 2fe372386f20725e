"""Errors meant for people: each message says what is wrong, where, and what to do.

The command line prints such a message alone, without a traceback, and exits with `exit_code`.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class HandCLIPError(Exception):
    """Anything a user can cause and can mend."""

    exit_code = 1


class ConfigError(HandCLIPError):
    """The experiment file or the command line asks for something that does not exist."""

    exit_code = 2


class DataError(HandCLIPError):
    """An image, a metadata table, a manifest or a folder is not what it should be."""


class CheckpointError(HandCLIPError):
    """A weights file is missing, damaged, or belongs to another model."""


class TrainingError(HandCLIPError):
    """Training cannot go on (a loss that is not finite, say)."""


class DamagedFileError(HandCLIPError):
    """A file that HandCLIP has written is gone, cut off, or holds other bytes than were written."""


class InUseError(HandCLIPError):
    """Another process is writing to the same folder."""


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP has ended the work; no error, so that nothing that deals with errors swallows it.

    Args:
        signum: the signal.
        advice: what was saved, and how to go on.
    """

    def __init__(self, signum: int, advice: str = "") -> None:
        super().__init__(advice)
        self.signum = signum
        self.advice = advice

    @property
    def exit_code(self) -> int:
        """What shells report of a process that a signal has ended: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.signum


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest known name, or the list of known names where none is near."""
    known = sorted(known)
    return nearest(name, known) or f" Known: {', '.join(known)}."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest known name, or nothing where none is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def missing_file(path: Path, pattern: str, key: str = "") -> ConfigError:
    """Return the error for a file that is named but not there, with the nearest name of those beside it.

    Args:
        path: the file that was looked for.
        pattern: which files could have been meant, such as `*.pth`.
        key: the key of the experiment file that names it.
    """
    beside = sorted(str(other) for other in path.parent.glob(pattern)) if path.parent.is_dir() else []
    hint = nearest(str(path), beside)
    if not hint and beside:
        names = [Path(other).name for other in beside]
        hint = f" {path.parent}/ holds {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}."
    elif not hint:
        hint = f" There is no {pattern} in {path.parent}/."
    return ConfigError(f"{key + ': ' if key else ''}{path}: no such file.{hint}")
