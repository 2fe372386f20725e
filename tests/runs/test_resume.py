import json
from pathlib import Path

import pytest
import torch
from tiny_study import (
    HANDS,
    LOSSES,
    load_manifest,
    loss_columns,
    same_weights,
    tiny_config,
    weights,
)

from handclip.checksums import write_checksums
from handclip.datasets.manifest import Manifest
from handclip.datasets.prepare import prepare
from handclip.errors import ConfigError, DataError, HandCLIPError
from handclip.runs.result import RECORDS, TrainingResult
from handclip.runs.run_folder import RunFolder
from handclip.runs.train import train

AUGMENTATION = {"flip": 0.5, "color_jitter": 0.2, "resize_crop": 1.2}


def in_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def assert_same_run(first: Path, second: Path, result: TrainingResult) -> None:
    """Two working directories hold the same run to the last digit."""
    for path in (result.checkpoint, result.last_checkpoint):
        assert same_weights(weights(first / path), weights(second / path))
        loaded = [torch.load(place / path, weights_only=True) for place in (first, second)]
        assert loaded[0]["epoch"] == loaded[1]["epoch"]
        assert loaded[0]["metrics"] == loaded[1]["metrics"]
    tables = [loss_columns(place / result.folder / "metrics.csv") for place in (first, second)]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(("losses", "interval", "workers"), [("ce_arcface", 1, 1), ("ce_triplet_center", 2, 0)])
