"""Where a run comes from: `provenance.json` in its folder, which says from what it was made, and every process's part.

It holds hashes of the config, of the data and of the weights before and after, the seeds, and in `sessions` an entry
for each time that a process worked on the run: command, code, libraries, hardware, start, end, and why it ended. Its
`sha256` is that of the rest of it.
"""

import hashlib
import json
import logging
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from handclip.datasets.manifest import Manifest
from handclip.errors import DamagedFileError, HandCLIPError, Interrupted
from handclip.file_names import PROVENANCE
from handclip.files import read_json_object, write_json
from handclip.parallel.hardware import describe_code
from handclip.parallel.processes import is_first_process

FINISHED = "finished"
KILLED = "killed (no end was recorded)"

_HARDWARE = ("device", "processor", "cores", "threads", "processes", "precision")
"""What of its environment a session groups under `hardware`."""

logger = logging.getLogger(__name__)


class Session:
    """One process's work on a run, on the disk from its beginning; in other processes than the first it is nowhere."""

    def __init__(self, folder: Path | None, facts: Mapping[str, Any], entry: dict[str, Any]) -> None:
        self.exit = FINISHED
        """Why it ends, where nothing goes wrong."""
        self.position: dict[str, int] | None = None
        """How far the run has come: epochs and steps of training."""
        self._folder = folder
        self._facts = dict(facts)
        self._entry = entry
        self._earlier: list[dict[str, Any]] = []
        self._start = time.monotonic()  # a clock that is set back gives no negative time

    def note(self, **facts: Any) -> None:
        """Record facts of the run, such as the hash of the weights that it ended with."""
        self._facts |= facts
        self._save()

    def write_successor(self, folder: Path, **facts: Any) -> None:
        """Write the record with further facts to another folder, from where it is to take this one's place.

        Raises:
            HandCLIPError: it cannot be written.
        """
        self._write_to(folder, {**self._facts, **facts})

    def starts_at(self, **position: int) -> None:
        """Record where this process begins (epoch and step, say)."""
        self._entry["from"] = self.position = position
        self._save()

    def reaches(self, **position: int) -> None:
        """Record how far it has come."""
        self.position = position
        self._save()

    def _open(self, goes_on: bool, replaces: bool) -> None:
        if self._folder is None:
            return
        try:
            before = read_provenance(self._folder)
        except DamagedFileError as error:
            aside = _move_aside(self._folder / PROVENANCE)
            logger.warning(f"{error} It was moved to {aside}, and a new one is begun.")
            before = None
        if before is not None:
            self._earlier = sessions_of(before, ended=True)
            self._facts |= {name: before[name] for name in self._facts if goes_on and name in before}
        if replaces:
            self._facts = {name: value for name, value in (before or {}).items() if name != "sessions"}
        self._write()

    def _close(self) -> None:
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        self._entry |= {"ended": ended, "seconds": round(time.monotonic() - self._start, 1), "exit": self.exit}
        self._save()

    def _save(self) -> None:
        """Write it; what is wrong with the disk must neither end a run nor hide why it ends."""
        try:
            # A folder that somebody has removed is not made anew.
            if self._folder is not None and self._folder.is_dir():
                self._write()
        except HandCLIPError as error:
            logger.warning(f"How this run ends is not recorded: {error}")

    def _write(self) -> None:
        if self._folder is not None and self._facts:  # what is to be replaced may have a record that is damaged
            self._write_to(self._folder, self._facts)

    def _write_to(self, folder: Path, facts: Mapping[str, Any]) -> None:
        content = {**facts, "sessions": [*self._earlier, {**self._entry, "to": self.position}]}
        write_json(folder / PROVENANCE, {**content, "sha256": content_sha256(content)})


@contextmanager
def session(
    folder: Path,
    facts: Mapping[str, Any],
    environment: Mapping[str, Any],
    *,
    goes_on: bool = False,
    replaces: bool = False,
) -> Iterator[Session]:
    """Record in `provenance.json` that this process works on a run while the block runs, and why it ends.

    Where several processes share the run, the first one records it.

    Args:
        folder: the run's folder, which this process holds (see `locks`).
        facts: what the run is made from: see `run_facts`.
        environment: what it runs on; see `describe_environment`.
        goes_on: it may go on with what another process has begun; what that one has recorded of the run stays.
        replaces: what it makes is to replace what is there, whose facts stay until `Session.note` gives those of what
            has taken its place.

    Raises:
        HandCLIPError: the folder cannot be written.
    """
    entry = {
        "command": environment["command"],
        **describe_code(),
        **{name: environment[name] for name in ("python", "platform", "libraries")},
        "hardware": {name: environment[name] for name in _HARDWARE},
        "started": environment["started"],
        "from": None,
        "to": None,
        "ended": None,
        "seconds": None,
        "exit": None,
    }
    own = Session(folder if is_first_process() else None, facts, entry)
    own._open(goes_on, replaces)
    try:
        yield own
    except BaseException as error:
        own.exit = _reason(error)
        raise
    finally:
        own._close()


