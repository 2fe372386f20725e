"""Snapshots of a run: two kept, found by name, checked by hash; a damaged one is named and the one before it used."""

import logging
import os
import pickle
import shlex
import tracemalloc
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import loss_columns, same_weights, tiny_config, weights

from handclip.config.experiment import ExperimentConfig
from handclip.errors import DamagedFileError, HandCLIPError
from handclip.runs.result import TrainingResult
from handclip.runs.run_folder import RunFolder
from handclip.runs.snapshots import Snapshots
from handclip.runs.train import train

LONG_AGO = 10**9


@pytest.fixture
def states(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "run" / "checkpoints")


def save(states: Snapshots, epochs: int, steps: int = 0) -> Path:
    states.save({"epochs": epochs, "steps": steps}, epochs, steps)
    assert states.current is not None
    return states.current


def test_the_newest_two_are_kept_by_name_whatever_the_clock_says(states: Snapshots) -> None:
    assert (states.newest(), states.paths()) == (None, [])
    saved = [save(states, *position) for position in ((9, 0), (9, 2), (9, 11), (10, 0), (10, 1))]
    assert saved[1].name.startswith("epoch_0009_step_00002-") and saved[3].name.startswith("epoch_0010-")
    os.utime(saved[4], (LONG_AGO, LONG_AGO))
    assert states.paths() == [saved[4], saved[3]]
    assert Snapshots(states.folder).newest() == saved[4]
    assert states.load(saved[4]) == {"epochs": 10, "steps": 1}
    assert states.describe() == "Everything up to epoch 11, step 1 is saved."


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_named_and_the_one_before_it_is_used(
    damage: str, states: Snapshots, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "handclip")
    first, second = save(states, 1), save(states, 1, 2)
    DAMAGES[damage](second)
    assert states.newest() == first
    assert caplog.messages == [f"{second}: is damaged. Training goes on from {first.name}, the one before it."]
    with pytest.raises(DamagedFileError, match="is not a state that training may go on from"):
        states.load(second)
    # What it goes on from is kept until two others are whole.
    third = save(states, 2)
    assert states.paths() == [third, first]

    DAMAGES[damage](first)
    DAMAGES[damage](third)
    with pytest.raises(DamagedFileError) as caught:
        Snapshots(states.folder).newest()
    assert str(caught.value) == (
        f"{third} and {first} are damaged, and there is no other state to go on from. "
        f"Move {states.folder.parent} and the run's checkpoints away to start anew"
    )


def test_what_a_killed_process_has_left_is_removed(states: Snapshots) -> None:
    save(states, 1)
    left = states.folder / ".epoch_0002-0123456789abcdef.ckpt.01234567.part"
    left.write_bytes(b"half")
    assert [path.name for path in (states.newest(),) if path] == [states.paths()[0].name]
    save(states, 2)
    assert not left.exists()


def test_to_ask_for_the_newest_state_changes_nothing(states: Snapshots, caplog: pytest.LogCaptureFixture) -> None:
    first, second = save(states, 1), save(states, 2)
    flip(second)
    asking = Snapshots(states.folder)
    assert asking.find() == (first, [second])
    assert (asking.current, caplog.messages) == (None, [])


def test_a_state_is_written_without_a_copy_of_it_in_memory(states: Snapshots) -> None:
    content = {"weights": torch.arange(2**21, dtype=torch.float32)}
    tracemalloc.start()
    try:
        states.save(content, 1, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20
    assert states.current is not None
    assert states.current.name == f"epoch_0001-{sha256(states.current.read_bytes()).hexdigest()[:16]}.ckpt"
    # The bytes are what torch writes to a file of its own accord.
    torch.save(content, whole := BytesIO())
    assert states.current.read_bytes() == whole.getvalue()


class _Payload:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (shlex.join(["touch", str(self.trace)]),)


def test_a_state_that_would_run_code_is_refused(states: Snapshots, tmp_path: Path) -> None:
    states.folder.mkdir(parents=True)
    for save_to in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))):
        raw = tmp_path / "raw"
        save_to({"epoch": _Payload(tmp_path / "trace")}, raw)
        hostile = states.folder / f"epoch_0001-{sha256(raw.read_bytes()).hexdigest()[:16]}.ckpt"
        raw.rename(hostile)
        assert states.newest() == hostile  # it has its hash
        with pytest.raises(DamagedFileError, match="is not a state that training may go on from"):
            states.load(hostile)
        hostile.unlink()
    assert not (tmp_path / "trace").exists()


# From here on with whole runs of two steps an epoch.


