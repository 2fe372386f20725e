"""Checksums of what was written, so that a file that has changed since is found before anything is read from it.

They lie beside the files in `SHA256SUMS`, in the form that `sha256sum --check` reads. Its last line, a comment to that
program, is the checksum of the lines above it: a list that was cut off must not leave files unchecked.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from handclip.errors import DamagedFileError
from handclip.file_names import CHECKSUMS
from handclip.files import opened, reading, write_text

_LINE = re.compile(r"([0-9a-f]{64})  ([^\\\n]+)")
_LAST_LINE = "# SHA-256 of the lines above: "


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal.

    Raises:
        DamagedFileError: the file cannot be read.
    """
    with reading(path, DamagedFileError) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write `SHA256SUMS` of files in a folder, by their names in it; where it stands, they are complete."""
    text = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in sorted(names))
    write_text(folder / CHECKSUMS, text + _last_line(text))


def read_checksums(folder: Path) -> dict[str, str] | None:
    """Return the SHA-256 of each file by its name, None where the folder has no `SHA256SUMS`.

    Raises:
        DamagedFileError: it is damaged itself.
    """
    path = folder / CHECKSUMS
    try:
        with opened(path) as file:
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    listed, mark, _ = text.rpartition(_LAST_LINE)
    if not mark or text != listed + _last_line(listed):
        raise DamagedFileError(
            f"{path}: is damaged, or another program made it: its last line does not hold the hash of those above"
        )
    found = {}
    for number, line in enumerate(listed.removesuffix("\n").split("\n"), start=1):
        if (match := _LINE.fullmatch(line)) is None:
            raise DamagedFileError(f"{path}: line {number} is no checksum")
        found[match[2]] = match[1]
    return found


def require_intact(folder: Path, names: Sequence[str], *, advice: str) -> None:
    """Check files, by their names in a folder, against its `SHA256SUMS`, as far as there is one that lists them.

    Raises:
        DamagedFileError: names the first file that is gone or has changed, with the advice that is given.
    """
    if found := faults(folder, names):
        raise DamagedFileError(f"{found[0]}. {advice}")


def faults(folder: Path, names: Sequence[str], *, all_listed: bool = False) -> list[str]:
    """Return what is wrong with files that the folder's `SHA256SUMS` lists, or with that list, one sentence for each.

    Without a list nothing is wrong. With `all_listed`, that a file is not in it is a fault too.
    """
    try:
        known = read_checksums(folder)
    except DamagedFileError as error:
        return [str(error)]
    if known is None:
        return []
    unlisted = ", ".join(name for name in names if all_listed and name not in known)
    found = [f"{folder / CHECKSUMS}: lacks {unlisted}"] if unlisted else []
    return found + [fault for name in names if name in known and (fault := _fault(folder, name, known[name]))]


def _fault(folder: Path, name: str, sha256: str) -> str:
    path = folder / name
    try:
        if sha256_of(path) == sha256:
            return ""
    except DamagedFileError as error:
        return f"{error}, although {CHECKSUMS} beside it lists it"
    return f"{path}: is damaged or was changed: it is not what {CHECKSUMS} beside it recorded"


def _last_line(text: str) -> str:
    return f"{_LAST_LINE}{hashlib.sha256(text.encode('utf-8')).hexdigest()}\n"
