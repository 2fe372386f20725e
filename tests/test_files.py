import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from handclip.errors import HandCLIPError
from handclip.files import in_use, read_json, remove_abandoned, replacing, write_json, write_text


def test_text_keeps_its_line_ends_and_alphabet(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "text.csv"
    write_text(path, "ä\r\n手\n")
    assert path.read_bytes() == "ä\r\n手\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"名": [1, 2.5, None, True], "inner": {}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_json_refuses_nan_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    assert read_json(path) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_parent_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HandCLIPError, match=r"cannot write .*file/a\.txt"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_a_folder_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(HandCLIPError, match="cannot write"):
        write_text(tmp_path / "a.txt", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_name_too_long_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(HandCLIPError, match="cannot write"):
        write_text(tmp_path / ("x" * 300), "x")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"{'a': 1}"])
def test_damaged_json_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(HandCLIPError, match="is damaged or is not JSON"):
        read_json(path)


def test_missing_json_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(HandCLIPError, match="no such file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(HandCLIPError):
        read_json(tmp_path)


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
        process.kill()
        process.wait()
    (left,) = tmp_path.glob(".*.part")
    assert (left.read_text(), path.read_text()) == ("half", "old")
    other = tmp_path / ".b.txt.01234567.part"
    other.touch()
    write_text(path, "new")
    assert sorted(tmp_path.iterdir()) == [other, path]
    assert path.read_text() == "new"


def test_what_a_living_process_is_writing_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with writing(path):
        write_text(path, "new")
        (part,) = tmp_path.glob(".*.part")
        assert (part.read_text(), path.read_text()) == ("half", "new")


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

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # Some file systems find out only when what was written goes to the disk.
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(HandCLIPError, match=r"cannot write .*a\.txt: No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
