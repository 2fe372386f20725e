"""The kinds of work that are ended at random moments, each small enough to be done over and over."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from handclip.datasets.prepare import prepare
from handclip.synthetic import SyntheticHands, generate


@dataclass(frozen=True)
class Data:
    """Hands that all work shares, their manifests, and a place that holds a training and evaluations of it."""

    hands: Path
    manifests: Path
    trained: Path


@dataclass(frozen=True)
class Work:
    """One kind of work, done by a command in a folder of its own.

    `begin` puts there what the command needs; `again` are the arguments that go on after an interruption; `share` says
    how much of all kills it gets.
    """

    name: str
    arguments: Sequence[str]
    again: Sequence[str]
    share: int
    begin: Callable[[Path], None]
    freshly: bool = False
    """Whether it is also done by processes that are started as a user starts them."""
    goes_on: str = "give the same command again"
    """What the command says when it is asked to stop."""
    every: int = 20
    """It is killed before every so many of the changes that it makes to the disk, unless that is said otherwise."""


HANDS = SyntheticHands(identities=24, images_per_aspect=4, size=96)
"""Twelve identities to train on, with 36 training images and twelve validation images an aspect; twelve to test on."""


def make_data(folder: Path, hands: SyntheticHands = HANDS) -> Data:
    """Draw the hands and prepare them."""
    folder = folder.absolute()
    root = generate(folder / "hands", hands)
    prepare("11k", root, folder / "manifests")
    return Data(root, folder / "manifests", folder / "trained")


def works_on(data: Data, *, epochs: int = 4, model: str = "vit_small") -> dict[str, Work]:
    """Return every kind of work by its name."""
    trainings = {workers: _experiment(data, epochs=epochs, model=model, num_workers=workers) for workers in (0, 1)}
    baseline = {"variant": "baseline", "aspect": "all", "explained_images": 0}
    training_keys = ("epochs", "batch_size", "images_per_identity", "lr", "backbone_lr_scale", "precision", "losses")
    untrained = {
        key: value
        for key, value in _experiment(data, **baseline).items()
        if key not in (*training_keys, "augmentation", "warmup_epochs", "neck")
    }
    found = [
        *(
            Work(
                f"train, {workers} workers" if workers != 1 else "train, 1 worker",
                ["train", "config.yml"],
                ["train", "config.yml", "--resume"],
                4 if workers == 0 else 3,
                _writing("config.yml", values),
                freshly=workers == 0,
                goes_on="--resume",
            )
            for workers, values in trainings.items()
        ),
        _same_again("evaluate", ["evaluate", "config.yml"], 3, _beside_a_training(data, trainings[0])),
        _same_again(
            "study",
            ["study", "study.yml", "--out", "out"],
            4,
            _writing("study.yml", _study(data, epochs=epochs // 2, model=model)),
            every=100,  # it takes longest, and its runs are those above
        ),
        _same_again("prepare", ["prepare", "11k", "--root", str(data.hands), "--out", "manifests"], 2, _nothing),
        _same_again("pixel cache", ["evaluate", "config.yml"], 2, _writing("config.yml", untrained)),
        _same_again("report", ["report", str(data.trained), "--out", "report"], 2, _nothing),
    ]
    return {work.name: work for work in found}


def _same_again(
    name: str, arguments: Sequence[str], share: int, begin: Callable[[Path], None], *, every: int = 20
) -> Work:
    return Work(name, arguments, arguments, share, begin, every=every)


def _experiment(data: Data, **changes: Any) -> dict[str, Any]:
    return {
        "experiment": "soak",
        "model": "vit_small",
        "pretrained": "none",
        "dataset": "11k",
        "aspect": "dorsal_r",
        "manifest": str(data.manifests),
        "input_size": 32,
        "epochs": 4,
        "batch_size": 8,
        "images_per_identity": 2,
        "lr": 1e-3,
        "backbone_lr_scale": 1.0,
        "warmup_epochs": 1,
        "neck": "bnneck",
        "losses": [{"type": "cross_entropy"}, {"type": "triplet"}, {"type": "center"}, {"type": "arcface"}],
        "augmentation": {"flip": 0.5, "color_jitter": 0.2, "resize_crop": 1.2},
        "device": "cpu",
        "precision": "float32",
        "num_workers": 0,
        "num_splits": 5,
        **changes,
    }


def _study(data: Data, *, epochs: int, model: str) -> dict[str, Any]:
    own = ("experiment", "model", "dataset", "aspect", "epochs", "lr", "losses")
    return {
        "study": "soak",
        "models": {model: None},
        "data": [{"dataset": "11k", "aspects": ["dorsal_r"]}],
        "losses": {"ce_triplet": [{"type": "cross_entropy"}, {"type": "triplet"}]},
        "common": {key: value for key, value in _experiment(data, warmup_epochs=0.5).items() if key not in own},
        "stage0": {"experiment": "stage0"},
        "stage1": {"experiment": "stage1", "epochs": epochs, "lr": 0.001},
        "stage2": {"experiment": "stage2", "epochs": epochs, "lr": 0.0005},
    }


def _writing(name: str, values: dict[str, Any]) -> Callable[[Path], None]:
    def begin(folder: Path) -> None:
        (folder / name).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    return begin


def _beside_a_training(data: Data, values: dict[str, Any]) -> Callable[[Path], None]:
    def begin(folder: Path) -> None:
        _writing("config.yml", values)(folder)
        for name in ("train_logs", "saved_models"):
            shutil.copytree(data.trained / name, folder / name)

    return begin


def _nothing(folder: Path) -> None:
    """Everything that the command needs lies elsewhere."""
