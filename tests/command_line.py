"""`handclip` as a person runs it, for tests: in this process, and with what it printed."""

import sys
from dataclasses import dataclass

import pytest

from handclip import cli


@dataclass(frozen=True)
class Answer:
    """What a command line printed, and its exit code."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Handclip:
    """Runs `handclip ARGUMENTS` in this process, as the console script does."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object) -> Answer:
        self.monkeypatch.setattr(sys, "argv", ["handclip", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = self.capsys.readouterr()
        return Answer(int(end.value.code or 0), captured.out, captured.err)

    def ok(self, *arguments: object) -> Answer:
        """Run what succeeds."""
        answer = self(*arguments)
        assert answer.code == 0, answer.err or answer.out
        return answer

    def refused(self, *arguments: object, code: int = 2) -> str:
        """Run what fails with an exit code; return what it says of it, on one line."""
        answer = self(*arguments)
        assert answer.code == code, answer.err or answer.out
        return " ".join(answer.err.split())


def changes(**values: object) -> list[str]:
    """Return `--set key=value` of each."""
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
