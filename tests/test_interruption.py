"""Signals become an exception or a request, and afterwards mean what they meant before."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from pydantic import BaseModel, field_serializer

from handclip import interruption
from handclip.errors import HandCLIPError, Interrupted
from handclip.interruption import AskedToStop, StopRequest, ending_at_once, interruptible, stopping_later, waiting

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.fixture(autouse=True)
def came() -> Iterator[list[int]]:
    """Signals that reached whoever handled them before; tests may run in a shell that ignores Ctrl-C."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in SIGNALS}
    yield received
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*signals: int) -> None:
    for signum in signals:
        os.kill(os.getpid(), signum)


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as `handclip`, of which nothing may end the tests."""
    monkeypatch.setattr(interruption.os, "_exit", sys.exit)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/handclip"])


@pytest.mark.parametrize(("signum", "code"), CODES)
def test_a_signal_stops_wherever_the_program_is(signum: int, code: int, came: list[int]) -> None:
    tidied = []
    with pytest.raises(Interrupted) as caught, interruptible():
        try:
            send(signum)
        except Exception:
            pytest.fail("what deals with errors must not swallow it")
        finally:
            tidied.append(True)
    assert (caught.value.signum, caught.value.exit_code, caught.value.advice) == (signum, code, "")
    assert tidied
    send(signum)
    assert came == [signum]  # as before


IMPORTING = "import sends_a_signal"


@pytest.fixture
def module_that_sends_one(command_line: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module in whose import SIGINT comes."""
    (tmp_path / "sends_a_signal.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("sends_a_signal", None)


@pytest.mark.parametrize("module", ["handclip.cli", "run_eval_clip", "__main__"])
def test_a_program_that_only_imports_ends_at_once(
    module: str, module_that_sends_one: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, interruptible():
        exec(IMPORTING, {"__name__": module})
    assert ended.value.code == 130
    assert capfd.readouterr().err == "Interrupted. To go on, give the same command again.\n"


@pytest.mark.promise("signal-while-importing")
def test_an_import_in_the_midst_of_work_lets_all_tidy_up(module_that_sends_one: None) -> None:
    with pytest.raises(Interrupted), interruptible():
        exec(IMPORTING, {"__name__": "handclip.runs.evaluate"})


@pytest.mark.parametrize(("signum", "code"), CODES)
def test_a_program_ends_with_what_shells_expect(signum: int, code: int, command_line: None, came: list[int]) -> None:
    with pytest.raises(SystemExit) as ended, ending_at_once():
        send(signum)
    assert ended.value.code == code
    send(signum)
    assert came == [signum]


@pytest.mark.parametrize(
    ("program", "ours"),
    [
        *[("/usr/bin/handclip", True), ("handclip.exe", True), ("/site-packages/handclip/__main__.py", True)],
        *[("run_eval_clip.py", True), ("/site-packages/ipykernel/__main__.py", False), ("run_all.py", False)],
        *[("", False), ("-c", False), (None, False)],
    ],
)
def test_imports_end_at_once_where_the_command_line_is_the_program_only(
    program: str | None, ours: bool, command_line: None, came: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [] if program is None else [program])
    with pytest.raises(SystemExit) if ours else nullcontext(), ending_at_once():
        send(signal.SIGINT)
    assert came == ([] if ours else [signal.SIGINT])


def test_what_was_printed_is_not_lost_where_a_program_ends_at_once(
    command_line: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.dup(1), "w", buffering=10_000) as buffered, monkeypatch.context() as patch:  # noqa: PTH123
        patch.setattr(sys, "stdout", buffered)
        print("the comparison")
        with pytest.raises(SystemExit), ending_at_once():
            send(signal.SIGINT)
        assert capfd.readouterr().out == "the comparison\n"


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_request_waits_for_a_good_moment(signum: int, came: list[int]) -> None:
    with stopping_later() as request:
        request.raise_if_asked("not asked")
        send(signum)
        assert request.signum == signum
        with pytest.raises(Interrupted) as caught:
            request.raise_if_asked("Saved. Go on with --resume.")
    assert (caught.value.signum, caught.value.advice) == (signum, "Saved. Go on with --resume.")
    send(signum)
    assert came == [signum]


@pytest.mark.promise("hang-up")
@pytest.mark.parametrize("before", [[signal.SIGTERM], [signal.SIGHUP, signal.SIGTERM]])
def test_a_second_signal_stops_at_once(before: list[int]) -> None:
    """A terminal that is gone is no first warning."""
    with pytest.raises(Interrupted) as caught, stopping_later() as request:
        send(*before)
        assert request.signum == signal.SIGTERM
        send(signal.SIGINT)
        pytest.fail("the second one was noted only")
    assert caught.value.signum == signal.SIGINT


@pytest.mark.parametrize(("signum", "code"), CODES)
def test_a_first_signal_does_not_wait_for_what_may_never_come(signum: int, code: int) -> None:
    with stopping_later() as request:
        with waiting():
            pass
        with pytest.raises(AskedToStop) as first, waiting():
            send(signum)
            pytest.fail("it has waited")
        assert (first.value.exit_code, request.signum) == (code, signum)
        with pytest.raises(AskedToStop), waiting():
            pytest.fail("it was asked before, and has waited")
    with waiting(), pytest.raises(Interrupted), interruptible():
        send(signum)


@pytest.mark.parametrize("moment", [True, False], ids=["as it begins", "as it ends"])
def test_nothing_is_waited_for_any_more_whenever_the_signal_has_come(
    moment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(request: StopRequest, waited_for: bool) -> None:
        if waited_for:
            now.append(waited_for)
        if waited_for is moment and request.signum is None:
            send(signal.SIGTERM)
        now.append(waited_for)

    now = [False]
    with stopping_later() as request:
        monkeypatch.setattr(StopRequest, "is_waited_for", property(lambda request: now[-1], change), raising=False)
        with pytest.raises(AskedToStop), waiting():
            pass
        assert not request.is_waited_for


def test_an_error_after_what_was_waited_for_is_not_taken_for_the_signal() -> None:
    with pytest.raises(HandCLIPError, match="the disk is full"), stopping_later():
        try:
            with waiting():
                send(signal.SIGTERM)
        except AskedToStop:
            raise HandCLIPError("the disk is full") from None


def test_a_library_that_replaces_the_exception_does_not_keep_what_is_done_from_being_saved() -> None:
    def replace() -> None:
        try:
            send(signal.SIGTERM)
        except AskedToStop:
            raise ValueError("a compiled library's own") from None

    with stopping_later(), pytest.raises(AskedToStop), waiting():
        replace()


def test_a_signal_waits_for_the_step_while_another_thread_waits_for_a_batch() -> None:
    with stopping_later() as request:
        begun, ended = threading.Event(), threading.Event()

        def wait() -> None:
            with waiting():
                begun.set()
                ended.wait()

        thread = threading.Thread(target=wait)
        thread.start()
        begun.wait()
        send(signal.SIGTERM)
        ended.set()
        thread.join()
    assert request.signum == signal.SIGTERM


@pytest.mark.parametrize("block", [interruptible, stopping_later])
def test_what_is_ignored_stays_ignored_and_what_would_end_the_process_is_handled(block: type[interruptible]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell for what runs in the background, and `nohup`
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with block():
        send(signal.SIGINT, signal.SIGHUP, signal.SIGINT)
        with pytest.raises(Interrupted):
            send(signal.SIGTERM, signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.promise("hang-up")
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_is_gone_hurries_nobody(first: int) -> None:
    """The shell and the system both send it, and a session's manager after SIGTERM."""
    with stopping_later() as request:
        send(first, signal.SIGHUP, signal.SIGHUP)
        assert request.signum == first
    tidied = []
    for _ in range(2):  # the second time it is another one
        with pytest.raises(Interrupted) as caught, interruptible():
            try:
                with stopping_later() as request:
                    send(first)
                request.raise_if_asked()
            finally:
                send(signal.SIGHUP)
                tidied.append(caught)
    assert (caught.value.signum, len(tidied)) == (first, 2)


def test_that_a_signal_was_heard_is_said_at_once_where_there_is_a_screen(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopping_later("Finishing this step."):
        send(signal.SIGTERM)
    assert capfd.readouterr().err == "Finishing this step.\n"
    monkeypatch.setattr(sys, "stderr", None)
    with stopping_later("Finishing this step.") as request:
        send(signal.SIGTERM)
    assert request.signum == signal.SIGTERM


def test_blocks_nest() -> None:
    with interruptible():
        with stopping_later() as request:
            send(signal.SIGTERM)
        assert request.signum == signal.SIGTERM
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
        with pytest.raises(Interrupted), stopping_later() as inner, interruptible():
            send(signal.SIGINT)
        assert inner.signum is None


def test_an_error_inside_restores_what_was_and_another_thread_changes_nothing(came: list[int]) -> None:
    def work() -> None:
        for block in (interruptible, stopping_later):
            with block():
                seen.append([signal.getsignal(number) for number in SIGNALS])

    before, seen = [signal.getsignal(number) for number in SIGNALS], []
    for block in (interruptible, stopping_later):
        with pytest.raises(ValueError, match="other"), block():
            raise ValueError("other")
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, before]
    send(signal.SIGINT)
    assert came == [signal.SIGINT]


def test_a_library_that_replaces_the_exception_does_not_hide_the_signal() -> None:
    class Section(BaseModel):
        key: int = 1

        @field_serializer("key")
        def send_a_signal(self, value: int) -> int:
            signal.raise_signal(signal.SIGTERM)
            return value

    with pytest.raises(Interrupted) as stopped, interruptible():
        Section().model_dump()
    assert stopped.value.exit_code == 143
    with pytest.raises(Interrupted), stopping_later():
        signal.raise_signal(signal.SIGINT)
        Section().model_dump()


_LOSES_THE_SECOND = """
import os, signal, time
from handclip import interruption

interruption._PATIENCE = 0.5

class Losing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

signal.signal(signal.SIGTERM, signal.SIG_DFL)
with interruption.stopping_later():
    os.kill(os.getpid(), signal.SIGTERM)
    Losing()
    time.sleep(60)
"""


def test_a_second_signal_ends_the_process_also_where_its_exception_is_lost() -> None:
    ended = subprocess.run([sys.executable, "-c", _LOSES_THE_SECOND], capture_output=True, text=True, timeout=50)
    assert ended.returncode == 143
    assert ended.stderr.endswith("\nInterrupted. To go on, give the same command again.\n")
