"""A full disk, a run that two processes train, weights that are not finite."""

import errno
import logging
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import TinyRun, assert_same_run
from tiny_study import LOSSES, tiny_config

from handclip.config.experiment import ExperimentConfig
from handclip.errors import DamagedFileError, InUseError, TrainingError
from handclip.locks import is_held
from handclip.runs import hooks
from handclip.runs.provenance import read_provenance
from handclip.runs.run_folder import RunFolder, log_file
from handclip.runs.train import train
from handclip.training.state import Plan, TrainState
from handclip.training.step import Step

STEPS = 3
"""Steps an epoch; there are two epochs."""


def config_in(manifests: Path, place: Path, **changes: Any) -> ExperimentConfig:
    places = {"output_dir": str(place / "train_logs"), "save_dir": str(place / "saved_models"), **changes}
    return tiny_config(manifests, neck="bnneck", losses=LOSSES["ce"], batch_size=4, epochs=2, **places)


@pytest.fixture
def after_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Step], None]], None]:
    """Do something after a step of training, counted from 1."""

    def arrange(wanted: int, then: Callable[[Step], None]) -> None:
        def watched(self: Step, batch: Any, number: int) -> Any:
            output = call(self, batch, number)
            if number + 1 == wanted:
                then(self)
            return output

        monkeypatch.setattr(Step, "__call__", watched)

    call = Step.__call__
    return arrange


def contents(config: ExperimentConfig) -> dict[str, bytes]:
    """The states and checkpoints of a run."""
    files = RunFolder.of(config)
    return {path.name: path.read_bytes() for at in (files.snapshots, files.best.parent) for path in at.glob("[!.]*")}