def run_facts(
    run: str,
    kind: str,
    config: Mapping[str, Any],
    manifests: Mapping[str, Manifest],
    seed: int,
    weights: str,
) -> dict[str, Any]:
    """Return what a run is made from.

    Args:
        run: its name.
        kind: `training` or `evaluation`.
        config: the values in its `config.yml`.
        manifests: by aspect.
        seed: of all its random choices.
        weights: the `weights_sha256` of the model that it starts from.
    """
    return {
        "run": run,
        "kind": kind,
        "config_sha256": content_sha256(config),
        "manifest_sha256": {aspect: manifest.sha256 for aspect, manifest in manifests.items()},
        "starts_from_sha256": weights,
        "seeds": {"run": seed, "splits": {aspect: manifest.seed for aspect, manifest in manifests.items()}},
    }


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """Return what `provenance.json` holds, None where there is none.

    Raises:
        DamagedFileError: it does not have the hash that it records.
    """
    path = folder / PROVENANCE
    if not path.exists():
        return None
    with suppress(HandCLIPError, ValueError):  # it is no JSON object, or holds NaN, which Python reads and JSON lacks
        content = read_json_object(path)
        if content.pop("sha256", None) == content_sha256(content):
            return content
    raise DamagedFileError(f"{path}: is damaged or was changed: its content does not have the hash that it records.")


def sessions_of(provenance: Mapping[str, Any], *, ended: bool) -> list[dict[str, Any]]:
    """Return the sessions of a run.

    Args:
        provenance: what `read_provenance` returned.
        ended: no process works on the run (but the one that asks): a session without an end was killed.
    """
    sessions = [dict(entry) for entry in provenance.get("sessions", [])]
    for entry in sessions:
        if ended and entry["exit"] is None:
            entry["exit"] = KILLED
    return sessions


def other_code(provenance: Mapping[str, Any]) -> str:
    """Return a sentence where a run was not surely made by this very code, whose numbers might be others.

    Args:
        provenance: what `read_provenance` returned.

    Returns:
        Nothing where it was.
    """
    makers, of_training = provenance.get("sessions", []), provenance.get("kind") == "training"
    if not of_training:
        # One has made it: the last that finished, or one that was killed after the files had their names and before it
        # could say so.
        finished = [number for number, by in enumerate(makers) if by["exit"] == FINISHED]
        makers = makers[finished[-1] if finished else 0 :]
    code = describe_code()
    if not any(by["changed"] or any(by[key] != value for key, value in code.items()) for by in makers):
        return ""
    versions = list(dict.fromkeys(_version(by) for by in makers))
    if len(versions) > 1 and not of_training:
        return "It is not known by which code it was made, as the last that worked on it did not finish."
    return f"It was made by {' and '.join(versions)}, which may be other code than this."


def _version(code: Mapping[str, Any]) -> str:
    commit = f", commit {code['commit']}{' with changes' if code['changed'] else ''}" if code["commit"] else ""
    return f"HandCLIP {code['handclip']}{commit}"


def content_sha256(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain values as canonical JSON: keys in order, no spaces."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Return a hash of weights alone, by name; that of a file depends on where and when it was written.

    Args:
        state: a model's state dict.
    """
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    if isinstance(error, Interrupted):
        return f"interrupted by {signal.Signals(error.signum).name}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by SIGINT"
    return f"failed: {error if isinstance(error, HandCLIPError) else f'{type(error).__name__}: {error}'}"


def _move_aside(path: Path) -> Path:
    taken = {other.name for other in path.parent.iterdir()}
    numbers = (f"{path.stem}.damaged{number or ''}{path.suffix}" for number in range(len(taken) + 1))
    aside = path.with_name(next(name for name in numbers if name not in taken))
    try:
        return path.replace(aside)
    except OSError as error:
        raise HandCLIPError(f"cannot rename {path}: {error.strerror or error}") from error
