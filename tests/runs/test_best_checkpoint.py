"""The best checkpoint of a run that goes on: put back, named, or of an epoch that is trained again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import TinyRun
from tiny_study import tiny_config

from handclip.audit import audit
from handclip.errors import DamagedFileError
from handclip.models.checkpoint import Checkpoint
from handclip.runs.run_folder import RunFolder
from handclip.runs.snapshots import Snapshots
from handclip.runs.train import train


def damage_newest(snapshots: Snapshots) -> Path:
    newest = snapshots.paths()[0]
    newest.write_bytes(b"damaged")
    return newest


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
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The third epoch's model has taken the place of the first one's when the state of the third is damaged."""
    TinyRun(tmp_path).train(0.5, 0.4, 0.9, until=3)
    damage_newest(TinyRun(tmp_path).snapshots)
    TinyRun(tmp_path).train(again, until=3)
    run = TinyRun(tmp_path)
    state = run.train(after_it)
    assert (state.has_ended, state.best_epoch, run.best.was_repeated) == (True, best_epoch, was_repeated)
    best = run.best.load(state)
    assert (best.epoch, best.metrics["val_map"]) == (best_epoch, value)
    said = (
        "Epoch 3 was trained a second time, and its model is not as good as that of the first time (val_map 0.9000), "
        f"which is in {run.files.best} and is kept as the best."
    )
    assert (said in caplog.messages) == (again < 0.9)


def test_a_state_that_holds_the_best_model_puts_it_back(tmp_path: Path) -> None:
    """The second epoch's model has taken its place, and is not made again as good as it was."""
    run = TinyRun(tmp_path, epochs=3)
    run.train(0.5, until=1)
    first = Checkpoint.load(run.files.best).sha256()
    TinyRun(tmp_path, epochs=3).train(0.9, until=2)
    damage_newest(run.snapshots)
    state = TinyRun(tmp_path, epochs=3).train(0.4, 0.3)
    assert (state.has_ended, state.best_epoch) == (True, 1)
    assert Checkpoint.load(run.files.best).sha256() == first


@pytest.mark.promise("killed-before-best")
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"damaged")])
def test_killed_after_the_last_state_and_before_its_model_was_written_as_the_best(
    damage: Callable[[Path], Any], tmp_path: Path
) -> None:
    run = TinyRun(tmp_path, epochs=2)
    run.train(0.5, 0.9)
    whole = Checkpoint.load(run.files.best).sha256()
    damage(run.files.best)
    assert TinyRun(tmp_path, epochs=2).train().best_epoch == 2
    assert Checkpoint.load(run.files.best).sha256() == whole


def test_a_lost_best_model_of_an_earlier_epoch_is_named(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    run.train(0.9, 0.5, until=2)
    run.files.best.unlink()
    with pytest.raises(DamagedFileError) as caught:
        TinyRun(tmp_path).train()
    assert str(caught.value) == (
        f"{run.files.best}: the model of epoch 1, the best of this run so far, is gone or damaged. "
        f"{run.snapshots.paths()[0]} is whole, but holds a later model. Put the file back, or move "
        f"{run.files.folder} and what there is of it away to train anew"
    )


@pytest.mark.promise("tampering-removed")
def test_a_damaged_newest_state_is_found_by_the_audit(manifests: Path, here: Path, scores: Any) -> None:
    """... which holds again once its epoch was trained again, though it is worse then."""
    config = tiny_config(manifests, epochs=3)
    files = RunFolder.of(config)
    scores(0.5, 0.9, 0.4, 0.3)
    train(config, stop_after=2)
    newest = damage_newest(Snapshots(files.snapshots))
    (found,) = audit([files.folder])
    (fault,) = [one for one in found.findings if one.what == f"checkpoints/{newest.name}"]
    assert fault.found == f"{newest}: is damaged; the one before it is whole"
    train(config, resume=True, stop_after=2)
    result = train(config, resume=True)
    (found,) = audit([files.folder], images=False)
    assert found.holds, found.findings
    assert train(config, resume=True) == result
