"""A data set's files lie inside its root: no name and no link leads anywhere else.

Names with accents come in several Unicode forms that look the same: macOS may write an ü as u and two dots, others as
one character. Where no file has a name as it is written, the one that has it in another form is meant.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from unicodedata import normalize

from handclip.errors import DataError


def is_plain_relative(path: str) -> bool:
    """Whether a posix path stays in the folder that it is relative to, on any system, links aside."""
    posix = PurePosixPath(path)
    return (
        path == str(posix) != "."
        and not {"\0", "\\"} & set(path)
        and ".." not in posix.parts
        and not posix.is_absolute()
        and not PureWindowsPath(path).anchor
    )


def unicode_form(name: str) -> str:
    """Return the one form (NFC) that all forms of a name have in common, to compare names by."""
    return normalize("NFC", name)


class NamesOnDisk:
    """Finds what a path names on this disk, in whatever Unicode form; lists each folder once, and only if need be.

    Of two names that differ in their form alone, the one that is written as in the path is taken.
    """

    def __init__(self) -> None:
        self._folders: dict[Path, Path] = {}
        self._listed: dict[Path, dict[str, str]] = {}

    def find(self, path: Path) -> Path:
        """Return the path as the disk has it, or as it was given where there is nothing of its name in any form."""
        if str(path).isascii() or os.path.lexists(path):
            return path
        if path.parent not in self._folders:
            self._folders[path.parent] = self._find_folder(path.parent)
        return self._in(self._folders[path.parent], path.name)

    def _find_folder(self, path: Path) -> Path:
        """Go down to a folder; a path may come from anyone and be of any length, so not a step beyond what is there."""
        if os.path.lexists(path):
            return path
        found = Path(path.anchor)
        for name in path.parts[bool(path.anchor) :]:
            found = self._in(found, name)
            if not os.path.lexists(found):
                return path
        return found

    def _in(self, folder: Path, name: str) -> Path:
        if name.isascii() or os.path.lexists(folder / name):
            return folder / name
        if folder not in self._listed:
            self._listed[folder] = {unicode_form(one): one for one in _names_in(folder)}
        return folder / self._listed[folder].get(unicode_form(name), name)


def _names_in(folder: Path) -> list[str]:
    with suppress(OSError):  # who opens the file says what is wrong
        return sorted(entry.name for entry in folder.iterdir())
    return []


class DatasetFiles:
    """Looks at files below a root, and refuses those that a link takes from elsewhere.

    The root may be a link itself: it is the user who names it. What lies in it may have come from anyone.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names = NamesOnDisk()
        self._real_root = os.path.realpath(root)
        self._inside: set[Path] = set()

    def path(self, path: str) -> Path:
        """Return the file of a posix path relative to the root, as this disk has its name."""
        # ASCII has one form only, and is not looked for: data sets have many files.
        return self.root / path if path.isascii() else self._names.find(self.root / path)

    def status(self, path: str) -> os.stat_result:
        """Return size and kind of a file, given by its posix path relative to the root.

        Raises:
            DataError: the name, or a link, leads out of the root; says where to.
            OSError: there is no such file.
        """
        if not is_plain_relative(path):
            raise DataError(f"{self.root}: {path!r} is no plain name of a file in it (such as hands/1.jpg); rename it")
        file = self.path(path)
        if file.parent not in self._inside:  # looked at once, as data sets have many files in few folders
            self._require_inside(file.parent)
            self._inside.add(file.parent)
        status = os.lstat(file)
        if stat.S_ISLNK(status.st_mode):
            self._require_inside(file)
            status = file.stat()
        return status

    def _require_inside(self, path: Path) -> None:
        place = os.path.realpath(path)
        if os.path.commonpath([place, self._real_root]) != self._real_root:
            raise DataError(
                f"{path} leads out of the data set's root by a link, to {place}; "
                "name the folder that really holds the images as the root, or copy them into this one"
            )
