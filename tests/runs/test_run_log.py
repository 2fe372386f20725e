"""What a run says of itself: in a file that is one, and of each epoch once it is saved."""

import logging
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_study import tiny_config

from handclip.errors import HandCLIPError, Interrupted
from handclip.runs.run_folder import RunFolder, log_file
from handclip.runs.train import train


class OnLine(logging.Handler):
    """Calls a function with each line, before it is in the log file."""

    def __init__(self, call: Callable[[str], None]) -> None:
        super().__init__()
        self.emit = lambda record: call(record.getMessage())  # type: ignore[method-assign]


@pytest.mark.promise("screen-gone")
def test_an_epoch_is_saved_before_its_line_is_shown(manifests: Path, here: Path) -> None:
    """... and a line that a process came not to write is written when training goes on."""
    config = tiny_config(manifests, epochs=3)
    files, saved = RunFolder.of(config), []

    def look(line: str) -> None:
        if match := re.match(r"Epoch (\d+)/3: ", line):
            saved.append(any(files.snapshots.glob(f"epoch_{int(match[1]):04}-*.ckpt")))
            if match[1] == "2":
                raise Interrupted(signal.SIGTERM)

    def lines() -> list[int]:
        log = (files.folder / "train.log").read_text()
        return [log.count(f" Epoch {epoch}/3: ") for epoch in (1, 2, 3)]

    logger, handler = logging.getLogger("handclip"), OnLine(look)
    logger.addHandler(handler)
    try:
        with pytest.raises(Interrupted):
            train(config)
    finally:
        logger.removeHandler(handler)
    assert (saved, lines()) == ([True, True], [1, 0, 0])
    assert train(config, resume=True).finished
    assert lines() == [1, 1, 1]


@pytest.mark.promise("pipe-for-file", "folder-for-file")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "cannot write .*train.log: it is no file but a pipe, a socket or a device"),
        (
            lambda log: log.symlink_to("/gone/train.log"),
            "it is a link to /gone/train.log, which is not there. Remove it, or make that folder",
        ),
    ],
    ids=["pipe", "link"],
)
def test_what_no_log_can_be_written_to_is_not_waited_for_and_is_named(
    make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "train.log")
    with pytest.raises(HandCLIPError, match=message), log_file(tmp_path / "train.log"):
        pytest.fail("it was opened")
