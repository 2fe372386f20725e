"""What there is to audit in a place that somebody names."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from handclip.audit.findings import Kind
from handclip.errors import HandCLIPError
from handclip.file_names import FEATURES, LOG, METRICS_FILE, PER_QUERY, PROVENANCE, RESULT, SNAPSHOTS, STUDY
from handclip.files import folders_in, found_in, is_file, is_folder, is_there

_DEPTH = 3
"""How deep below a folder runs are looked for: a study's folder has them at 2."""

_RECORDS = (METRICS_FILE, RESULT, PROVENANCE)


@dataclass(frozen=True)
class Place:
    """Something to audit; of a folder that may not be read, which could hold anything, `unread` says why."""

    kind: Kind
    path: Path
    unread: str = ""


def find_places(path: Path) -> list[Place]:
    """Return what a path names: a run, a checkpoint or a manifest by itself, or all that lie below a folder.

    Raises:
        HandCLIPError: it names none of them, or may not be read itself.
    """
    if not is_there(path):
        raise HandCLIPError(f"{path}: no such file or folder")
    if is_folder(path):
        found = list(_below(path, _DEPTH))
    elif path.name in _RECORDS:
        found = list(_below(path.parent, 0))
    elif path.suffix == ".pth":
        found = [Place("checkpoint", path)]
    else:
        found = [Place("manifest", path)] if path.suffix == ".json" else []
    if not found:
        raise HandCLIPError(
            f"{path}: holds nothing to audit. Name folders of evaluations or trainings, or one above them, a "
            "checkpoint (.pth), or a manifest"
        )
    return found


def _below(folder: Path, depth: int) -> Iterator[Place]:
    if kind := _kind_of_run(folder):
        yield Place(kind, folder)
        return
    if is_file(folder / STUDY):
        yield Place("study", folder)
    yield from (Place("manifest", path) for path in found_in(folder, "manifest_*.json"))
    yield from (Place("checkpoint", path) for path in found_in(folder, "*.pth"))
    for inner in folders_in(folder) if depth else ():
        try:
            yield from _below(inner, depth - 1)
        except HandCLIPError as error:
            yield Place("folder", inner, f"{error}; what is there is not audited")


def _kind_of_run(folder: Path) -> Kind | None:
    if any(is_there(folder / name) for name in (RESULT, SNAPSHOTS, LOG)):
        return "training"
    if any(is_there(folder / name) for name in (METRICS_FILE, PER_QUERY, FEATURES, PROVENANCE)):
        return "evaluation"
    return None