@pytest.fixture(scope="module")
def whole(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return train(config_in(manifests, tmp_path_factory.mktemp("whole")))


def config_in(manifests: Path, place: Path) -> ExperimentConfig:
    places = {"output_dir": str(place / "train_logs"), "save_dir": str(place / "saved_models")}
    return tiny_config(manifests, epochs=3, **places)


def assert_same_run(one: TrainingResult, other: TrainingResult) -> None:
    assert loss_columns(one.folder / "metrics.csv") == loss_columns(other.folder / "metrics.csv")
    for path, expected in ((one.checkpoint, other.checkpoint), (one.last_checkpoint, other.last_checkpoint)):
        assert same_weights(weights(path), weights(expected))


def test_a_run_whose_newest_state_is_damaged_ends_the_same(
    manifests: Path, tmp_path: Path, whole: TrainingResult
) -> None:
    config = config_in(manifests, tmp_path)
    train(config, stop_after=2)
    newest, _ = Snapshots(RunFolder.of(config).states).paths()
    flip(newest)
    assert_same_run(train(config, resume=True), whole)


def test_a_run_whose_best_model_is_damaged_is_not_ended_with_it(
    manifests: Path, tmp_path: Path, whole: TrainingResult
) -> None:
    config = config_in(manifests, tmp_path)
    files = RunFolder.of(config)
    train(config, stop_after=1)
    flip(files.best)
    # The state was saved with that very model: it is written again, as where the run was killed in between.
    best = train(config, resume=True, stop_after=1).checkpoint
    assert weights(best).keys() == weights(whole.checkpoint).keys()
    train(config, resume=True, stop_after=2)
    assert_same_run(train(config, resume=True), whole)


def test_a_lost_best_model_of_an_earlier_epoch_is_named(
    manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = iter([0.9, 0.5, 0.5])

    def validate(*images: Any, **options: Any) -> dict[str, float]:
        return {"val_rank1": 0.0, "val_rank5": 0.0, "val_rank10": 0.0, "val_map": next(script)}

    monkeypatch.setattr("handclip.runs.train.validate", validate)
    config = config_in(manifests, tmp_path)
    train(config, stop_after=2)
    files = RunFolder.of(config)
    files.best.unlink()
    with pytest.raises(DamagedFileError) as caught:
        train(config, resume=True)
    assert str(caught.value) == (
        f"{files.best}: the model of epoch 1, the best of this run so far, is gone or damaged. "
        f"{Snapshots(files.states).paths()[0]} is whole, but holds a later model. Put the file back, or move "
        f"{files.folder} and what there is of it away to train anew"
    )


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.yml", "result.json", "metrics.csv", "environment.json"])
def test_a_damaged_record_of_a_run_that_has_ended_is_named(
    damage: str, name: str, manifests: Path, whole: TrainingResult
) -> None:
    path = whole.folder / name
    before = path.read_bytes()
    DAMAGES[damage](path)
    try:
        with pytest.raises(DamagedFileError, match=rf"{name}: is damaged or was changed.* to (start|train) anew"):
            train(config_in(manifests, whole.folder.parents[1]), resume=True)
    finally:
        path.write_bytes(before)
    assert train(config_in(manifests, whole.folder.parents[1]), resume=True) == whole


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_of_a_run_that_has_ended_is_named(damage: str, manifests: Path, whole: TrainingResult) -> None:
    before = whole.checkpoint.read_bytes()
    DAMAGES[damage](whole.checkpoint)
    try:
        with pytest.raises(DamagedFileError, match=rf"{whole.run}\.pth: is damaged.*is in .*{whole.run}_last\.pth"):
            train(config_in(manifests, whole.folder.parents[1]), resume=True)
        last = whole.last_checkpoint.rename(whole.last_checkpoint.with_suffix(".away"))
        with pytest.raises(DamagedFileError, match=rf"{whole.run}\.pth: is damaged") as caught:
            train(config_in(manifests, whole.folder.parents[1]), resume=True)
        last.rename(whole.last_checkpoint)
        assert str(whole.last_checkpoint) not in str(caught.value)
    finally:
        whole.checkpoint.write_bytes(before)


@pytest.mark.parametrize("content", ["", "experiment: [", "just text", "a: 1", "a: " + "[" * 1200])
def test_a_damaged_config_of_a_run_without_checksums_is_named(content: str, manifests: Path, tmp_path: Path) -> None:
    config = config_in(manifests, tmp_path)
    files = RunFolder.of(config)
    files.open(config, resume=False)
    (files.folder / "SHA256SUMS").unlink()
    files.config.write_text(content)
    with pytest.raises(DamagedFileError, match=r"config\.yml: is damaged: it does not hold the settings of a run"):
        files.open(config, resume=True)


def test_killed_between_result_and_checksums(manifests: Path, tmp_path: Path, whole: TrainingResult) -> None:
    sums = whole.folder / "SHA256SUMS"
    before = sums.read_text()
    sums.unlink()
    assert train(config_in(manifests, whole.folder.parents[1]), resume=True) == whole
    assert sums.read_text() == before


def test_a_result_that_is_no_result(manifests: Path, whole: TrainingResult) -> None:
    result, sums = whole.folder / "result.json", whole.folder / "SHA256SUMS"
    before = result.read_text(), sums.read_text()
    sums.unlink()
    try:
        for text in ("[]", "{}"):
            result.write_text(text)
            wrong = r"result\.json: (is damaged or is of another kind|lacks .*; it is damaged, or)"
            with pytest.raises(HandCLIPError, match=wrong):
                train(config_in(manifests, whole.folder.parents[1]), resume=True)
    finally:
        result.write_text(before[0])
        sums.write_text(before[1])


def test_a_run_whose_states_were_moved_away_does_not_begin_again(manifests: Path, here: Path) -> None:
    config = tiny_config(manifests, epochs=3)
    result = train(config, stop_after=1)
    best = result.checkpoint.read_bytes()
    RunFolder.of(config).states.rename(here / "moved")
    with pytest.raises(DamagedFileError, match=r"holds no state to go on from, although epochs were trained\. Put"):
        train(config, resume=True)
    assert result.checkpoint.read_bytes() == best
