"""Evaluation folders as `handclip evaluate` writes them, made up in a moment."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from handclip.checksums import write_checksums
from handclip.file_names import CHECKSUMS

ALL_ASPECTS = ("dorsal_r", "dorsal_l", "palmar_r", "palmar_l")
METRICS = ("rank1", "rank5", "rank10", "map", "map_trapezoid")
COLUMNS = ["aspect", "gallery_protocol", "flip", "split", "image", "identity", "name", "rank", "ap", "ap_trapezoid"]
MANIFEST = "0123456789abcdef" * 4


def write_run(
    folder: Path,
    *,
    skill: float = 0.5,
    luck: int = 0,
    people: int = 20,
    aspects: Sequence[str] = ("dorsal_r",),
    protocols: Sequence[str] = ("gallery", "gallery_all"),
    flips: Sequence[str] = ("none", "sum"),
    gallery_images: int | None = None,
    queries: int | None = None,
    unmatched: bool = False,
    checksums: bool = False,
    **changes: Any,
) -> Path:
    """Write one evaluation on three draws, whose files agree with each other; return its folder.

    Args:
        folder: to write to; its name is the run's.
        skill: how often the right person comes first.
        luck: seed of the ranks.
        people: test identities.
        aspects: several make it an evaluation of `all`.
        protocols: gallery protocols.
        flips: flip settings.
        gallery_images: what to claim; default what fits.
        queries: what to claim; default what is written.
        unmatched: each draw has a query that cannot be answered.
        checksums: write `SHA256SUMS`; without it, the files can be changed.
        changes: other keys of `metrics.json`.
    """
    rng = np.random.default_rng(luck)
    abilities = rng.normal(size=people)
    lines: list[list[Any]] = []
    for aspect in aspects:
        for protocol in protocols:
            for flip in flips:
                for split in range(3):
                    for person in range(people):
                        for image in range(1 + person % 4):
                            hit = rng.normal() + abilities[person] < 4 * (skill - 0.5)
                            rank = 1 if hit else int(rng.integers(2, 15))
                            if unmatched and person == image == 0:
                                rank = 0
                            aps = [1 / rank, 1.0 if rank == 1 else 0.5 / rank] if rank else ["", ""]
                            name = f"Hands/{aspect}_{person}_{image}.jpg"
                            lines.append([aspect, protocol, flip, split, name, person, f"person {person}", rank, *aps])
    settings = [(protocol, flip) for protocol in protocols for flip in flips]

    def results(of: Sequence[str]) -> list[dict[str, Any]]:
        return [entry(lines, of, *setting, gallery_images or people, queries) for setting in settings]

    stage = changes.get("stage", "1")
    metrics: dict[str, Any] = {
        "run": folder.name,
        "experiment": "trained" if stage != "0" else "baseline",
        "variant": "finetuned" if stage != "0" else "baseline",
        "stage": stage,
        "losses": ["cross_entropy", "triplet"] if stage != "0" else [],
        "seed": 0,
        "dataset": "11k",
        "aspect": aspects[0] if len(aspects) == 1 else "all",
        "model": "vit_small",
        "family": "clip",
        "options": {},
        "training_ended": True if stage != "0" else None,
        "input_size": [112, 96],
        "manifest_sha256": MANIFEST,
        "feature_dim": 256,
        "parameters": 2_876_352,
        "gflops_per_image": 0.3125,
        "rerank": None,
        "trained_on": None,
        "cross_domain": False,
        "results": results(aspects),
        **changes,
    }
    if len(aspects) > 1:
        metrics["per_aspect"] = {
            aspect: {"manifest_sha256": f"{number}{MANIFEST[1:]}", "results": results([aspect])}
            for number, aspect in enumerate(aspects)
        }
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with (folder / "per_query.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *lines])
    (folder / "cost.json").write_text(json.dumps(cost_of(metrics)))
    if checksums:
        seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Write `SHA256SUMS` over what is in a folder now."""
    write_checksums(folder, [path.name for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS])


def entry(
    lines: list[list[Any]], aspects: Sequence[str], protocol: str, flip: str, gallery_images: int, queries: int | None
) -> dict[str, Any]:
    """Average as the protocol says: over queries, then aspects, then draws."""
    splits, matched = [], []
    for split in range(3):
        by_aspect = []
        matched.append(0)
        for aspect in aspects:
            found = [line[7:] for line in lines if line[:4] == [aspect, protocol, flip, split] and line[7]]
            matched[-1] += len(found)
            by_aspect.append(
                [
                    *(fmean(rank <= k for rank, _, _ in found) for k in (1, 5, 10)),
                    fmean(ap for _, ap, _ in found),
                    fmean(trapezoid for _, _, trapezoid in found),
                ]
            )
        splits.append(dict(zip(METRICS, map(fmean, zip(*by_aspect, strict=True)), strict=True)))
    return {
        "gallery_protocol": protocol,
        "flip": flip,
        "num_splits": 3,
        "mean": {name: fmean(split[name] for split in splits) for name in METRICS},
        "std": {name: pstdev(split[name] for split in splits) for name in METRICS},
        "splits": splits,
        "queries": queries or sum(line[0] in aspects and line[1:4] == [protocol, flip, 0] for line in lines),
        "gallery_images": [gallery_images * (4 if protocol == "gallery_all" else 1) for _ in aspects],
        "matched_queries": matched,
        "unmatched_queries": 0,
        "tied_queries": 0,
        "copied_queries": 0,
    }


def cost_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """What `cost.json` says."""
    machine = {"device": "cpu", "processor": "AMD EPYC", "cores": 2}
    evaluation = {"seconds": 6.75, "images_per_second": 120.5, **machine, "processor": "Intel Xeon", "cores": 1}
    training = {
        "file": f"train_logs/{metrics['run']}/result.json",
        "seconds": 614.25,
        "images_per_second": 101.5,
        "epochs": 9,
        "best_epoch": 7,
        "peak_memory_mib": 1234.5,
        "peak_gpu_memory_mib": None,
        "precision": "float32",
        **machine,
    }
    return {"evaluation": evaluation, "training": training if metrics["variant"] == "finetuned" else None}


def change_json(path: Path, **changes: Any) -> None:
    """Replace keys of a JSON file; a key that becomes `...` is removed."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
