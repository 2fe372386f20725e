"""A data set's files lie inside its root: no name and no link leads anywhere else."""

import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

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


class DatasetFiles:
    """Looks at files below a root, and refuses those that a link takes from elsewhere.

    The root may be a link itself: it is the user who names it. What lies in it may have come from anyone.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real_root = os.path.realpath(root)
        self._inside: set[str] = set()

    def status(self, path: str) -> os.stat_result:
        """Return size and kind of a file, given by its posix path relative to the root.

        Raises:
            DataError: the name, or a link, leads out of the root; says where to.
            OSError: there is no such file.
        """
        if not is_plain_relative(path):
            raise DataError(f"{self.root}: {path!r} is no plain name of a file in it (such as hands/1.jpg); rename it")
        folder = path.rpartition("/")[0]
        if folder not in self._inside:  # looked at once, as data sets have many files in few folders
            self._require_inside(folder)
            self._inside.add(folder)
        status = os.lstat(self.root / path)
        if stat.S_ISLNK(status.st_mode):
            self._require_inside(path)
            status = (self.root / path).stat()
        return status

    def _require_inside(self, path: str) -> None:
        place = os.path.realpath(f"{self._real_root}/{path}")
        if os.path.commonpath([place, self._real_root]) != self._real_root:
            raise DataError(
                f"{self.root / path} leads out of the data set's root by a link, to {place}; "
                "name the folder that really holds the images as the root, or copy them into this one"
            )
