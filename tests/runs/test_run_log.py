"""What a run says of itself: in a file that is one, and of each epoch once it is saved."""

import logging
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_study import tiny_config

from handclip.config.experiment import ExperimentConfig
from handclip.errors import HandCLIPError, Interrupted
from handclip.runs.run_folder import RunFolder, log_file
from handclip.runs.train import train


class OnLine(logging.Handler):
    """Calls a function with each line, before it is in the log file."""

    def __init__(self, call: Callable[[str], None]) -> None:
        super().__init__()
        self.emit = lambda record: call(record.getMessage())  # type: ignore[method-assign]


def train_watched(config: ExperimentConfig, call: Callable[[str], None]) -> None:
    logger, handler = logging.getLogger("handclip"), OnLine(call)
    logger.addHandler(handler)
    try:
        train(config, resume=True)
    finally:
        logger.removeHandler(handler)


def test_an_epoch_is_saved_before_its_line_is_shown(manifests: Path, here: Path) -> None:
    config = tiny_config(manifests, epochs=2)
    saved = []

    def look(line: str) -> None:
        if match := re.match(r"Epoch (\d+)/2: ", line):
            saved.append(any(RunFolder.of(config).states.glob(f"epoch_{int(match[1]):04}-*.ckpt")))

    train_watched(config, look)
    assert saved == [True, True]


def test_a_line_that_a_process_came_not_to_write_is_written_when_training_goes_on(manifests: Path, here: Path) -> None:
    config = tiny_config(manifests, epochs=3)

    def end(line: str) -> None:
        if line.startswith("Epoch 2/3: "):
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train_watched(config, end)
    log = RunFolder.of(config).folder / "train.log"

    def lines() -> list[int]:
        return [log.read_text().count(f" Epoch {epoch}/3: ") for epoch in (1, 2, 3)]

    assert lines() == [1, 0, 0]
    assert train(config, resume=True).finished
    assert lines() == [1, 1, 1]


def test_a_pipe_in_place_of_the_log_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.log")
    message = "cannot write .*train.log: it is no file but a pipe, a socket or a device"
    with pytest.raises(HandCLIPError, match=message), log_file(tmp_path / "train.log"):
        pytest.fail("it was opened")


def test_a_link_to_what_is_not_there_in_place_of_the_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.log").symlink_to("/gone/train.log")
    message = "it is a link to /gone/train.log, which is not there. Remove it, or make that folder"
    with pytest.raises(HandCLIPError, match=message), log_file(tmp_path / "train.log"):
        pytest.fail("it was opened")
