"""The names of people in figures: cut to their room, and only where the figures' font can draw them."""

import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache

from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font

from handclip.report.figures.style import FONT

_RIGHT_TO_LEFT = ("R", "AL", "AN")
_JOINERS = "\u200c\u200d"
"""Part of how Persian and Indian names are spelt, and invisible."""
_DOTS_PER_INCH = 720


def visible_name(name: str) -> str:
    """Return a name on one line; what would not be seen, or would turn the text around it, is written as its code."""
    return "".join(map(_visible, unicodedata.normalize("NFC", name)))


def person_labels(names: Mapping[int, str], inches: float, size: float) -> dict[int, str]:
    """Return what stands for each person in a figure.

    That is the name, without its middle where it is too long. `#` and the number stand for a name that the font lacks
    letters for, that is read from right to left, or that would look like another's when it is cut.

    Args:
        names: by the person's number.
        inches: room for each.
        size: of the letters, in points.
    """
    shown = {person: visible_name(name) for person, name in names.items()}
    cut = {person: _cut(name, inches, size) for person, name in shown.items() if _can_be_drawn(name)}
    seen = Counter(cut.values())
    told_apart = {person: label for person, label in cut.items() if seen[label] == 1}
    return {person: told_apart.get(person, f"#{person}") for person in names}


def _visible(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    if unicodedata.category(character) == "Zs":  # a wide or an unbreakable space
        return " "
    return character.encode("unicode_escape").decode("ascii")


def _cut(name: str, inches: float, size: float) -> str:
    most = int(inches / _width("i" * 100, size) * 100)  # of the narrowest letters: a name may have thousands
    if len(name) <= most and _width(name, size) <= inches:
        return name
    # The ends tell more than the middle: `subject_000123` and `502-712/503` differ at theirs.
    for kept in range(min(len(name) - 1, most), 1, -1):
        shorter = f"{name[: -(-kept // 2)]}…{name[-(kept // 2) :]}"
        if _width(shorter, size) <= inches:
            return shorter
    return "…"


def _width(text: str, size: float) -> float:
    """Return the width of a text in inches."""
    font = _font()
    font.set_size(size, _DOTS_PER_INCH)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64 / _DOTS_PER_INCH  # it measures in 64ths of a dot


def _can_be_drawn(text: str) -> bool:
    drawn = _font().get_charmap()
    return bool(text.strip()) and all(
        ord(character) in drawn and unicodedata.bidirectional(character) not in _RIGHT_TO_LEFT for character in text
    )


@cache
def _font() -> FT2Font:
    return FT2Font(findfont(FONT))
