"""The photographs of a folder, and whose they are, by a pattern of their paths."""

import logging
import os
from collections import Counter, deque
from pathlib import Path

from handclip.config.path_pattern import IDENTITY, PLAIN, PathPattern
from handclip.datasets.file_kinds import is_image_name, kind_of, use_pattern
from handclip.datasets.left_out import LeftOut
from handclip.datasets.safe_paths import unicode_form
from handclip.errors import DataError
from handclip.files import as_text
from handclip.plurals import first_lines

logger = logging.getLogger(__name__)

_SYSTEM_FOLDERS = frozenset({"lost+found", "system volume information", "$recycle.bin", "found.000"})
"""What systems make in the root of a drive."""


class FolderListing:
    """Finds the photographs below a folder that a pattern matches, and collects what is left out.

    Hidden files and folders are never looked at, nor is what lies behind a link below the pattern's own levels.

    Args:
        root: the folder.
        pattern: says whose each is.
        manifest_name: of a file; folders in the root that hold it were written into the data set.

    Raises:
        DataError: the folder may not be read, a name in it is not UTF-8, or the pattern matches nothing in it.
    """

    def __init__(self, root: Path, pattern: PathPattern, manifest_name: str) -> None:
        self.paths_of: dict[str, list[str]] = {}
        """The image paths of each identity, in order; none of one of which only something else is there."""
        self.left_out = LeftOut(root)
        self._root = root
        self._pattern = pattern
        self._is_plain = pattern.text == PLAIN
        self._manifest_name = manifest_name
        self._of_the_system: list[str] = []
        self._look_into("")
        self.paths_of = {identity: sorted(paths) for identity, paths in sorted(self.paths_of.items())}
        nested = [one.path for one in self.left_out.unread if one.kind == "nested"]
        if nested:
            self.left_out.advice["nested"] = self._advice_on_nested(nested)
        if not self._is_plain:
            self._require_matches()

    def say_how_paths_are_read(self) -> None:
        """Log what folders of the system are left out, and what the pattern makes of a path."""
        for name in self._of_the_system:
            logger.info(f"Left out of {self._root}: {name}, a folder of the system.")
        if not self._is_plain:
            self._show_a_path()

    @property
    def without_images(self) -> list[str]:
        """The identities of which no image is there."""
        return [identity for identity, paths in self.paths_of.items() if not paths]

    def _look_into(self, folder: str) -> None:
        """Sort what lies in a folder of the pattern's own levels, by its path below the root."""
        identity = self._identity(folder)
        try:
            entries = _entries(self._root / folder)
        except OSError as error:
            if not folder:
                raise DataError(f"{self._root}: cannot be read: {error.strerror or error}") from error
            self._register(folder, identity)
            self.left_out.add("closed", folder, identity, error.strerror or str(error))
            return
        if _level(folder) == 1 and any(entry.name == self._manifest_name for entry in entries):
            return
        self._register(folder, identity)
        for entry in entries:
            path = f"{folder}/{entry.name}".lstrip("/")
            if entry.name.startswith("."):
                self._add_other(path)
            elif not _is_folder(entry):
                self._sort(path, identity)
            elif not folder and entry.name.casefold() in _SYSTEM_FOLDERS:
                self._of_the_system.append(entry.name)
            elif _level(path) < self._pattern.levels:
                self._look_into(path)
            elif entry.is_symlink() or not self._look_deeper(path, identity):
                self._add_other(path)

    def _look_deeper(self, folder: str, identity: str | None) -> bool:
        """Collect what has to do with photographs below the pattern's levels; say whether there is anything."""
        before = len(self.left_out.unread)
        folders = deque([folder])
        while folders:
            folder = folders.popleft()
            try:
                entries = _entries(self._root / folder)
            except OSError as error:
                self.left_out.add("closed_inside", folder, identity, error.strerror or str(error))
                continue
            for entry in entries:
                path = f"{folder}/{entry.name}"
                if entry.name.startswith(".") or entry.is_symlink():
                    continue
                if _is_folder(entry):
                    folders.append(path)
                elif is_image_name(entry.name):
                    self.left_out.add("nested" if self._is_plain else "unmatched", path, identity)
                elif (kind := kind_of(Path(entry.path))) is not None:
                    self.left_out.add(kind, path, identity)
        return len(self.left_out.unread) > before

    def _sort(self, path: str, of_folder: str | None) -> None:
        """Count a file of the pattern's own levels as what it is."""
        identity = self._identity(path) if _level(path) == self._pattern.levels else None
        if not is_image_name(path):
            kind = kind_of(self._root / path)
            if kind is None:
                self._add_other(path)
            else:
                self._register(path, identity)
                self.left_out.add(kind, path, identity or of_folder)
        elif identity is None:
            self.left_out.add("loose" if self._is_plain else "unmatched", path, of_folder)
        else:
            self._register(path, identity)
            self.paths_of[identity].append(path)

    def _register(self, path: str, identity: str | None) -> None:
        if identity is None:
            return
        self.paths_of.setdefault(identity, [])
        try:
            path.encode("utf-8")
        except UnicodeEncodeError as error:
            said = f"{self._root} holds a name that is not valid UTF-8, {path!r}; rename it"
            raise DataError(as_text(said)) from error

    def _add_other(self, path: str) -> None:
        # What lies beside the folders of a data set, such as a README, is none of its files.
        if "/" in path or self._pattern.levels == 1:
            self.left_out.add(None, path)

    def _advice_on_nested(self, nested: list[str]) -> str:
        """Say how to use photographs in folders inside the identities', without losing those that lie right in these.

        Where all are below one folder, as of an unpacked archive, it more likely holds the people than is one of them.
        """
        holders = {path.split("/", 1)[0] for path in nested}
        deeper_only = [name for name in holders if not self.paths_of.get(name)]
        own = [name for name, paths in self.paths_of.items() if paths]
        if len(own) > len(deeper_only):
            return "to use them, move them up, right into the folder of their identity"
        levels = Counter(path.count("/") + 1 for path in nested).most_common(1)[0][0]
        pattern = use_pattern(_pattern_of(levels))
        if len(holders) == 1:
            top = os.path.commonpath([path.rsplit("/", 2)[0] for path in nested])
            below = levels - top.count("/") - 1
            which = f" and {use_pattern(_pattern_of(below))}" if below > 2 else ""
            return (
                f"if the folders in {self._root / top} are the people, name that folder as the root{which}; if "
                f"{nested[0].split('/', 1)[0]} is one person, {pattern}"
            )
        lost = "; first move what lies right in the folder of an identity into one inside it" if own else ""
        return f"to use them, {pattern}{lost}"

    def _require_matches(self) -> None:
        """Refuse a pattern that matches no path of those that are there."""
        others = [one.path for one in self.left_out.unread if one.kind == "unmatched"]
        if others and not any(self.paths_of.values()):
            shown = "\n  ".join(first_lines(sorted(others), 5))  # what a folder looks like
            said = f"{self._root}: no photograph's path matches the pattern {self._pattern.text}; it holds"
            raise DataError(as_text(f"{said}\n  {shown}"))

    def _show_a_path(self) -> None:
        """Show what the pattern makes of a path, one that can be read in several ways where there is any."""
        matched = [path for paths in self.paths_of.values() for path in paths]
        if not matched:
            return
        unlike = [path for path in matched if self._identity(path, longest=False) != self._identity(path)]
        example = [*unlike, *matched][0]
        said = f"By the pattern {self._pattern.text}, {example} is of the identity {self._identity(example)}"
        if unlike:
            said += (
                f". {len(unlike):,} of {len(matched):,} paths can be read otherwise, this one as of "
                f"{self._identity(example, longest=False)}: each wildcard takes as much as it can, the first one first"
            )
        logger.info(f"{said}.")

    def _identity(self, path: str, *, longest: bool = True) -> str | None:
        """Whose a file or folder is; None where the pattern does not match it, or says it further down only.

        Names are matched as they are, else in the Unicode form that they share with a pattern that is typed elsewhere.
        """
        found = self._pattern.match(path.split("/") if path else (), longest=longest)
        if found is None and not path.isascii():
            in_one_form = PathPattern(unicode_form(self._pattern.text))
            found = in_one_form.match(unicode_form(path).split("/"), longest=longest)
        return (found or {}).get(IDENTITY)


def _level(path: str) -> int:
    """How many folders and files a path names, one in the other."""
    return len(path.split("/")) if path else 0


def _pattern_of(levels: int) -> str:
    """The pattern of paths of so many levels that begin with the identity."""
    return "/".join(["{identity}", "{session}", *"*" * (levels - 2)])


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that nobody can follow; who reads it as an image says why
        return False
