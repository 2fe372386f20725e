"""The best checkpoint of a run that goes on: moved, or of an epoch that is trained again and ends otherwise."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_study import tiny_config

from handclip.audit import audit
from handclip.config.experiment import ExperimentConfig
from handclip.models.checkpoint import Checkpoint
from handclip.runs.run_folder import RunFolder
from handclip.runs.snapshots import Snapshots
from handclip.runs.train import train


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have validation find these, one after the other: a GPU may find others when it trains an epoch again."""
    script: Iterator[float] = iter(())

    def validate(*images: Any, **options: Any) -> dict[str, float]:
        return {"val_rank1": 0.0, "val_rank5": 0.0, "val_rank10": 0.0, "val_map": next(script)}

    def arrange(*values: float) -> None:
        nonlocal script
        script = iter(values)

    monkeypatch.setattr("handclip.runs.train.validate", validate)
    return arrange


def config_in(manifests: Path, place: Path, **changes: Any) -> ExperimentConfig:
    places = {"output_dir": str(place / "train_logs"), "save_dir": str(place / "saved_models")}
    return tiny_config(manifests, **{"epochs": 4, **places, **changes})


def damage_newest_state(config: ExperimentConfig) -> None:
    Snapshots(RunFolder.of(config).states).paths()[0].write_bytes(b"damaged")


def test_a_run_goes_on_with_other_places_and_ends(manifests: Path, tmp_path: Path, scores: Callable[..., None]) -> None:
    scores(0.9, 0.5)
    train(config_in(manifests, tmp_path, epochs=2), stop_after=1)
    other = tmp_path / "other"
    result = train(config_in(manifests, tmp_path, epochs=2, save_dir=str(other), num_workers=1), resume=True)
    assert (result.finished, result.best_epoch, result.checkpoint.parent) == (True, 1, other)
    best = Checkpoint.load(result.checkpoint)
    assert (best.epoch, best.config["save_dir"], best.metrics["val_map"]) == (1, str(other), 0.9)


@pytest.mark.parametrize(
    ("again", "after_it", "best_epoch", "value", "was_repeated"),
    [(0.9, 0.6, 3, 0.9, False), (0.3, 0.6, 3, 0.9, True), (0.3, 0.95, 4, 0.95, False)],
)
def test_a_best_epoch_that_is_trained_again_and_is_not_as_good(
    again: float,
    after_it: float,
    best_epoch: int,
    value: float,
    was_repeated: bool,
    manifests: Path,
    tmp_path: Path,
    scores: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The third epoch's model has taken the place of the first one's when the state of the third is damaged."""
    config = config_in(manifests, tmp_path)
    scores(0.5, 0.4, 0.9, again, after_it)
    train(config, stop_after=3)
    damage_newest_state(config)
    caplog.clear()
    train(config, resume=True, stop_after=3)
    result = train(config, resume=True)
    assert (result.finished, result.best_epoch, result.best_was_repeated) == (True, best_epoch, was_repeated)
    best = Checkpoint.load(result.checkpoint)
    assert (best.epoch, best.metrics["val_map"]) == (best_epoch, value)
    said = (
        "Epoch 3 was trained a second time, and its model is not as good as that of the first time (val_map 0.9000), "
        f"which is in {result.checkpoint} and is kept as the best."
    )
    assert (said in caplog.messages) == (again < 0.9)
    (result_of_audit,) = audit([result.folder], images=False)
    assert result_of_audit.holds, result_of_audit.findings
    assert train(config, resume=True) == result


def test_a_state_that_holds_the_best_model_puts_it_back(
    manifests: Path, tmp_path: Path, scores: Callable[..., None]
) -> None:
    """The second epoch's model has taken its place, and is not made again as good as it was."""
    config = config_in(manifests, tmp_path, epochs=3)
    scores(0.5, 0.9, 0.4, 0.3)
    train(config, stop_after=2)
    damage_newest_state(config)
    result = train(config, resume=True)
    assert (result.finished, result.best_epoch, Checkpoint.load(result.checkpoint).epoch) == (True, 1, 1)
    (result_of_audit,) = audit([result.folder], images=False)
    assert result_of_audit.holds, result_of_audit.findings


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"damaged")])
def test_killed_after_the_last_state_and_before_its_model_was_written_as_the_best(
    damage: Callable[[Path], Any], manifests: Path, tmp_path: Path, scores: Callable[..., None]
) -> None:
    config = config_in(manifests, tmp_path, epochs=2)
    scores(0.5, 0.9)
    result = train(config)
    whole = Checkpoint.load(result.checkpoint).sha256()
    (result.folder / "result.json").unlink()
    result.last_checkpoint.unlink()
    damage(result.checkpoint)
    again = train(config, resume=True)
    assert (again.finished, again.best_epoch) == (True, 2)
    assert Checkpoint.load(again.checkpoint).sha256() == whole


def test_a_damaged_newest_state_is_found_by_the_audit(
    manifests: Path, tmp_path: Path, scores: Callable[..., None]
) -> None:
    config = config_in(manifests, tmp_path)
    scores(0.5, 0.9)
    train(config, stop_after=2)
    damage_newest_state(config)
    newest = Snapshots(RunFolder.of(config).states).paths()[0]
    (result_of_audit,) = audit([newest.parents[1]])
    (fault,) = [one for one in result_of_audit.findings if one.what == f"checkpoints/{newest.name}"]
    assert fault.found == f"{newest}: is damaged; the one before it is whole"
