"""CSV that a spreadsheet may open: text that it would run as a formula is marked as text, and read back as it was.

The mark is an apostrophe in front, as the Open Worldwide Application Security Project advises against CSV injection.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV, with every text in them that could be a formula marked."""
    text = io.StringIO()
    writer = csv.writer(text)
    for row in rows:
        writer.writerow([safe(value) for value in row])
    return text.getvalue()


def csv_rows(lines: Iterable[str]) -> Iterator[list[str]]:
    """Read what `csv_text` wrote.

    Raises:
        csv.Error: it is no CSV.
    """
    for row in csv.reader(lines, strict=True):
        yield [plain(cell) for cell in row]


def safe(value: Any) -> Any:
    """Mark text that a spreadsheet would run; numbers, also negative ones in text, stay as they are."""
    return f"'{value}" if isinstance(value, str) and _is_marked_or_formula(value) else value


def plain(cell: str) -> str:
    """Undo `safe`."""
    return cell[1:] if cell.startswith("'") and _is_marked_or_formula(cell) else cell


def _is_marked_or_formula(text: str) -> bool:
    if not text.lstrip("'").startswith(_FORMULA):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False
