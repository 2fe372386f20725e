import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from handclip.errors import HandCLIPError
from handclip.files import (
    in_use,
    opened_text,
    read_json,
    remove_abandoned,
    replacing,
    replacing_together,
    write_json,
    write_text,
)

PIPE = "it is no file but a pipe, a socket or a device"


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "text.csv"
    write_text(path, "手\r\n")
    assert path.read_bytes() == "手\r\n".encode()
    assert list(path.parent.iterdir()) == [path]
    with opened_text(path) as text:
        assert list(text) == ["手\r\n"]
    value = {"名": [1, 2.5, None, True], "inner": {}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "1"
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    assert texts(tmp_path) == {"a.txt": "1"}


def test_what_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name, said in (
        ("file/a.txt", r"cannot write .*file/a\.txt: "),
        ("folder", r"cannot write .*folder: there is a folder of that name\. Move it away"),
        ("x" * 300, "cannot write .*File name too long"),
    ):
        with pytest.raises(HandCLIPError, match=said):
            write_text(tmp_path / name, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"{'a': 1}"])
def test_damaged_json_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(HandCLIPError, match="is damaged or is not JSON"):
        read_json(tmp_path / "a.json")


def test_what_is_no_file_is_a_clear_error_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in ((tmp_path / "none", "no such file"), (tmp_path, "Is a directory"), (tmp_path / "pipe", PIPE)):
        with pytest.raises(HandCLIPError, match=said):
            read_json(path)
    with pytest.raises(OSError, match=PIPE), opened_text(tmp_path / "pipe"):
        pytest.fail("it was opened")


_WRITER = """
import sys, time
from pathlib import Path
from handclip.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@contextmanager
def writing(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has written half of a file, and goes on."""
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def test_what_a_killed_process_left_goes_when_its_file_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a[1].txt"
    path.write_text("old")
    with writing(path) as process:
        write_text(path, "new")
        (left,) = tmp_path.glob(".*.part")
        assert (left.read_text(), path.read_text()) == ("half", "new")  # of a living process
        process.kill()
        process.wait()
    other = tmp_path / ".b.txt.01234567.part"
    other.touch()
    write_text(path, "newer")
    assert texts(tmp_path) == {other.name: "", path.name: "newer"}


def test_a_folder_that_a_killed_process_left_goes(tmp_path: Path) -> None:
    left, own = (tmp_path / f".hands.{digit * 8}.part" for digit in "01")
    for folder in (left, own):
        folder.mkdir()
        (folder / "1.jpg").touch()
    with in_use(own):
        remove_abandoned(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [own.name]
    remove_abandoned(tmp_path, "other")
    assert list(tmp_path.iterdir())
    remove_abandoned(tmp_path, "hands")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    # Some file systems find out only when what was written goes to the disk.
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(HandCLIPError, match=r"cannot write .*a\.txt: No space left on device"):
        write_text(path, "new")
    assert texts(tmp_path) == {"a.txt": "old"}


def test_a_file_and_then_its_name_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    synced = []

    def sync(descriptor: int) -> None:
        opened = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append("name" if opened == tmp_path and path.exists() else opened.suffix)
        if opened.is_file():
            os.write(descriptor, b"")  # what is open for reading only cannot be synced on Windows

    monkeypatch.setattr(os, "fsync", sync)
    write_text(path, "new")
    assert synced == [".part", "name"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_taken_for_abandoned_before_it_is_marked_is_made_anew(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process finds it in the moment between its making and its mark."""
    import fcntl

    part = tmp_path / ".a.txt.01234567.part"
    if kind == "folder":
        part.mkdir()
    removed: list[Path] = []
    lock = fcntl.flock

    def lock_too_late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(part)
            remove_abandoned(tmp_path)
            assert not part.exists()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_too_late)
    with in_use(part):
        assert removed
        assert part.is_dir() == (kind == "folder")
        remove_abandoned(tmp_path)
        assert part.exists()


def test_a_new_file_of_the_same_name_is_not_removed_for_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    part = tmp_path / ".a.txt.01234567.part"
    part.touch()
    lock = fcntl.flock

    def lock_the_old_one(descriptor: int, operation: int) -> None:
        part.unlink()
        part.write_text("new")
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_the_old_one)
    remove_abandoned(tmp_path)
    assert part.read_text() == "new"


def test_what_is_locked_for_one_process_alone_is_open_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS wants it."""
    import fcntl

    (tmp_path / ".a.txt.01234567.part").touch()

    def flock_of_nfs(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)
    remove_abandoned(tmp_path)
    assert not list(tmp_path.iterdir())


def made_together(folder: Path) -> dict[str, str]:
    with replacing_together(folder, ["index"]) as new:
        for name in ("a", "b", "index"):
            write_text(new / name, "new")
        assert new.parent == folder
    return texts(folder)


def test_files_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    left = folder / ".together.01234567.part"  # by a killed process
    left.mkdir(parents=True)
    (left / "a").touch()
    assert made_together(folder) == {"a": "new", "b": "new", "index": "new"}
    write_text(folder / "a", "mine")
    write_text(folder / "other", "mine")
    before = texts(folder)
    with pytest.raises(KeyboardInterrupt), replacing_together(folder, ["index"]) as new:
        write_text(new / "a", "newer")
        raise KeyboardInterrupt
    assert texts(folder) == before
    assert made_together(folder) == {**before, "a": "new"}


@pytest.mark.parametrize("name", ["a", "b", "index"])
def test_what_vouches_for_files_never_stands_beside_others(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_together(tmp_path)
    rename = Path.replace

    def replace_or_fail(self: Path, target: Path) -> Path:
        if target == tmp_path / name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace_or_fail)
    with pytest.raises(HandCLIPError, match=r"cannot write .*: Input/output error"):
        made_together(tmp_path)
    assert texts(tmp_path).keys() == {"a", "b"}


@pytest.mark.promise("folder-for-file")
def test_a_folder_in_place_of_one_of_several_files_is_named_and_the_others_stay(tmp_path: Path) -> None:
    for name in ("a.csv", "metrics.json"):
        (tmp_path / name).write_text("old")
    (tmp_path / "b.csv").mkdir()
    message = r"^cannot write .*/b\.csv: there is a folder of that name\. Move it away$"
    with pytest.raises(HandCLIPError, match=message), replacing_together(tmp_path, ["metrics.json"]) as folder:
        for name in ("a.csv", "b.csv", "metrics.json"):
            (folder / name).write_text("new")
    assert [(tmp_path / name).read_text() for name in ("a.csv", "metrics.json")] == ["old", "old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.csv", "metrics.json"]


def test_a_link_to_a_device_in_place_of_a_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.csv").symlink_to("/dev/full")
    with replacing_together(tmp_path, []) as folder:
        (folder / "a.csv").write_text("new")
    assert (tmp_path / "a.csv").read_text() == "new"
    assert not (tmp_path / "a.csv").is_symlink()
