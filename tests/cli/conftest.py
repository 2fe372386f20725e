import pytest
from command_line import Handclip

from handclip import studies
from handclip.report.report import ReportFiles


@pytest.fixture
def handclip(here: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Handclip:
    """Run commands in an empty working directory."""
    return Handclip(monkeypatch, capsys)


@pytest.fixture
def with_report() -> None:
    """Ask for this, and studies end with their report as they do for users; it takes ten seconds each time."""


@pytest.fixture(autouse=True)
def _without_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "with_report" not in request.fixturenames:
        monkeypatch.setattr(
            studies, "report_evaluations", lambda runs, out, **_: ReportFiles(out / "report.html", [], [])
        )
