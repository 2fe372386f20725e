"""Imports run one way, as CONTRIBUTING.md says: no module imports from a layer further right."""

import ast
import re
from pathlib import Path

import handclip

PACKAGE = Path(handclip.__file__).parent
[ORDER] = re.findall(r"`([^`]*→[^`]*)`", (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8"))
LAYERS = [re.findall(r"\w+", layer) for layer in f"_torchvision_operators, {ORDER} → __main__".split("→")]
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


def test_no_module_imports_from_further_right():
    for module in MODULES:
        own = module.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imported(module) if own != "__init__" else ():
            assert RANK[name] <= RANK[own], f"{module} imports handclip.{name}"


def test_every_part_has_a_layer():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
    assert parts == set(RANK)
