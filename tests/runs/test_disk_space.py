"""A disk without room for a run is said before the run begins, and no run is refused that would fit."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_study import LOSSES, tiny_config

from handclip.config.experiment import ExperimentConfig
from handclip.errors import HandCLIPError
from handclip.runs.run_folder import RunFolder
from handclip.runs.train import train


class Disk:
    """Answers for the file system: as large as it is told, and as full as the run's files make it."""

    def __init__(self, config: ExperimentConfig, size: int) -> None:
        files = RunFolder.of(config)
        self.folders = (files.states, files.best.parent)
        self.size = size

    def used(self) -> int:
        return sum(path.stat().st_size for folder in self.folders for path in folder.glob("*"))

    def usage(self, path: Any) -> Any:
        return SimpleNamespace(free=self.size - self.used())


@pytest.fixture
def config(manifests: Path, here: Path) -> ExperimentConfig:
    return tiny_config(manifests, losses=LOSSES["ce_triplet_center"], epochs=4, model="resnet_small", neck="bnneck")


def most_used(config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch, epochs: int) -> int:
    """Train, and return the most that states and checkpoints took at once."""
    disk, most = Disk(config, 10**12), [0]

    def watch(source: Path, *arguments: Any, replace: Any = Path.replace) -> Any:
        if source.parent in disk.folders:
            most[0] = max(most[0], disk.used())
        return replace(source, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", watch)
        train(config, stop_after=epochs)
    return most[0]


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_what_a_run_will_take_is_known_before_it_begins(
    epochs: int, config: ExperimentConfig, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = most_used(config, monkeypatch, epochs)
    for folder in (config.output_dir, config.save_dir):
        shutil.rmtree(folder)
    too_small = Disk(config, int(most * 0.9))
    monkeypatch.setattr("handclip.runs.disk_space.shutil.disk_usage", too_small.usage)
    with pytest.raises(HandCLIPError, match=r"MiB are free on this disk, but .* will take .* more. Make room, or set"):
        train(config, stop_after=epochs)
    assert not config.output_dir.exists()
    monkeypatch.setattr("handclip.runs.disk_space.shutil.disk_usage", Disk(config, most).usage)
    train(config, stop_after=epochs)


def test_a_run_that_goes_on_needs_room_for_what_is_to_come_alone(
    config: ExperimentConfig, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, stop_after=2)
    disk = Disk(config, 0)
    state = max(path.stat().st_size for path in RunFolder.of(config).states.glob("*.ckpt"))
    monkeypatch.setattr("handclip.runs.disk_space.shutil.disk_usage", disk.usage)
    disk.size = disk.used() + int(state * 0.9)
    with pytest.raises(HandCLIPError, match="free on this disk"):
        train(config, resume=True)
    disk.size = disk.used() + state
    train(config, resume=True)


def test_disks_are_asked_one_by_one(config: ExperimentConfig, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(free=0 if len(asked) == 2 else 10**12)

    monkeypatch.setattr("handclip.runs.disk_space._disk", lambda path: path.suffix)
    monkeypatch.setattr("handclip.runs.disk_space.shutil.disk_usage", usage)
    with pytest.raises(HandCLIPError, match=r"saved_models: 0\.0 MiB are free"):
        train(config)
