"""Evaluation from features made once, against a plain loop that embeds query and gallery anew for every draw.

The small, untrained ViT on dorsal right hands of the real sample, where it lies beside the repository, else on
synthetic hands; the work does not depend on what the weights are.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from harness import Row, extra_memory, main, seconds_of, speedup_row

from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import parse_config
from handclip.datasets.images import read_image
from handclip.datasets.manifest import Manifest
from handclip.datasets.prepare import prepare
from handclip.datasets.synthetic import SyntheticHands, generate
from handclip.datasets.transforms import ImageTransform
from handclip.engine.evaluation import Evaluation, evaluate
from handclip.engine.summary import METRICS
from handclip.metrics import rank_gallery
from handclip.models.builder import build_model

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "hands11k_sample"
HANDS = SyntheticHands(identities=40, images_per_aspect=5, size=160)

Means = dict[tuple[str, str], dict[str, float]]


def plain_loop(manifest: Manifest, config: ExperimentConfig, batch_size: int = 64) -> Means:
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


def prepare_hands(folder: Path) -> str:
    """Write the manifests of the real sample, or of synthetic hands; return which."""
    if SAMPLE.is_dir():
        prepare("11k", SAMPLE, folder / "manifests", allow_missing=True)
        return "the real sample"
    generate(folder / "hands", HANDS)
    prepare("11k", folder / "hands", folder / "manifests")
    return "synthetic hands"


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        hands = prepare_hands(folder)
        values = {
            "experiment": "benchmark",
            "model": "vit_small",
            "pretrained": "none",
            "dataset": "11k",
            "variant": "baseline",
            "manifest": folder / "manifests",
            "eval_dir": folder / "eval_logs",
            "pixel_cache_gib": 0,
        }
        config = parse_config(values, source="benchmark")
        manifest = Manifest.load(folder / "manifests" / "manifest_dorsal_r.json")
        done: list[Evaluation] = []
        expected: list[Means] = []
        with extra_memory() as extra:
            seconds = seconds_of(lambda: done.append(evaluate(config, overwrite=True)), repeats=3)
        reference_seconds = seconds_of(lambda: expected.append(plain_loop(manifest, config)))

    for (protocol, flip), means in expected[0].items():
        ours = done[-1].result(protocol, flip)["mean"]
        for name, value in means.items():
            assert abs(ours[name] - value) < 1e-6, (protocol, flip, name, ours[name], value)
    yield speedup_row(
        f"evaluation of ten draws, both galleries, both flips, small ViT, {hands}",
        "query and gallery embedded anew for every draw",
        reference_seconds=reference_seconds,
        seconds=seconds,
        target=9,
        extra_mib=extra[0],
        same_work="all twenty means equal to 1e-6",
        note=f"{done[-1].metrics['distinct_images']} distinct images of dorsal right; with all records written",
    )


if __name__ == "__main__":
    main(rows)
