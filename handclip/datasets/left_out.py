"""What a data set holds that is not read: said by kind, and by whom it is lost."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from handclip.datasets.file_kinds import KINDS, describe_counts
from handclip.errors import DataError
from handclip.files import as_text
from handclip.plurals import counted

logger = logging.getLogger(__name__)

_NAMED = 10
"""How many identities or folders a message names."""


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

    def report(self) -> None:
        """Log what there is."""
        if sentence := str(self):
            logger.log(logging.WARNING if self.unread else logging.INFO, sentence)

    def require_nobody_lost(self, without_images: Iterable[str], *, allow_missing: bool) -> int:
        """Count the identities of which nothing is read, while there is something, and say who they are.

        Args:
            without_images: the identities of which no image is there.
            allow_missing: go on without them, and without what lies in folders that may not be read.

        Raises:
            DataError: there are such identities or folders, and they may not be missing; says what there is of each,
                and what to do.
        """
        found: dict[str | None, list[Unread]] = {identity: [] for identity in without_images}
        closed = []
        for one in self.unread:
            if one.identity in found:
                found[one.identity].append(one)
            elif one.kind == "closed":
                closed.append(one)
        lost = {str(identity): unread for identity, unread in found.items() if unread}
        if (lost or closed) and not allow_missing:
            raise DataError(as_text(self._missing(lost, closed)))
        if lost:
            who = ", ".join(_first(list(lost)))
            logger.warning(as_text(f"Left out {_identities(lost)} of which nothing is read: {who}."))
        return len(lost)

    def _missing(self, lost: Mapping[str, Sequence[Unread]], closed: Sequence[Unread]) -> str:
        lines = []
        if lost:
            there = {
                identity: ", ".join(f"{_count(found)} ({found[0]})" for found in _by_kind(unread))
                for identity, unread in lost.items()
            }
            lines.append(f"{self.root}: nothing is read of {_identities(lost)}:")
            lines += _first([f"  {identity}: {what}" for identity, what in there.items()])
        if closed:
            lines.append(f"{self.root}: {counted(len(closed), 'folder')} may not be read:")
            lines += _first([f"  {one}" for one in closed])
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


def _identities(lost: Mapping[str, Sequence[Unread]]) -> str:
    return counted(len(lost), "identity", "identities")


def _first(lines: Sequence[str]) -> list[str]:
    more = [f"and {len(lines) - _NAMED:,} more"] if len(lines) > _NAMED else []
    return [*lines[:_NAMED], *more]
