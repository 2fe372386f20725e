"""A study small enough for tests: synthetic hands in 11k layout, their manifests, a model that trains in a second."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import on_other_data, parse_config
from handclip.datasets.manifest import Manifest
from handclip.datasets.prepare import prepare
from handclip.synthetic import SyntheticHands, generate

HANDS = SyntheticHands(identities=12, images_per_aspect=3, size=64)
"""Six identities to train on, with two training images and a validation image each; six to test on."""

LOSSES = {
    "ce": [{"type": "cross_entropy"}],
    "ce_triplet": [{"type": "cross_entropy"}, {"type": "triplet"}],
    "ce_center": [{"type": "cross_entropy"}, {"type": "center"}],
    "ce_arcface": [{"type": "cross_entropy"}, {"type": "arcface"}],
    "ce_triplet_center": [{"type": "cross_entropy"}, {"type": "triplet"}, {"type": "center"}],
}


def make_hands(folder: Path) -> Path:
    """Generate the hands once in `folder`."""
    return generate(folder / "tiny_hands", HANDS)


def make_manifests(folder: Path) -> Path:
    """Prepare them once in `folder`."""
    prepare("11k", make_hands(folder), folder / "tiny_manifests")
    return folder / "tiny_manifests"


def tiny_values(manifests: Path, **changes: Any) -> dict[str, Any]:
    """The experiment file's values; everything is written below the working directory."""
    return {
        "experiment": "tiny",
        "model": "vit_small",
        "pretrained": "none",
        "dataset": "11k",
        "aspect": "dorsal_r",
        "manifest": str(manifests),
        "input_size": 32,
        "epochs": 2,
        "batch_size": 8,
        "images_per_identity": 2,
        "lr": 1e-3,
        "backbone_lr_scale": 1.0,
        "device": "cpu",
        "precision": "float32",
        "num_workers": 0,
        "num_splits": 3,
        **changes,
    }


def baseline_values(manifests: Path, **changes: Any) -> dict[str, Any]:
    """The same for a baseline, which has no training keys."""
    training = ("epochs", "batch_size", "images_per_identity", "lr", "backbone_lr_scale", "precision")
    values = {key: value for key, value in tiny_values(manifests).items() if key not in training}
    return {**values, "variant": "baseline", **changes}


def tiny_config(manifests: Path, **changes: Any) -> ExperimentConfig:
    return parse_config(on_other_data(tiny_values(manifests), changes), source="test")


def baseline_config(manifests: Path, **changes: Any) -> ExperimentConfig:
    return parse_config(on_other_data(baseline_values(manifests), changes), source="test")


def write_config(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def loss_columns(path: Path) -> list[dict[str, str]]:
    """The rows of a `metrics.csv` without speed, time and memory, which differ from run to run."""
    measured = ("images_per_second", "seconds", "peak_memory_mib")
    return [{key: value for key, value in row.items() if key not in measured} for row in read_table(path)]


def metrics_without_time(path: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert metrics.pop("seconds") >= 0
    return metrics


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, model and criterion together."""
    loaded = torch.load(path, weights_only=True)
    return {
        f"{part}.{key}": value for part in ("model_state", "criterion_state") for key, value in loaded[part].items()
    }


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two states are equal to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def load_manifest(manifests: Path, aspect: str = "dorsal_r") -> Manifest:
    return Manifest.load(manifests / f"manifest_{aspect}.json")


def several_gallery_images(manifests: Path, path: Path, aspect: str = "dorsal_r") -> Path:
    """A manifest in which all but one image of each test person are in the gallery."""
    manifest = load_manifest(manifests, aspect)
    draws = []
    for draw in manifest.draws:
        first = {manifest.images[index].identity: index for index in reversed(draw.query)}
        query = tuple(sorted(first.values()))
        gallery = tuple(sorted({*draw.query, *draw.gallery} - set(query)))
        draws.append(replace(draw, query=query, gallery=gallery, gallery_all=()))
    images = manifest.images[: max(manifest.train_all + manifest.test) + 1]
    replace(manifest, draws=tuple(draws), images=images).save(path)
    return path
