"""docs/files.md tells what a run writes, and its example reads it without HandCLIP."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_study import LOSSES, tiny_config

from handclip.runs.evaluate import evaluate
from handclip.runs.train import train

DOCUMENT = (Path(__file__).parents[1] / "docs" / "files.md").read_text(encoding="utf-8")
SOMETIMES = {"copied_images", "unread_files", "unread_identities", "pattern", "peak_gpu_memory_mib"}
"""What the run of these tests does not write."""


@pytest.fixture(scope="module")
def study(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained and evaluated; read it, do not change it."""
    place = tmp_path_factory.mktemp("files")
    places = {key: str(place / name) for key, name in
              (("output_dir", "train_logs"), ("save_dir", "saved_models"), ("eval_dir", "eval_logs"))}  # fmt: skip
    config = tiny_config(manifests, aspect="all", losses=LOSSES["ce_triplet_center"], **places)
    train(config)
    evaluate(config)
    return place


def documented(heading: str) -> list[str]:
    """What the first column of the table below a heading names."""
    [section] = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", DOCUMENT, re.M | re.S)
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def found_in(study: Path) -> dict[str, Iterable[str]]:
    """What the files of a run hold, by heading of the document."""
    [evaluation], [training] = (list((study / name).iterdir()) for name in ("eval_logs", "train_logs"))
    metrics: dict[str, Any] = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    manifest = json.loads((evaluation / "manifest_dorsal_r.json").read_text(encoding="utf-8"))
    [checkpoint] = [path for path in (study / "saved_models").iterdir() if not path.stem.endswith("_last")]

    def columns(path: Path) -> list[str]:
        with path.open(encoding="utf-8", newline="") as file:
            return next(csv.reader(file))

    return {
        "`metrics.json`": metrics,
        "Each entry of `results`": metrics["results"][0],
        "`per_split.csv`": columns(evaluation / "per_split.csv"),
        "`per_query.csv`": columns(evaluation / "per_query.csv"),
        "`features.safetensors`": load_file(evaluation / "features.safetensors"),
        "The manifest": manifest,
        "`metrics.csv`": columns(training / "metrics.csv"),
        "The checkpoint": torch.load(checkpoint, weights_only=True),
    }


def test_each_key_and_column_is_documented_and_there(study: Path) -> None:
    for heading, found in found_in(study).items():
        names, written = documented(heading), list(found)
        patterns = [re.escape(name).replace("<term>", r"\w+").replace("<group>", r"\w+") for name in names]
        unknown = [one for one in written if not any(re.fullmatch(pattern, one) for pattern in patterns)]
        assert not unknown, f"docs/files.md, {heading}, lacks {unknown}"
        gone = [name for name, pattern in zip(names, patterns, strict=True)
                if name not in SOMETIMES and not any(re.fullmatch(pattern, one) for one in written)]  # fmt: skip
        assert not gone, f"docs/files.md, {heading}, tells of {gone}, which a run does not write"


def test_the_example_recomputes_what_was_recorded(study: Path) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.M | re.S)
    assert "import handclip" not in code and "from handclip" not in code
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=study)
    assert done.returncode == 0, done.stderr
    numbers = dict(line.split() for line in done.stdout.splitlines())
    assert list(numbers) == ["recomputed", "metrics.json", "per_split.csv", "per_query.csv"]
    assert all(float(number) == pytest.approx(float(numbers["metrics.json"]), abs=1e-12) for number in numbers.values())
    assert 0 < float(numbers["metrics.json"]) < 1


def test_the_shapes_and_types_are_those_that_are_documented(study: Path) -> None:
    features = found_in(study)["`features.safetensors`"]
    assert isinstance(features, dict)
    rows = len(features["sha256"])
    assert (features["sha256"].dtype, features["sha256"].shape) == (np.uint8, (rows, 32))
    for name in ("flip_none", "flip_sum"):
        assert (features[name].dtype, features[name].shape[0], features[name].ndim) == (np.float32, rows, 2)
    manifest = found_in(study)["The manifest"]
    assert isinstance(manifest, dict)
    path, identity, size, sha256 = manifest["images"][0]
    assert str(identity) in manifest["identity_names"]
    assert (type(path), type(size), len(sha256)) == (str, int, 64)
    assert set(manifest["draws"][0]) == {"query", "gallery", "gallery_all"}
