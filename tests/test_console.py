"""What a person sees while something runs, at a terminal and elsewhere."""

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


def test_what_is_logged_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch):
    screen = at_terminal(monkeypatch, terminal=False)
    handler = console.ConsoleHandler()
    handler.emit(logging.LogRecord("handclip", logging.INFO, "", 0, "[1/7] stage [bold]%s", ("0",), None))
    assert screen.getvalue() == "[1/7] stage [bold]0\n"
