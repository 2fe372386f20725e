"""Ctrl-C and SIGTERM in the first moments of a command, in which it only imports."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_study import baseline_values, write_config

SCRIPT = Path(sys.executable).with_name("handclip")
"""Where pip has put it."""

_START = """
import atexit, os, runpy, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs in its background ignore Ctrl-C
signal.signal(signal.SIGTERM, signal.SIG_DFL)
script, module, more, number = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
left = None

def watch(event, arguments):
    global left
    if event == "import":
        left = left - 1 if left is not None else more if arguments[0] == module else None
        if left == 0:
            os.kill(os.getpid(), number)

@atexit.register
def confess():
    if left is None or left > 0:
        print(f"NO SIGNAL WAS SENT: {module} is not imported, or not so many others after it", file=sys.stderr)

sys.addaudithook(watch)
sys.argv = [script, "evaluate", "baseline.yml"]
if os.path.exists(script):
    runpy.run_path(script, run_name="__main__")
else:
    runpy.run_module("handclip", run_name="__main__", alter_sys=True)
"""


_HOST = """
import os, signal, sys

def watch(event, arguments):
    if event == "import" and arguments[0] == "typer":
        os.kill(os.getpid(), signal.SIGTERM)

signal.signal(signal.SIGTERM, lambda *_: print("the host answers"))
sys.addaudithook(watch)
sys.argv = ["ipykernel_launcher.py"]
import handclip.cli
print("and goes on")
"""


_LATE = """
import os, sys

def watch(event, arguments):
    late = event == "import" and os.path.exists("manifests/summary.json")
    if late and sys._getframe(1).f_globals["__name__"] == "handclip.cli":
        print(f"{arguments[0]} is imported after the work", file=sys.stderr)

sys.addaudithook(watch)
sys.argv[0] = "handclip"
from handclip.cli import main
main()
"""


@pytest.mark.promise("signal-while-importing")
@pytest.mark.parametrize(
    ("module", "more", "signum"),
    [
        # What the command line itself imports,
        ("typer", 0, signal.SIGINT),
        ("typer", 30, signal.SIGTERM),
        ("rich.progress", 5, signal.SIGINT),
        # what a command does: PyTorch, and numpy, which PyTorch goes on without if an exception comes out of it.
        ("pydantic", 10, signal.SIGINT),
        ("torch", 10, signal.SIGINT),
        ("numpy", 0, signal.SIGINT),
        ("torch", 300, signal.SIGINT),
    ],
)
def test_a_signal_while_a_command_imports_is_answered_in_one_sentence(
    module: str, more: int, signum: signal.Signals, here: Path
) -> None:
    write_config(here / "baseline.yml", baseline_values(here, manifest=None, data_root="nowhere"))
    command = [sys.executable, "-c", _START, str(SCRIPT), module, str(more), str(signum.value)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=here)
    assert "NO SIGNAL WAS SENT" not in ended.stderr, ended.stderr
    assert ended.stderr == "Interrupted. To go on, give the same command again.\n"
    assert (ended.returncode, ended.stdout) == (128 + signum, "")
    assert [path.name for path in here.iterdir()] == ["baseline.yml"]


def test_a_program_that_imports_the_command_line_answers_signals_itself() -> None:
    ended = subprocess.run([sys.executable, "-c", _HOST], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "the host answers\nand goes on\n"


@pytest.mark.promise("signal-while-importing")
def test_what_the_command_line_imports_it_imports_before_the_work(hands: Path, here: Path) -> None:
    """A signal during its own imports ends it at once, as if nothing had been begun."""
    command = [sys.executable, "-c", _LATE, "prepare", "11k", "--root", str(hands), "--out", "manifests"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=here)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (here / "manifests" / "summary.json").is_file()
