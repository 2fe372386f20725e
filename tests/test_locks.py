"""One process at a time writes to a folder, and however it ends, the next one may."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from filelock import FileLock, SoftFileLock

from handclip import locks
from handclip.errors import HandCLIPError, InUseError
from handclip.locks import holding, holding_in_turn, is_held, lock_of, refuse_if_held

_HOLDER = """
import os, sys, time
from pathlib import Path
from handclip.locks import holding
with holding(Path(sys.argv[1])):
    if sys.argv[2] == "fork" and (child := os.fork()) == 0:
        time.sleep(60)
    print(child if sys.argv[2] == "fork" else 0, flush=True)
    time.sleep(60)
"""

_COUNTER = """
import sys
from pathlib import Path
from handclip.errors import InUseError
from handclip.locks import holding
folder, times = Path(sys.argv[1]), int(sys.argv[2])
counter = folder / "counter"
while times:
    try:
        with holding(folder):
            counter.write_text(str(int(counter.read_text()) + 1))
        times -= 1
    except InUseError:
        pass
"""


@contextmanager
def held_by_another(folder: Path, how: str = "alone") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds a folder, and the process that it has forked since."""
    command = [sys.executable, "-c", _HOLDER, str(folder), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process, child
        finally:
            process.kill()
            if child:
                os.kill(child, signal.SIGKILL)


def refusing(number: int) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    refuse_if_held(folder)
    with held_by_another(folder) as (process, _):
        who = rf"process {process.pid} on \S+, since 2\S+ \S+ \(-c .*run'? alone\)"
        how = rf"Wait until it has ended, or end it: kill {process.pid}"
        said = rf"^{re.escape(str(folder))} is being written by {who}\. {how}$"
        for _ in range(2):  # asking does not take the lock
            assert is_held(folder)
            with pytest.raises(InUseError, match=said), holding(folder):
                pass
            with pytest.raises(InUseError, match=said):
                refuse_if_held(folder)


def test_a_process_on_another_machine_is_to_be_ended_there(tmp_path: Path) -> None:
    with holding(tmp_path / "run"):
        facts = {**json.loads(lock_of(tmp_path / "run").read_text()), "pid": 4711, "host": "lab2"}
        lock_of(tmp_path / "run").write_text(json.dumps(facts))
        with pytest.raises(InUseError, match=r"process 4711 on lab2, .* or end it on lab2: kill 4711$"):
            refuse_if_held(tmp_path / "run")


def test_who_waits_in_turn_is_told_for_whom_once_and_not_to_end_it(tmp_path: Path) -> None:
    folder, told, held = tmp_path / "run", list[str](), ExitStack()
    process, _ = held.enter_context(held_by_another(folder))

    def tell(message: str) -> None:
        told.append(message)
        held.close()

    with holding_in_turn(folder, tell):
        pass
    [message] = told
    assert message.startswith(f"{folder} is in use by process {process.pid} on ")
    assert message.endswith("; waiting for it to finish.")
    assert "kill" not in message


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held_by_another(folder) as (process, _):
        process.kill()
        process.wait()
        assert lock_of(folder).exists()
        assert not is_held(folder)
        with holding(folder):
            assert is_held(folder)
    assert not lock_of(folder).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_forked_meanwhile_does_not_keep_the_lock(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held_by_another(folder, "fork") as (process, child):
        process.kill()
        process.wait()
        os.kill(child, 0)  # a worker, say, that has not noticed yet
        with holding(folder):
            pass


def test_processes_that_take_turns_never_overlap(tmp_path: Path) -> None:
    # Each removes the lock's file as it lets go, while the others wait for it.
    (tmp_path / "counter").write_text("0")
    command = [sys.executable, "-c", _COUNTER, str(tmp_path), "40"]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "120"


def test_who_takes_over_at_once_is_not_robbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = FileLock(lock_of(tmp_path / "run"), timeout=0)
    release = FileLock.release

    def release_to_another(lock: FileLock) -> None:
        release(lock)
        monkeypatch.undo()
        waiting.acquire()

    monkeypatch.setattr(locks.FileLock, "release", release_to_another)
    with holding(tmp_path / "run"):
        pass
    with pytest.raises(InUseError):
        holding(tmp_path / "run").__enter__()
    waiting.release()


def test_the_same_process_cannot_hold_a_folder_twice(tmp_path: Path) -> None:
    with holding(tmp_path / "run"):
        with pytest.raises(InUseError, match=f"process {os.getpid()} "), holding(tmp_path / "run"):
            pass
        with holding(tmp_path / "other"):
            assert is_held(tmp_path / "run")


def test_an_error_lets_go_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), holding(tmp_path / "new" / "run"):
        assert [path.name for path in (tmp_path / "new").iterdir()] == [".run.lock"]
        raise KeyboardInterrupt
    assert not list((tmp_path / "new").iterdir())
    assert not is_held(tmp_path / "new" / "run")
    os.mkfifo(tmp_path / "run.pth")  # held as a file is: whoever writes there says what is wrong, or replaces it
    with holding(tmp_path / "run.pth"):
        assert is_held(tmp_path / "run.pth")
        lock_of(tmp_path / "run.pth").unlink()  # by somebody


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '{"pid": "all"}', "\x00"])
def test_a_holder_that_could_not_say_who_it_is_holds_all_the_same(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "run"
    with holding(folder):
        lock_of(folder).write_text(content)
        with pytest.raises(InUseError, match=re.escape("another process. Wait until it has ended, or end it") + "$"):
            holding(folder).__enter__()


def test_a_full_disk_does_not_keep_from_holding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", refusing(errno.ENOSPC))
    with holding(tmp_path / "run"):
        assert is_held(tmp_path / "run")


def test_where_no_lock_can_be_made_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HandCLIPError, match=r"cannot write .*file/run: .*file is not a folder"):
        holding(tmp_path / "file" / "run").__enter__()
    assert not is_held(tmp_path / "file" / "run")

    monkeypatch.setattr(locks.FileLock, "acquire", refusing(errno.EROFS))
    with pytest.raises(HandCLIPError, match=r"\.run\.lock: Read-only file system"):
        holding(tmp_path / "run").__enter__()


def test_two_names_of_one_folder_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "run")
    with holding(tmp_path / "run"), pytest.raises(InUseError):
        holding(tmp_path / "elsewhere" / "link").__enter__()


def test_a_mounted_folder_holds_its_own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and allowed(path, mode))
    with holding(run):
        assert lock_of(run).parent == run
        assert is_held(run)
        with pytest.raises(InUseError):
            holding(run).__enter__()
    assert not any(run.iterdir())


def test_where_files_cannot_be_locked_the_record_of_the_holder_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without locks: the file is the lock, and without its holder's number it would never be given up."""
    import fcntl

    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOSYS))
    folder = tmp_path / "run"
    with pytest.warns(UserWarning, match="falling back to SoftFileLock"), holding(folder):
        own = SoftFileLock(lock_of(folder))
        assert own.pid == os.getpid()
        assert is_held(folder)
        with pytest.raises(InUseError, match="is being written by another process"):
            holding(folder).__enter__()
    assert not lock_of(folder).exists()