def no_space(*what: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.promise("disk-full")
def test_a_full_disk_ends_training_with_the_last_state_intact(
    manifests: Path,
    tmp_path: Path,
    after_step: Callable[..., None],
    scores: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second epoch's table, its state and best model, and the last model: one after the other does not fit."""
    config = config_in(manifests, tmp_path)
    before: dict[str, bytes] = {}
    left = [10**9]

    def fsync(descriptor: int) -> None:
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
        if "provenance" not in file.name and not file.is_dir():
            left[0] -= 1
            if left[0] < 0:
                no_space()

    def fill(step: Step) -> None:
        left[0] = files_that_fit

    scores(0.5, 0.9, 0.9, 0.9, 0.5, 0.9)  # the second epoch, which is trained three times, is the best
    after_step(2 * STEPS, fill)
    monkeypatch.setattr("handclip.files.os.fsync", fsync)
    for files_that_fit, saved in ((0, 1), (1, 1), (2, 2), (3, 2)):
        # In the end the second epoch is saved, and environment, best model and table are written when it goes on.
        left[0] = 3 if files_that_fit == 3 else 10**9
        with pytest.raises(TrainingError) as caught:
            train(config, resume=bool(before))
        before = before or contents(config)
        assert str(caught.value).startswith("cannot write ")
        assert str(caught.value).endswith(
            f": No space left on device. Mend that, then go on with --resume. Everything up to epoch {saved} is saved."
        )
        assert not list(tmp_path.rglob("*.part"))
        assert not RunFolder.of(config).result.exists()
        assert (contents(config) == before) == (saved == 1)
        provenance = read_provenance(RunFolder.of(config).folder)
        assert provenance is not None
        assert provenance["sessions"][-1]["to"] == {"epochs": saved, "steps": saved * STEPS}
    left[0] = 10**9
    after_step(0, fill)
    assert_same_run(train(config, resume=True), train(config_in(manifests, tmp_path / "whole")))


def after_epoch(epoch: int) -> TrainState:
    rows = [{"epoch": number + 1, "loss_total": 1.5 * (number + 1), "val_map": 0.25} for number in range(epoch)]
    return TrainState(Plan(2, STEPS), history=rows)


def test_a_full_disk_ends_the_log_and_the_events_without_a_word_of_python(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Linux has a device that is always full."""
    with log_file(tmp_path / "train.log"), open("/dev/full", "w") as full:  # noqa: PTH123
        [log] = [one for one in logging.getLogger("handclip").handlers if isinstance(one, logging.FileHandler)]
        os.dup2(full.fileno(), log.stream.fileno())
        logging.getLogger("handclip.runs").info("a line")
    with monkeypatch.context() as patch, closing(hooks.TensorBoardFile(tmp_path / "tensorboard")) as board:
        patch.setattr("tensorboard.compat.tensorflow_stub.io.gfile.LocalFileSystem._write", no_space)
        for epoch in (1, 2):
            board.add(after_epoch(epoch))
    said = f"TensorBoard's file in {tmp_path / 'tensorboard'} ends here: No space left on device."
    assert caplog.messages.count(said) == 1
    assert capfd.readouterr() == ("", "")


def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with closing(hooks.TensorBoardFile(tmp_path / "tensorboard")) as board:
        for epoch in (1, 2):
            board.add(after_epoch(epoch))
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss_total")] == [(1, 1.5), (2, 3.0)]
    assert [event.value for event in read.Scalars("val_map")] == [0.25, 0.25]


@pytest.mark.promise("two-processes-same-checkpoints")
def test_two_runs_that_write_the_same_checkpoints_are_not_trained_at_once(
    manifests: Path, tmp_path: Path, after_step: Callable[..., None]
) -> None:
    """Nor is one run by two processes; the first is left alone."""
    config = config_in(manifests, tmp_path)
    other = config_in(manifests, tmp_path, output_dir=str(tmp_path / "other"))
    files = RunFolder.of(config)
    told: list[str] = []

    def second(step: Step) -> None:
        for again, resume in ((config, False), (config, True), (other, False)):
            with pytest.raises(InUseError) as caught:
                train(again, resume=resume)
            told.append(str(caught.value).partition(f" is being written by process {os.getpid()} on ")[0])

    after_step(STEPS + 1, second)
    assert train(config).finished
    assert told == [str(files.folder), str(files.folder), str(files.best)]
    assert not RunFolder.of(other).folder.exists()
    assert not is_held(files.folder) and not is_held(files.best)


@pytest.mark.promise("states-moved-away")
@pytest.mark.parametrize("lost", ["snapshots", "best", "last", "none"])
def test_a_run_that_has_lost_its_config_does_not_go_on(lost: str, tmp_path: Path) -> None:
    """What has begun is known by its states and checkpoints, or by the checksum of the config alone."""
    run = TinyRun(tmp_path)
    files = run.files
    files.open(run.config, resume=False)
    sums = files.folder / "SHA256SUMS"
    left: Path = sums if lost == "none" else getattr(files, lost)
    if lost != "none":
        sums.unlink()
        left.parent.mkdir(parents=True, exist_ok=True)
        left.touch()
    files.config.unlink()
    with pytest.raises(DamagedFileError) as caught:
        files.open(run.config, resume=True)
    assert str(caught.value) == (
        f"{files.config}: is gone, although {left} says that the run has begun, so it cannot go on. Put the file "
        f"back, or move {files.folder} and the run's checkpoints away to start anew"
    )
    left.unlink()
    files.open(run.config, resume=True)  # nothing is left that says so
    assert files.config.is_file()


@pytest.mark.promise("not-finite-training")
def test_weights_that_are_not_finite_are_not_saved(
    manifests: Path, tmp_path: Path, after_step: Callable[..., None]
) -> None:
    """A running mean after the last step of an epoch: no loss has shown it yet."""
    config = config_in(manifests, tmp_path)
    before: dict[str, bytes] = {}

    def spoil(step: Step) -> None:
        before.update(contents(config))
        state = step.objective.state_dict()
        state[next(name for name in state if name.endswith("running_mean"))][0] = torch.nan

    after_step(2 * STEPS, spoil)
    with pytest.raises(
        TrainingError, match=r"running_mean holds NaN or infinity after step 6, so .* Everything up to epoch 1 is saved"
    ):
        train(config)
    assert before and contents(config) == before
