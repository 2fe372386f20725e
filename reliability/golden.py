"""Freeze what a small matrix of runs computes, and compare it after a change that should not move a digit.

    python reliability/golden.py --out golden_out                        # before: writes golden_out/golden.json
    python reliability/golden.py --out golden_new --against golden_out   # after: the exit code is 1 if anything differs

Each run is trained and evaluated through the command line on 12 people drawn here: ViT and MBA-Net, in float32 and
bfloat16, cross-entropy first and then cross-entropy + triplet + center on top of it, in one process and in two,
undisturbed and interrupted by SIGTERM and resumed. Kept are the losses, learning rates and validation of each epoch,
`metrics.json` but for its seconds and places, the hash of `per_query.csv`, and the hashes of the weights. They are
those of this machine and these libraries.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageFilter

PEOPLE, PHOTOGRAPHS = 12, 8
COLUMNS = ("epoch", "loss_", "lr_", "val_", "validation_images")
MEASURED = (
    "run", "dataset", "aspect", "model", "weights_sha256", "preprocessing", "manifest_sha256", "trained_on",
    "cross_domain", "settings", "rerank", "training_ended", "distinct_images", "missing_images", "unreadable_images",
    "results",
)  # fmt: skip
LOSSES = [{"type": "cross_entropy"}, {"type": "triplet", "margin": 0.3}, {"type": "center", "weight": 0.0005}]


@dataclass(frozen=True)
class Golden:
    """One run of the matrix."""

    name: str
    config: dict[str, Any]
    interrupted: bool = False


def matrix(hands: Path) -> Iterator[Golden]:
    """Yield the runs, an earlier stage before the one that goes on from it."""
    common: dict[str, Any] = {
        "dataset": "folder", "data_root": str(hands), "pretrained": "none", "epochs": 3, "batch_size": 12,
        "images_per_identity": 3, "lr": 1e-3, "backbone_lr_scale": 1.0, "warmup_epochs": 0.5, "device": "cpu",
        "num_workers": 1, "augmentation": {"flip": 0.5, "rotation": 10.0, "erasing": 0.5}, "num_splits": 3, "seed": 3,
    }  # fmt: skip
    for model in ("vit_small", "mbanet_small"):
        neck = "bnneck" if model == "vit_small" else "hidden"
        for precision in ("float32", "bfloat16"):
            for devices in (1, 2):
                for interrupted in (False, True):
                    if interrupted and devices == 2:  # processes that share a run go on from a whole epoch
                        continue
                    name = f"{model}-{precision}-{devices}" + ("-interrupted" if interrupted else "")
                    own = {**common, "model": model, "neck": neck, "precision": precision, "devices": devices}
                    yield Golden(name, {**own, "experiment": "first"}, interrupted)
                    earlier = {"experiment": "second", "losses": LOSSES, "resume_from": f"{name}/first.pth"}
                    yield Golden(f"{name}-second", {**own, **earlier}, interrupted)


def draw_hands(root: Path) -> None:
    """Draw a folder of blurred noise for each person, with other light in each photograph."""
    for person in range(PEOPLE):
        random = np.random.default_rng(person)
        pattern = random.uniform(0, 255, (30, 40, 3))
        folder = root / f"person_{person:02}"
        folder.mkdir(parents=True)
        for number in range(PHOTOGRAPHS):
            seen = np.clip(pattern * random.uniform(0.6, 1.2) + random.normal(0, 40, pattern.shape), 0, 255)
            picture = Image.fromarray(seen.astype(np.uint8)).resize((320, 240)).filter(ImageFilter.GaussianBlur(2))
            picture.save(folder / f"{number}.png")


def main() -> int:
    """Run the matrix, or what of it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder to work in, which is made anew")
    parser.add_argument("--against", type=Path, help="the folder of an earlier run, to compare with")
    parser.add_argument("--only", default="", help="runs whose names hold this, and no others")
    given = parser.parse_args()
    out: Path = given.out.resolve()
    against = json.loads((given.against / "golden.json").read_text()) if given.against else None
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    draw_hands(out / "hands")
    found: dict[str, Any] = {}
    different = False
    for golden in matrix(Path("hands")):
        if given.only not in golden.name:
            continue
        start = time.perf_counter()
        found[golden.name] = run(golden, out)
        verdict = "kept"
        if against is not None:
            wrong = list(differences(against.get(golden.name), found[golden.name], golden.name))
            different |= bool(wrong)
            verdict = "\n  ".join(["DIFFERS", *wrong[:8]]) if wrong else "equal"
        print(f"{golden.name}: {verdict} ({time.perf_counter() - start:.0f} s)", flush=True)
        (out / "golden.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if different else 0


def run(golden: Golden, out: Path) -> dict[str, Any]:
    """Train and evaluate a run; return what of it must not move."""
    own = golden.name.removesuffix("-second")
    folders = {key: f"{own}/{key}" for key in ("output_dir", "save_dir", "eval_dir")}
    config = out / f"{golden.name}.yml"
    config.write_text(yaml.safe_dump({**golden.config, **folders}), encoding="utf-8")
    handclip("train", config, out, interrupt=golden.interrupted)
    log = out / next(iter(sorted((out / own / "output_dir").glob(f"{golden.config['experiment']}_*"))))
    result = json.loads((log / "result.json").read_text())
    shutil.copy(out / result["checkpoint"], out / own / f"{golden.config['experiment']}.pth")
    handclip("evaluate", config, out)
    evaluation = out / own / "eval_dir" / result["run"]
    metrics = json.loads((evaluation / "metrics.json").read_text())
    provenance = json.loads((log / "provenance.json").read_text())
    with (log / "metrics.csv").open(encoding="utf-8") as file:
        history = [{k: v for k, v in row.items() if k.startswith(COLUMNS)} for row in csv.DictReader(file)]
    return {
        "history": history,
        "best_epoch": result["best_epoch"],
        "weights": [provenance[key] for key in ("starts_from_sha256", "weights_sha256", "last_weights_sha256")],
        "metrics": {key: metrics[key] for key in MEASURED},
        "per_query": hashlib.sha256((evaluation / "per_query.csv").read_bytes()).hexdigest(),
    }


def handclip(verb: str, config: Path, out: Path, *, interrupt: bool = False) -> None:
    """Run a command to its end; interrupt it in its second epoch first, if asked to."""
    command = [sys.executable, "-m", "handclip", verb, str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(out / "cache")}
    log = (out / "log.txt").open("ab")
    if interrupt:
        process = subprocess.Popen(command, cwd=out, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            if b"Epoch 1/" in line:
                time.sleep(0.3)
                process.send_signal(signal.SIGTERM)
        if process.wait() != 128 + signal.SIGTERM:
            sys.exit(f"{config}: was to be interrupted, and ended with {process.returncode}; see {out}/log.txt")
        command.append("--resume")
    if subprocess.run(command, cwd=out, env=environment, stdout=log, stderr=log, check=False).returncode:
        sys.exit(f"{verb} {config} failed; see {out}/log.txt")


def differences(before: Any, after: Any, place: str) -> Iterator[str]:
    """Name each value that is another."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from differences(before.get(key), after.get(key), f"{place}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{place}[{number}]")
    elif before != after:
        yield f"{place}: {before!r} -> {after!r}"


if __name__ == "__main__":
    sys.exit(main())
