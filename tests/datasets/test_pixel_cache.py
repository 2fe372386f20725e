import hashlib
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_images import leave_without_home
from torch import Tensor

from handclip.datasets import pixel_cache
from handclip.datasets.pixel_cache import PixelCache, open_pixel_cache, pixel_folder
from handclip.errors import HandCLIPError

GROUP = "40x40-bicubic-0badcafe"
ROOM = 8192
"""Bytes on disk of an image of 40x40 pixels: two blocks."""


def sha(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def pixels(number: int) -> Tensor:
    return torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))


def store(cache: PixelCache, *numbers: int) -> None:
    for number in numbers:
        cache.store(GROUP, sha(number), pixels(number))


def load(cache: PixelCache, number: int) -> Tensor | None:
    return cache.load(GROUP, sha(number), 40, 40)


def stored(cache: PixelCache, numbers: range) -> set[int]:
    """Which of the images are there; each must have its own pixels."""
    found = {number: load(cache, number) for number in numbers}
    assert all(values is None or torch.equal(values, pixels(number)) for number, values in found.items())
    return {number for number, values in found.items() if values is not None}


def file_of(folder: Path, number: int) -> Path:
    [path] = folder.rglob(f"{sha(number)}.pix")
    return path


def make_old(folder: Path, number: int, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(file_of(folder, number), (then, then))


def bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*.pix"))


def start(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def refused(path: Path, missing_ok: bool = False) -> None:
    raise PermissionError(13, "Permission denied")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pixels"


def test_what_is_stored_is_loaded_by_any_later_run(folder: Path) -> None:
    cache = PixelCache(folder, 10**6)
    assert load(cache, 1) is None
    store(cache, 1, 2)
    for reader in (cache, PixelCache(folder, 10**6), pickle.loads(pickle.dumps(cache))):
        assert stored(reader, range(4)) == {1, 2}
    assert load(cache, 1).dtype == torch.uint8
    assert cache.load("40x40-bilinear-0badcafe", sha(1), 40, 40) is None


def test_a_tensor_in_another_memory_order_is_stored_right(folder: Path) -> None:
    cache = PixelCache(folder, 10**6)
    cache.store(GROUP, sha(1), pixels(1).permute(1, 2, 0).contiguous().permute(2, 0, 1))
    assert torch.equal(load(PixelCache(folder, 10**6), 1), pixels(1))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux shows them")
def test_loaded_tensors_hold_no_files_open(folder: Path) -> None:
    cache = PixelCache(folder, 10**6)
    store(cache, *range(20))
    kept = [load(cache, number) for number in range(20)]
    opened = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # what listed them, and what other threads have closed
            opened.add(descriptor.readlink())
    assert not [path for path in opened if folder in path.parents]
    assert len(kept) == 20


@pytest.mark.parametrize("mode", [None, 0o755])
def test_only_the_owner_can_look_but_a_folder_that_was_there_keeps_its_mode(folder: Path, mode: int | None) -> None:
    if mode is not None:
        folder.mkdir()
        folder.chmod(mode)
    store(PixelCache(folder, 10**6), 1)
    assert stat.S_IMODE(folder.stat().st_mode) == (mode or 0o700)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*/")} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {0o600}


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path, folder: Path) -> None:
    """A link to a disk that holds other things stands in the folder's place."""
    disk = tmp_path / "disk"
    store(PixelCache(disk, 10**6), 1)
    folder.symlink_to(disk)
    make_old(disk, 1, seconds=5000)
    own = file_of(disk, 1)
    foreign = [
        disk / "holiday" / "2019" / "photo.jpg",
        disk / "holiday" / "ab" / own.name,
        disk / GROUP / "ab" / "photo.jpg",
        disk / GROUP / "abc" / own.name,
        own.with_name("notes.pix"),
        own.with_name(".half.part"),
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not ours")
        os.utime(path, (0, 0))
    (own.parent / sha(2)).with_suffix(".pix").symlink_to(foreign[0])
    (disk / "lost+found").mkdir()
    cache = PixelCache(folder, ROOM)
    store(cache, 3)
    assert [image.path.stem for image in cache.images()] == [sha(3)]
    assert len(cache.clear()) == 1
    assert all(path.read_bytes() == b"not ours" for path in foreign)
    assert (disk / "lost+found").is_dir()
    assert not (disk / GROUP / sha(3)[:2]).exists()
    assert folder.is_symlink()
    assert not (disk / "bytes").exists()


@pytest.mark.parametrize("name", ["../../escaped", "", "A" * 64, "a" * 63])
def test_only_hashes_become_file_names(folder: Path, name: str) -> None:
    cache = PixelCache(folder, 10**6)
    cache.store(GROUP, name, pixels(1))
    assert cache.load(GROUP, name, 40, 40) is None
    assert not list(folder.parent.rglob("*.pix"))


def test_damage_that_cannot_be_removed_is_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store(PixelCache(folder, 10**6), 1)
    file_of(folder, 1).write_bytes(b"damaged")
    monkeypatch.setattr(Path, "unlink", refused)
    cache = PixelCache(folder, 10**6)
    assert [load(cache, 1) for _ in range(3)] == [None] * 3
    assert caplog.messages == [f"{file_of(folder, 1)}: is damaged; the photograph is decoded anew"]


def test_damage_is_logged_and_mended(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    store(PixelCache(folder, 10**6), 1)
    path = file_of(folder, 1)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[1234] ^= 1
    for damaged in (bytes(flipped), whole[:-1], whole + b"\0", whole[:100], b"", os.urandom(len(whole))):
        path.write_bytes(damaged)
        cache = PixelCache(folder, 10**6)
        caplog.clear()
        assert load(cache, 1) is None
        assert load(cache, 1) is None
        assert caplog.messages == [f"{path}: is damaged; the photograph is decoded anew"]
        store(cache, 1)
        assert torch.equal(load(PixelCache(folder, 10**6), 1), pixels(1))


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 4811), st.binary(min_size=1, max_size=8))
@example(4800, b"HandCLIP")
def test_changed_bytes_never_give_wrong_pixels(tmp_path: Path, position: int, changed: bytes) -> None:
    folder = tmp_path / "pixels"
    store(PixelCache(folder, 10**6), 1)
    path = file_of(folder, 1)
    data = bytearray(path.read_bytes())
    data[position : position + len(changed)] = changed
    path.write_bytes(data)
    got = load(PixelCache(folder, 10**6), 1)
    assert got is None or torch.equal(got, pixels(1))


@pytest.mark.promise("damaged-pixels")
def test_damage_after_the_first_look_is_found_too(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = PixelCache(folder, 10**6)
    store(cache, 1)
    assert load(cache, 1) is not None
    path = file_of(folder, 1)
    data = bytearray(path.read_bytes())
    data[1234] ^= 1
    before = path.stat()
    with path.open("r+b") as file:  # the same file, its size and time as before
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load(cache, 1) is None
    assert caplog.messages == [f"{path}: is damaged; the photograph is decoded anew"]


@pytest.mark.parametrize("change", ["written to itself", "removed", "replaced", "cut off", "overwritten"])
def test_what_was_loaded_is_a_copy_of_its_own(folder: Path, change: str) -> None:
    cache = PixelCache(folder, 10**6)
    store(cache, 1)
    loaded = load(cache, 1)
    path = file_of(folder, 1)
    if change == "written to itself":
        loaded.zero_()
        loaded = load(PixelCache(folder, 10**6), 1)
    elif change == "removed":
        path.unlink()
    elif change == "replaced":
        path.with_name("other").write_bytes(b"other")
        path.with_name("other").replace(path)
    elif change == "cut off":
        os.truncate(path, 0)
    else:
        path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(loaded, pixels(1))


def test_a_clock_that_was_set_back_neither_fills_nor_empties_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(PixelCache(folder, 10 * ROOM), *range(10))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 10 * 86_400)
    cache = PixelCache(folder, 10 * ROOM)
    assert stored(cache, range(3)) == {0, 1, 2}  # in use: they must stay
    store(cache, *range(10, 17))
    assert stored(PixelCache(folder, 10 * ROOM), range(17)) == {0, 1, 2, *range(10, 17)}
    assert bytes_on_disk(folder) <= 10 * ROOM


def test_a_clock_set_back_under_a_run_displaces_nothing_that_is_in_use(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PixelCache(folder, 4 * ROOM)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 10 * 86_400)
    store(cache, *range(6))
    assert stored(cache, range(6)) == {0, 1, 2, 3}


def fill_until_killed(folder: Path, seed: int) -> None:
    cache = PixelCache(folder, 40 * ROOM)
    while True:
        for number in torch.randperm(30, generator=torch.Generator().manual_seed(seed)).tolist():
            found = load(cache, number)
            assert found is None or torch.equal(found, pixels(number))
            store(cache, number)


@pytest.mark.promise("killed")
def test_processes_killed_at_any_moment_leave_only_whole_files(folder: Path) -> None:
    moments = torch.rand(8, generator=torch.Generator().manual_seed(0)).tolist()
    for number, moment in enumerate(moments):
        processes = [start(fill_until_killed, folder, 2 * number + k) for k in range(2)]
        while not (folder / "bytes").exists() and all(process.is_alive() for process in processes):
            time.sleep(0.001)
        time.sleep(0.01 + moment / 10)
        for process in processes:
            assert process.is_alive()
            process.kill()
            process.join()
    for path in folder.rglob("*.pix"):
        number = next(n for n in range(30) if sha(n) == path.stem)
        assert torch.equal(load(PixelCache(folder, 10**6), number), pixels(number))
    for half in folder.rglob("*.part"):
        os.utime(half, (0, 0))
    (folder / "bytes").write_bytes(b"%020d" % 10**9)  # whatever was counted for processes that are dead
    store(PixelCache(folder, 40 * ROOM), 30)
    assert not list(folder.rglob("*.part"))
    assert int((folder / "bytes").read_text()) - bytes_on_disk(folder) in (0, 63 * ROOM)
    assert bytes_on_disk(folder) <= 40 * ROOM


def test_a_file_under_another_name_is_not_taken(folder: Path) -> None:
    store(PixelCache(folder, 10**6), 1, 2)
    file_of(folder, 1).write_bytes(file_of(folder, 2).read_bytes())
    assert stored(PixelCache(folder, 10**6), range(4)) == {2}
    other = folder / "40x40-bilinear-0badcafe" / sha(2)[:2]
    other.mkdir(parents=True)
    (other / f"{sha(2)}.pix").write_bytes(file_of(folder, 2).read_bytes())
    assert PixelCache(folder, 10**6).load("40x40-bilinear-0badcafe", sha(2), 40, 40) is None


def test_what_was_used_least_recently_goes_first(folder: Path) -> None:
    store(PixelCache(folder, 10 * ROOM), *range(10))
    for number in range(10):
        make_old(folder, number, seconds=5000 - number)
    cache = PixelCache(folder, 10 * ROOM)
    assert load(cache, 0) is not None
    store(cache, 10, 11)
    assert stored(PixelCache(folder, 10 * ROOM), range(12)) == {0, *range(3, 12)}
    assert bytes_on_disk(folder) <= 10 * ROOM


def test_what_another_run_uses_is_not_displaced(folder: Path) -> None:
    first = PixelCache(folder, 10 * ROOM)
    store(first, *range(10))
    for number in range(10):
        make_old(folder, number, seconds=5000)
    assert stored(first, range(5)) == set(range(5))  # in its next epoch
    second = PixelCache(folder, 10 * ROOM)
    store(second, *range(10, 20))
    assert stored(first, range(20)) == {*range(5), *range(10, 15)}


def test_use_is_marked_every_ten_minutes(folder: Path) -> None:
    cache = PixelCache(folder, 10**6)
    store(cache, 1)
    for seconds, renewed in ((500, False), (700, True)):
        cache._opened = 0
        make_old(folder, 1, seconds)
        load(cache, 1)
        assert (time.time() - file_of(folder, 1).stat().st_mtime < 100) == renewed


def test_images_are_claimed_once(folder: Path) -> None:
    cache = PixelCache(folder, 10**6)
    store(cache, 1, 2)
    for number, claimed in ((1, [1]), (2, [1, 2])):
        make_old(folder, 1, seconds=5000)
        make_old(folder, 2, seconds=5000)
        cache.claim(GROUP, map(sha, claimed))
        assert time.time() - file_of(folder, number).stat().st_mtime < 100
    assert time.time() - file_of(folder, 1).stat().st_mtime > 4000


def test_a_set_that_does_not_fit_keeps_a_stable_part(folder: Path) -> None:
    for _ in range(3):
        cache = PixelCache(folder, 10 * ROOM)
        cache.claim(GROUP, map(sha, range(15)))
        for _ in range(3):
            for number in range(15):
                if load(cache, number) is None:
                    store(cache, number)
            assert stored(cache, range(15)) == set(range(10))


def test_a_full_cache_is_asked_again_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PixelCache(folder, 2 * ROOM)
    store(cache, *range(3))
    assert stored(cache, range(4)) == {0, 1}
    cache.clear()
    store(cache, 2)
    assert stored(cache, range(4)) == set()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    store(cache, 2)
    assert stored(cache, range(4)) == {2}


def test_a_lower_limit_holds_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_pixel_cache(10 * ROOM / 2**30)
    assert cache is not None
    store(cache, *range(10))
    open_pixel_cache(5 * ROOM / 2**30)
    assert bytes_on_disk(pixel_folder()) <= 5 * ROOM


def test_room_is_taken_for_many_images_at_once_but_not_near_the_limit(folder: Path) -> None:
    cache = PixelCache(folder, 70 * ROOM)
    counts = []
    for number in range(72):
        store(cache, number)
        counts.append(int((folder / "bytes").read_text()) // ROOM)
    assert counts == [64] * 64 + [65, 66, 67, 68, 69, 70, 70, 70]
    assert stored(cache, range(72)) == set(range(70))
    assert bytes_on_disk(folder) == 70 * ROOM


def test_a_forked_process_takes_room_of_its_own(folder: Path) -> None:
    cache = PixelCache(folder, 1000 * ROOM)
    store(cache, 0)
    processes = [start(store, cache, 1), start(store, cache, 2)]
    for process in processes:
        process.join()
    store(cache, 3)
    store(pickle.loads(pickle.dumps(cache)), 4)
    assert int((folder / "bytes").read_text()) == 4 * 64 * ROOM
    assert stored(cache, range(5)) == set(range(5))


@pytest.mark.parametrize("lacking", ["home folder", "locks"])
def test_no_cache_without_a_home_or_on_windows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lacking: str
) -> None:
    caplog.set_level(logging.INFO)
    if lacking == "locks":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        leave_without_home(monkeypatch)
        with pytest.raises(HandCLIPError, match="XDG_CACHE_HOME"):
            pixel_folder()
    assert open_pixel_cache(1) is None
    [message] = caplog.messages
    assert message.startswith("There is no pixel cache")
    assert ("Windows" if lacking == "locks" else "no home folder") in message


def test_no_cache_at_zero_and_no_image_that_is_larger_than_the_limit(folder: Path) -> None:
    assert open_pixel_cache(0) is None
    assert not pixel_folder().exists()
    store(PixelCache(folder, ROOM - 1), 1)
    assert stored(PixelCache(folder, ROOM), range(2)) == set()


@pytest.mark.parametrize("count", [None, b"", b"nonsense", b"999999999"])
def test_a_lost_or_wrong_count_is_made_again(folder: Path, count: bytes | None) -> None:
    store(PixelCache(folder, 10 * ROOM), *range(9))
    (folder / "bytes").unlink() if count is None else (folder / "bytes").write_bytes(count)
    cache = PixelCache(folder, 10 * ROOM)
    for number in range(9):
        assert load(cache, number) is not None
    store(cache, 9, 10)
    assert stored(cache, range(11)) == set(range(10))


def fill(folder: Path, limit: int, numbers: list[int]) -> None:
    cache = PixelCache(folder, limit)
    for number in numbers:
        found = load(cache, number)
        assert found is None or torch.equal(found, pixels(number))
        if found is None:
            store(cache, number)


def test_processes_that_fill_it_at_once(folder: Path) -> None:
    numbers = list(range(60))
    orders = [numbers, numbers[::-1], numbers[30:] + numbers[:30], numbers]
    processes = [start(fill, folder, 10**7, order) for order in orders]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert stored(PixelCache(folder, 10**7), range(60)) == set(numbers)
    assert not list(folder.rglob("*.part"))
    assert int((folder / "bytes").read_text()) >= bytes_on_disk(folder) == 60 * ROOM


@pytest.mark.parametrize("at_once", [64, 5])
def test_processes_together_keep_the_limit(folder: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(pixel_cache, "_AT_ONCE", at_once)
    slack = 1 if at_once == 64 else at_once  # 64 images are more than the limit, so room is taken for one at a time
    processes = [start(fill, folder, 20 * ROOM, list(range(100 * k, 100 * k + 40))) for k in range(4)]
    while any(process.is_alive() for process in processes):
        total = sum(ROOM for path in list(folder.rglob("*.pix")))
        assert total <= (20 + slack * len(processes)) * ROOM
    assert [process.exitcode for process in processes] == [0] * 4
    assert 10 * ROOM <= bytes_on_disk(folder) <= (20 + slack * len(processes)) * ROOM


def die_while_writing(folder: Path) -> None:
    pixel_cache._mark_used = lambda file: os.kill(os.getpid(), signal.SIGKILL)  # the file is written, not yet renamed
    fill(folder, 10**6, [1])


def test_a_process_that_is_killed_leaves_nothing_to_load(folder: Path) -> None:
    process = start(die_while_writing, folder)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    [half] = folder.rglob("*.part")
    cache = PixelCache(folder, 4 * ROOM)
    assert load(cache, 1) is None
    assert cache.images() == []
    store(cache, *range(6))
    assert bytes_on_disk(folder) + ROOM <= 4 * ROOM
    os.utime(half, (time.time() - 7200,) * 2)
    store(PixelCache(folder, 4 * ROOM), 7)
    assert not half.exists()


def die_with_the_lock(folder: Path) -> None:
    with PixelCache(folder, 10**6)._locked():
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_holds_no_lock(folder: Path) -> None:
    start(die_with_the_lock, folder).join()
    store(PixelCache(folder, 10**6), 1)
    assert stored(PixelCache(folder, 10**6), range(2)) == {1}


def test_a_folder_that_cannot_be_made_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache = open_pixel_cache(1)
    assert cache is not None
    store(cache, 1, 2)
    assert stored(cache, range(4)) == set()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"The pixel cache in {pixel_folder()} cannot be added to")
    assert "Not a directory" in caplog.messages[0]


def store_on_a_full_disk(cache: PixelCache, number: int, log: Path) -> None:
    """Let writing fail as it does on a full disk, which must not be seen outside."""
    logging.getLogger("handclip").addHandler(logging.FileHandler(log))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    store(cache, number)


def test_a_disk_that_is_full_is_said_once_by_all_processes(folder: Path, tmp_path: Path) -> None:
    cache = PixelCache(folder, 10**6)
    store(cache, 1)
    for number in (2, 3):
        process = start(store_on_a_full_disk, cache, number, tmp_path / "log")
        process.join()
        assert process.exitcode == 0
    [line] = (tmp_path / "log").read_text().splitlines()
    assert "cannot be added to, so images are decoded anew" in line
    store(cache, 4)
    assert stored(cache, range(5)) == {1}
    assert not list(folder.rglob("*.part"))


def give_up(cache: PixelCache) -> None:
    assert stored(cache, range(3)) == {1}
    cache._give_up(OSError("full"))


def test_a_spawned_process_shares_the_cache(folder: Path) -> None:
    cache = PixelCache(folder, 10**6)
    store(cache, 1)
    process = multiprocessing.get_context("spawn").Process(target=give_up, args=(cache,))
    process.start()
    process.join()
    assert process.exitcode == 0
    store(cache, 2)
    assert stored(cache, range(3)) == {1}


def test_clear_leaves_nothing(folder: Path) -> None:
    cache = PixelCache(folder, 10**6)
    store(cache, 1, 2)
    file_of(folder, 1).with_name(f".{sha(1)}.pix.0badcafe.part").write_bytes(b"half")
    kept = load(cache, 1)
    removed = cache.clear()
    assert [image.bytes for image in removed] == [ROOM, ROOM]
    assert not folder.exists()
    assert torch.equal(kept, pixels(1))
    assert load(cache, 1) is None
    assert cache.clear() == []
    store(cache, 1)
    assert stored(cache, range(3)) == {1}


def test_clear_while_others_fill(folder: Path) -> None:
    processes = [start(fill, folder, 10**7, list(range(k, 150))) for k in range(3)]
    while any(process.is_alive() for process in processes):
        PixelCache(folder, 10**7).clear()
    assert [process.exitcode for process in processes] == [0] * 3
    PixelCache(folder, 10**7).clear()
    assert not folder.exists()


def test_the_count_survives_a_clearing_that_another_process_waited_for(folder: Path) -> None:
    cache = PixelCache(folder, 10**6)
    waiting = Thread(target=store, args=(PixelCache(folder, 10**6), 1))
    with cache._locked():
        waiting.start()
        waiting.join(timeout=0.2)
        (folder / "bytes").unlink()
    waiting.join()
    assert int((folder / "bytes").read_text()) == 64 * ROOM


def test_a_clearing_in_between_does_not_stop_storing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = pixel_cache._make_private
    calls: list[Path] = []

    def make_and_clear(path: Path) -> None:
        make(path)
        if not calls:
            path.rmdir()
        calls.append(path)

    monkeypatch.setattr(pixel_cache, "_make_private", make_and_clear)
    cache = PixelCache(folder, 10**6)
    store(cache, 1)
    assert stored(cache, range(2)) == {1}


def test_a_clearing_under_a_writer_is_no_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = PixelCache(folder, 10**6)
    with monkeypatch.context() as patched:
        patched.setattr(pixel_cache, "_mark_used", lambda file: PixelCache(folder, 10**6).clear())
        store(cache, 1)
    assert caplog.messages == []
    store(cache, 2)
    assert stored(cache, range(3)) == {2}


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_something_else_in_the_place_of_the_folder(folder: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("mine") if kind == "file" else folder.symlink_to(folder.with_name("unmounted"))
    cache = PixelCache(folder, 10**6)
    cache.try_writing()
    store(cache, 1)
    assert len(caplog.messages) == 1
    if kind == "file":
        for command in (cache.images, cache.clear):
            with pytest.raises(HandCLIPError, match=f"{folder}.*Not a directory"):
                command()
    else:
        assert (cache.images(), cache.clear()) == ([], [])


def test_clear_says_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PixelCache(tmp_path / "pixels", 10**6)
    store(cache, 1)

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(HandCLIPError, match=r"cannot clear .*pixels: Permission denied"):
        cache.clear()
