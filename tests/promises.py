"""The tests that keep the promises of docs/reliability.md, listed there by `python tests/promises.py --write`.

A row of the table names its promise in a comment, `<!-- promise: killed -->`. Behind it stand the tests with the marker
`@pytest.mark.promise("killed")`, and the files that have it as their `pytestmark`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "reliability.md"
_LISTED = re.compile(r"(<!-- promise: ([\w-]+) -->)[^|]*")


def keepers(folder: Path) -> dict[str, list[str]]:
    """Return the names of the tests below a folder that keep each promise."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        for name, promise in _marks(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(promise, []).append(name or path.relative_to(ROOT).as_posix())
    return found


def _marks(module: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the name of a test, empty where it is all of the file, and a promise that it keeps."""
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef):
            name, marks = statement.name, statement.decorator_list
        elif isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "pytestmark":
            name, marks = "", getattr(statement.value, "elts", [statement.value])
        else:
            continue
        for mark in marks:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise":
                yield from ((name, ast.literal_eval(promise)) for promise in mark.args)


def listed(text: str, tests: dict[str, list[str]]) -> str:
    """Return the document with the tests that keep each promise behind its comment."""
    return _LISTED.sub(
        lambda row: " ".join([row[1], ", ".join(f"`{name}`" for name in tests.get(row[2], [])), ""]), text
    )


def promises(text: str) -> list[str]:
    """Return the promises of the document, in its order."""
    return [promise for _, promise in _LISTED.findall(text)]


if __name__ == "__main__":
    before = DOCUMENT.read_text(encoding="utf-8")
    after = listed(before, keepers(ROOT / "tests"))
    if sys.argv[1:] == ["--write"]:
        DOCUMENT.write_text(after, encoding="utf-8")
    elif after != before:
        sys.exit(f"{DOCUMENT}: does not list the tests as they are; python tests/promises.py --write does")
