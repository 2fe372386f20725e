"""A container's small shared memory: fewer processes read images, and a batch that is lost is an error at once."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from small_disk import SmallDisk, on_a_small_disk
from tiny_study import baseline_values, tiny_values, write_config

from handclip.datasets import workers

SHARED_MEMORY = Path("/dev/shm")
SIZES: dict[str, Any] = {"input_size": 64, "num_workers": 2, "eval_batch_size": 8}
"""A batch to train on has 8 x 3 x 64 x 64 x 4 = 393,216 bytes, one to evaluate a quarter."""


def work_in(place: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    os.chdir(place)


def fewer_processes_read(disk: SmallDisk, place: Path) -> None:
    work_in(place)
    disk.leave(1_000_000)
    trained = disk.handclip("train", "train.yml")
    assert trained.code == 0, trained.printed
    assert "too little for the batches of 2 worker processes: the main process reads the images" in trained.printed
    assert ", 0 worker processes reading images," in trained.printed
    disk.leave(700_000)
    evaluated = disk.handclip("evaluate", "evaluate.yml", "--set", "num_workers=4")
    assert evaluated.code == 0, evaluated.printed
    assert "too little for the batches of 4 worker processes: 1 process reads the images" in evaluated.printed
    assert "docker's --shm-size=1g" in evaluated.printed


def a_lost_batch_is_an_error(disk: SmallDisk, place: Path) -> None:
    work_in(place)
    workers.free_shared_memory = lambda: None  # type: ignore[attr-defined]  # others take it after the look at it
    disk.leave(200_000)
    for command in ("train", "evaluate"):
        start = time.monotonic()
        ended = disk.handclip(command, f"{command}.yml", "--set", "eval_batch_size=32")
        assert time.monotonic() - start < 60
        assert ended.code == 1, ended.printed
        assert "Error: a process that reads images could not hand over a batch (" in ended.printed
        assert "No space left on device" in ended.printed
        assert "docker's --shm-size=1g" in ended.printed
        assert "Traceback" not in ended.printed
        assert not list(SHARED_MEMORY.glob("torch_*"))


@pytest.mark.promise("little-shared-memory", "batch-not-handed-over")
@pytest.mark.parametrize("test", [fewer_processes_read, a_lost_batch_is_an_error])
def test_in_little_shared_memory(test: Any, manifests: Path, tmp_path: Path) -> None:
    write_config(tmp_path / "train.yml", tiny_values(manifests, **SIZES, augmentation={"flip": 0.5}, epochs=1))
    write_config(tmp_path / "evaluate.yml", baseline_values(manifests, **SIZES))
    on_a_small_disk(test, SHARED_MEMORY, tmp_path)
