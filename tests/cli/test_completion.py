"""Completion in shells: what they are offered, and how soon."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from handclip.config.completion import overrides
from handclip.config.loading import parse_config

SCRIPT = Path(sys.executable).with_name("handclip")
_HEAVY = """
import sys
sys.argv = ["handclip"]
from handclip.cli import main
try:
    main()
finally:
    print(*sorted({"torch", "numpy", "PIL"} & sys.modules.keys()), file=sys.stderr)
"""


def offered(line: str, shell: str = "zsh") -> subprocess.CompletedProcess[str]:
    """What the program answers a shell in which a line was typed before the tabulator."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_TYPER_COMPLETE_ARGS": line}
    environment = {**os.environ, **words, "_HANDCLIP_COMPLETE": f"complete_{shell}"}
    environment["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    return subprocess.run(
        [sys.executable, "-c", _HEAVY], check=False, capture_output=True, text=True, env=environment, timeout=60
    )


@pytest.mark.parametrize(
    ("shell", "line", "expected", "other"),
    [
        ("bash", "handclip tr", "train", "evaluate"),
        ("fish", "handclip train --re", "--resume", "--set"),
        ("bash", "handclip train a.yml --set asp", "aspect=palmar_l", "dataset=hd"),
        ("zsh", "handclip evaluate a.yml --set data", "dataset=hd", "aspect=palmar_l"),
        ("zsh", "handclip prepare f", "folder", "hd"),
        ("fish", "handclip cache ", "clear", "train"),
    ],
)
def test_commands_options_and_values_are_offered(shell: str, line: str, expected: str, other: str) -> None:
    answer = offered(line, shell)
    assert answer.returncode == 0
    assert expected in answer.stdout and other not in answer.stdout
    assert answer.stderr.strip() == ""  # nothing heavy was imported


@pytest.mark.parametrize("line", ["handclip train conf", "handclip compare eval", "handclip study s.yml --set asp"])
def test_files_and_folders_are_left_to_the_shell(line: str) -> None:
    assert offered(line, "bash").stdout.strip() == ""
    assert offered(line, "zsh").stdout.strip() == "_files"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_program_tells_a_shell_how_to_ask(shell: str) -> None:
    environment = {**os.environ, "_HANDCLIP_COMPLETE": f"source_{shell}"}
    answer = subprocess.run([SCRIPT], check=False, capture_output=True, text=True, env=environment)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert f"_HANDCLIP_COMPLETE=complete_{shell}" in answer.stdout


def test_bash_completes(here: Path) -> None:
    ask = 'eval "$(_HANDCLIP_COMPLETE=source_bash $0)"; COMP_WORDS=(handclip aud); COMP_CWORD=1'
    show = '_handclip_completion $0; echo "${COMPREPLY[@]}"'
    answer = subprocess.run(["bash", "-c", f"{ask}; {show}", SCRIPT], check=False, capture_output=True, text=True)
    assert (answer.stdout.strip(), answer.stderr) == ("audit", "")


def test_completion_is_installed_by_an_option(tmp_path: Path) -> None:
    command = ["bash", "-c", "$0 --install-completion; exit $?", SCRIPT]
    environment = {**os.environ, "HOME": str(tmp_path)}
    answer = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert (answer.returncode, "bash completion installed in" in answer.stdout) == (0, True)
    assert ".bash_completions/handclip.sh" in (tmp_path / ".bashrc").read_text()


def test_every_value_that_is_offered_is_one() -> None:
    needed = {"aspect=dorsal": {"dataset": "hd"}, "aspect=hand": {"dataset": "folder"}}
    base = {"experiment": "a", "model": "vitb16", "dataset": "11k", "data_root": "hands"}
    keys = set()
    for override in overrides():
        key, _, value = override.partition("=")
        also = {"neck": "bnneck"} if key == "test_feature" else needed.get(override, {})
        parse_config({**base, **also, key: value}, "test")
        keys.add(key)
    assert {"aspect", "dataset", "neck", "precision", "allow_missing", "quick_gelu"} < keys
