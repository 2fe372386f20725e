"""What a person sees while something runs, at a terminal and elsewhere."""

import fcntl
import functools
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest
from rich.console import Console

from handclip import console


def at_terminal(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(console, "stderr", Console(file=screen, force_terminal=terminal, width=100))
    return screen


def test_a_bar_shows_progress_also_before_the_total_is_known(monkeypatch: pytest.MonkeyPatch):
    screen = at_terminal(monkeypatch, terminal=True)
    with console.progress_over("reading images [1/2]") as report:
        report(0, 4)
        report(3, 4)
    shown = screen.getvalue()
    assert "reading images [1/2]" in shown
    assert "0/?" in shown or "3/4" in shown
    assert "to go" in shown


@pytest.mark.parametrize(
    ("seconds", "lines", "example"),
    [
        (9, 0, None),
        (300, 9, "drawing hands: 1,000 of 10,000 (10%); 0:04:30 to go"),
        (50, 4, "drawing hands: 6,000 of 10,000 (60%); 0:00:20 to go"),
        (7200, 73, "drawing hands: 9,000 of 10,000 (90%); 0:12:00 to go"),
    ],
)
def test_long_work_that_is_not_watched_says_now_and_then_how_far_it_is(
    seconds: int, lines: int, example: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    screen = at_terminal(monkeypatch, terminal=False)
    caplog.set_level(logging.INFO, "handclip")
    now = 0.0
    monkeypatch.setattr(console, "ProgressLines", functools.partial(console.ProgressLines, clock=lambda: now))
    with console.progress_over("drawing hands") as report:
        for done in range(10_001):
            now = seconds * done / 10_000
            report(done, 10_000)
    assert screen.getvalue() == ""  # no bar goes to a file
    assert len(caplog.messages) == lines
    assert example is None or example in caplog.messages


def test_where_no_logging_is_set_up_what_is_logged_is_printed_meanwhile(monkeypatch: pytest.MonkeyPatch):
    screen = at_terminal(monkeypatch, terminal=False)
    monkeypatch.setattr(logging.root, "handlers", [])
    log = logging.getLogger("handclip")
    with console.telling(), console.telling():
        log.info("Reading [the] manifests.")
    log.info("not meanwhile")
    log.setLevel(logging.WARNING)
    with console.telling():
        log.info("not wanted")
        log.warning("A warning.")
    assert screen.getvalue() == "Reading [the] manifests.\nA warning.\n"
    assert (log.handlers, log.level) == ([], logging.WARNING)


@pytest.mark.parametrize("logger", ["handclip", ""])
def test_a_program_s_own_logging_is_left_alone(logger: str, monkeypatch: pytest.MonkeyPatch):
    screen = at_terminal(monkeypatch, terminal=False)
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.getLogger(logger), "handlers", [logging.NullHandler()])
    with console.telling():
        logging.getLogger("handclip").warning("not twice")
    assert screen.getvalue() == ""


def test_one_step_that_takes_long_is_followed_by_a_line(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "handclip")
    moments = iter([0.0, 1.0, 29.0, 31.0, 32.0, 60.0])
    report = console.ProgressLines("reading images", clock=lambda: next(moments))
    for done in (0, 1, 2, 3, 4, 900):
        report(done, 1000)
    assert [message.split(";")[0] for message in caplog.messages] == [
        "reading images: 3 of 1,000 (0%)",
        "reading images: 900 of 1,000 (90%)",
    ]


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("handclip", logging.INFO, "", 0, message, (), None)


def test_what_is_logged_said_and_shown_is_printed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    odd = "[1/7] stage [bold]\ta:heart:b " + 200 * "x"
    console.say(odd)
    console.show(odd.replace("\t", " "))
    assert capsys.readouterr() == (odd.replace("\t", " ") + "\n", odd + "\n")
    screen = at_terminal(monkeypatch, terminal=False)
    console.ConsoleHandler().emit(record("[1/7] stage [bold]"))
    assert screen.getvalue() == "[1/7] stage [bold]\n"


def screen_on(number: int) -> TextIO:
    """A stream as Python makes them for files and pipes; that it closes without an error is part of each test."""
    return open(number, "w", encoding="utf-8")


def dead_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_device() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.promise("screen-gone")
@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("begin", [dead_pipe, full_device])
def test_what_a_screen_does_not_take_is_dropped(begin: Callable[[], int], name: str, monkeypatch: pytest.MonkeyPatch):
    number = begin()
    with screen_on(number) as screen:
        monkeypatch.setattr(sys, name, screen)
        for line in ("short", 3_000 * "long\n"):  # more than a stream keeps
            getattr(console, name).print(line)
            screen.flush()  # as Python does whenever it starts a process
        monkeypatch.undo()


def test_what_is_logged_meanwhile_is_dropped_and_what_follows_is_shown(monkeypatch: pytest.MonkeyPatch):
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    room = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"." * room)
    handler = console.ConsoleHandler()
    with screen_on(writer) as screen, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", screen)
        handler.emit(record("Epoch 1/9"))
        assert os.read(reader, 2 * room) == b"." * room
        handler.emit(record("Epoch 2/9"))
        assert os.read(reader, 100) == b"Epoch 2/9\n"
    os.close(reader)


def test_characters_that_a_screen_lacks_are_spelt(monkeypatch: pytest.MonkeyPatch):
    kept = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(kept, encoding="ascii"))
    console.stdout.print("手 caf\udce9.yml")
    assert kept.getvalue() == b"\\u624b caf\\udce9.yml\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_screen_that_is_not_there_is_printed_to_in_vain(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, name, None)
    getattr(console, name).print("nobody reads this")
    assert not getattr(console, name).is_terminal
    console.end_printing()


_CLOSED = """
import os, subprocess, sys
from handclip.console import begin_printing
begin_printing()
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    print("printed")
    print("printed", file=sys.stderr)
    os.write(1, b"printed by a library")
    os.write(2, b"printed by a library")
    subprocess.run(["sh", "-c", "echo printed by another process"], check=True)
    file.write("content")
"""


@pytest.mark.promise("screen-gone")
def test_what_goes_to_streams_that_are_closed_goes_into_no_file(tmp_path: Path):
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", _CLOSED, str(tmp_path / "file")]
    assert subprocess.run(command, check=False).returncode == 0
    assert (tmp_path / "file").read_text() == "content"
