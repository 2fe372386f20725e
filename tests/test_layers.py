"""Imports run one way: no module imports from a layer further right."""

import ast
from pathlib import Path

import pytest

import handclip

PACKAGE = Path(handclip.__file__).parent
LAYERS = [
    {"_torchvision_operators", "errors", "cores", "console", "interruption", "file_names", "signatures", "plurals"},
    {"files"},
    {"checksums", "csv_files", "locks"},
    {"config"},
    {"datasets"},
    {"synthetic"},
    {"models"},
    {"loss"},
    {"metrics"},
    {"parallel"},
    {"retrieval"},
    {"training"},
    {"runs"},
    {"audit", "doctor"},
    {"report"},
    {"studies"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(module: Path) -> set[str]:
    """The parts of handclip that a module imports anywhere in it."""
    names = [
        name
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else []
        )
    ]  # fmt: skip
    return {name.split(".")[1] for name in names if name.startswith("handclip.")}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_from_further_right(module: Path):
    own = module.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for name in imported(module):
        assert RANK[name] <= RANK[own], f"{module} imports handclip.{name}"


def test_every_part_has_a_layer():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
    assert parts == set(RANK)
