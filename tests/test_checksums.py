"""Checksums: whatever was changed is found and named, the list itself included."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from handclip.checksums import faults, read_checksums, require_intact, sha256_of, write_checksums
from handclip.errors import DamagedFileError
from handclip.file_names import CHECKSUMS

CONTENT = {"metrics.json": b'{"rank1": 0.875}\n', "per_query.csv": b"image,rank\na b.jpg,1\n", "empty": b""}


def make(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    write_checksums(folder, CONTENT)
    return folder


def test_the_list_is_one_that_sha256sum_reads(tmp_path: Path) -> None:
    folder = make(tmp_path)
    assert read_checksums(folder) == {name: sha256_of(folder / name) for name in CONTENT}
    assert subprocess.run(["sha256sum", "--check", "--strict", "--status", CHECKSUMS], cwd=folder).returncode == 0
    (folder / "empty").write_bytes(b"no more")
    assert subprocess.run(["sha256sum", "--check", "--strict", "--status", CHECKSUMS], cwd=folder).returncode == 1


@settings(derandomize=True, deadline=None, max_examples=90, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from([*CONTENT, CHECKSUMS]), place=st.integers(0, 10_000), bit=st.integers(0, 7) | st.none())
def test_a_flipped_bit_or_a_cut_anywhere_is_found_and_its_file_named(
    tmp_path: Path, name: str, place: int, bit: int | None
) -> None:
    """A list that ends at the end of a line would leave the files below it unchecked."""
    folder = make(tmp_path)
    content = bytearray((folder / name).read_bytes() or b"\0")
    place %= len(content)
    if bit is None:
        assume(name != "empty")
        del content[place:]
    else:
        content[place] ^= 1 << bit
    (folder / name).write_bytes(content)
    with pytest.raises(DamagedFileError, match=rf"/{name}: is damaged.*Copy it once more"):
        require_intact(folder, CONTENT, advice="Copy it once more")


def test_a_file_that_is_gone_is_named_with_what_to_do(tmp_path: Path) -> None:
    folder = make(tmp_path)
    (folder / "empty").unlink()
    message = r"/empty: no such file, although SHA256SUMS beside it lists it\. Copy it once more"
    with pytest.raises(DamagedFileError, match=message):
        require_intact(folder, CONTENT, advice="Copy it once more")
    require_intact(folder, ["metrics.json", "unlisted"], advice="Copy it once more")
    assert faults(folder, ["metrics.json"], all_listed=True) == []


def test_each_fault_of_several_files_is_one_sentence(tmp_path: Path) -> None:
    folder = make(tmp_path)
    (folder / "empty").unlink()
    (folder / "metrics.json").write_text("{}")
    names = [*CONTENT, "unlisted"]
    assert faults(folder, names) == [
        f"{folder / 'metrics.json'}: is damaged or was changed: it is not what SHA256SUMS beside it recorded",
        f"{folder / 'empty'}: no such file, although SHA256SUMS beside it lists it",
    ]
    assert faults(folder, names, all_listed=True)[0] == f"{folder / CHECKSUMS}: lacks unlisted"
    (folder / CHECKSUMS).write_text("")
    assert [fault.split(": ")[0] for fault in faults(folder, names)] == [str(folder / CHECKSUMS)]


def test_a_folder_without_a_list_is_not_checked(tmp_path: Path) -> None:
    assert read_checksums(tmp_path) is None
    require_intact(tmp_path, ["anything"], advice="")
    assert faults(tmp_path, ["anything"], all_listed=True) == []


def test_a_list_is_written_last_and_whole(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="lost: no such file"):
        write_checksums(tmp_path, ["lost"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.promise("pipe-for-file")
@pytest.mark.parametrize("name", ["metrics.json", CHECKSUMS])
def test_a_pipe_in_place_of_a_file_is_named_and_not_waited_for(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    message = rf"/{name}: cannot be read: it is no file but a pipe, a socket or a device"
    with pytest.raises(DamagedFileError, match=message):
        require_intact(folder, CONTENT, advice="Copy it once more")


@pytest.mark.promise("pipe-for-file")
def test_a_device_in_place_of_a_file_is_not_read_without_end(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").symlink_to("/dev/zero")
    with pytest.raises(DamagedFileError, match="it is no file but a pipe, a socket or a device"):
        sha256_of(tmp_path / "metrics.json")
