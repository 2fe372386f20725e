"""Words that follow a number."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, such as `1 run`, `2,101 images` or `3 people`.

    Args:
        number: how many.
        one: the noun in the singular.
        many: in the plural, where that is not the singular and an s.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
