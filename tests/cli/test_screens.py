"""Screens that are full, closed or gone: the work is done, and what became of its results is told where it can be."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest
import typer
from tiny_study import tiny_values, write_config

from handclip import cli
from handclip.console import stdout
from handclip.errors import DataError


class Answer(Protocol):
    """What the fixture `handclip` returns."""

    code: int
    err: str


NO_SPACE = (
    "Error: cannot write to the screen: No space left on device. What the command writes to files is not affected.\n"
)


@contextmanager
def screens(monkeypatch: pytest.MonkeyPatch, **numbers: int) -> Iterator[None]:
    """Put files or pipes into the place of streams of this process."""
    with monkeypatch.context() as patch:
        opened = {name: open(number, "w", encoding="utf-8") for name, number in numbers.items()}  # noqa: PTH123, SIM115
        for name, stream in opened.items():
            patch.setattr(sys, name, stream)
        yield
    for stream in opened.values():
        stream.close()  # which fails where it still holds what it could not write


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def unread() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.promise("screen-gone")
@pytest.mark.parametrize("screen", [full, unread])
def test_a_training_whose_screen_is_gone_goes_on_to_its_end(
    screen: Callable[[], int], handclip: Callable[..., Answer], manifests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_config(Path("tiny.yml"), tiny_values(manifests, epochs=2, num_workers=1))
    with screens(monkeypatch, stdout=screen(), stderr=screen()):
        answer = handclip("train", file)
    assert answer.code == 0
    [log] = Path("train_logs").glob("*/train.log")
    assert [log.read_text().count(f" Epoch {epoch}/2: ") for epoch in (1, 2)] == [1, 1]
    assert log.with_name("result.json").is_file()


@pytest.fixture
def prepared(handclip: Callable[..., Answer], hands: Path) -> Iterator[Callable[[], Answer]]:
    """Run a command that prints a table, and see that its files are written."""
    yield lambda: handclip("prepare", "11k", "--root", hands, "--out", "manifests")
    assert Path("manifests/summary.json").is_file()


@pytest.mark.promise("results-unshown")
def test_results_for_a_full_screen_are_told_of_in_one_sentence(
    prepared: Callable[[], Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    with screens(monkeypatch, stdout=full()):
        answer = prepared()
    assert (answer.code, answer.err) == (1, NO_SPACE)


@pytest.mark.promise("results-unshown")
def test_a_pipe_that_is_closed_ends_a_command_without_a_word_after_its_files_are_written(
    prepared: Callable[[], Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    with screens(monkeypatch, stdout=unread()):
        answer = prepared()
    assert (answer.code, answer.err) == (141, "")


def test_nothing_is_said_where_nothing_can_be(handclip: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    with screens(monkeypatch, stdout=full(), stderr=full()):
        answers = [handclip("--version").code, handclip("train", "nothing.yml").code, handclip("--misspelt").code]
    assert answers == [1, 2, 1]
    with screens(monkeypatch, stdout=full()):
        answer = handclip("--help")
    assert (answer.code, answer.err) == (1, NO_SPACE)


@pytest.mark.promise("results-unshown")
@pytest.mark.parametrize(
    ("screen", "error", "code", "said"),
    [
        (full, typer.Exit(2), 2, NO_SPACE),
        (unread, typer.Exit(2), 2, ""),
        (unread, DataError("a run has failed"), 1, "Error: a run has failed\n"),
    ],
)
def test_an_error_of_the_command_has_its_own_exit_code_whatever_the_screen(
    screen: Callable[[], int],
    error: Exception,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with screens(monkeypatch, stdout=screen()), pytest.raises(SystemExit) as end:
        run_failing(error, monkeypatch)
    assert (end.value.code, capsys.readouterr().err) == (code, said)


def test_other_errors_of_the_system_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="No space left"):
        run_failing(OSError(28, "No space left on device"), monkeypatch)


def run_failing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command that prints a table and fails."""
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        stdout.print("a table")
        raise error

    monkeypatch.setattr(sys, "argv", ["fail"])
    cli.run(app)


@pytest.mark.promise("screen-gone")
@pytest.mark.parametrize(
    ("redirections", "out"), [(">&-", ""), ("2>&-", "handclip "), ("<&- >&- 2>&-", ""), (">/dev/full 2>&-", "")]
)
def test_a_command_whose_streams_are_closed_works(redirections: str, out: str) -> None:
    command = ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "handclip", "--version"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1 if "full" in redirections else 0, "")
    assert ended.stdout.startswith(out)
    assert bool(ended.stdout) == bool(out)
