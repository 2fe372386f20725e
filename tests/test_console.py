"""What a person sees while something runs, at a terminal and elsewhere."""

import functools
import io
import logging

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


def test_no_bar_goes_to_a_file(monkeypatch: pytest.MonkeyPatch):
    screen = at_terminal(monkeypatch, terminal=False)
    with console.progress_over("reading images") as report:
        report(1, 2)
    assert screen.getvalue() == ""


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
    at_terminal(monkeypatch, terminal=False)
    caplog.set_level(logging.INFO, "handclip")
    now = 0.0
    monkeypatch.setattr(console, "ProgressLines", functools.partial(console.ProgressLines, clock=lambda: now))
    with console.progress_over("drawing hands") as report:
        for done in range(10_001):
            now = seconds * done / 10_000
            report(done, 10_000)
    assert len(caplog.messages) == lines
    assert example is None or example in caplog.messages


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


def test_what_is_logged_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch):
    screen = at_terminal(monkeypatch, terminal=False)
    handler = console.ConsoleHandler()
    handler.emit(logging.LogRecord("handclip", logging.INFO, "", 0, "[1/7] stage [bold]%s", ("0",), None))
    assert screen.getvalue() == "[1/7] stage [bold]0\n"
