"""CSV that a spreadsheet may open: text that it would run as a formula is marked as text, and read back as it was.

The mark is an apostrophe in front, as the Open Worldwide Application Security Project advises against CSV injection.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Number
from typing import Any

_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n")


def csv_text(rows: Iterable[Sequence[Any]], *, line_end: str = "\r\n") -> str:
    """Return rows as CSV, with every text in them that could be a formula marked."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=line_end)
    for row in rows:
        writer.writerow([safe(value) for value in row])
    return text.getvalue()


def csv_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return rows as CSV below a line with their keys; a key that a row lacks is an empty cell.

    Args:
        rows: the rows.
        columns: their keys in order; default every key that any of them has.
    """
    header = list(dict.fromkeys(key for row in rows for key in row)) if columns is None else list(columns)
    return csv_text([header, *([row.get(key, "") for key in header] for row in rows)])


def csv_rows(lines: Iterable[str]) -> Iterator[list[str]]:
    """Read what `csv_text` wrote.

    Raises:
        csv.Error: it is no CSV.
    """
    for row in csv.reader(lines, strict=True):
        yield [plain(cell) for cell in row]


def safe(value: Any) -> Any:
    """Mark text that a spreadsheet would run; numbers, also negative ones in text, stay as they are."""
    return f"'{value}" if not isinstance(value, Number) and _is_marked_or_formula(str(value)) else value


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
