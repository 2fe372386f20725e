"""What the folder of any run can be checked by: its checksums, its provenance and its config."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from handclip.checksums import read_checksums, sha256_of
from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import parse_config, read_yaml
from handclip.engine.hardware import describe_code
from handclip.engine.provenance import FINISHED, content_sha256, read_provenance, sessions_of
from handclip.errors import DamagedFileError
from handclip.file_names import CHECKSUMS, CONFIG, PROVENANCE
from handclip.verify.findings import Finding, Outcome, guarded


def check_folder(folder: Path, *, complete: bool, recent: bool) -> Iterator[Finding]:
    """Yield what is found of a run's files, whatever kind of run it is.

    Args:
        folder: of the run.
        complete: it has ended; one that has not may lack its checksums.
        recent: what it has measured shows that it is not by an older version, which wrote neither checksums nor
            provenance. Either of these shows it as well.
    """
    recent = recent or any((folder / name).exists() for name in (CHECKSUMS, PROVENANCE))
    yield from guarded(CHECKSUMS, lambda: _check_checksums(folder, complete, recent))
    yield from guarded(PROVENANCE, lambda: _check_provenance(folder, complete, recent))


def holds_text(path: Path, text: str) -> bool:
    """Whether a text is anywhere in a file, which may be damaged or not there."""
    try:
        return text.encode() in path.read_bytes()
    except OSError:
        return False


def read_config(folder: Path) -> ExperimentConfig:
    """Return the resolved config of a run.

    Raises:
        ConfigError: it is missing or is none.
    """
    return parse_config(read_yaml(folder / CONFIG), source=str(folder / CONFIG))


def recorded_file(path: str, folder: Path) -> Path | None:
    """Return a file that a run's records name: where it was, or where it lies if the whole study has moved.

    Args:
        path: as it was written, relative to the working directory of then.
        folder: of the run; the study's folder is two above.

    Returns:
        None where it is at neither place.
    """
    named = Path(path)
    moved = folder.resolve().parent.parent / named.parent.name / named.name
    return next((place for place in (moved, named) if place.exists()), None)


def _check_checksums(folder: Path, complete: bool, recent: bool) -> Iterator[Finding]:
    try:
        known = read_checksums(folder)
    except DamagedFileError as error:
        yield Finding(CHECKSUMS, Outcome.DIFFERS, str(error))
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name not in (CHECKSUMS, PROVENANCE):
                yield Finding(path.name, Outcome.NOT_CHECKED, f"its hash, as {CHECKSUMS} is not sound")
        return
    if known is None:
        yield _lacking(CHECKSUMS, complete, recent, "damage of its files is found only where it can be recomputed")
        return
    for name, recorded in known.items():
        if not (folder / name).exists():
            yield Finding(name, Outcome.GONE, f"{CHECKSUMS} names it, and it is not there")
        elif (found := sha256_of(folder / name)) != recorded:
            yield Finding(name, Outcome.DIFFERS, f"SHA-256 {found[:12]}, but {CHECKSUMS} says {recorded[:12]}")
        else:
            yield Finding(name, Outcome.MATCHES, f"SHA-256 {found[:12]}")


def _lacking(name: str, complete: bool, recent: bool, consequence: str) -> Finding:
    """Say why a file that vouches for the others is not there; it must not be enough to remove it."""
    if not recent:
        return Finding(name, Outcome.NOT_CHECKED, "not there: the run is by an older version")
    if not complete:
        return Finding(name, Outcome.NOT_CHECKED, "not there: the run has not ended")
    why = "not there, although this version writes it: somebody removed it, or a kill came just before it"
    return Finding(name, Outcome.GONE, f"{why}; {consequence}")


def _check_provenance(folder: Path, complete: bool, recent: bool) -> Iterator[Finding]:
    provenance = read_provenance(folder)
    if provenance is None:
        consequence = "where the run comes from cannot be checked"
        yield _lacking(PROVENANCE, complete, recent, consequence)
        return
    sessions = sessions_of(provenance, ended=True)
    last = sessions[-1]
    if last["exit"] == FINISHED:
        times = f"finished at {last['ended']}, in {len(sessions)} session{'s' if len(sessions) > 1 else ''}"
        yield Finding(PROVENANCE, Outcome.MATCHES, f"its own hash; {times}")
    else:
        yield Finding(PROVENANCE, Outcome.MATCHES, "its own hash")
        yield Finding("last session", Outcome.NOTE, f"begun at {last['started']}: {last['exit']}")
    if sentence := _other_code(last):
        yield Finding("code", Outcome.NOTE, sentence)
    found = content_sha256(read_yaml(folder / CONFIG))
    if found == provenance["config_sha256"]:
        yield Finding(CONFIG, Outcome.MATCHES, f"the config hash of {PROVENANCE}, {found[:12]}")
    else:
        recorded = provenance["config_sha256"]
        yield Finding(CONFIG, Outcome.DIFFERS, f"config hash {found[:12]}, but {PROVENANCE} says {recorded[:12]}")


def _other_code(session: dict[str, Any]) -> str:
    now = describe_code()
    then = {name: session[name] for name in now}
    if then == now and not now["changed"]:
        return ""
    made, present = _version(then), _version(now)
    return f"made by {made}" + (f"; this is {present}" if present != made else "")


def _version(code: dict[str, Any]) -> str:
    changed = ", with files changed since" if code["changed"] else ""
    return f"HandCLIP {code['handclip']}" + (f", commit {code['commit']}{changed}" if code["commit"] else "")
