import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from handclip import cli, studies
from handclip.report.report import ReportFiles


@dataclass(frozen=True)
class Answer:
    """What a command line printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def handclip(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run `handclip ARGUMENTS` in this process, as the console script does."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["handclip", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return Answer(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def with_report() -> None:
    """Ask for this, and studies end with their report as they do for users; it takes ten seconds each time."""


@pytest.fixture(autouse=True)
def _without_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "with_report" not in request.fixturenames:
        monkeypatch.setattr(
            studies, "report_evaluations", lambda runs, out, **_: ReportFiles(out / "report.html", [], [])
        )
