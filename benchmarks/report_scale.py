"""Seconds and peak memory of the report of one run, with as many queries as identities, in a process of its own.

The features are made up: people at random places, photographs of a person near each other. All else is what an
evaluation writes, by the code that writes it. There are no photographs.
"""

import argparse
import json
import resource
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from handclip.config.loading import parse_config
from handclip.datasets.manifest import Draw, Manifest, ManifestImage
from handclip.files import write_json, write_text
from handclip.report.report import write_report
from handclip.retrieval.features import FeatureTable, listed_path
from handclip.retrieval.ranking import rank_draws
from handclip.retrieval.summary import per_query_csv, per_split_csv, summarise
from handclip.runs.artifacts import (
    KeptFeatures,
    manifest_file,
    write_attributes,
    write_explanations,
    write_features,
)

DRAWS = 10
DIMENSIONS = 512

parser = argparse.ArgumentParser()
parser.add_argument("--identities", type=int, default=1000)
parser.add_argument("--noise", type=float, default=0.6, help="spread of a person's photographs; 1 is that of people")
options = parser.parse_args()


def make_manifest(root: Path, people: int) -> Manifest:
    """Two photographs of each test person, three of each training person; each draw takes one of the two as gallery."""
    images = []
    for identity in range(2 * people):
        for number in range(2 if identity < people else 3):
            name = f"{identity}_{number}.jpg"
            images.append(ManifestImage(f"Hands/{name}", identity, sha256(name.encode()).hexdigest(), 1))
    first_of_training = 2 * people
    training = range(first_of_training, len(images))
    random = np.random.default_rng(0)
    draws = []
    for _ in range(DRAWS):
        chosen = 2 * np.arange(people) + random.integers(0, 2, people)
        draws.append(Draw(query=tuple((chosen ^ 1).tolist()), gallery=tuple(chosen.tolist())))
    return Manifest(
        dataset="11k",
        aspect="dorsal_r",
        seed=0,
        images=tuple(images),
        train=tuple(index for index in training if (index - first_of_training) % 3),
        val=tuple(index for index in training if (index - first_of_training) % 3 == 0),
        test=tuple(range(first_of_training)),
        draws=tuple(draws),
        identity_names={identity: f"{identity:07d}" for identity in range(2 * people)},
        missing_images=0,
        unreadable_images=0,
        root=root,
    )


def write_evaluation(folder: Path, manifest: Manifest) -> None:
    """Write what `handclip evaluate` would."""
    values = {
        "experiment": "scale",
        "model": "vit_small",
        "pretrained": "none",
        "dataset": "11k",
        "variant": "baseline",
    }
    config = parse_config({**values, "gallery_protocols": ["gallery"], "flip_settings": ["none"]}, "benchmark")
    random = np.random.default_rng(0)
    identities = np.array([image.identity for image in manifest.images])
    people = random.normal(size=(identities.max() + 1, DIMENSIONS))
    vectors = people[identities] + options.noise * random.normal(size=(len(identities), DIMENSIONS))
    vectors = vectors.astype(np.float32)
    hashes = [image.sha256 for image in manifest.images]
    rows = {listed_path(manifest, index): index for index in range(len(identities))}
    rankings = {"dorsal_r": rank_draws(config, manifest, FeatureTable(rows, hashes, {"none": vectors}))}
    metrics: dict[str, Any] = {
        "run": "scale", "experiment": "scale", "variant": "baseline", "stage": "0", "family": "clip", "losses": [],
        "seed": 0, "dataset": "11k", "aspect": "dorsal_r", "model": "vit_small", "input_size": [112, 112],
        "manifest_sha256": manifest.sha256, "feature_dim": DIMENSIONS, "parameters": 0, "gflops_per_image": None,
        "rerank": None, "trained_on": None, "cross_domain": False,
        "results": summarise(rankings, {"dorsal_r": manifest}, None),
    }  # fmt: skip
    write_text(folder / "per_split.csv", per_split_csv(rankings))
    write_text(folder / "per_query.csv", per_query_csv(rankings, {"dorsal_r": manifest}))
    write_json(folder / "metrics.json", metrics)
    manifest.save(manifest_file(folder, "dorsal_r"))
    write_features(folder, KeptFeatures(hashes, {"none": vectors}))
    groups = [{"age": str(20 + i % 40), "gender": ("female", "male")[i % 2]} for i in range(len(people))]
    write_attributes(folder, {manifest.images[index].path: groups[identities[index]] for index in manifest.test})
    write_explanations(folder, [])
    write_text(folder / "config.yml", json.dumps(config.to_dict()))
    write_json(folder / "environment.json", {"handclip": "benchmark"})


with tempfile.TemporaryDirectory() as place:
    folder = Path(place)
    write_evaluation(folder / "scale", make_manifest(folder / "nowhere", options.identities))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    report = write_report([folder / "scale"], folder / "report")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = report.page.stat().st_size / 1e6
print(f"{options.identities:,} identities, {options.identities:,} queries, {DRAWS} draws: report in {seconds:.1f} s")
print(f"peak memory {peak:.2f} GiB ({before:.2f} GiB before the report); page {size:.1f} MB")
