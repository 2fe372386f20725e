"""A full disk, a folder that vanishes, a run that two processes train, weights that are not finite."""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import LOSSES, loss_columns, same_weights, tiny_config, weights

from handclip.config.experiment import ExperimentConfig
from handclip.errors import DamagedFileError, InUseError, TrainingError
from handclip.interruption import StopRequest
from handclip.locks import holding, is_held
from handclip.runs import hooks
from handclip.runs.provenance import read_provenance
from handclip.runs.result import TrainingResult
from handclip.runs.run_folder import RunFolder, log_file
from handclip.runs.snapshots import Snapshots
from handclip.runs.train import train
from handclip.training.state import Plan, TrainState
from handclip.training.step import Step

STEPS = 3
"""Steps an epoch; there are two epochs."""


def config_in(manifests: Path, place: Path) -> ExperimentConfig:
    places = {"output_dir": str(place / "train_logs"), "save_dir": str(place / "saved_models")}
    return tiny_config(manifests, neck="bnneck", losses=LOSSES["ce"], batch_size=4, epochs=2, **places)


@pytest.fixture(scope="module")
def whole(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return train(config_in(manifests, tmp_path_factory.mktemp("whole")))


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
    folders = (files.states, files.best.parent)
    return {path.name: path.read_bytes() for folder in folders for path in folder.glob("[!.]*")}


def assert_same_run(one: TrainingResult, other: TrainingResult) -> None:
    assert loss_columns(one.folder / "metrics.csv") == loss_columns(other.folder / "metrics.csv")
    for path, expected in ((one.checkpoint, other.checkpoint), (one.last_checkpoint, other.last_checkpoint)):
        assert same_weights(weights(path), weights(expected))


@pytest.mark.parametrize("files_that_fit", [0, 1, 2, 3])
def test_a_full_disk_ends_training_with_the_last_state_intact(
    files_that_fit: int,
    manifests: Path,
    tmp_path: Path,
    whole: TrainingResult,
    after_step: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second epoch's table, state and best model, and the last model: one of them does not fit."""
    config = config_in(manifests, tmp_path)
    before: dict[str, bytes] = {}
    left = [10**9]

    def fill(step: Step) -> None:
        if not before:
            before.update(contents(config))
            left[0] = files_that_fit

    def fsync(descriptor: int) -> None:
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
        if "provenance" in file.name or file.is_dir():
            return
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("handclip.files.os.fsync", fsync)
    after_step(2 * STEPS, fill)
    with pytest.raises(TrainingError) as caught:
        train(config)
    saved = 1 if files_that_fit < 2 else 2
    assert str(caught.value).startswith("cannot write ")
    assert str(caught.value).endswith(
        f": No space left on device. Mend that, then go on with --resume. Everything up to epoch {saved} is saved."
    )
    now = contents(config)
    assert not list(tmp_path.rglob("*.part"))
    assert not RunFolder.of(config).result.exists()
    if files_that_fit < 2:
        assert now == before
    provenance = read_provenance(RunFolder.of(config).folder)
    assert provenance is not None
    assert provenance["sessions"][-1]["to"] == {"epochs": saved, "steps": saved * STEPS}
    left[0] = 10**9
    assert_same_run(train(config, resume=True), whole)


def no_space(*what: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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


@pytest.mark.parametrize("what", ["folder", "states", "models"])
def test_what_was_removed_meanwhile_is_not_made_anew(
    what: str, manifests: Path, tmp_path: Path, after_step: Callable[..., None]
) -> None:
    config = config_in(manifests, tmp_path)
    files = RunFolder.of(config)
    place = {"folder": files.folder, "states": files.states, "models": files.best.parent}[what]
    after_step(STEPS + 1, lambda step: shutil.rmtree(place))
    with pytest.raises(TrainingError, match=r" is gone: somebody has removed it while the run was training\. "):
        train(config)
    assert not place.exists()


def test_a_second_process_is_told_and_the_first_is_left_alone(
    manifests: Path, tmp_path: Path, whole: TrainingResult, after_step: Callable[..., None]
) -> None:
    config = config_in(manifests, tmp_path)
    files = RunFolder.of(config)
    told: list[str] = []

    def second(step: Step) -> None:
        for resume in (False, True):
            with pytest.raises(InUseError) as caught:
                train(config, resume=resume)
            told.append(str(caught.value))

    after_step(STEPS + 1, second)
    assert_same_run(train(config), whole)
    assert len(told) == 2
    assert all(f"{files.folder} is being written by process {os.getpid()} on " in message for message in told)
    assert not is_held(files.folder)
    with holding(files.folder):
        pass


def test_two_runs_that_write_the_same_checkpoints_are_not_trained_at_once(
    manifests: Path, tmp_path: Path, after_step: Callable[..., None]
) -> None:
    config = config_in(manifests, tmp_path)
    places = {"output_dir": str(tmp_path / "other"), "save_dir": str(config.save_dir)}
    other = tiny_config(manifests, neck="bnneck", losses=LOSSES["ce"], batch_size=4, epochs=2, **places)
    files = RunFolder.of(config)
    told: list[str] = []

    def second(step: Step) -> None:
        if not told:
            with pytest.raises(InUseError) as caught:
                train(other)
            told.append(str(caught.value))

    after_step(1, second)
    assert train(config).finished
    assert told[0].startswith(f"{files.best} is being written by process {os.getpid()} on ")
    assert not RunFolder.of(other).folder.exists()
    assert not is_held(files.best)


@pytest.mark.parametrize("lost", ["states", "best", "last", "none"])
def test_a_run_that_has_lost_its_config_does_not_go_on(lost: str, manifests: Path, tmp_path: Path) -> None:
    """What has begun is known by its states and checkpoints, or by the checksum of the config alone."""
    config = config_in(manifests, tmp_path)
    files = RunFolder.of(config)
    files.open(config, resume=False)
    sums = files.folder / "SHA256SUMS"
    left: Path = sums if lost == "none" else getattr(files, lost)
    if lost != "none":
        sums.unlink()
        left.parent.mkdir(parents=True, exist_ok=True)
        left.touch()
    files.config.unlink()
    with pytest.raises(DamagedFileError) as caught:
        train(config, resume=True)
    assert str(caught.value) == (
        f"{files.config}: is gone, although {left} says that the run has begun, so it cannot go on. Put the file "
        f"back, or move {files.folder} and the run's checkpoints away to start anew"
    )
    left.unlink()
    files.open(config, resume=True)  # nothing is left that says so
    assert files.config.is_file()


def spoil(name: str) -> Callable[[Step], None]:
    def now(step: Step) -> None:
        state = step.objective.state_dict()
        state[name].view(-1)[0] = torch.nan

    return now


SPOILT = {
    "a running mean": "model.necks.projected.norm.running_mean",
    "a weight": "model.encoder.tower.ln_post.weight",
}


@pytest.mark.parametrize("what", SPOILT)
@pytest.mark.parametrize("stopping", [False, True])
def test_weights_that_are_not_finite_are_not_saved(
    what: str, stopping: bool, manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_step: Any
) -> None:
    """After the last step of an epoch, or after one where a signal asks to stop: no loss has shown it yet."""
    config = config_in(manifests, tmp_path)
    step = STEPS + 1 if stopping else 2 * STEPS
    before: dict[str, bytes] = {}

    def spoil_now(own: Step) -> None:
        before.update(contents(config))
        spoil(next(name for name in own.objective.state_dict() if name.endswith(SPOILT[what].rpartition(".")[2])))(own)
        if stopping:
            monkeypatch.setattr(StopRequest, "signum", 15)

    after_step(step, spoil_now)
    if stopping:
        monkeypatch.setattr(StopRequest, "__init__", lambda self: None)
        monkeypatch.setattr(StopRequest, "signum", None, raising=False)
    with pytest.raises(
        TrainingError, match=rf"holds NaN or infinity after step {step}, so nothing of it is saved\. .*"
    ):
        train(config)
    assert contents(config) == before
    assert Snapshots(RunFolder.of(config).states).describe() == "Everything up to epoch 1 is saved."
