"""Processes that read images: as many as there is room for, none that is waited for in vain."""

import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from handclip import cores
from handclip.checksums import sha256_of
from handclip.config.experiment import Augmentation
from handclip.datasets import torch_dataset, workers
from handclip.datasets.torch_dataset import BatchCollator, ImageDataset, ImageLoader, LabelledImage
from handclip.datasets.transforms import ImageTransform, Preprocessing
from handclip.datasets.workers import begin, plain_worker_errors, step_back, workers_with_room
from handclip.errors import HandCLIPError
from handclip.interruption import AskedToStop, stopping_later
from handclip.models.torch_files import write_torch

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MIB = 2**20


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    images = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (20, 20), (number, 0, 0)).save(path)
        images.append(LabelledImage(path, sha256_of(path), number))
    return ImageDataset(images, ImageTransform(Preprocessing(16, 16)))


def loader_of(dataset: ImageDataset, num_workers: int) -> ImageLoader:
    batches = [[number, number + 1] for number in range(0, 8, 2)]
    return ImageLoader(dataset, batches, CPU, largest=2, num_workers=num_workers)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have so much shared memory free."""
    workers.say_fewer.cache_clear()

    def have(free: int) -> None:
        monkeypatch.setattr(workers, "free_shared_memory", lambda: free)

    return have


# Room


@pytest.mark.promise("little-shared-memory")
@pytest.mark.parametrize(
    ("free_mib", "wanted", "batch_mib", "expected"),
    [
        (None, 8, 100, (8, 2)),
        (1000, 8, 10, (8, 2)),
        (64, 8, 4.6, (8, 1)),
        (64, 8, 10, (4, 1)),
        (64, 1, 18.4, (1, 1)),
        (64, 1, 30, (0, 1)),
        (0, 8, 1, (0, 1)),
        (64, 0, 10, (0, 2)),
    ],
)
def test_as_many_processes_read_as_there_is_shared_memory_for(
    free_mib: int | None,
    wanted: int,
    batch_mib: float,
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "free_shared_memory", lambda: None if free_mib is None else free_mib * MIB)
    assert workers_with_room(wanted, int(batch_mib * MIB)) == expected


def test_processes_of_one_run_share_the_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "free_shared_memory", lambda: 64 * MIB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert workers_with_room(8, 10 * MIB) == (1, 1)


@pytest.mark.parametrize(
    ("platform", "status", "free"),
    [
        ("linux", os.statvfs_result((4096, 4096, 16384, 100, 90, 0, 0, 0, 0, 255)), 90 * 4096),
        ("linux", os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255)), None),  # mounted without a limit
        ("linux", None, 0),
        ("darwin", None, None),
    ],
)
def test_what_is_free_is_what_the_system_says(
    platform: str, status: os.statvfs_result | None, free: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def statvfs(place: str) -> os.statvfs_result:
        assert place == "/dev/shm"
        if status is None:
            raise FileNotFoundError(place)
        return status

    monkeypatch.setattr(cores.sys, "platform", platform)
    monkeypatch.setattr(cores.os, "statvfs", statvfs)
    assert cores.free_shared_memory() == free


@pytest.mark.parametrize("augmentation", [None, Augmentation(flip=0.5, resize_crop=1.2)])
@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_a_batch_has_as_many_bytes_as_is_reckoned(
    dataset: ImageDataset, augmentation: Augmentation | None, device: torch.device
) -> None:
    transform = ImageTransform(Preprocessing(16, 16), augmentation)
    dataset = ImageDataset(dataset.images, transform)
    collator = BatchCollator(transform, device)
    batch = collator([dataset[number, 7] for number in range(3)])
    assert batch.images.nbytes == 3 * collator.bytes_per_image


def test_fewer_processes_are_said_once(
    dataset: ImageDataset, free: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    free(2**18 + 5 * (2 * 3 * 16 * 16 + 4 * 4096))
    for _ in range(2):
        loader = loader_of(dataset, num_workers=4)
        assert (loader.num_workers, loader.prefetch_factor) == (3, 1)
    free(0)
    loader = loader_of(dataset, num_workers=4)
    assert (loader.num_workers, loader.prefetch_factor) == (0, None)
    assert [batch.labels.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    few, none = [record.message for record in caplog.records]
    assert few == (
        "Shared memory (/dev/shm) has 0 MiB free, too little for the batches of 4 worker processes: 3 processes read "
        "the images, which may be slower; a container gets more by docker's --shm-size=1g."
    )
    assert "the main process reads the images" in none


# What goes wrong in a process


class Collator(BatchCollator):
    """Makes of the third batch what cannot be handed over."""

    def __call__(self, items: Any) -> Any:
        batch = super().__call__(items)
        return (lambda: 0) if 4 in batch.labels else batch


@pytest.mark.promise("batch-not-handed-over")
def test_a_batch_that_cannot_be_handed_over_is_an_error_and_not_waited_for(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_dataset, "BatchCollator", Collator)
    got, start = [], time.monotonic()
    with (
        pytest.raises(HandCLIPError, match=r"could not hand over a batch \(.*pickle.*--shm-size"),
        plain_worker_errors(),
    ):
        for batch in loader_of(dataset, num_workers=1):
            got.append(batch.labels.tolist())
    assert got == [[0, 1], [2, 3]]
    assert time.monotonic() - start < 60


class Hanging(BatchCollator):
    """Never ends the third batch, and does not end by itself."""

    def __call__(self, items: Any) -> Any:
        batch = super().__call__(items)
        if 4 in batch.labels:
            os.kill(os.getpid(), signal.SIGSTOP)
        return batch


@pytest.mark.promise("signal-while-reading")
def test_a_first_signal_does_not_wait_for_a_batch_that_does_not_come(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_dataset, "BatchCollator", Hanging)
    monkeypatch.setattr(workers, "_PATIENCE", 0.5)
    running = []

    def read() -> None:
        batches = iter(loader_of(dataset, num_workers=1))
        running.extend(batches._batches._workers)  # type: ignore[attr-defined]
        signal.setitimer(signal.ITIMER_REAL, 1)
        for _ in batches:
            pass

    before = signal.signal(signal.SIGALRM, lambda signum, frame: signal.raise_signal(signal.SIGTERM))
    try:
        with stopping_later() as request:
            try:
                read()
            except AskedToStop as stopped:
                assert stopped.signum == request.signum == signal.SIGTERM
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert request.signum == signal.SIGTERM
    running[0].join(20)
    assert running[0].exitcode == -signal.SIGKILL


def test_frozen_workers_are_not_waited_for_one_after_the_other(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_PATIENCE", 0.5)
    batches: Any = iter(loader_of(dataset, num_workers=4))
    next(batches)
    running = batches._batches._workers
    for worker in running:
        os.kill(worker.pid, signal.SIGSTOP)
    start = time.monotonic()
    batches._batches._shutdown_workers()
    assert time.monotonic() - start < 4
    assert [worker.exitcode for worker in running] == [-signal.SIGKILL] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_leaves_the_workers_of_its_parent_alone(dataset: ImageDataset) -> None:
    """It has a copy of their iterator, which is collected there sooner or later."""
    batches: Any = iter(loader_of(dataset, num_workers=1))
    read = len(next(batches).labels)
    child = os.fork()
    if child == 0:
        try:
            batches._batches._shutdown_workers()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert read + sum(len(batch.labels) for batch in batches) == len(dataset)


@pytest.mark.parametrize("first", [begin, step_back])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_worker_reads_on_when_a_signal_reaches_all_processes(first: Any, signum: int) -> None:
    loader = DataLoader(list(range(12)), batch_size=1, num_workers=1, worker_init_fn=first)  # type: ignore[arg-type]
    batches: Any = iter(loader)
    read = [int(next(batches))]  # its worker has begun
    os.kill(batches._workers[0].pid, signum)
    read += [int(batch) for batch in batches]
    assert read == list(range(12))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        EOFError(),
        ConnectionResetError(104, "x"),
    ],
    ids=repr,
)
def test_a_worker_that_the_system_has_ended_is_explained(error: Exception) -> None:
    """What DataLoader raises depends on the moment: while the worker hands over a batch its connection breaks."""
    with pytest.raises(HandCLIPError, match=r"ended from outside \(.+\), for want of memory"), plain_worker_errors():
        raise error


def test_a_worker_that_has_ended_while_a_file_was_written_is_explained() -> None:
    """PyTorch raises in the midst of the writing, which goes on to fail with an error of its own."""

    class Interrupting(io.BytesIO):
        def write(self, content: Any) -> int:
            if self.tell() > 500:
                raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
            return super().write(content)

    with pytest.raises(RuntimeError, match="unexpected pos"):
        write_torch({"weights": torch.zeros(10_000)}, Interrupting())
    with pytest.raises(HandCLIPError, match=r"ended from outside \(DataLoader worker.+Killed"), plain_worker_errors():
        write_torch({"weights": torch.zeros(10_000)}, Interrupting())


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), plain_worker_errors():
        raise RuntimeError("shapes do not fit")
