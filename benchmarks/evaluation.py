"""Evaluation from features made once, against a plain loop that embeds query and gallery anew for every draw.

Runs on synthetic hands with a small, untrained ViT; the work does not depend on what the weights are.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from handclip.config.loading import parse_config
from handclip.cores import available_cores
from handclip.datasets.images import read_image
from handclip.datasets.manifest import Manifest
from handclip.datasets.prepare import prepare
from handclip.datasets.synthetic import SyntheticHands, generate
from handclip.datasets.transforms import ImageTransform
from handclip.engine.evaluation import evaluate
from handclip.engine.summary import METRICS
from handclip.metrics import rank_gallery
from handclip.models.builder import build_model

HANDS = SyntheticHands(identities=20, images_per_aspect=5, size=160)


def plain_loop(manifest: Manifest, config, batch_size: int = 64) -> dict[tuple[str, str], dict[str, float]]:
    """Embed the images of each query and gallery folder for every draw and setting, without workers or a cache."""
    torch.manual_seed(config.seed)
    model = build_model(config).eval()
    transform = ImageTransform(model.encoder.preprocessing)

    @torch.no_grad()
    def embed(indices: tuple[int, ...], flip: str) -> np.ndarray:
        parts = []
        for start in range(0, len(indices), batch_size):
            chunk = indices[start : start + batch_size]
            images = torch.stack([transform(read_image(manifest.path_of(index))) for index in chunk])
            features = model.embed(images)
            parts.append(features + model.embed(images.flip(-1)) if flip == "sum" else features)
        return torch.cat(parts).numpy()

    means = {}
    for protocol in ("gallery", "gallery_all"):
        for flip in ("none", "sum"):
            draws = []
            for draw in manifest.draws:
                gallery = getattr(draw, protocol)
                labels = [[manifest.images[index].identity for index in side] for side in (draw.query, gallery)]
                result = rank_gallery(embed(draw.query, flip), embed(gallery, flip), *labels)
                draws.append((result.rank(1), result.rank(5), result.rank(10), result.map, result.map_trapezoid))
            means[protocol, flip] = dict(zip(METRICS, np.mean(draws, axis=0), strict=True))
    return means


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generate(root / "hands", HANDS)
        prepare("11k", root / "hands", root / "manifests")
        values = {
            "experiment": "benchmark",
            "model": "vit_small",
            "pretrained": "none",
            "dataset": "11k",
            "variant": "baseline",
            "manifest": root / "manifests",
            "eval_dir": root / "eval_logs",
        }
        config = parse_config(values, source="benchmark")
        manifest = Manifest.load(root / "manifests" / "manifest_dorsal_r.json")

        start = time.perf_counter()
        reference = plain_loop(manifest, config)
        reference_seconds = time.perf_counter() - start
        start = time.perf_counter()
        evaluation = evaluate(config)
        seconds = time.perf_counter() - start

    for (protocol, flip), means in reference.items():
        ours = evaluation.result(protocol, flip)["mean"]
        for name, value in means.items():
            assert abs(ours[name] - value) < 1e-6, (protocol, flip, name, ours[name], value)
    print(f"Evaluation of ten draws, both galleries, both flips; {available_cores()} cores, torch {torch.__version__}")
    print(f"{evaluation.metrics['distinct_images']} distinct images; metrics identical")
    print(f"plain loop {reference_seconds:.1f} s, HandCLIP {seconds:.1f} s: {reference_seconds / seconds:.1f}x faster")


if __name__ == "__main__":
    main()
