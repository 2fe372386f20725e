"""The documents say what the code does: commands parse, files exist, every config key is explained."""

import re
import shlex
from pathlib import Path

import click
import pytest
import typer.main
from promises import DOCUMENT, keepers, listed, promises

from handclip.cli import app
from handclip.config.experiment import Augmentation, ExperimentConfig
from handclip.config.losses import LOSS_TYPES
from handclip.config.study import StudyConfig

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code_lines(document: Path) -> list[str]:
    blocks = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def commands(program: str) -> list[str]:
    return [line for document in DOCUMENTS for line in code_lines(document) if line.startswith(program + " ")]


@pytest.mark.parametrize("line", commands("handclip"))
def test_every_handclip_command_in_the_documents_parses(line: str):
    _, name, *arguments = shlex.split(line)
    group = typer.main.get_command(app)
    command = group.get_command(click.Context(group), name)
    assert command is not None, f"there is no command {name}"
    context = command.make_context(name, arguments)
    for name in ("config", "file"):
        named = context.params.get(name)
        assert named is None or (ROOT / named).is_file()


@pytest.mark.parametrize("line", commands("make"))
def test_every_make_target_in_the_documents_exists(line: str):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in line.split()[1:]:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.M), f"there is no target {target}"


@pytest.mark.parametrize("line", commands("python"))
def test_every_script_in_the_documents_exists(line: str):
    assert (ROOT / shlex.split(line)[1]).is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_the_documents_lead_somewhere(document: Path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name} links to {target}, which is not there"


def test_every_config_key_and_loss_is_explained():
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for key in (*ExperimentConfig.model_fields, *Augmentation.model_fields):
        assert f"`{key}`" in text, f"docs/configuration.md does not mention {key}"
    studies = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    for key in StudyConfig.model_fields:
        assert f"| `{key}` |" in studies, f"docs/studies.md does not mention {key}"
    losses = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    for name, options in LOSS_TYPES.items():
        row = next((line for line in losses.splitlines() if line.startswith(f"| `{name}`")), None)
        assert row is not None, f"docs/losses.md does not explain {name}"
        for option, field in options.model_fields.items():
            if option not in ("type", "weight"):
                assert f"`{option}" in row, f"docs/losses.md: {name} lacks {option}"
                if isinstance(field.default, float) and field.default:
                    assert f"`{option}: {field.default:g}`" in row, f"docs/losses.md: {name}.{option} is another"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_document_holds_a_placeholder(document: Path):
    assert not re.search(r"^[A-Z]+_[A-Z_]+$|TODO|TBD|XXX", document.read_text(encoding="utf-8"), re.M)


def test_the_readme_promises_only_what_the_continuous_integration_runs():
    assert "make check test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_promise_is_kept_by_the_tests_that_its_row_lists():
    text = DOCUMENT.read_text(encoding="utf-8")
    kept = keepers(ROOT / "tests")
    assert sorted(promises(text)) == sorted(kept), "a promise without a test, a test without a promise, or one twice"
    assert listed(text, kept) == text, "run: python tests/promises.py --write"
