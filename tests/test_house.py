"""The essence lies inside, and can be read on one page; safety wraps it from outside."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_layers import PACKAGE, imported

ESSENCE = ("training", "retrieval", "loss", "metrics")
SAFETY = {"files", "locks", "interruption", "checksums", "file_names", "runs"}


@pytest.mark.parametrize("part", ESSENCE)
def test_what_computes_knows_nothing_of_files_locks_and_signals(part: str) -> None:
    for module in (PACKAGE / part).glob("*.py"):
        assert not imported(module) & SAFETY, module


def test_the_training_loop_fits_on_a_page() -> None:
    assert len((PACKAGE / "training" / "loop.py").read_text().splitlines()) < 120


def constructors() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for module in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                yield module, node


def test_no_constructor_takes_more_than_eight_parameters() -> None:
    for module, node in constructors():
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        assert len(parameters) - 1 <= 8, f"{module}, line {node.lineno}"
