"""A disk without room for a run is said before the run begins, and no run is refused that would fit."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_run import STEPS, TinyRun
from tiny_study import tiny_config

from handclip.errors import HandCLIPError
from handclip.runs.disk_space import check_disk_space
from handclip.runs.train import train
from handclip.training.state import Plan

SIZE = 300
"""Of a layer beside whose weights the rest of a file is little."""


def check(run: TinyRun, size: int, until: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the room on a disk of this size, which holds what the run has written and nothing else."""
    used = sum(len(content) for content in run.contents().values())
    monkeypatch.setattr("handclip.runs.disk_space.shutil.disk_usage", lambda path: SimpleNamespace(free=size - used))
    check_disk_space(run.files, run.step.objective, Plan(4, STEPS, stop_after=until))


def train_and_measure(run: TinyRun, until: int | None, monkeypatch: pytest.MonkeyPatch) -> int:
    """Train, and return the most that states and checkpoints took at once."""
    most = [0]

    def watch(source: Path, *arguments: Any, replace: Any = Path.replace) -> Any:
        used = sum(
            path.stat().st_size for place in (run.files.snapshots, run.files.best.parent) for path in place.glob("*")
        )
        most[0] = max(most[0], used)
        return replace(source, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", watch)
        state = run.train(0.4, 0.3, 0.2, 0.1, until=until)  # a better one would take more
        if state.has_ended:
            run.checkpoint(4, {}).save(run.files.last)
    return most[0]


@pytest.mark.promise("room-foreseen")
@pytest.mark.parametrize("until", [1, 2, None])
def test_what_a_run_will_take_is_known_before_it_begins(
    until: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TinyRun(tmp_path, size=SIZE)
    most = train_and_measure(run, until, monkeypatch)
    shutil.rmtree(tmp_path / "train_logs")
    shutil.rmtree(tmp_path / "saved_models")
    with pytest.raises(HandCLIPError, match=r"MiB are free on this disk, but .* will take .* more. Make room, or set"):
        check(run, int(most * 0.9), until, monkeypatch)
    check(run, most, until, monkeypatch)


@pytest.mark.promise("room-foreseen")
def test_a_run_that_goes_on_needs_room_for_what_is_to_come_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TinyRun(tmp_path, size=SIZE)
    run.train(0.1, 0.2, until=2)
    used = sum(len(content) for content in run.contents().values())
    state = run.snapshots.paths()[0].stat().st_size
    with pytest.raises(HandCLIPError, match="free on this disk"):
        check(run, used + int(state * 0.9), None, monkeypatch)
    check(run, used + state, None, monkeypatch)


def test_disks_are_asked_one_by_one_before_training_writes(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(free=0 if len(asked) == 2 else 10**12)

    monkeypatch.setattr("handclip.runs.disk_space._disk", lambda path: path.suffix)
    monkeypatch.setattr("handclip.runs.disk_space.shutil.disk_usage", usage)
    with pytest.raises(HandCLIPError, match=r"saved_models: 0\.0 MiB are free"):
        train(tiny_config(manifests))
    assert list(here.iterdir()) == []
