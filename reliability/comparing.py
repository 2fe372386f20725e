"""What interrupted work has left, against what undisturbed work has: number by number, byte by byte."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import torch

from handclip.checksums import read_checksums, require_intact
from handclip.errors import DamagedFileError
from handclip.file_names import CHECKSUMS

MEASURED = re.compile(r"seconds|per_second|images/s|memory|started|ended|command|checkpoint_sha256", re.IGNORECASE)
"""Keys and columns of what a clock measures, which is never the same twice, of how the process was started, and of the
bytes of checkpoints, which may hold the same content in another way."""

_OF_THE_MACHINE = {"cost.json", "provenance.json", "provenance.csv", "eval.log"}
"""Files that tell of the time and of the processes that worked; they must be there."""

_MADE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC")


def differences(expected: Path, found: Path, *, from_the_same_files: bool = False) -> list[str]:
    """Return a sentence for each file of two folders that is missing, surplus, damaged, or has other content.

    Args:
        expected: the undisturbed work.
        found: the interrupted work; both were done in a folder of the same name.
        from_the_same_files: nothing was measured on the way, so that pages and figures are the same, too.
    """
    wanted, present = _files(expected), _files(found)
    sentences = [f"{name}: is missing" for name in sorted(wanted - present)]
    sentences += [f"{name}: is left over" for name in sorted(present - wanted)]
    for name in sorted(wanted & present):
        try:
            if not _equal(expected / name, found / name, from_the_same_files):
                sentences.append(f"{name}: is not the same")
        except (DamagedFileError, ValueError, RuntimeError) as error:
            sentences.append(f"{name}: {error}")
    return sentences


def half_written(folder: Path) -> list[str]:
    """Return what killed processes have begun and nobody has removed.

    The pixel cache is left out: what is half-written there counts as stored, and goes when room is made.
    """
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.part") if ".pix." not in path.name)


def _files(folder: Path) -> set[str]:
    """Return the results below a folder; states of training end with it, and locks with their process."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix not in {".part", ".lock", ".ckpt"}
        and path.name not in {"train.log", "bytes"}
        and "tensorboard" not in path.parts
    }


def _equal(expected: Path, found: Path, from_the_same_files: bool) -> bool:
    name = expected.name
    if name in _OF_THE_MACHINE:
        return True
    if name == CHECKSUMS:
        names = list(read_checksums(found.parent) or {})
        require_intact(found.parent, names, advice="")
        return names == list(read_checksums(expected.parent) or {})
    if expected.suffix == ".json":
        return bool(_without_time(_json(expected)) == _without_time(_json(found)))
    if expected.suffix == ".csv":
        return _columns(expected) == _columns(found)
    if expected.suffix == ".pth":
        return _same(torch.load(expected, weights_only=True), torch.load(found, weights_only=True))
    if name.endswith((".html", ".svg", ".png", ".md", ".tex")):
        return not from_the_same_files or _MADE.sub(b"", expected.read_bytes()) == _MADE.sub(b"", found.read_bytes())
    return expected.read_bytes() == found.read_bytes()


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _without_time(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_time(item) for key, item in value.items() if not MEASURED.search(key)}
    return [_without_time(item) for item in value] if isinstance(value, list) else value


def _columns(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {column: value for column, value in row.items() if not MEASURED.search(column)}
            for row in csv.DictReader(file)
        ]


def _same(first: Any, second: Any) -> bool:
    """Whether two checkpoints hold the same, to the last bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict)
            and first.keys() == second.keys()
            and all(_same(value, second[key]) for key, value in first.items())
        )
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(first == second)