def test_d21_two_runs_with_resume_equal_one(
    losses: str, interval: int, workers: int, manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(
        manifests,
        losses=LOSSES[losses],
        epochs=4,
        neck="bnneck",
        warmup_epochs=1.5,
        augmentation=AUGMENTATION,
        validation_interval=interval,
        num_workers=workers,
    )
    in_folder(tmp_path / "in one go", monkeypatch)
    whole = train(config)
    in_folder(tmp_path / "in two", monkeypatch)
    # With an interval of 2, this stops between two validations.
    half = train(config, stop_after=3 if interval == 2 else 2)
    assert not half.finished
    assert not (half.folder / "result.json").exists()
    resumed = train(config, resume=True)
    assert (resumed.finished, resumed.epochs, resumed.best_epoch) == (True, 4, whole.best_epoch)
    assert_same_run(tmp_path / "in one go", tmp_path / "in two", whole)


def test_a_run_that_stops_at_once_trains_nothing_more(manifests: Path, here: Path) -> None:
    config = tiny_config(manifests, epochs=4)
    first = train(config, stop_after=2)
    assert (first.epochs, train(config, resume=True, stop_after=2).epochs) == (2, 2)


def test_resuming_a_finished_run_reports_it(manifests: Path, here: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "handclip")
    config = tiny_config(manifests)
    result = train(config)
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    assert train(config, resume=True) == result
    assert "has already ended" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_killed_before_the_result_was_written(manifests: Path, here: Path) -> None:
    config = tiny_config(manifests)
    result = train(config)
    before = weights(result.last_checkpoint)
    (result.folder / "result.json").unlink()
    result.last_checkpoint.unlink()
    again = train(config, resume=True)
    assert (again.epochs, again.best_epoch) == (2, result.best_epoch)
    assert same_weights(weights(again.last_checkpoint), before)


def test_killed_before_the_first_epoch_ended(manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(manifests)
    in_folder(tmp_path / "killed", monkeypatch)
    RunFolder.of(config).open(config, resume=False)
    result = train(config, resume=True)
    in_folder(tmp_path / "not killed", monkeypatch)
    train(config)
    assert_same_run(tmp_path / "killed", tmp_path / "not killed", result)


def test_an_existing_run_is_refused_and_left_alone(manifests: Path, here: Path) -> None:
    config = tiny_config(manifests)
    result = train(config)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    with pytest.raises(HandCLIPError, match=r"exists already: this run has ended, and `handclip evaluate` is next"):
        train(config)
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before

    # The model alone is reason enough, and cannot go on without its records.
    result.folder.rename(here / "moved")
    with pytest.raises(HandCLIPError, match=rf"{result.run}.pth exists already"):
        train(config)
    with pytest.raises(HandCLIPError, match="cannot go on"):
        train(config, resume=True)


def test_other_settings_are_refused(manifests: Path, here: Path) -> None:
    config = tiny_config(manifests)
    train(config, stop_after=1)
    # The name holds most settings; what is recorded in the folder is checked all the same.
    other = tiny_config(manifests, lr=2e-3)
    RunFolder.of(config).folder.rename(RunFolder.of(other).folder)
    with pytest.raises(HandCLIPError, match=r"was started with lr: 0.001, and cannot go on with 0.002"):
        train(other, resume=True)


def test_the_earlier_stage_may_lie_elsewhere_by_now(manifests: Path, here: Path, stage1: TrainingResult) -> None:
    started = tiny_config(manifests, resume_from=str(stage1.checkpoint))
    train(started, stop_after=1)
    moved = here / "moved" / stage1.checkpoint.name
    moved.parent.mkdir()
    moved.write_bytes(stage1.checkpoint.read_bytes())
    config = tiny_config(manifests, resume_from=str(moved))
    assert train(config, resume=True).epochs == 2
    assert train(tiny_config(manifests, resume_from=f"gone/{moved.name}"), resume=True).finished


def test_another_earlier_stage_is_refused(manifests: Path, here: Path, stage1: TrainingResult) -> None:
    config = tiny_config(manifests, resume_from=str(stage1.checkpoint))
    train(config, stop_after=1)
    (here / "other.pth").write_bytes(stage1.checkpoint.read_bytes())
    other = tiny_config(manifests, resume_from="other.pth")
    RunFolder.of(config).folder.rename(RunFolder.of(other).folder)
    with pytest.raises(HandCLIPError, match=r"was started with resume_from: .*, and cannot go on with other\.pth"):
        train(other, resume=True)


def test_the_number_of_workers_may_change(manifests: Path, here: Path) -> None:
    train(tiny_config(manifests), stop_after=1)
    assert train(tiny_config(manifests, num_workers=1, eval_batch_size=5), resume=True).epochs == 2


def test_changed_data_are_refused(manifests: Path, hands: Path, here: Path) -> None:
    prepare("11k", hands, here / "other", seed=1)
    train(tiny_config(here / "manifest.json", manifest=_copy(manifests, here / "manifest.json")), stop_after=1)
    changed = _copy(here / "other", here / "manifest.json")
    with pytest.raises(DataError, match="the data have changed"):
        train(tiny_config(here / "manifest.json", manifest=changed), resume=True)


def _copy(manifests: Path, path: Path) -> str:
    load_manifest(manifests).save(path)
    assert len(Manifest.load(path).train) == HANDS.identities // 2 * (HANDS.images_per_aspect - 1)
    return str(path)


def test_going_on_with_other_hardware_is_said(manifests: Path, here: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(manifests, epochs=3)
    folder = train(config, stop_after=1).folder
    train(config, resume=True, stop_after=2)
    assert "goes on with" not in caplog.text
    environment = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({**environment, "threads": 64, "processor": "Z80"}))
    train(config, resume=True)
    assert f"goes on with processor {environment['processor']} (was Z80), threads 1 (was 64): its" in caplog.text


def test_records_by_another_version_do_not_keep_a_run_from_being_reported(manifests: Path, here: Path) -> None:
    config = tiny_config(manifests, epochs=1)
    trained = train(config)
    path = trained.folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "invented_later": 5}))
    write_checksums(trained.folder, RECORDS)
    assert train(config, resume=True) == trained
    path.write_text("5")
    write_checksums(trained.folder, RECORDS)
    with pytest.raises(HandCLIPError, match=r"result\.json: is damaged or is of another kind"):
        train(config, resume=True)


def test_a_damaged_record_of_the_machine_does_not_stop_a_run(manifests: Path, here: Path) -> None:
    config = tiny_config(manifests)
    folder = train(config, stop_after=1).folder
    (folder / "environment.json").write_text("5")
    assert train(config, resume=True).finished


@pytest.mark.parametrize("epochs", [0, -1])
def test_to_stop_before_the_first_epoch_is_refused(epochs: int, manifests: Path, here: Path) -> None:
    with pytest.raises(ConfigError, match=f"stop_after: {epochs}: train for one epoch at least"):
        train(tiny_config(manifests), stop_after=epochs)
    assert list(here.iterdir()) == []
