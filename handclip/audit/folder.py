"""What the folder of any run can be checked by: its checksums, its provenance and its config."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from handclip.audit.findings import Finding, Outcome, guarded
from handclip.checksums import read_checksums, sha256_of
from handclip.config.experiment import DataConfig, ExperimentConfig
from handclip.config.loading import parse_config, read_yaml
from handclip.datasets.manifest import Manifest
from handclip.errors import DamagedFileError, HandCLIPError
from handclip.file_names import CHECKSUMS, CONFIG, PROVENANCE
from handclip.plurals import counted
from handclip.runs.artifacts import manifest_file
from handclip.runs.provenance import FINISHED, content_sha256, other_code, read_provenance, sessions_of


def check_folder(folder: Path, names: Iterable[str], *, complete: bool) -> Iterator[Finding]:
    """Yield what is found of a run's files, whatever kind of run it is.

    Args:
        folder: of the run.
        names: the files that a run of its kind vouches for with checksums when it has ended.
        complete: it has ended; one that has not may lack its checksums, or some of them.
    """
    yield from guarded(CHECKSUMS, _check_checksums, folder, names, complete)
    yield from guarded(PROVENANCE, _check_provenance, folder, complete)


def read_config(folder: Path) -> ExperimentConfig:
    """Return the resolved config of a run.

    Raises:
        ConfigError: it is missing or is none.
    """
    return parse_config(read_yaml(folder / CONFIG), source=str(folder / CONFIG))


def kept_manifests(folder: Path, config: DataConfig) -> dict[str, Manifest]:
    """Return the manifests that an evaluation has kept, by aspect.

    Raises:
        DataError: one is missing or damaged.
    """
    return {aspect: Manifest.load(manifest_file(folder, aspect)) for aspect in config.aspects}


def recorded_file(path: str, folder: Path) -> Path | None:
    """Return a file that a run's records name: where it was, or where it lies if the whole study has moved.

    None where it is at neither place. `path` is as it was written, relative to the working directory of then.
    """
    return next((place for place in _places(path, folder) if place.exists()), None)


def not_here(what: str, path: str, folder: Path | None = None) -> Finding:
    """Say that there is no such file as a run's records name: it is gone, or elsewhere together with its folder.

    The latter is so on somebody else's machine, and is not the run's fault. `folder` is None for a file that does not
    move with the study.
    """
    places = [Path(path)] if folder is None else _places(path, folder)
    if any(place.parent.is_dir() for place in places if place.parent != Path()):  # a bare name tells of no folder
        return Finding(what, Outcome.GONE, f"{path} is not there")
    return Finding(what, Outcome.NOT_CHECKED, f"{path} is not here, nor is its folder")


def working_directory(folder: Path) -> Path | None:
    """Return the working directory that the relative paths in a run's records are of.

    None where the run's folder was moved alone, or to a folder of another name: a file of the same name below the
    working directory of now may be another run's.
    """
    try:
        config = read_yaml(folder / CONFIG)
    except HandCLIPError:
        return None
    above = folder.resolve().parent
    for key in ("eval_dir", "output_dir"):
        recorded = Path(str(config.get(key, above)))
        rest = len(above.parts) - len(recorded.parts)
        if recorded.is_absolute() and Path(os.path.realpath(recorded)) == above:
            return Path.cwd()
        if not recorded.is_absolute() and above.parts[rest:] == recorded.parts:
            return Path(*above.parts[:rest])
    return None


def _places(path: str, folder: Path) -> list[Path]:
    named = Path(path)
    moved = folder.resolve().parent.parent / named.parent.name / named.name  # the study's folder is two above
    of_then = Path() if named.is_absolute() else working_directory(folder)
    return [moved] if of_then is None else [moved, of_then / named]


def _check_checksums(folder: Path, names: Iterable[str], complete: bool) -> Iterator[Finding]:
    try:
        known = read_checksums(folder)
    except DamagedFileError as error:
        yield Finding(CHECKSUMS, Outcome.DIFFERS, str(error))
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name not in (CHECKSUMS, PROVENANCE):
                yield Finding(path.name, Outcome.NOT_CHECKED, f"its hash, as {CHECKSUMS} is not sound")
        return
    if known is None:
        yield _lacking(CHECKSUMS, complete, "damage of its files is found only where it can be recomputed")
        return
    for name, recorded in known.items():
        if not (folder / name).exists():
            yield Finding(name, Outcome.GONE, f"{CHECKSUMS} names it, and it is not there")
        else:
            yield _same_hash(name, "SHA-256", sha256_of(folder / name), CHECKSUMS, recorded)
    for name in [name for name in names if name not in known] if complete else []:
        outcome = Outcome.DIFFERS if (folder / name).exists() else Outcome.GONE
        why = "as a run that has ended does: somebody took its line out, or a kill came just before it was written"
        yield Finding(name, outcome, f"{CHECKSUMS} does not list it, {why}")


def _lacking(name: str, complete: bool, consequence: str) -> Finding:
    """Say why a file that vouches for the others is not there; it must not be enough to remove it."""
    if not complete:
        return Finding(name, Outcome.NOT_CHECKED, "not there: the run has not ended")
    why = "not there, although this version writes it: somebody removed it, or a kill came just before it"
    return Finding(name, Outcome.GONE, f"{why}; {consequence}")


def _check_provenance(folder: Path, complete: bool) -> Iterator[Finding]:
    provenance = read_provenance(folder)
    if provenance is None:
        yield _lacking(PROVENANCE, complete, "where the run comes from cannot be checked")
        return
    *_, last = sessions = sessions_of(provenance, ended=True)
    finished = last["exit"] == FINISHED
    times = f"; finished at {last['ended']}, in {counted(len(sessions), 'session')}" if finished else ""
    yield Finding(PROVENANCE, Outcome.MATCHES, f"its own hash{times}")
    if not finished:
        yield Finding("last session", Outcome.NOTE, f"begun at {last['started']}: {last['exit']}")
    if sentence := other_code(provenance):
        yield Finding("code", Outcome.NOTE, sentence)
    if provenance["kind"] == "evaluation" and not complete and not (folder / CONFIG).exists():
        # It is written at the end, with what was measured.
        yield Finding(CONFIG, Outcome.NOT_CHECKED, "not there: the evaluation has not ended")
        return
    found = content_sha256(read_yaml(folder / CONFIG))
    yield _same_hash(CONFIG, "config hash", found, PROVENANCE, provenance["config_sha256"])


def _same_hash(name: str, kind: str, found: str, recorded_in: str, recorded: str) -> Finding:
    if found == recorded:
        return Finding(name, Outcome.MATCHES, f"{kind} {found[:12]}, as {recorded_in} says")
    return Finding(name, Outcome.DIFFERS, f"{kind} {found[:12]}, but {recorded_in} says {recorded[:12]}")
