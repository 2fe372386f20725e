"""Words that follow a number, and the first of many names."""

from collections.abc import Sequence


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, such as `1 run`, `2,101 images` or `3 people`.

    Args:
        number: how many.
        one: the noun in the singular.
        many: in the plural, where that is not the singular and an s.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def first_names(names: Sequence[str], most: int = 3) -> str:
    """Return the first of several names, such as `a, b, c, ...`."""
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])


def first_lines(lines: Sequence[str], most: int = 10) -> list[str]:
    """Return the first of several lines, and as the last one how many more there are."""
    more = [f"and {len(lines) - most:,} more"] if len(lines) > most else []
    return [*lines[:most], *more]
