"""Patterns such as `{identity}/{session}/*`, by which the path of a photograph says whose it is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

IDENTITY = "identity"
PLAIN = "{identity}/*"
"""A folder for each identity, as where nothing else is said."""
_WILDCARD = re.compile(r"(\{[^{}]*\}|\*)")


class PathPattern:
    """Says whose photograph a file is by its path relative to the data set's root.

    A part between two slashes matches the name of one folder or file: `{name}` one or more of its characters, `*` any
    number, none included, all else itself. Where a name can be divided in several ways, the first wildcard takes as
    much as it can, then the second, and so on: by `{identity}_{n}.bmp`, `anna_lee_2.bmp` is of `anna_lee`. A wildcard
    that stands in a later part again, as in `{identity}/{identity}_{n}.jpg`, stands for the same text there.

    Args:
        text: the pattern.

    Raises:
        ValueError: says what is wrong with it.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts = [_Part.parse(part) for part in text.split("/")]
        if not any(IDENTITY in part.names for part in self._parts):
            raise ValueError(f"{text!r} does not say where the identity stands; an example: {{identity}}/{{session}}/*")

    @property
    def levels(self) -> int:
        """How many folders and files a path that matches has, one in the other."""
        return len(self._parts)

    def match(self, names: Sequence[str], *, longest: bool = True) -> dict[str, str] | None:
        """Return what each `{name}` stands for in a path, or None where it does not match.

        Args:
            names: the path's folders, and its file; where there are fewer than `levels`, the first parts alone are
                matched.
            longest: False has wildcards take as little as they can; where that gives another answer, the path can be
                read in more than one way.
        """
        if len(names) > self.levels:
            return None
        values: dict[str, str] = {}
        for part, name in zip(self._parts, names, strict=False):
            found = part.match(name, values, longest)
            if found is None:
                return None
            values |= found
        return values


@dataclass(frozen=True)
class _Part:
    """What stands between two slashes: wildcards, and the texts before, between and after them."""

    texts: tuple[str, ...]
    names: tuple[str, ...]
    """Of the wildcards; `*` for those without one."""

    @staticmethod
    def parse(part: str) -> "_Part":
        texts, wildcards = _WILDCARD.split(part)[::2], _WILDCARD.findall(part)
        names = tuple(wildcard.strip("{}") for wildcard in wildcards)
        named = [name for name, wildcard in zip(names, wildcards, strict=True) if wildcard != "*"]
        if part in ("", ".", ".."):
            raise ValueError("it is a path in the data set's folder, without a slash at either end, without . and ..")
        if any(set(text) & set("{}") for text in texts) or not all(name.isidentifier() for name in named):
            raise ValueError(f"{part!r} holds braces that are not around a name, as in {{identity}}")
        if not all(texts[1:-1]):
            raise ValueError(f"{part!r} has two wildcards side by side; nothing says where the one ends")
        if len(set(named)) < len(named):
            raise ValueError(f"{part!r} names a wildcard twice")
        return _Part(tuple(texts), names)

    def match(self, name: str, known: dict[str, str], longest: bool) -> dict[str, str] | None:
        texts, names = [self.texts[0]], []
        for wildcard, text in zip(self.names, self.texts[1:], strict=True):
            if wildcard in known:
                texts[-1] += known[wildcard] + text
            else:
                names.append(wildcard)
                texts.append(text)
        values = _divide(name, texts, [0 if one == "*" else 1 for one in names], longest)
        return None if values is None else {one: text for one, text in zip(names, values, strict=True) if one != "*"}


def _divide(name: str, texts: Sequence[str], least: Sequence[int], longest: bool) -> list[str] | None:
    """Return what stands between the texts in a name, each at least so long; None where there is no such division.

    Placing each text as far right as it can be gives the first wildcard its longest value, and given that the second,
    and so on. Regular expressions would try all divisions, of which a long name can have billions.
    """
    if len(texts) == 1:
        return [] if name == texts[0] else None
    if not longest:  # the same read backwards: what takes the most from the one end leaves the least to the other
        back = _divide(name[::-1], [text[::-1] for text in reversed(texts)], least[::-1], longest=True)
        return None if back is None else [value[::-1] for value in reversed(back)]
    first, *between, last = texts
    rest = name[len(first) : len(name) - len(last)]
    if not name.startswith(first) or not name.endswith(last) or len(name) < len(first) + len(last):
        return None
    values: list[str] = []
    for text, room in zip(reversed(between), reversed(least[1:]), strict=True):
        place = rest.rfind(text, 0, max(len(rest) - room, 0))
        if place < 0:
            return None
        values.insert(0, rest[place + len(text) :])
        rest = rest[:place]
    return [rest, *values] if len(rest) >= least[0] else None
