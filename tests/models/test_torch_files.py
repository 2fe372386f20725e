import errno
import hashlib
import io
import os
from pathlib import Path

import pytest
import torch

from handclip.models.torch_files import write_torch


class _FullDisk(io.BytesIO):
    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, content) -> int:  # type: ignore[no-untyped-def]
        if self.tell() + memoryview(content).nbytes > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


def test_the_bytes_are_those_of_torch_and_their_hash_is_returned(tmp_path: Path) -> None:
    content = {"weights": torch.arange(1000.0), "epoch": 3}
    with (tmp_path / "ours").open("wb") as file:
        sha256 = write_torch(content, file)
    with (tmp_path / "torchs").open("wb") as file:
        torch.save(content, file)
    written = (tmp_path / "ours").read_bytes()
    assert written == (tmp_path / "torchs").read_bytes()
    assert sha256 == hashlib.sha256(written).hexdigest()


@pytest.mark.parametrize("room", [0, 100, 5_000, 40_500])
def test_a_disk_that_is_full_anywhere_is_said_as_such(room: int) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        write_torch({"weights": torch.arange(10_000.0)}, _FullDisk(room))
