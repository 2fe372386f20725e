"""What a data set holds that is not read: said by kind, and by whom it is lost."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from handclip.datasets.file_kinds import KINDS, describe_counts
from handclip.datasets.manifest import Exclusions, Manifest
from handclip.errors import DataError
from handclip.files import as_text
from handclip.plurals import counted, first_lines

logger = logging.getLogger(__name__)


_COUNTED = {
    "missing_images": ("absent image", "absent images"),
    "unreadable_images": ("unreadable image", "unreadable images"),
    "copied_images": ("copy of another image", "copies of other images"),
    "unread_identities": ("identity of which nothing is read", "identities of which nothing is read"),
    "empty_identities": ("identity without images of its own", "identities without images of their own"),
    "ignored_files": ("other file", "other files"),
}
"""What `Exclusions` count beside files by kind."""


def describe_left_out(manifests: Collection[Manifest], what: Sequence[str] = ("unread_files", *_COUNTED)) -> list[str]:
    """Return what manifests were made without, as `12 HEIC photographs`.

    Args:
        manifests: of all aspects in question.
        what: of that counts, by the names of `Exclusions`.
    """
    said = []
    for name in what:
        if name == "unread_files":
            if unread := sum((Counter(manifest.unread_files) for manifest in manifests), Counter()):
                said += describe_counts(unread)
        elif number := sum(getattr(manifest, name) for manifest in manifests):
            said.append(counted(number, *_COUNTED[name]))
    return said


@dataclass(frozen=True)
class Unread:
    """A file of one of `KINDS`, or a folder that may not be read."""

    kind: str
    path: str
    """Relative to the data set's root."""
    identity: str | None
    """Whose it is, where that can be told."""
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}" if self.why else f"such as {self.path}"


class LeftOut:
    """Collects what is not read below the root of a data set: what has to do with photographs, and other files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.unread: list[Unread] = []
        self.others: list[str] = []
        self.advice: dict[str, str] = {}
        """What to do with files of a kind, where more is known of it than `KINDS` says."""
        self.unread_identities = 0
        """Those of which nothing is read, while there is something; `report` counts them."""

    def add(self, kind: str | None, path: str, identity: str | None = None, why: str = "") -> None:
        """Add a file or folder of a kind; None is that of what has nothing to do with photographs."""
        if kind is None:
            self.others.append(path)
        else:
            self.unread.append(Unread(kind, path, identity, why))

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each kind, but for other files."""
        return dict(sorted(Counter(one.kind for one in self.unread).items()))

    def __str__(self) -> str:
        """Say what there is, with an example of each kind and what to do about it; empty where there is nothing."""
        said = [f"{_count(found)} ({found[0]}; {self._advice(found)})" for found in _by_kind(self.unread)]
        if self.others:
            said.append(f"{counted(len(self.others), 'other file')} (such as {self.others[0]})")
        return as_text(f"Left out of {self.root}: {'; '.join(said)}.") if said else ""

    def report(self, without_images: Iterable[str] = (), *, allow_missing: bool = False) -> None:
        """Log what there is, and of which identities nothing is read while there is something.

        Args:
            without_images: the identities of which no image is there.
            allow_missing: go on without them, and without what lies in folders that may not be read.

        Raises:
            DataError: there are such identities or folders, and they may not be missing; says what there is of each,
                and what to do.
        """
        unread_of: dict[str | None, list[Unread]] = {identity: [] for identity in without_images}
        for one in self.unread:
            unread_of.get(one.identity, []).append(one)
        lost = {str(identity): unread for identity, unread in unread_of.items() if unread}
        closed = [one for one in self.unread if one.kind == "closed" and one.identity not in lost]
        if (lost or closed) and not allow_missing:
            raise DataError(as_text(self._missing(lost, closed)))
        self.unread_identities = len(lost)
        if lost:
            who = ", ".join(first_lines(list(lost)))
            logger.warning(as_text(f"Left out {counted(len(lost), *_COUNTED['unread_identities'])}: {who}."))
        if sentence := str(self):
            logger.log(logging.WARNING if self.unread else logging.INFO, sentence)

    def exclusions(self, **others: int) -> Exclusions:
        """Return what is counted here, with what else is."""
        return Exclusions(
            ignored_files=len(self.others),
            unread_files=self.counts,
            unread_identities=self.unread_identities,
            **others,
        )

    def _missing(self, lost: Mapping[str, Sequence[Unread]], closed: Sequence[Unread]) -> str:
        lines = []
        if lost:
            there = {
                identity: ", ".join(f"{_count(found)} ({found[0]})" for found in _by_kind(unread))
                for identity, unread in lost.items()
            }
            lines.append(f"{self.root}: nothing is read of {counted(len(lost), 'identity', 'identities')}:")
            lines += first_lines([f"  {identity}: {what}" for identity, what in there.items()])
        if closed:
            lines.append(f"{self.root}: {counted(len(closed), 'folder')} may not be read:")
            lines += first_lines([f"  {one}" for one in closed])
        for found in _by_kind([*(one for unread in lost.values() for one in unread), *closed]):
            lines.append(f"Of {KINDS[found[0].kind].many}: {self._advice(found)}.")
        lines.append("To go on without them, pass --allow-missing (in a config, allow_missing: true)")
        return "\n".join(lines)

    def _advice(self, of_one_kind: Sequence[Unread]) -> str:
        kind = of_one_kind[0].kind
        return self.advice.get(kind, KINDS[kind].advice)


def _by_kind(unread: Iterable[Unread]) -> list[list[Unread]]:
    found: dict[str, list[Unread]] = {}
    for one in unread:
        found.setdefault(one.kind, []).append(one)
    return list(found.values())


def _count(of_one_kind: Sequence[Unread]) -> str:
    return describe_counts({of_one_kind[0].kind: len(of_one_kind)})[0]
