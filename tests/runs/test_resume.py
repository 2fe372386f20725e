import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import assert_same_run, flip
from tiny_study import HANDS, LOSSES, load_manifest, tiny_config

from handclip.checksums import write_checksums
from handclip.config.experiment import ExperimentConfig
from handclip.datasets.manifest import Manifest
from handclip.datasets.prepare import prepare
from handclip.errors import CheckpointError, ConfigError, DamagedFileError, DataError, HandCLIPError
from handclip.models.checkpoint import Checkpoint
from handclip.runs.provenance import read_provenance
from handclip.runs.result import RECORDS, TrainingResult
from handclip.runs.run_folder import RunFolder
from handclip.runs.snapshots import Snapshots
from handclip.runs.train import train


@pytest.mark.promise("exact-resume")
def test_d21_two_runs_with_resume_equal_one(manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between two validations, though both halves are called with places that are relative."""
    config = tiny_config(
        manifests,
        losses=LOSSES["ce_triplet_center"],
        epochs=4,
        neck="bnneck",
        warmup_epochs=1.5,
        augmentation={"flip": 0.5, "color_jitter": 0.2, "resize_crop": 1.2},
        validation_interval=2,
    )
    monkeypatch.chdir(tmp_path)
    half = train(config, stop_after=3)
    assert (half.finished, half.epochs, (half.folder / "result.json").exists()) == (False, 3, False)
    whole = train(config.model_copy(update={"output_dir": Path("whole"), "save_dir": Path("whole")}))
    assert_same_run(train(config, resume=True), whole)


def test_what_a_run_may_go_on_with(
    manifests: Path, here: Path, scores: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """Other workers, batches, places and hardware, which is said; each process has its entry in the provenance."""
    caplog.set_level("INFO", "handclip")
    scores(0.9, 0.5, 0.4)
    config = tiny_config(manifests, epochs=3)
    folder = train(config, stop_after=1).folder
    assert train(config, resume=True, stop_after=1).epochs == 1  # nothing more
    environment = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text("5")
    other = tiny_config(manifests, epochs=3, num_workers=1, eval_batch_size=5, save_dir="other")
    train(other, resume=True, stop_after=2)
    assert json.loads((folder / "environment.json").read_text()).keys() == environment.keys()
    assert "goes on with" not in caplog.text
    (folder / "environment.json").write_text(json.dumps({**environment, "threads": 64, "processor": "Z80"}))
    result = train(other, resume=True)
    assert f"goes on with processor {environment['processor']} (was Z80), threads 1 (was 64): its" in caplog.text
    assert (result.finished, result.best_epoch, result.checkpoint.parent) == (True, 1, Path("other"))
    best = Checkpoint.load(result.checkpoint)
    assert (best.epoch, best.config["save_dir"], best.metrics["val_map"]) == (1, "other", 0.9)
    provenance = read_provenance(folder)
    assert provenance is not None
    assert [(entry["exit"], entry["from"], entry["to"]) for entry in provenance["sessions"]] == [
        ("stopped after 1 epoch as asked", {"epochs": 0, "steps": 0}, {"epochs": 1, "steps": 2}),
        ("stopped after 1 epoch as asked", {"epochs": 1, "steps": 2}, {"epochs": 1, "steps": 2}),
        ("stopped after 2 epochs as asked", {"epochs": 1, "steps": 2}, {"epochs": 2, "steps": 4}),
        ("finished", {"epochs": 2, "steps": 4}, {"epochs": 3, "steps": 6}),
    ]


def test_killed_before_the_first_epoch_ended(manifests: Path, here: Path, stage1: TrainingResult) -> None:
    config = tiny_config(manifests, experiment="stage1", losses=LOSSES["ce"])
    RunFolder.of(config).open(config, resume=False)
    assert_same_run(train(config, resume=True), stage1)


# From here on with a run that has ended; see `ended`.


def test_resuming_a_finished_run_reports_it_and_to_begin_it_again_is_refused(
    ended: ExperimentConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "handclip")
    files = RunFolder.of(ended)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = train(ended, resume=True)
    assert (result.finished, result.epochs, result.checkpoint) == (True, 2, files.best)
    assert "has already ended" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(HandCLIPError, match=r"exists already: this run has ended, and `handclip evaluate` is next"):
        train(ended)
    changed = [path for path in tmp_path.rglob("*") if path.stat().st_mtime_ns != before[path]]
    assert not any(map(Path.is_file, changed))
    # Killed between the result and its checksums:
    sums = files.folder / "SHA256SUMS"
    text = sums.read_text()
    sums.unlink()
    assert train(ended, resume=True) == result
    assert sums.read_text() == text
    # The model alone is reason enough to refuse, and cannot go on without its records.
    files.folder.rename(tmp_path / "moved")
    with pytest.raises(HandCLIPError, match=rf"{result.run}.pth exists already"):
        train(ended)
    with pytest.raises(HandCLIPError, match="cannot go on"):
        train(ended, resume=True)


@pytest.mark.promise("damaged-state")
@pytest.mark.parametrize("damaged", [False, True], ids=["killed before its result", "and its newest state damaged"])
def test_a_run_whose_newest_state_is_damaged_ends_the_same(
    damaged: bool, ended: ExperimentConfig, stage1: TrainingResult
) -> None:
    files = RunFolder.of(ended)
    files.result.unlink()
    files.last.unlink()
    if damaged:
        flip(Snapshots(files.snapshots).paths()[0])
    assert_same_run(train(ended, resume=True), stage1)


@pytest.mark.promise("damaged-training")
@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_of_a_run_that_has_ended_is_named(name: str, ended: ExperimentConfig) -> None:
    flip(RunFolder.of(ended).folder / name)
    with pytest.raises(DamagedFileError, match=rf"{name}: is damaged or was changed.* to (start|train) anew"):
        train(ended, resume=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"result\.json: is damaged or is of another kind"),
        ("{}", r"result\.json: run: field required\. It is damaged, or was written by another version of HandCLIP\. "),
        ('{"epochs": "many"}', r"result\.json: epochs: input should be a valid integer, unable to parse"),
    ],
)
def test_a_result_that_is_no_result(text: str, message: str, ended: ExperimentConfig) -> None:
    files = RunFolder.of(ended)
    result = json.loads(files.result.read_text())
    files.result.write_text(json.dumps({**result, **json.loads(text)}) if "epochs" in text else text)
    write_checksums(files.folder, RECORDS)
    with pytest.raises(DamagedFileError, match=message):
        train(ended, resume=True)


def test_a_damaged_model_of_a_run_that_has_ended_is_named(ended: ExperimentConfig) -> None:
    files = RunFolder.of(ended)
    flip(files.best)
    with pytest.raises(DamagedFileError, match=rf"{files.run}\.pth: is damaged.*is in .*{files.run}_last\.pth"):
        train(ended, resume=True)
    files.last.unlink()
    with pytest.raises(DamagedFileError, match=rf"{files.run}\.pth: is damaged") as caught:
        train(ended, resume=True)
    assert str(files.last) not in str(caught.value)
    files.best.unlink()
    with pytest.raises(CheckpointError, match=r"\.pth: is gone, although .*result\.json says that the run has ended"):
        train(ended, resume=True)


@pytest.mark.parametrize("content", ["", "experiment: [", "just text", "a: 1", "a: " + "[" * 1200])
def test_a_damaged_config_of_a_run_without_checksums_is_named(content: str, ended: ExperimentConfig) -> None:
    files = RunFolder.of(ended)
    (files.folder / "SHA256SUMS").unlink()
    files.config.write_text(content)
    with pytest.raises(DamagedFileError, match=r"config\.yml: is damaged: it does not hold the settings of a run"):
        files.open(ended, resume=True)


def test_other_settings_are_refused(manifests: Path, here: Path, stage1: TrainingResult) -> None:
    """The name holds most settings; what is recorded in the folder is checked all the same."""
    started = tiny_config(manifests, resume_from=str(stage1.checkpoint))
    RunFolder.of(started).open(started, resume=False)
    # The earlier stage may lie elsewhere by now.
    RunFolder.of(started).open(tiny_config(manifests, resume_from=f"gone/{stage1.checkpoint.name}"), resume=True)
    for changes, message in (
        ({"lr": 2e-3}, r"was started with lr: 0.001, and cannot go on with 0.002"),
        ({"resume_from": "other.pth"}, r"was started with resume_from: .*, and cannot go on with other\.pth"),
    ):
        other = tiny_config(manifests, **{"resume_from": str(stage1.checkpoint), **changes})
        with pytest.raises(HandCLIPError, match=message):
            RunFolder.of(started).open(other, resume=True)


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


@pytest.mark.parametrize("epochs", [0, -1])
def test_to_stop_before_the_first_epoch_is_refused(epochs: int, manifests: Path, here: Path) -> None:
    with pytest.raises(ConfigError, match=f"stop_after: {epochs}: train for one epoch at least"):
        train(tiny_config(manifests), stop_after=epochs)
    assert list(here.iterdir()) == []
